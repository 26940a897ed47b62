"""Deep deterministic policy gradient in NumPy: an actor, a critic, their slow copies, and a memory of transitions.

The critic Q and the actor mu are networks with two hidden layers of rectified linear units; mu ends in a sigmoid, so that an action
lies in 0..1. For transitions (s, a, r, s') of a batch

    L = mean (y - Q(s, a))^2,  y = (r - b) / d + Q'(s', mu'(s'))  (no second term behind the last step of an episode)

is minimised in Q's weights, and mean (Q(s, mu(s)) - 0.1 z^2 / 2) maximised in mu's, by Adam; z is what goes into the sigmoid, which
would soon be at one of its flat ends otherwise and learn nothing more. Q' and mu' follow by 0.01 of the way after each step. The
baseline b is the moving average of the episodes' rewards, and d their standard deviation, so that the metric's unit is of no account.

Lillicrap et al., "Continuous control with deep reinforcement learning" (2016); the undiscounted target with a baseline is that of
He et al., "AMC: AutoML for model compression and acceleration on mobile devices" (2018).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Weights = list[Array]  # kernel and bias of each layer, one after the other

HIDDEN = (64, 64)
ACTOR_RATE, CRITIC_RATE = 3e-3, 1e-3
TAUT = 0.1  # strength of what keeps the actor's outputs off the flat ends of the sigmoid
FOLLOWED = 0.01  # of the way from a slow copy to its original
BATCH, MEMORY = 64, 2000  # transitions
AVERAGED = 0.95  # of the baseline stays with every episode
LAST = 3e-3  # size of the last layer's first weights
TINY = 1e-8


class Transition(NamedTuple):
    """One step of an episode, whose reward is the whole episode's.

    Attributes:
        state, following: (features,); the last step has its own state as the one that follows.
        action: 0..1.
        reward: any unit.
        last: whether the episode ends with it.
    """

    state: Array
    action: float
    reward: float
    following: Array
    last: bool


def initial(sizes: Sequence[int], random: Generator) -> Weights:
    """The weights of a network: layers uniform within 1 / sqrt(inputs), the last within LAST."""
    weights: Weights = []
    for number, (into, out) in enumerate(pairwise(sizes)):
        bound = LAST if number == len(sizes) - 2 else into**-0.5
        weights += [random.uniform(-bound, bound, (into, out)), random.uniform(-bound, bound, out)]
    return weights


def forward(weights: Weights, inputs: Array) -> list[Array]:
    """What goes into every layer, and last what comes out of the network, each (batch, features)."""
    values = [inputs]
    for place in range(0, len(weights), 2):
        found = values[-1] @ weights[place] + weights[place + 1]
        values.append(found if place == len(weights) - 2 else np.maximum(found, 0.0))
    return values


def backward(weights: Weights, values: Sequence[Array], slope: Array) -> tuple[Weights, Array]:
    """The gradients of a scalar by the weights and by the inputs.

    Args:
        weights: of the network.
        values: from ``forward``.
        slope: of the scalar by the network's outputs, (batch, outputs).
    """
    found: Weights = []
    for place in range(len(weights) - 2, -1, -2):
        inputs = values[place // 2]
        found = [inputs.T @ slope, slope.sum(axis=0), *found]
        slope = slope @ weights[place].T
        if place:
            slope = slope * (inputs > 0)
    return found, slope


def sigmoid(values: Array) -> Array:
    """1 / (1 + exp(-values)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * values))


class Adam:
    """Moves weights against gradients. Kingma & Ba, "Adam: a method for stochastic optimization" (2015)."""

    def __init__(self, weights: Weights, rate: float) -> None:
        self._weights, self._rate, self._steps = weights, rate, 0
        self._means = [np.zeros_like(weight) for weight in weights]
        self._squares = [np.zeros_like(weight) for weight in weights]

    def step(self, gradients: Weights) -> None:
        """Moves the weights in place."""
        self._steps += 1
        rate = self._rate * (1 - 0.999**self._steps) ** 0.5 / (1 - 0.9**self._steps)
        for weight, gradient, mean, square in zip(self._weights, gradients, self._means, self._squares, strict=True):
            mean += 0.1 * (gradient - mean)
            square += 0.001 * (gradient**2 - square)
            weight -= rate * mean / (np.sqrt(square) + TINY)


