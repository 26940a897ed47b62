"""What the weights of a sparse model are worth, as often as it is asked while the model trains."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from edgeprune import scoring, sparsifying
from edgeprune.keras import graph, keras, kernels, signals, tf
from edgeprune.keras.pruning import LayerPlan
from edgeprune.keras.sparse_training import Array, Sparse

OWN_SIGNALS = {"weights", "seed"}  # that every kernel has, not only a layer's main one
BLIND = {*OWN_SIGNALS, "synflow_gradients"}  # that no sample is needed for
SETTLING = 256  # samples that give a BatchNormalization its first statistics


class Twin:
    """Collects signals of data on a plain twin of a sparse model, which gets the weights of the moment.

    A BatchNormalization that has never seen a sample (of a model before its training) gets the statistics of the first
    samples in the twin.
    """

    def __init__(self, sparse: Sparse, wanted: Collection[str], loss: Any) -> None:
        """Args:
        sparse: the model.
        wanted: signals, as for `signals.collect`.
        loss: as for `signals.collect`.

        Raises:
            CutError: no kernel of the model can give one of them.
        """
        self._sparse = sparse
        self.model = graph.rebuild(sparse.plain, copy=_steady)
        self._collector = signals.Collector(self.model, wanted, loss, only=_layers(sparse.kernels))

    def __call__(self, batches: Sequence[Any], seed: int = 0) -> signals.Signals:
        """Layer -> signal -> array of its main kernel."""
        self._sparse.give(self.model)
        _settle(self.model, batches)
        return self._collector(batches, seed=seed)


class Scores:
    """The scores of a sparse model's weights by a criterion, as often as they are wanted."""

    def __init__(self, sparse: Sparse, criterion: str, loss: Any) -> None:
        """Args:
        sparse: the model, all of whose kernels the criterion can score (`scorable`).
        criterion: a name in `edgeprune.criteria`.
        loss: as for `signals.collect`.
        """
        self._sparse, self.criterion = sparse, criterion
        self._needed = scoring.needed(criterion)
        self._twin = None if set(self._needed) <= OWN_SIGNALS else Twin(sparse, self._needed, loss)

    def __call__(self, batches: Sequence[Any] = (), seed: int = 0) -> dict[str, Array]:
        """Kernel -> score per weight, (..., in, out).

        Args:
            batches: of (x, y), for criteria that ask for signals of data.
            seed: of random criteria; another for every call, or they decide the same.

        Raises:
            RecipeError: the criterion ranks channels only.
        """
        collected = self._twin(batches, seed) if self._twin else {}
        found = {}
        for name, values in self._sparse.weights().items():
            own = {"weights": values, "seed": zlib.crc32(f"{seed}:{name}".encode())}
            given = {**collected.get(name, {}), **own}
            found[name] = {signal: given[signal] for signal in self._needed}
        return sparsifying.scored(self.criterion, found)


def scorable(model: Any, plans: Iterable[LayerPlan], wanted: Collection[str]) -> list[LayerPlan]:
    """The plans without the kernels that cannot give a signal, each with the reason why it is left.

    Args:
        model: that the plans are of.
        plans: from `pruning.plan`.
        wanted: signals.
    """
    if set(wanted) <= OWN_SIGNALS:
        return list(plans)
    absent, known = signals.absent(model, wanted), signals.Places(model).kernels

    def reason(layer: str, kernel: kernels.Kernel) -> str | None:
        if kernel.name or layer not in known:
            return "only the main kernel of a layer has signals of data"
        return "; ".join(dict.fromkeys(absent[layer].values())) if layer in absent else None

    def narrowed(plan: LayerPlan) -> LayerPlan:
        reasons = {kernel: reason(plan.name, kernel) for kernel in plan.kernels}
        able = tuple(kernel for kernel, why in reasons.items() if why is None)
        left = tuple(f"{kernel.name or 'kernel'}: {why}" for kernel, why in reasons.items() if why is not None)
        if plan.reason is not None or not left:
            return plan
        why = None if able else left[0].partition(": ")[2]
        return plan._replace(kernels=able, reason=why, left=(*plan.left, *left) if able else ())

    return [narrowed(plan) for plan in plans]


def _layers(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(":")[0] for name in names))


def _steady(layer: Any) -> Any:
    """A copy that a call with ``training=True`` sets to the statistics of that batch, without noise."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        config["momentum"] = 0.0
    elif "rate" in config and not layer.weights:
        config["rate"] = 0.0
    return layer.__class__.from_config(config)


def _settle(twin: Any, batches: Sequence[Any]) -> None:
    norms = [layer for layer in twin.layers if isinstance(layer, keras.layers.BatchNormalization)]
    fresh = [norm for norm in norms if not norm.moving_mean.numpy().any() and (norm.moving_variance.numpy() == 1).all()]
    if not fresh or not batches:
        return
    held = [(weight, weight.numpy()) for norm in norms if norm not in fresh for weight in norm.non_trainable_weights]
    parts: list[list[Any]] = []
    for x, _ in batches:
        parts.append(tf.nest.flatten(x))
        if sum(len(part[0]) for part in parts) >= SETTLING:
            break
    whole = [tf.concat(pieces, axis=0) for pieces in zip(*parts, strict=True)]
    twin(whole[0] if len(whole) == 1 else whole, training=True)
    for weight, values in held:
        weight.assign(values)
