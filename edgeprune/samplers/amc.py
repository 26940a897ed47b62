"""AMC: a reinforcement learning agent goes through the network and says of each group which share of its units stays.

A state is what is known of the group (its features, its place), how much is saved already, how much can be saved behind it, the
action before, and how tight the aim is, all within 0..1. The action a in 0..1 becomes the allowed count nearest to a * units that
still lets the groups behind it meet the aim when they are cut as far as they may be, and reach it when they are left whole:

    a_t <= max {a : cost(a_1 .. a_t-1, a, least, ...) <= aim},  a_t >= min {a : cost(a_1 .. a_t-1, a, whole, ...) >= aim}

so no episode misses the aim, and none is spent far below it (the paper has the first of these bounds).

After the groups each choice is a step, its action the place among its words. The reward of every step is the episode's: with limits
-drop; without any each episode draws its aim, and the reward is that of the paper's search for accuracy and cost together,

    -(drop + d) ln(1 + cost / least cost)

where d, a tenth of the drops' standard deviation, stands for the error of the uncut network. The agent is DDPG with the paper's
baseline and batches of 64 (`edgeprune.samplers._ddpg`). 20 episodes explore evenly; afterwards the action is drawn from a normal
distribution around the actor's, cut off at 0 and 1, whose deviation is 0.5 times 0.95 for each episode. (The paper has 100 and 300
episodes, hidden layers of 300 units and one update per step; here 64 units and two, for there are fewer evaluations.) It learns from
whatever was evaluated, so it can go on where another sampler was.

He et al., "AMC: AutoML for model compression and acceleration on mobile devices" (2018).

Cost: per evaluation, some hundredths of a second of learning and some predictions of costs for each group; going on with a search of n
evaluations learns from all n again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune.samplers import _aims, _ddpg
from edgeprune.search_space import Candidate, Knob, Proposal, Space, Told

EXPLORED = 20  # episodes
NOISE, COOLING = 0.5, 0.95
UPDATES = 2  # for each step of an episode
ERROR = 0.1  # standard deviations of the drops

Array = NDArray[np.float64]
Act = Callable[[Array], float]  # state -> action, 0..1

_memo = _aims.Memo()


class Learned(NamedTuple):
    """An agent, and what it has learned from."""

    agent: _ddpg.Agent
    history: list[Told]


class Step(NamedTuple):
    """A state, and the action that was possible there, 0..1."""

    state: Array
    action: float


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """As ``Sampler.propose``."""
    random = _aims.generator(seed)
    most = _aims.aims(space, random)
    if len(history) < EXPLORED:
        candidate, _ = _episode(space, most, lambda state: float(random.random()))
    else:
        agent, noise = _agent(space, history), NOISE * COOLING ** (len(history) - EXPLORED)
        candidate, _ = _episode(space, most, lambda state: _ddpg.truncated_normal(agent.action(state), noise, random))
    return Proposal(candidate, {"aim": dict(most)})


def _agent(space: Space, history: Sequence[Told]) -> _ddpg.Agent:
    """What the agent knows after a history: that of a part of it which it knows already, and the rest."""
    held = _memo.of(space)
    learned: Learned | None = held.pop("learned", None)  # nobody else meanwhile has one that is half way
    if learned is None or list(history[: len(learned.history)]) != learned.history:
        learned = Learned(_ddpg.Agent(len(_Features(space).names)), [])
    for told in history[len(learned.history) :]:
        learned.history.append(told)
        episode = _replayed(space, told, _reward(space, learned.history))
        learned.agent.learn(episode, UPDATES * len(episode))
    held["learned"] = learned
    return learned.agent


def _reward(space: Space, history: Sequence[Told]) -> float:
    """Of the last of the evaluations."""
    told = history[-1]
    if _aims.limits(space):
        return -told.drop
    name = next(iter(told.notes.get("aim") or {}), _aims.lead(told.costs))
    least = space.costs(space.smallest())[name]
    error = max(told.drop, 0.0) + ERROR * float(np.std([one.drop for one in history]))
    return -error * float(np.log1p(told.costs[name] / least))


def _replayed(space: Space, told: Told, reward: float) -> list[_ddpg.Transition]:
    """The steps that lead to a candidate."""
    name = _aims.lead(told.costs)
    most = told.notes.get("aim") or {name: told.costs[name]}
    wanted = iter([*_aims.shares(space, told.candidate).values(), *_places(space, told.candidate)])
    _, steps = _episode(space, most, lambda state: next(wanted), bounded=False)
    states = [step.state for step in steps]
    return [
        _ddpg.Transition(step.state, step.action, reward, following, number == len(steps) - 1)
        for number, (step, following) in enumerate(zip(steps, [*states[1:], states[-1]], strict=True))
    ]


def _places(space: Space, candidate: Candidate) -> list[float]:
    """Of every choice's word the middle of its part of 0..1."""
    return [(known.index(str(candidate[name])) + 0.5) / len(known) for name, known in space.choices.items()]


