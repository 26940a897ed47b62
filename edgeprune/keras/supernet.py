"""A slimmable super-net: the network itself, trained once so that all its sub-nets work with the weights that they share.

A sub-net keeps the first n_g units of every group g of coupled channels, in the order in which a criterion ranked them before.
Whatever reads the others computes with weights times 0, as `edgeprune.keras.surgery` masks a cut; so it is any functional model, and no
layer is made anew. In every step

    the whole network         learns from the labels:       loss(y, f)
    the narrowest sub-net     learns from the whole one:    KL(f || f_n), with f held fixed (in-place distillation)
    RANDOM random ones        likewise

and the sum of the gradients moves the weights once (the sandwich rule). Of the random ones the first has one width for all groups,
drawn uniformly, the second each group's count drawn by itself, and so on in turn. A sub-net's BatchNormalization uses its
own batch statistics; the moving ones are the whole network's, and are taken anew for every sub-net that is judged
(`edgeprune.keras.statistics`).

What is drawn in a step is a function of the seed and the step's number, and the checkpoint is that of `edgeprune.keras.training`: a run
that was killed goes on and computes what an unbroken one does.

Yu & Huang, "Universally slimmable networks and improved training techniques" (2019); each group's own width as in Guo et al.,
"Single path one-shot neural architecture search with uniform sampling" (2020); the units ranked as in Cai et al., "Once-for-all: train
one network and specialize it for efficient deployment" (2020).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edgeprune
from edgeprune import api, channels, files
from edgeprune.data import Data
from edgeprune.errors import RecipeError
from edgeprune.keras import channel_graph, distillation, gated, graph, keras, surgery, tf, training
from edgeprune.keras.candidates import Proxy
from edgeprune.keras.gate_variables import EACH
from edgeprune.keras.statistics import settle
from edgeprune.keras.trials import Trials
from edgeprune.pipeline import LOCK_FILE
from edgeprune.progress import Progress
from edgeprune.recipe import FitOptions
from edgeprune.search_space import CRITERION, Candidate, Knob, Scores, Space

RANDOM = 2  # random sub-nets in every step
LABEL = "supernet"
OPTIONS = FitOptions.model_validate({"epochs": 10})

Tensor = Any


class Supernet(NamedTuple):
    """A trained super-net.

    Attributes:
        model: plain, with the layers and names of the one that was given; its moving statistics are those of the whole network.
        scores: group -> a score per unit, which rank them as the sub-nets were trained: the units that stay are the highest.
        history: of the training, as ``training.fit`` returns it.
    """

    model: Any
    scores: Scores
    history: list[training.Epoch]


class Place(NamedTuple):
    """Where a super-net is trained, in the words of `edgeprune.pipeline.State`, as far as ``training.fit`` needs them.

    Attributes:
        data: as the model takes it.
        seed: of the order of the samples and of the sub-nets.
        progress: is told.
        workspace: holds the checkpoint.
    """

    data: Data
    seed: int
    progress: Progress
    workspace: Path
    label: str = LABEL

    @property
    def run(self) -> Place:
        return self


def judge(
    subject: Trials, space: Space, seed: int, folder: Path, progress: Progress, options: FitOptions = OPTIONS
) -> Judge:
    """What evaluates the candidates of a space with a super-net's weights; trains it first, or goes on, or takes it from the folder.

    Workers that share the folder wait for the one that trains. Others train the same one, as far as their machines compute alike.

    Args:
        subject: the trained network with its samples.
        space: of it.
        seed: of the training.
        folder: one super-net each, by what decides it, is kept there.
        progress: is told.
        options: of the training.

    Raises:
        RecipeError: the options ask for a penalty or another teacher.
        DataError, RunFolderError: as ``training.fit``.
    """
    place = folder / key(subject, space, seed, options)
    with files.writing(place):
        place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        net = train(subject.model, space, Place(subject.data, seed, progress, place), options)
    return Judge(subject, net, space, seed)


def key(subject: Trials, space: Space, seed: int, options: FitOptions) -> str:
    """What is the same exactly for equal super-nets: the name of their folder."""
    decided_by = {
        "edgeprune": edgeprune.__version__,
        "model": api.model_digest(subject.model),
        "data": subject.data.fingerprint,
        "knobs": [[knob.name, list(knob.kept)] for knob in space.knobs],
        "scores": {name: np.asarray(values).tolist() for name, values in _scores(space).items()},
        "options": options.model_dump(mode="json"),
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()[:16]


def train(model: Any, space: Space, place: Place, options: FitOptions = OPTIONS) -> Supernet:
    """Train a super-net from the model's weights, or go on from the workspace's checkpoint; a finished one is only read.

    Args:
        model: flat functional, trained; not changed.
        space: says which groups can be cut, to which counts, and by its first criterion in which order.
        place: data, seed, progress, workspace.
        options: of the training.

    Raises:
        RecipeError: the options ask for a penalty or another teacher.
        DataError, RunFolderError: as ``training.fit``.
    """
    if options.penalty or options.distill:
        raise RecipeError(
            "A super-net is trained with neither penalty nor distill: it is its own teacher. Leave both out of its options."
        )
    training.start(place.seed)
    model = graph.rebuild(model)
    coupling = channels.couple(channel_graph.describe(model))
    scores = _scores(space)
    widths = {knob.name: Width(knob, scores[knob.name]) for knob in space.knobs}
    goal = training.objective(model, place.data.tasks)
    slim = _slimmable(gated.along_channels(model, coupling, widths), _Sandwich(list(widths.values()), goal, place.seed))
    state: Any = place
    history = training.fit(slim, state, options, goal)
    trained = gated.with_weights_of(slim, model)
    settle(trained, place.data.train)
    return Supernet(trained, scores, history)


class Judge(Proxy):
    """As the proxy of other searches, with a super-net's weights; drops are still against the network that was given."""

    def __init__(self, subject: Trials, net: Supernet, over: Space, seed: int = 0) -> None:
        """Args:
        subject: the network that was given, with its samples.
        net: the super-net of it.
        over: the space; of its criteria none has a say, since the super-net's order of units holds.
        seed: of which samples come first.
        """
        own = Trials(net.model, subject.data, subject.metric, len(subject.split))
        own.split = subject.split
        super().__init__(own, replace(over, scores=lambda criterion: net.scores), seed)
        given = Proxy(subject, over, seed)
        self.net, self.reference, self._uncut = net, given.reference, given._uncut

    def cut(self, candidate: Candidate) -> Any:
        """The smaller model that a candidate's drop was told of, to be trained on: without its zeros, which training lays anew.

        Returns:
            A functional model, uncompiled, its statistics re-estimated.
        """
        small = surgery.removed(self.net.model, self.subject.coupling, self.space.cut(candidate))
        self.subject.runner.of(small).settle(once=True)
        return small


