"""What is done to the masks of a sparse model: cut them, let them follow a ramp, move weights, make up for what went."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgeprune import sparsifying, surgeon
from edgeprune.keras import graph, kernels, signals, tf
from edgeprune.keras.sparse_scores import Scores, Twin
from edgeprune.keras.sparse_training import Array, Sparse, still
from edgeprune.sparsifying import Masks, Ramp, Rule

Batches = Callable[[int], Sequence[Any]]  # seed -> (x, y) of some training samples


class Source(NamedTuple):
    """What decisions are made on.

    Attributes:
        scores: of the weights.
        batches: the samples that scores see.
        seed: of the stage and round; every update makes its own of it.
    """

    scores: Scores
    batches: Batches
    seed: int

    def __call__(self, *words: object) -> dict[str, Array]:
        """The scores of the moment; the words tell one update from the others."""
        seed = seed_of(self.seed, *words)
        return self.scores(self.batches(seed), seed)


def seed_of(*words: object) -> int:
    """A seed of its own for whatever the words tell apart; the same in every process."""
    return zlib.crc32(":".join(map(str, words)).encode())


def cut(
    sparse: Sparse,
    source: Source,
    sparsity: float,
    rule: Rule,
    given: Masks,
    iterations: int = 1,
    word: object = "cut",
) -> None:
    """Bring a model to a sparsity by the scores that its weights have, in several cuts if asked, each after scoring anew.

    Args:
        sparse: its masks are set.
        source: of the scores.
        sparsity: of all kernels together, 0..1.
        rule: how masks are cut.
        given: masks whose zeros stay, (..., in, out), of all kernels.
        iterations: every one keeps the same share of what it is given.
        word: tells this cut from others.
    """
    before = min(sparsifying.sparsity_of(given), sparsity)
    for number in range(1, iterations + 1):
        share = sparsifying.reached(sparsity, number / iterations, before)
        found = sparsifying.decided(source(word, number), share, rule, given)
        sparse.put(found)
        given = found if iterations > 1 else given


@dataclass
class Following:
    """Masks that follow a ramp while the model trains; called with the steps that are done.

    Attributes:
        sparse, source, rule, iterations: as for ``cut``.
        ramp: sparsity over the training.
        steps: of the training.
        last: the update at which the ramp's final sparsity is reached.
        earlier: the masks of earlier stages and rounds, whose zeros stay.
        holds: whether zeros of this training stay too.
    """

    sparse: Sparse
    source: Source
    rule: Rule
    ramp: Ramp
    steps: int
    last: int
    earlier: Masks
    holds: bool
    iterations: int = 1

    def __call__(self, done: int, optimizer: Any = None) -> None:
        share = self.ramp.final if done >= self.last else self.ramp.function()(done / self.steps)
        given = self.sparse.masks() if self.holds else self.earlier
        cut(self.sparse, self.source, max(share, 0.0), self.rule, given, self.iterations, done)


@dataclass
class Moving:
    """Weights that move at a constant count: the smallest go, others come (Mocanu et al. 2018, Evci et al. 2020).

    Attributes:
        sparse: its masks change.
        growth: (steps that are done) -> kernel -> what a weight that is not there would be worth.
        share: that goes at the first update, 0..1.
        until: the step at which it has fallen to 0; None: it does not fall.
        earlier: where weights may be at all.

    Called with the steps that are done and the optimizer, whose running means of gradients are forgotten where weights come.
    """

    sparse: Sparse
    growth: Callable[[int], dict[str, Array]]
    share: float
    until: int | None
    earlier: Masks

    def __call__(self, done: int, optimizer: Any = None) -> None:
        share = self.share if self.until is None else sparsifying.cosine(self.share, done / self.until)
        worth, growth, before = self.sparse.weights(), self.growth(done), self.sparse.masks()
        for name, mask in before.items():
            after = sparsifying.moved(np.abs(worth[name]), growth[name], mask, share, self.earlier.get(name))
            self.sparse.put({name: after})
            if optimizer is not None:
                held = self.sparse.kernels[name]
                still(optimizer, held.variable, held.turned(after & ~mask))


def random_growth(sparse: Sparse, seed: int) -> Callable[[int], dict[str, Array]]:
    """What comes is chance."""
    return lambda done: {
        name: np.random.default_rng(seed_of(seed, name, done)).random(held.weights().shape)
        for name, held in sparse.kernels.items()
    }


def gradient_growth(sparse: Sparse, batches: Batches, loss: Any, seed: int) -> Callable[[int], dict[str, Array]]:
    """What comes is what the loss pulls at most: |dL/dw|, of weights that are zero too."""
    twin = Twin(sparse, ["gradients"], loss)

    def growth(done: int) -> dict[str, Array]:
        found = twin(batches(seed_of(seed, done)))
        return {name: np.abs(found[name]["gradients"]) for name in sparse.kernels}

    return growth


def restore(sparse: Sparse, dense: Any, batches: Sequence[Any]) -> list[str]:
    """Move what remains of every layer so that its outputs change least (`edgeprune.surgeon`), without training.

    Args:
        sparse: its masks are set; its weights are.
        dense: the same model before anything went.
        batches: samples.

    Returns:
        The kernels that keep their weights, since the second moment of their inputs cannot be had.
    """
    wanted = ("weights", "input_covariance")
    found = signals.collect(dense, wanted, batches, only=[name for name in sparse.kernels if ":" not in name])
    left = []
    for name, held in sparse.kernels.items():
        given = found.get(name, {})
        if "input_covariance" not in given:
            left.append(name)
            continue
        held.variable.assign(held.turned(surgeon.update(given["weights"], given["input_covariance"], held.kept())))
    return left


class Bearing:
    """How much loss a model takes from zeros in each of its layers alone."""

    def __init__(self, sparse: Sparse, losses: Any, batches: Sequence[Any]) -> None:
        """Args:
        sparse: the model.
        losses: as `training.Objective` has them.
        batches: held-out (x, y).
        """
        self._sparse, self._batches = sparse, batches
        self._twin = graph.rebuild(sparse.plain)
        each = losses if isinstance(losses, (list, tuple)) else [losses]

        def loss(x: Any, y: Any) -> Any:
            outputs = tf.nest.flatten(self._twin(list(x) if isinstance(x, tuple) else x, training=False))
            pairs = zip(each, tf.nest.flatten(y), outputs, strict=True)
            return tf.add_n([tf.reduce_mean(one(true, made)) for one, true, made in pairs])

        self._loss = tf.function(loss, autograph=False, reduce_retracing=True)

    def loss(self) -> float:
        """The mean loss of the twin."""
        sizes = [len(tf.nest.flatten(x)[0]) for x, _ in self._batches]
        found = [float(self._loss(*tf.nest.map_structure(tf.convert_to_tensor, batch))) for batch in self._batches]
        return float(np.average(found, weights=sizes))

    def costs(
        self, scores: Mapping[str, Array], ladders: Mapping[str, Sequence[float]], given: Masks
    ) -> dict[str, list[float]]:
        """Kernel -> the loss's rise at each sparsity of its ladder, all other kernels as they are."""
        self._sparse.give(self._twin)
        whole, found = self.loss(), {}
        for name, shares in ladders.items():
            held, variable = self._sparse.kernels[name], kernels.find(self._twin, name)
            values, rises = variable.numpy(), [0.0]
            for share in shares[1:]:
                mask = sparsifying.decided({name: scores[name]}, {name: share}, Rule(), {name: given[name]})[name]
                variable.assign(values * held.turned(mask))
                rises.append(self.loss() - whole)
            variable.assign(values)
            found[name] = rises
        return found


def adapted(
    sparse: Sparse,
    scores: Mapping[str, Array],
    bearing: Bearing,
    sparsity: float,
    steps: int,
    lowest: float,
    given: Masks,
) -> dict[str, float]:
    """The sparsity of every kernel with which the loss rises least, layer by layer, at a sparsity of all together.

    Args:
        sparse: the model, trained.
        scores: of its weights.
        bearing: judges.
        sparsity: of all kernels together, 0..1.
        steps: sparsities that are tried of every kernel.
        lowest: share of its weights that a kernel keeps at least.
        given: masks whose zeros stay.

    Raises:
        CutError: ``lowest`` does not allow the sparsity.
    """
    shares = {name: 1.0 - float(mask.mean()) for name, mask in given.items()}
    ladders = {name: sparsifying.ladder(share, lowest, steps) for name, share in shares.items()}
    sizes = {name: mask.size for name, mask in given.items()}
    costs = bearing.costs(scores, ladders, given)
    return sparsifying.allotted(costs, ladders, sizes, sparsity)
