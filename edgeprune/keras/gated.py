"""Gates in a model: thin wrappers that compute with gated kernels, and a controller that keeps the gates on course.

`on_weights` gates every weight of chosen kernels, `on_channels` every unit of chosen groups of coupled channels, in the
kernels that read it: a closed unit is what `surgery.mask` makes of a cut one. What a gate computes is a module of
`edgeprune.keras.gates`. The result is an ordinary functional model for anyone's ``compile`` and ``fit``.

All state is in variables: the optimizer's, the gates' own, and the number of steps that are done, which the schedule and
the noise are functions of. So a run that goes on from a checkpoint computes what an unbroken one does, and every replica
of a ``tf.distribute`` strategy draws the same gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from edgeprune import channels
from edgeprune.keras import channel_graph, graph, keras, kernels, pruning, tf
from edgeprune.keras.gate_variables import EACH, LEAST, Clock, Gates, either
from edgeprune.keras.gates import Gate

Tensor = Any
Cost = Callable[[Mapping[str, Tensor]], Tensor]  # by name how open each gate is, 0..1 -> share of the cost, 0..1

REFRESHES = 200  # of thresholds and of the strength, over the stage, at most
# How the strength is moved so that the asked share is met: with the excess e of what is open over what is asked, the loss gets
# strength * e / WITHIN times the penalty, at most once the strength, and less than nothing where too much is closed; at every
# refresh the strength's logarithm gains GAIN * e.
WITHIN, GAIN, MOST = 0.1, 0.3, 30.0


class Course(NamedTuple):
    """What the gates are to do, and when.

    Attributes:
        steps: training steps of the stage.
        final: share of the cost that is to go in the end, 0..1; None: what the gates find.
        begin, end: shares of the steps between which the asked share rises from 0 to ``final``, 0..1.
        power: of that polynomial, as in `edgeprune.schedules.polynomial`.
        strength: factor of the penalty, a share of the cost; None: it is moved so that ``final`` is met.
        stakes: what there is to lose, in units of the loss: how much larger it is when the network answers nothing of use.
        rate: how many times as fast as weights the gates learn.
        seed: of the noise.
    """

    steps: int
    final: float | None
    begin: float = 0.0
    end: float = 0.6
    power: float = 3.0
    strength: float | None = None
    stakes: float = 1.0
    rate: float = 1.0
    seed: int = 0

    @property
    def refresh(self) -> int:
        """Steps between refreshes of thresholds and strength."""
        return max(1, self.steps // REFRESHES)


class Wrapped(NamedTuple):
    """A gated model.

    Attributes:
        model: to be compiled and trained; uncompiled.
        gates: by the names of ``kernels.key``, or of groups.
        controller: its last layer.
    """

    model: Any
    gates: dict[str, Gates]
    controller: Controller


def on_weights(
    model: Any,
    plans: Sequence[pruning.LayerPlan],
    kind: Gate,
    course: Course,
    cost: Cost,
    kept: Mapping[str, np.ndarray] | None = None,
) -> Wrapped:
    """A copy of the model with a gate on every weight of the planned kernels.

    Args:
        model: functional; not changed.
        plans: from ``pruning.plan``.
        kind: a module of ``edgeprune.keras.gates`` for the granularity ``weight``.
        course: what and when.
        cost: of the open weights, by the names of ``kernels.key``.
        kept: masks of an earlier stage, True = kept; what they close stays closed.
    """
    clock = Clock(course.seed)
    chosen = {plan.name: plan.kernels for plan in plans if plan.prunable}
    gates: dict[str, Gates] = {}
    for name, found in chosen.items():
        for kernel in found:
            key = kernels.key(name, kernel)
            values = kernel.of(model.get_layer(name)).numpy()
            gates[key] = Gates(kind, key, values, course.rate, clock, len(gates), (kept or {}).get(key))

    def copy(layer: Any) -> Any:
        fresh = graph.copy_layer(layer)
        if layer.name not in chosen:
            return fresh
        own = [_Whole(kernel.path, gates[kernels.key(layer.name, kernel)]) for kernel in chosen[layer.name]]
        return Gated(fresh, own)

    gated = graph.rebuild(model, copy=copy)
    for name, found in chosen.items():
        for kernel in found:
            gates[kernels.key(name, kernel)].connect(kernel.of(gated.get_layer(name).layer))
    return _controlled(gated, gates, clock, kind, course, cost)


def on_channels(
    model: Any, coupling: channels.Coupling, names: Sequence[str], kind: Gate, course: Course, cost: Cost
) -> Wrapped:
    """A copy of the model with a gate on every unit of the named groups, in all kernels that read its channels.

    Args:
        model: flat functional; not changed.
        coupling: of the model.
        names: of groups that can be cut; where the kind sees its inputs, ``unseen`` must have no reason for them.
        kind, course, cost: as in ``on_weights``, by the groups' names.
    """
    clock = Clock(course.seed)
    groups = [coupling.group(name) for name in names]
    gates = {
        group.name: Gates(kind, group.name, np.ones(group.units, np.float32), course.rate, clock, number)
        for number, group in enumerate(groups)
    }
    gated = along_channels(model, coupling, gates, kind.SEES)
    for group in groups:
        gates[group.name].connect(None, _sizes(gated, group))
    return _controlled(gated, gates, clock, kind, course, cost)


def along_channels(model: Any, coupling: channels.Coupling, gates: Mapping[str, Any], sees: bool = False) -> Any:
    """A copy of the model whose kernels compute with factors of the channels that they read.

    Args:
        model: flat functional; not changed.
        coupling: of the model.
        gates: group -> `Gates`, or what has ``ones``, (units,), and like these ``effective(ones, training)``, their factors.
        sees: whether the inputs are scaled instead of the kernels.
    """
    places = _places(coupling, [coupling.group(name) for name in gates])

    def copy(layer: Any) -> Any:
        fresh = graph.copy_layer(layer)
        own = [
            _Along(_path(layer, weight), axis, [gates[name] for name in names], index)
            for (name, weight, axis), (names, index) in places.items()
            if name == layer.name
        ]
        return Gated(fresh, own, sees) if own else fresh

    return graph.rebuild(model, copy=copy)


def unseen(model: Any, group: channels.Group) -> str | None:
    """Why a gate that sees its inputs cannot scale a group's channels; None if it can."""
    for member in group.consumers:
        layer = model.get_layer(member.layer)
        if member.weight != "kernel" or not isinstance(
            layer, (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)
        ):
            return f"{type(layer).__name__} '{layer.name}' reads them, whose inputs no factor can be put on"
    return None