class Width:
    """How many units of a group take part, and which: what gives their factors to ``gated.along_channels``.

    Attributes:
        ones: (units,).
        kept: allowed counts, ascending, int32.
        count: of this moment, a variable.
    """

    def __init__(self, knob: Knob, scores: Sequence[float] | np.ndarray) -> None:
        """Args:
        knob: the group.
        scores: (units,), higher = takes part first; of equals the first.
        """
        self.ones = np.ones(knob.units, np.float32)
        self.kept = np.array(knob.kept, np.int32)
        order = np.argsort(-np.asarray(scores, float), kind="stable")
        self._place = np.argsort(order).astype(np.int32)  # in the order in which they take part
        self.count = tf.Variable(knob.units, dtype=tf.int32, trainable=False, name=f"{knob.name}_units", **EACH)

    def effective(self, values: Tensor, training: Any) -> Tensor:
        """The values of those that take part, 0 for the others."""
        return tf.where(self._place < tf.convert_to_tensor(self.count), values, tf.zeros_like(values))


class _Sandwich:
    """Which sub-nets a step trains, and how far they are from the whole network."""

    def __init__(self, widths: Sequence[Width], goal: training.Objective, seed: int) -> None:
        self.widths, self._seed = widths, seed
        self._distances = [distillation.distance(each, 1.0) for each in tf.nest.flatten(goal.loss)]

    def apart(self, wanted: Any, given: Any) -> Tensor:
        """The distance of a sub-net's outputs from the whole network's."""
        pairs = zip(self._distances, tf.nest.flatten(wanted), tf.nest.flatten(given), strict=True)
        return tf.add_n([far(teacher, student) for far, teacher, student in pairs])

    def whole(self) -> None:
        for width in self.widths:
            width.count.assign(width.kept[-1])

    def subnets(self, step: Tensor) -> Iterator[None]:
        """Sets one sub-net after the other: the narrowest, then the random ones of a step."""
        for width in self.widths:
            width.count.assign(width.kept[0])
        yield
        for number in range(RANDOM):
            for width, share in zip(self.widths, tf.unstack(self._shares(number, step)), strict=True):
                place = tf.cast(share * len(width.kept), tf.int32)  # share < 1
                width.count.assign(tf.gather(width.kept, place))
            yield

    def _shares(self, number: int, step: Tensor) -> Tensor:
        """(groups,), uniform in 0..1 (1 excluded): one and the same for all, or each its own, in turn."""
        seed = tf.stack([tf.constant((self._seed * 10_007 + number) % 2**31, tf.int32), tf.cast(step, tf.int32)])
        count = 1 if number % 2 == 0 else len(self.widths)
        drawn = tf.random.stateless_uniform([count], seed, alg="philox")
        return tf.broadcast_to(drawn, [len(self.widths)])


