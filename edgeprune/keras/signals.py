"""Collect the signals that criteria name, for every kernel of a model, once for all that are wanted.

Samples go through the model in inference mode, batch by batch; only sums are kept. A result does therefore not depend on
how the samples were cut into batches, but for rounding, and memory is that of the sums and of one batch. There is one pass per
kind of signal, and only if one of its kind is wanted:

* none for what the model itself holds (weights, scales) and for synaptic flow;
* ``range``, forward, before a histogram: the smallest and the largest activation of every layer;
* ``forward``: what is told of activations and of the inputs of kernels;
* ``backward``: gradients; for their squares sample by sample;
* ``hessian``: products of the Hessian with vectors, two backward passes each.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune import activation_statistics as statistics
from edgeprune import registry
from edgeprune.errors import CutError, DataError
from edgeprune.keras import keras, synflow, tf
from edgeprune.keras.signal_places import Array, Place, Places, no_covariance, products
from edgeprune.scoring import able, needed

__all__ = ["NAMES", "Collector", "absent", "collect", "needed"]

HELD = ("weights", "seed", "scale", "input_scale", "synflow_gradients")
FORWARD = ("input_covariance", *statistics.NAMES)
BACKWARD = ("gradients", "gradient_squares", "activation_gradients")
HESSIAN = ("hessian_diagonal", "hessian_gradient")
NAMES = (*HELD, *FORWARD, *BACKWARD, *HESSIAN)
LABELLED = {*BACKWARD, *HESSIAN, *statistics.CLASSES}
BATCH = 32  # samples at a time, which bounds the memory
PROBES = 8  # random vectors of the Hessian's diagonal

Signals = dict[str, dict[str, Any]]
Batch = tuple[Any, Any]


def collect(
    model: Any,
    wanted: Iterable[str],
    batches: Iterable[Any] = (),
    loss: Any = None,
    *,
    seed: int = 0,
    probes: int = PROBES,
    only: Collection[str] | None = None,
) -> Signals:
    """The wanted signals of every kernel.

    Args:
        model: functional or built Sequential; models inside it are inlined. Not changed.
        wanted: names in ``NAMES``; those that a criterion wants: ``needed``.
        batches: of (x, y), x as the model takes it; several inputs or outputs as tuples in the model's order. Gone through
            once per pass: a list or a ``tf.data.Dataset``. The size of a batch is what decides on the memory.
        loss: of the output, as `training.Objective` has it: (y, outputs) -> the mean over samples; of several outputs one each,
            whose sum is taken.
        seed: of the random vectors, and of what each kernel is given as ``seed``.
        probes: random vectors of which the Hessian's diagonal is the mean; its error falls with their root.
        only: names of layers that are told of; None: all. The Hessian is that of all kernels.

    Returns:
        Layer name -> signal -> array; (..., in, out) for what is told per weight, (out,) for what is told per output
        channel (``activation_gram`` and the like: the first axis too). A kernel that cannot give a signal lacks it;
        ``absent`` says why.

    Raises:
        NameUnknown: no such signal.
        CutError: no kernel of the model can give a signal, with the criteria that would work instead; or TensorFlow knows no
            second derivative of an operation.
        DataError: no batches where there must be, batches that can be gone through only once, or labels that are
            no classes.
    """
    return Collector(model, wanted, loss, only=only)(batches, seed=seed, probes=probes)


class Collector:
    """``collect`` for whoever does it often on one model, whose weights may change in between: it is compiled once.

    Args and what is raised: as for ``collect``.
    """

    def __init__(
        self, model: Any, wanted: Iterable[str], loss: Any = None, *, only: Collection[str] | None = None
    ) -> None:
        self.wanted = _known(wanted)
        self.places = Places(model)
        self.chosen = [name for name in self.places.kernels if only is None or name in only]
        reasons = _reasons(self.places, self.wanted)
        _check_given(self.places, self.wanted, [reasons[name] for name in self.chosen])
        able_to = {name: {signal for signal in self.wanted if signal not in reasons[name]} for name in self.chosen}
        self._of_data = set(self.wanted) & set((*FORWARD, *BACKWARD, *HESSIAN))
        self._forward = _Forward(self.places, able_to) if self._of_data else None
        self._backward = _Backward(self.places, able_to, loss) if self._of_data else None
        self._flow = synflow.Flow(self.places) if "synflow_gradients" in self.wanted else None

    def __call__(self, batches: Iterable[Any] = (), *, seed: int = 0, probes: int = PROBES) -> Signals:
        """The signals of the weights that the model has now."""
        held = _held(self.places, self.wanted, seed)[0]
        if self._flow is not None:
            _join(held, {name: {"synflow_gradients": flows} for name, flows in self._flow().items()})
        if self._forward is not None and self._backward is not None:
            _check_batches(batches, self.wanted)
            _join(held, self._forward.run(batches))
            _join(held, self._backward.run(batches, seed, probes))
        return {
            name: {signal: held[name][signal] for signal in self.wanted if signal in held[name]} for name in self.chosen
        }


def absent(model: Any, wanted: Iterable[str]) -> dict[str, dict[str, str]]:
    """Layer name -> signal -> why the layer's kernel cannot give it, whatever the data; only what is wanted and absent."""
    places = Places(model)
    return {name: found for name, found in _reasons(places, _known(wanted)).items() if found}