def plain(model: Any, wrapped: Wrapped) -> Any:
    """The model as it was given, with the weights that the gated one has: no gate has any effect on them yet."""
    return with_weights_of(wrapped.model, model)


def with_weights_of(gated: Any, model: Any) -> Any:
    """A copy of the model with the weights that a gated copy of it has."""
    copy = graph.rebuild(model)
    for layer in copy.layers:
        trained = gated.get_layer(layer.name)
        layer.set_weights((trained.layer if isinstance(trained, Gated) else trained).get_weights())
    return copy


def with_masks(model: Any, wrapped: Wrapped, masks: Mapping[str, np.ndarray]) -> Any:
    """The plain model whose kernels are what the gates decide, and zero off the masks.

    A weight that a mask keeps and its gate has closed is what it would be with the gate open.
    """
    copy = plain(model, wrapped)
    for name, mask in masks.items():
        gates, kernel = wrapped.gates[name], kernels.find(copy, name)
        decided = gates.decided().numpy()
        kernel.assign(np.where(mask, np.where(decided != 0, decided, kernel.numpy()), 0.0))
    return copy


def with_factors(model: Any, wrapped: Wrapped, coupling: channels.Coupling, cut: channels.Cut) -> Any:
    """The plain model with the factors of what the cut keeps folded into the kernels that read it; to be shrunk by the cut.

    A unit that the cut keeps and its gate has closed counts as open.
    """
    copy = plain(model, wrapped)
    for name, gates in wrapped.gates.items():
        group = coupling.group(name)
        decided = gates.decided().numpy()
        factors = np.where(decided != 0, decided, 1.0)
        for member in group.consumers if not np.all(factors == 1.0) else ():
            variable = channel_graph.variable(copy.get_layer(member.layer), member.weight)
            along = np.ones(variable.shape[member.axis], np.float32)
            along[member.positions] = factors[member.units]
            variable.assign(variable.numpy() * _broadcast(along, member.axis, len(variable.shape)))
    return copy