def _slimmable(model: Any, sandwich: _Sandwich) -> Any:
    """The gated model with the sandwich rule for its training step; evaluation is that of the whole network."""
    outputs = model.outputs if len(model.outputs) > 1 else model.outputs[0]
    slim = _Slimmable(model.inputs, outputs, name=model.name)
    slim.sandwich = sandwich
    return slim


class _Slimmable(keras.Model):
    """A gated model with a training step of its own."""

    sandwich: _Sandwich

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        replicas = float(
            tf.distribute.get_strategy().num_replicas_in_sync
        )  # whose gradients are summed; Keras' loss knows
        weights = self.trainable_variables
        self.sandwich.whole()
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs, sample_weight)
        gradients = _gradients(tape, loss, weights)
        wanted = tf.nest.map_structure(tf.stop_gradient, outputs)
        statistics = [(variable, tf.identity(variable)) for variable in _moving(self)]
        for _ in self.sandwich.subnets(self.optimizer.iterations):
            with tf.GradientTape() as tape:
                far = self.sandwich.apart(wanted, self(x, training=True)) / replicas
            more = _gradients(tape, far, weights)
            gradients = [one + other for one, other in zip(gradients, more, strict=True)]
        for variable, values in statistics:
            variable.assign(values)
        self.sandwich.whole()
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self.compute_metrics(x, y, outputs, sample_weight)


def _gradients(tape: Any, loss: Tensor, weights: Sequence[Any]) -> list[Tensor]:
    """Dense, and zero where the loss does not depend on a weight."""
    found = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(gradient) for gradient in found]


def _moving(model: Any) -> list[Any]:
    """The moving statistics of every BatchNormalization."""
    named = ("moving_mean", "moving_variance")
    return [getattr(layer, name) for layer in model.layers for name in named if hasattr(layer, name)]


def _scores(space: Space) -> Mapping[str, Any]:
    """Every knob's scores by the space's first criterion."""
    given = space.scores(space.choices[CRITERION][0] if CRITERION in space.choices else "")
    return {knob.name: given[knob.name] for knob in space.knobs}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is here; the kernel drops the lock when a process is killed."""
    with files.writing(folder):
        handle = (folder / LOCK_FILE).open("a")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