def _known(wanted: Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(wanted))
    for name in names:
        if name not in NAMES:
            raise registry.unknown("signal", name, NAMES)
    return names


def _reasons(places: Places, wanted: Collection[str]) -> dict[str, dict[str, str]]:
    """For each kernel why it cannot give a signal, whatever the data."""
    return _held(places, wanted, 0)[1]


def _held(places: Places, wanted: Collection[str], seed: int) -> tuple[Signals, dict[str, dict[str, str]]]:
    """What the model itself holds; and for each kernel why it cannot give a signal."""
    held: Signals = {name: {} for name in places.kernels}
    reasons: dict[str, dict[str, str]] = {name: {} for name in places.kernels}
    makers: dict[str, Callable[[Place], Any]] = {
        "weights": lambda place: place.laid_out(place.variable.numpy()),
        "seed": lambda place: _seed(seed, place.name),
        "scale": places.scale,
        "input_scale": places.input_scale,
    }
    for name, place in places.kernels.items():
        for signal in set(makers) & set(wanted):
            value = makers[signal](place)
            (reasons if isinstance(value, str) else held)[name][signal] = value
        if "input_covariance" in wanted and (reason := no_covariance(place)):
            reasons[name]["input_covariance"] = reason
    return held, reasons


def _seed(seed: int, *words: object) -> int:
    """Another one for every kernel, the same in every process."""
    return zlib.crc32(":".join(map(str, (seed, *words))).encode())


def _join(held: Signals, found: Mapping[str, Mapping[str, Any]]) -> None:
    for name, values in found.items():
        held[name].update(values)


def _check_given(places: Places, wanted: Collection[str], reasons: Sequence[Mapping[str, str]]) -> None:
    """Refuse a signal that none of the kernels can give, each of which has its reasons."""
    for signal in wanted:
        if all(signal in found for found in reasons):
            why = list(dict.fromkeys(found[signal] for found in reasons)) or ["it has no kernel"]
            lacking = {name for name in NAMES if all(name in found for found in _reasons(places, NAMES).values())}
            raise CutError(
                f"No kernel of '{places.model.name}' can give the signal '{signal}': {'; '.join(why[:3])}. Criteria that would "
                f"work: {', '.join(able(lacking | {signal}))}."
            )


def _check_batches(batches: Any, wanted: Collection[str]) -> None:
    if isinstance(batches, Iterator):
        raise DataError(
            f"The batches are a {type(batches).__name__}, which can be gone through only once; give a list or a tf.data.Dataset."
        )
    if next(iter(batches), None) is None:
        data = [name for name in wanted if name not in HELD]
        raise DataError(
            f"There are no batches, but {', '.join(data)} is told of data. Give at least one batch of (x, y), or choose one of "
            f"the criteria that need none: {', '.join(able(set(NAMES) - set(HELD)))}."
        )


def _split(batch: Any) -> Batch:
    """x and y of a batch, as tensors; y is None if there is none."""
    x, y = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
    return _tensors(x), None if y is None else _tensors(y)