class Watch(keras.callbacks.Callback):
    """Tells after every epoch which share of the cost the gates have closed, as ``sparsity``."""

    def __init__(self, controller: Controller) -> None:
        super().__init__()
        self.controller = controller

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if logs is not None:
            logs["sparsity"] = 1.0 - float(self.controller.opened())


class _Whole:
    """A kernel of which every weight has a gate."""

    def __init__(self, path: str, gates: Gates) -> None:
        self.path, self.gates, self.parts = path, gates, [gates]

    def effective(self, kernel: Tensor, training: Any) -> Tensor:
        return self.gates.effective(kernel, training)


class _Along:
    """A kernel whose channels along one axis have gates.

    Attributes:
        parts: the groups that the channels are of.
        index: for every index of the axis its place in the parts' gates one after the other; behind them stands a 1.
    """

    def __init__(self, path: str, axis: int, parts: Sequence[Gates], index: np.ndarray) -> None:
        self.path, self.axis, self.parts, self.index = path, axis, list(parts), index
        ends = np.cumsum([0, *(len(gates.ones) for gates in parts)])
        self._averages = [_average(index - end, len(gates.ones)) for gates, end in zip(parts, ends, strict=False)]

    def effective(self, kernel: Tensor, training: Any) -> Tensor:
        factors = [gates.effective(tf.constant(gates.ones), training) for gates in self.parts]
        along = tf.gather(tf.concat([*factors, [1.0]], 0), self.index)
        return kernel * _broadcast(along, self.axis, len(kernel.shape))

    def scaled(self, inputs: Tensor, axis: int, training: Any) -> Tensor:
        """The inputs of the layer, each sample's channels times its own factors."""
        last = tf.cast(tf.experimental.numpy.moveaxis(inputs, axis, -1), tf.float32)
        means = tf.reduce_mean(last, axis=list(range(1, len(last.shape) - 1)))
        factors = [
            gates.effective(tf.constant(gates.ones), training, means @ average)
            for gates, average in zip(self.parts, self._averages, strict=True)
        ]
        along = tf.gather(tf.concat([*factors, tf.ones_like(means[:, :1])], 1), self.index, axis=1)
        shape = [1] * len(inputs.shape)
        shape[axis] = len(self.index)
        return inputs * tf.cast(tf.reshape(along, [-1, *shape[1:]]), inputs.dtype)