def _episode(space: Space, most: _aims.Most, act: Act, bounded: bool = True) -> tuple[Candidate, list[Step]]:
    """Through the network, group by group, then choice by choice.

    Args:
        space: what can be chosen.
        most: the aim.
        act: is asked at every step.
        bounded: whether actions are kept within what meets the aim; what was evaluated is replayed without.
    """
    features, least, whole = _Features(space), space.smallest(), space.whole()
    chosen: dict[str, int | str] = {}
    steps: list[Step] = []
    for number, knob in enumerate(space.knobs):
        before = steps[-1].action if steps else 1.0
        thin, wide = {**least, **chosen}, {**whole, **chosen}
        state = features.state(number, wide, thin, most, before)
        wanted = knob.nearest(act(state) * knob.units)
        count = _bounded(space, thin, wide, knob, wanted, most) if bounded else wanted
        chosen[knob.name] = count
        steps.append(Step(state, count / knob.units))
    full: dict[str, int | str] = {**whole, **chosen}
    for number, (name, known) in enumerate(space.choices.items(), len(space.knobs)):
        state = features.state(number, full, full, most, steps[-1].action)
        place = min(int(act(state) * len(known)), len(known) - 1)
        if bounded and not _aims.within(space.costs({**full, name: known[place]}), most):
            place = known.index(str(full[name]))
        full[name] = known[place]
        steps.append(Step(state, (place + 0.5) / len(known)))
    return full, steps


def _bounded(space: Space, thin: Candidate, wide: Candidate, knob: Knob, wanted: int, most: _aims.Most) -> int:
    """The count nearest to the wanted one with which the rest can still meet the aim, and reach it.

    Args:
        thin, wide: what is chosen so far, with everything behind it cut as far as it may be, or whole.
    """

    def met(count: int) -> bool:
        return _aims.within(space.costs({**thin, knob.name: count}), most)

    def missed(count: int) -> bool:
        costs = space.costs({**wide, knob.name: count})
        return all(costs[name] < value for name, value in most.items())

    if not met(wanted):
        return knob.kept[max(_holding(met, knob.kept) - 1, 0)]
    if not missed(wanted):
        return wanted
    reaching = knob.kept[min(_holding(missed, knob.kept), len(knob.kept) - 1)]
    return reaching if met(reaching) else knob.kept[_holding(met, knob.kept) - 1]


def _holding(holds: Callable[[int], bool], counts: Sequence[int]) -> int:
    """For how many of ascending counts something holds that no larger one can regain."""
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if holds(counts[middle]) else (low, middle)
    return low


class _Features:
    """States, as numbers within 0..1."""

    def __init__(self, space: Space) -> None:
        self._space = space
        known = sorted({name for knob in space.knobs for name in knob.features})
        self.names = [*known, *space.choices, "place", "saved", "rest", "before", "aim"]
        rows = [[knob.features.get(name, 0.0) for name in known] for knob in space.knobs]
        table = np.array(rows, float).reshape(len(space.knobs), len(known))
        largest = np.abs(table).max(axis=0, initial=0.0)
        table = table / np.where(largest > 0, largest, 1.0)
        count = len(space.choices)
        self._fixed = np.block([[table, np.zeros((len(table), count))], [np.zeros((count, len(known))), np.eye(count)]])
        self._least = space.costs(space.smallest())
        whole = space.costs(space.whole())
        self._span = {name: max(whole[name] - least, 1e-12) for name, least in self._least.items()}

    def state(self, number: int, wide: Candidate, thin: Candidate, most: _aims.Most, before: float) -> Array:
        """What the agent sees at a step.

        Args:
            number: of the step.
            wide, thin: what is chosen so far, with everything behind it whole or cut as far as it may be.
            most: the aim.
            before: the last action, 0..1.
        """
        tight = min(most, key=lambda name: self._left(name, most))
        now = self._left(tight, self._space.costs(wide))
        rest = now - self._left(tight, self._space.costs(thin))
        place = number / max(len(self._fixed) - 1, 1)
        return np.array(
            [*self._fixed[number], place, 1.0 - now, rest, before, min(max(self._left(tight, most), 0.0), 1.0)]
        )

    def _left(self, name: str, costs: Mapping[str, float]) -> float:
        """How much is left of what can be cut, 0..1."""
        return (costs[name] - self._least[name]) / self._span[name]