def _tensors(given: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, given)


def _compiled(function: Callable[..., Any]) -> Any:
    return tf.function(function, autograph=False, reduce_retracing=True)


def _samples(x: Any) -> int:
    return int(tf.nest.flatten(x)[0].shape[0])


class _Forward:
    """The signals of activations and of inputs."""

    def __init__(self, places: Places, able_to: Mapping[str, Collection[str]]) -> None:
        wanted = {name: set(signals) & set(statistics.NAMES) for name, signals in able_to.items()}
        self.wanted = {name: signals for name, signals in wanted.items() if signals}
        self.covariances = [name for name, signals in able_to.items() if "input_covariance" in signals]
        self.places = places
        model, kernels = places.model, places.kernels
        taps = {
            "taps": {name: list(kernels[name].taps) for name in self.wanted},
            "inputs": {name: list(kernels[name].inputs) for name in self.covariances},
        }
        if not (self.wanted or self.covariances):
            return
        watched = keras.Model(model.inputs, taps)
        self.call = _compiled(lambda x: watched(x, training=False))

    def run(self, batches: Iterable[Any]) -> Signals:
        if not (self.wanted or self.covariances):
            return {}
        spans = self._spans(batches) if any("activation_histogram" in one for one in self.wanted.values()) else {}
        sums: dict[str, statistics.Sums] = {}
        rows: dict[str, tuple[Array, int]] = {}
        for x, y in map(_split, batches):
            found = self.call(_inputs(x))
            for name, wanted in self.wanted.items():
                labels = _labels(y) if wanted & set(statistics.CLASSES) else None
                for tap in found["taps"][name]:
                    values = self.places.kernels[name].channels_last(tap.numpy())
                    part = statistics.summed(values, wanted, labels, spans.get(name, (0.0, 1.0)))
                    sums[name] = statistics.added(sums[name], part) if name in sums else part
            for name in self.covariances:
                for tap in found["inputs"][name]:
                    total, count = products(self.places.kernels[name], tf.cast(tap, tf.float32))
                    before = rows.get(name, (0.0, 0))
                    rows[name] = (before[0] + total, before[1] + count)
        held: Signals = {name: {} for name in (*self.wanted, *self.covariances)}
        _join(held, {name: statistics.finished(sums[name], self.wanted[name]) for name in self.wanted})
        _join(held, {name: {"input_covariance": total / max(count, 1)} for name, (total, count) in rows.items()})
        return held

    def _spans(self, batches: Iterable[Any]) -> dict[str, statistics.Range]:
        """The smallest and the largest activation of every layer."""
        spans: dict[str, statistics.Range] = {}
        for x, _ in map(_split, batches):
            for name, taps in self.call(_inputs(x))["taps"].items():
                for tap in taps:
                    low, high = spans.get(name, (np.inf, -np.inf))
                    spans[name] = (min(low, float(tf.reduce_min(tap))), max(high, float(tf.reduce_max(tap))))
        return spans