class Gated(keras.layers.Layer):
    """A layer that computes with gated kernels; it has the layer's name and hands on all that Keras passes."""

    def __init__(self, layer: Any, swaps: Sequence[Any], sees: bool = False) -> None:
        """Args:
        layer: any that ``kernels.KERNELS`` or the channel analysis knows; not built.
        swaps: each with a ``path`` to a variable and its ``effective`` value.
        sees: whether the inputs are scaled instead of the kernels.
        """
        super().__init__(
            name=layer.name, dtype="float32", autocast=False
        )  # gates compute in float32, the layer as it will
        self.layer, self.sees = layer, sees
        self.swaps = tuple(swaps)
        self.gates = [gates for swap in swaps for gates in swap.parts]
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        super().build(input_shape)

    def call(self, inputs: Any, *arguments: Any, training: Any = None, **keywords: Any) -> Any:
        if "mask" in keywords and not self.layer._expects_mask_arg:
            del keywords["mask"]
        if self.layer._expects_training_arg:
            keywords["training"] = training
        if self.sees:
            axis = 1 if getattr(self.layer, "data_format", None) == "channels_first" else len(inputs.shape) - 1
            for swap in self.swaps:
                inputs = swap.scaled(inputs, axis, training)
            return self.layer(inputs, *arguments, **keywords)
        with self._swapped(training):
            return self.layer(inputs, *arguments, **keywords)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)

    def get_weights(self) -> list[np.ndarray]:
        """The layer's own, so that the model is rebuilt as if there were no gates."""
        found: list[np.ndarray] = self.layer.get_weights()
        return found

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        self.layer.set_weights(weights)

    @contextmanager
    def _swapped(self, training: Any) -> Iterator[None]:
        """Within it the layer's kernels are tensors. They are set past Keras, which would forget the variables."""
        held = []
        for swap in self.swaps:
            *path, name = swap.path.split(".")
            owner = self.layer
            for step in path:
                owner = getattr(owner, step)
            held.append((vars(owner), name, getattr(owner, name)))
        computing = [
            swap.effective(tf.convert_to_tensor(kernel), training)
            for swap, (_, _, kernel) in zip(self.swaps, held, strict=True)
        ]
        try:
            for (owner, name, _), kernel in zip(held, computing, strict=True):
                owner[name] = tf.cast(kernel, self.layer.compute_dtype)
            yield
        finally:
            for owner, name, kernel in held:
                owner[name] = kernel


class Controller(keras.layers.Layer):
    """Hands the outputs on; counts the steps, has thresholds follow the schedule, and moves the strength of the penalty."""

    def __init__(
        self, name: str, gates: Mapping[str, Gates], clock: Clock, kind: Gate, course: Course, cost: Cost
    ) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)
        self.supports_masking = True
        self.gates, self.clock, self.kind, self.course, self.cost = dict(gates), clock, kind, course, cost
        first = course.strength or course.stakes / max(
            float(cost({name: own.expected() for name, own in gates.items()})), LEAST
        )
        self.log_strength = self.add_weight(
            name="log_strength",
            initializer=keras.initializers.Constant(np.log(first)),
            trainable=False,
            **EACH,
        )
        self.excess = self.add_weight(name="excess", initializer="zeros", trainable=False, **EACH)
        self.held = kind.HELD == "penalty" and course.strength is None and course.final is not None
        if kind.HELD != "schedule":
            self.add_loss(self.loss)
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        either(training, self._advance, lambda: tf.constant(0))
        return tf.nest.map_structure(tf.identity, inputs)

    def loss(self) -> Tensor:
        """The penalty of this step."""
        return self.strength() * self.cost({name: gates.expected() for name, gates in self.gates.items()})

    def strength(self) -> Tensor:
        """What the loss gets of the penalty; a fixed one rises with the schedule."""
        if self.held:
            return tf.exp(self.log_strength) * tf.clip_by_value(self.excess / WITHIN, -1.0, 1.0)
        return tf.exp(self.log_strength) * self._risen()

    def opened(self) -> Tensor:
        """Share of the cost that the open gates have, 0..1."""
        return self.cost({name: gates.opened() for name, gates in self.gates.items()})

    def _advance(self) -> Tensor:
        """A step is done."""
        self.clock.step.assign_add(1)
        done = tf.convert_to_tensor(self.clock.step)
        return tf.cond(done % self.course.refresh == 0, self._refresh, lambda: tf.constant(0))

    def _refresh(self) -> Tensor:
        asked = (self.course.final or 0.0) * (1.0 - (1.0 - self._risen()) ** self.course.power)
        for gates in self.gates.values():
            gates.refresh(asked, self._progress())
        if self.held:
            self.excess.assign(self.opened() - (1.0 - asked))
            self.log_strength.assign(tf.clip_by_value(self.log_strength + GAIN * self.excess, -MOST, MOST))
        return tf.constant(0)

    def _progress(self) -> Tensor:
        """Share of the steps that are done, 0..1."""
        return tf.minimum(tf.cast(tf.convert_to_tensor(self.clock.step), tf.float32) / self.course.steps, 1.0)

    def _risen(self) -> Tensor:
        """Share of the way from ``begin`` to ``end``, 0..1."""
        begin, end = self.course.begin, self.course.end
        return tf.clip_by_value((self._progress() - begin) / (end - begin), 0.0, 1.0)