class Agent:
    """Learns from episodes; equal episodes in equal order make equal agents."""

    def __init__(self, features: int, seed: int = 0) -> None:
        """Args:
        features: of a state.
        seed: of the first weights and of the batches.
        """
        self._random = np.random.Generator(np.random.PCG64(seed))
        self.actor, self.critic = (
            [weight.astype(np.float32) for weight in initial((inputs, *HIDDEN, 1), self._random)]
            for inputs in (features, features + 1)
        )
        self._slow_actor = [weight.copy() for weight in self.actor]
        self._slow_critic = [weight.copy() for weight in self.critic]
        self._actor_adam, self._critic_adam = Adam(self.actor, ACTOR_RATE), Adam(self.critic, CRITIC_RATE)
        self._memory: deque[Transition] = deque(maxlen=MEMORY)
        self._rewards: list[float] = []
        self._baseline = 0.0

    def action(self, state: Array) -> float:
        """What the actor would do, 0..1."""
        return float(_acted(self.actor, state[np.newaxis].astype(np.float32))[0, 0])

    def learn(self, episode: Sequence[Transition], updates: int) -> None:
        """Remember an episode, and take a number of steps on batches of what is remembered."""
        reward = episode[-1].reward
        self._baseline = AVERAGED * self._baseline + (1 - AVERAGED) * reward if self._rewards else reward
        self._rewards.append(reward)
        self._memory.extend(episode)
        for _ in range(updates if len(self._rewards) > 1 else 0):
            self._update()

    def _update(self) -> None:
        chosen = [self._memory[int(place)] for place in self._random.integers(len(self._memory), size=BATCH)]
        states = np.array([one.state for one in chosen], np.float32)
        following = np.array([one.following for one in chosen], np.float32)
        actions = np.array([[one.action] for one in chosen], np.float32)
        rewards = np.array([[one.reward] for one in chosen])
        goes_on = np.array([[not one.last] for one in chosen])
        later = _judged(self._slow_critic, following, _acted(self._slow_actor, following))[-1]
        worth = ((rewards - self._baseline) / (np.std(self._rewards) + TINY)).astype(np.float32)
        wanted = worth + goes_on * later
        self._critic_adam.step(critic_gradients(self.critic, states, actions, wanted))
        self._actor_adam.step(actor_gradients(self.actor, self.critic, states))
        for slow, fast in ((self._slow_actor, self.actor), (self._slow_critic, self.critic)):
            for behind, weight in zip(slow, fast, strict=True):
                behind += FOLLOWED * (weight - behind)


def critic_gradients(critic: Weights, states: Array, actions: Array, wanted: Array) -> Weights:
    """Of mean (wanted - Q(states, actions))^2, by the critic's weights; actions and wanted (batch, 1)."""
    values = _judged(critic, states, actions)
    return backward(critic, values, 2.0 * (values[-1] - wanted) / len(states))[0]


def actor_gradients(actor: Weights, critic: Weights, states: Array) -> Weights:
    """Of mean (TAUT z^2 / 2 - Q(states, mu(states))), by the actor's weights; mu = sigmoid(z)."""
    values = forward(actor, states)
    actions = sigmoid(values[-1])
    judged = _judged(critic, states, actions)
    _, inputs = backward(critic, judged, np.full_like(actions, -1.0 / len(states)))
    slope = inputs[:, -1:] * actions * (1.0 - actions) + TAUT / len(states) * values[-1]
    return backward(actor, values, slope)[0]


def _acted(actor: Weights, states: Array) -> Array:
    return sigmoid(forward(actor, states)[-1])


def _judged(critic: Weights, states: Array, actions: Array) -> list[Array]:
    return forward(critic, np.concatenate([states, actions], axis=1))


def truncated_normal(mean: float, deviation: float, random: Generator) -> float:
    """A normal number that lies in 0..1, drawn again until it does; the mean itself where that would take for ever."""
    for _ in range(1000):
        drawn = mean + deviation * random.standard_normal()
        if 0.0 <= drawn <= 1.0:
            return float(drawn)
    return min(max(mean, 0.0), 1.0)