class _Goal(NamedTuple):
    """The model and what is differentiated."""

    model: Any
    losses: list[Any]
    variables: list[Any]

    def value(self, x: Any, y: Any) -> tuple[Any, dict[str, list[Any]]]:
        """The loss of a batch, the mean over its samples; and the kernels' activations."""
        outputs, taps = self.model(_inputs(x), training=False)
        pairs = zip(self.losses, tf.nest.flatten(y), outputs, strict=True)
        return tf.add_n([_mean(loss, true, made) for loss, true, made in pairs]), taps

    def gradients(self, x: Any, y: Any) -> list[Any]:
        """dL/dw of a batch."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.variables)
            value, _ = self.value(x, y)
        return [tf.convert_to_tensor(g) for g in tape.gradient(value, self.variables, unconnected_gradients="zero")]


class _Backward:
    """The signals of the loss's derivatives."""

    def __init__(self, places: Places, able_to: Mapping[str, Collection[str]], loss: Any) -> None:
        self.places = places
        self.wanted = set().union(*able_to.values()) & set((*BACKWARD, *HESSIAN))
        if not self.wanted:
            return
        if loss is None:
            raise DataError(
                f"{', '.join(sorted(self.wanted))} is told of a loss, and none is given. Give the loss that the model is trained with."
            )
        kernels = places.kernels
        taps = {name: list(place.taps) for name, place in kernels.items()}
        losses = [keras.losses.get(one) for one in (loss if isinstance(loss, (list, tuple)) else [loss])]
        if len(losses) != len(places.model.outputs):
            raise DataError(
                f"The model has {len(places.model.outputs)} outputs, and {len(losses)} losses are given. Give one for each output."
            )
        model = keras.Model(places.model.inputs, [places.model.outputs, taps])
        self.goal = _Goal(model, losses, [place.variable for place in kernels.values()])
        self._steps = {
            "gradients": _compiled(self.goal.gradients),
            "gradient_squares": _compiled(self._squares),
            "activation_gradients": _compiled(self._activation_gradients),
            "hessian": _compiled(self._hessian_times),
        }

    def run(self, batches: Iterable[Any], seed: int, probes: int) -> Signals:
        held: Signals = {name: {} for name in self.places.kernels}
        if not self.wanted:
            return held
        self._check_labels(batches)
        first = self.wanted & {"gradients", "activation_gradients", "gradient_squares"}
        if "hessian_gradient" in self.wanted:
            first |= {"gradients"}
        totals = self._means({name: self._steps[name] for name in sorted(first)}, batches)
        totals |= self._products(batches, totals.get("gradients"), seed, probes)
        for signal in self.wanted:
            for (name, place), values in zip(self.places.kernels.items(), totals[signal], strict=True):
                weights = signal != "activation_gradients"
                held[name][signal] = place.laid_out(values) if weights else values
        return held

    def _means(self, steps: Mapping[str, Any], batches: Iterable[Any]) -> dict[str, list[Array]]:
        """What each step gives, one array per kernel, as the mean over all samples."""
        totals: dict[str, list[Any]] = {name: [0.0] * len(self.goal.variables) for name in steps}
        count = 0
        for x, y in map(_split, batches):
            size = _samples(x)
            count += size
            for name, step in steps.items():
                parts = [part.numpy().astype(np.float64) * size for part in step(x, y)]
                totals[name] = [total + part for total, part in zip(totals[name], parts, strict=True)]
        return {name: [total / count for total in parts] for name, parts in totals.items()}

    def _products(
        self, batches: Iterable[Any], gradients: list[Array] | None, seed: int, probes: int
    ) -> dict[str, list[Array]]:
        """The diagonal of the Hessian (Hutchinson: E[v * Hv], v of random signs) and its product with the gradient."""
        vectors: list[list[Array]] = []
        if "hessian_gradient" in self.wanted and gradients is not None:
            vectors.append(gradients)
        if "hessian_diagonal" in self.wanted:
            vectors += [self._signs(seed, probe) for probe in range(probes)]
        if not vectors:
            return {}
        step = self._steps["hessian"]
        constants = [[tf.constant(part, tf.float32) for part in vector] for vector in vectors]
        try:
            steps = {str(number): self._bound(step, vector) for number, vector in enumerate(constants)}
            found = list(self._means(steps, batches).values())
        except LookupError as error:
            raise CutError(
                f"TensorFlow knows no second derivative of a layer of '{self.places.model.name}' ({error}), so that its Hessian "
                f"cannot be had. Criteria that would work: "
                f"{', '.join(able(set(HESSIAN)))}."
            ) from error
        totals: dict[str, list[Array]] = {}
        if "hessian_gradient" in self.wanted:
            totals["hessian_gradient"] = found.pop(0)
            vectors.pop(0)
        if found:
            pairs = zip(vectors, found, strict=True)
            parts = [[sign * product for sign, product in zip(v, hv, strict=True)] for v, hv in pairs]
            totals["hessian_diagonal"] = [np.mean(kernel, axis=0) for kernel in zip(*parts, strict=True)]
        return totals

    @staticmethod
    def _bound(step: Any, vector: list[Any]) -> Callable[[Any, Any], Any]:
        return lambda x, y: step(x, y, vector)

    def _signs(self, seed: int, probe: int) -> list[Array]:
        return [
            np.random.default_rng(_seed(seed, name, probe)).choice([-1.0, 1.0], tuple(place.variable.shape))
            for name, place in self.places.kernels.items()
        ]

    def _hessian_times(self, x: Any, y: Any, vector: list[Any]) -> list[Any]:
        variables = self.goal.variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            found = self.goal.gradients(x, y)
            along = tf.add_n([tf.reduce_sum(g * v) for g, v in zip(found, vector, strict=True)])
        return [tf.convert_to_tensor(one) for one in tape.gradient(along, variables, unconnected_gradients="zero")]

    def _squares(self, x: Any, y: Any) -> list[Any]:
        """The mean over the batch's samples of (dL/dw)^2, one sample after the other."""
        count = tf.shape(tf.nest.flatten(x)[0])[0]

        def step(i: Any, totals: list[Any]) -> tuple[Any, list[Any]]:
            one, label = (tf.nest.map_structure(lambda part: part[i : i + 1], given) for given in (x, y))
            found = self.goal.gradients(one, label)
            return i + 1, [total + tf.square(g) for total, g in zip(totals, found, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in self.goal.variables]
        _, totals = tf.while_loop(lambda i, _: i < count, step, (tf.constant(0), zeros))
        return [total / tf.cast(count, tf.float32) for total in totals]

    def _activation_gradients(self, x: Any, y: Any) -> list[Any]:
        """(out,) per kernel: the mean over the batch's samples of |sum over positions of a * dL/da|, L of the sample."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.goal.variables)
            value, taps = self.goal.value(x, y)
        found = tape.gradient(value, taps, unconnected_gradients="zero")
        size = tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)
        return [
            self._change(place, taps[name], found[name]) * size  # of a sample's own loss, not its share of the mean
            for name, place in self.places.kernels.items()
        ]

    @staticmethod
    def _change(place: Place, taps: list[Any], gradients: list[Any]) -> Any:
        """Of each sample the change summed over positions and calls, its size averaged over samples."""
        axis = 1 if getattr(place.layer, "data_format", None) == "channels_first" else -1
        changes = [a * tf.convert_to_tensor(g) for a, g in zip(taps, gradients, strict=True)]
        others = [[i for i in range(1, c.shape.rank) if i != axis % c.shape.rank] for c in changes]
        sums = [tf.reduce_sum(change, axes) for change, axes in zip(changes, others, strict=True)]
        return tf.reduce_mean(tf.abs(tf.add_n(sums)), axis=0)

    def _check_labels(self, batches: Iterable[Any]) -> None:
        _, y = _split(next(iter(batches)))
        if y is None or len(tf.nest.flatten(y)) != len(self.goal.losses):
            raise DataError(
                f"{', '.join(sorted(self.wanted))}: the loss needs y for each of the model's {len(self.goal.losses)} outputs, and there "
                f"are {0 if y is None else len(tf.nest.flatten(y))}. Give batches of (x, y). Criteria that would work without: "
                f"{', '.join(able(LABELLED))}."
            )


def _mean(loss: Any, true: Any, made: Any) -> Any:
    """The mean loss; within the scope of a distribution strategy Keras averages none itself."""
    own = tf.distribute.has_strategy() and isinstance(loss, keras.losses.Loss)
    return tf.reduce_mean(loss.call(true, made) if own else loss(true, made))


def _inputs(x: Any) -> Any:
    """What a functional model is called with."""
    flat = tf.nest.flatten(x)
    return flat[0] if len(flat) == 1 else flat


def _labels(y: Any) -> NDArray[np.integer]:
    """(samples,) classes, of the only y that holds a whole number per sample."""
    given = [part.numpy() for part in tf.nest.flatten(y)] if y is not None else []
    classes = [part.reshape(-1) for part in given if part.dtype.kind in "iu" and part.size == len(part)]
    if len(classes) != 1 or (classes[0].size and classes[0].min() < 0):
        shown = ", ".join(f"{part.dtype} {part.shape[1:]}" for part in given) or "no labels"
        raise CutError(
            f"{', '.join(statistics.CLASSES)} are told of classes: one whole number >= 0 per sample, in one output. Here y is {shown}. "
            f"Criteria that would work: {', '.join(able(set(statistics.CLASSES) if given else LABELLED))}."
        )
    return classes[0]