def _controlled(model: Any, gates: dict[str, Gates], clock: Clock, kind: Gate, course: Course, cost: Cost) -> Wrapped:
    """The model with a controller behind its outputs, which keep their names."""
    name = graph.free_name("gates", {layer.name for layer in model.layers})
    controller = Controller(name, gates, clock, kind, course, cost)
    outputs = controller(model.outputs)
    controlled = keras.Model(model.inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)
    controlled.output_names = model.output_names
    return Wrapped(controlled, gates, controller)


def _places(
    coupling: channels.Coupling, groups: Sequence[channels.Group]
) -> dict[tuple[str, str, int], tuple[list[str], np.ndarray]]:
    """Every axis that reads gated channels -> the groups, and for each index its place among their units; behind them: none."""
    found: dict[tuple[str, str, int], list[tuple[channels.Group, channels.Member]]] = {}
    for group in groups:
        for member in group.consumers:
            found.setdefault((member.layer, member.weight, member.axis), []).append((group, member))
    places = {}
    for key, parts in found.items():
        ends = np.cumsum([0, *(group.units for group, _ in parts)])
        index = np.full(len(coupling.axes[key]), ends[-1])
        for (_, member), begin in zip(parts, ends, strict=False):
            index[member.positions] = begin + member.units
        places[key] = ([group.name for group, _ in parts], index)
    return places


def _sizes(model: Any, group: channels.Group) -> Callable[[], Tensor]:
    """Per unit, the mean over the kernels that make it of its weights' norm, in means of the kernel's channels."""
    made = []
    for member in group.producers:
        layer = model.get_layer(member.layer)
        variable = channel_graph.variable(layer.layer if isinstance(layer, Gated) else layer, member.weight)
        index = np.full(variable.shape[member.axis], -1)
        index[member.positions] = member.units
        made.append((variable, member.axis, _average(index, group.units)))

    def sizes() -> Tensor:
        each = []
        for variable, axis, average in made:
            others = [place for place in range(len(variable.shape)) if place != axis]
            norms = tf.sqrt(tf.reduce_sum(tf.square(tf.convert_to_tensor(variable)), axis=others))
            each.append((norms / (tf.reduce_mean(norms) + 1e-12))[tf.newaxis] @ average)
        return tf.add_n(each)[0] / len(each)

    return sizes


def _average(units: np.ndarray, count: int) -> np.ndarray:
    """(length of an axis, count): a matrix that takes the mean over each unit's indices; others than 0..count-1 are of none."""
    hits = (units[:, np.newaxis] == np.arange(count)).astype(np.float32)
    return hits / np.maximum(hits.sum(axis=0), 1.0)


def _broadcast(values: Tensor, axis: int, rank: int) -> Tensor:
    """One value for each index of an axis, in a shape that multiplies a kernel."""
    return (
        values.reshape(_shape(axis, rank)) if isinstance(values, np.ndarray) else tf.reshape(values, _shape(axis, rank))
    )


def _shape(axis: int, rank: int) -> list[int]:
    return [-1 if place == axis else 1 for place in range(rank)]


def _path(layer: Any, weight: str) -> str:
    """To a weight that the channel analysis names: a recurrent layer's lie in its cell."""
    return weight if hasattr(layer, weight) else f"cell.{weight}"
