"""The weights that make coupled channels, as matrices with a column per unit: what penalties of groups are of.

A unit of a group (`edgeprune.channels`) is made by the kernels of its producers, and by the biases, the scales and offsets of
normalizations and the depthwise kernels that belong to its channels. When all of these are zero, so is what the unit hands on,
and it can be removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from edgeprune import channels, scoring, shrinking
from edgeprune.errors import CutError
from edgeprune.keras import channel_graph, signals, tf

NOWHERE = -1
MAKING = ("kernel", "depthwise_kernel", "bias", "gamma", "beta")  # besides the producers: what is zero when a unit is


class Part(NamedTuple):
    """One variable's share of a group's matrix.

    Attributes:
        variable: trainable.
        axis: of the channels.
        table: (per unit, units): the index on that axis of every weight slice of every unit; NOWHERE where a unit has fewer.
        back: (length of the axis,): the place of every index in the table, row by row; NOWHERE for those of other groups.
    """

    variable: Any
    axis: int
    table: np.ndarray
    back: np.ndarray

    @property
    def plain(self) -> bool:
        """Whether the unit's number is the index."""
        return self.table.shape == (1, len(self.back)) and np.array_equal(self.table[0], np.arange(len(self.back)))


class Block(NamedTuple):
    """A group's trainable weights.

    Attributes:
        name: of the group.
        units: how many columns its matrix has.
        parts: what its rows are made of.
    """

    name: str
    units: int
    parts: tuple[Part, ...]

    @property
    def sizes(self) -> np.ndarray:
        """(units,) float32, weights of each unit."""
        rows = [(part.variable.shape.num_elements() // len(part.back)) * (part.table != NOWHERE) for part in self.parts]
        return np.sum([row.sum(axis=0) for row in rows], axis=0).astype("float32")

    def matrix(self, values: Sequence[Any]) -> Any:
        """(weights of a unit, units), filled up with zeros where units differ in size.

        Args:
            values: of each part's variable, or of its shape.
        """
        return tf.concat([_columns(part, value) for part, value in zip(self.parts, values, strict=True)], axis=0)

    def silent(self) -> np.ndarray:
        """(units,) whether all weights of a unit are zero."""
        found: np.ndarray = ~self.matrix([part.variable for part in self.parts]).numpy().any(axis=0)
        return found

    def values(self, matrix: Any, before: Sequence[Any]) -> list[Any]:
        """Of each part the tensor that ``matrix`` holds of it, as before where it belongs to other groups."""
        rows = [part.table.shape[0] * (part.variable.shape.num_elements() // len(part.back)) for part in self.parts]
        pieces = tf.split(matrix, rows, axis=0) if len(rows) > 1 else [matrix]
        return [_uncolumns(part, piece, old) for part, piece, old in zip(self.parts, pieces, before, strict=True)]


def alive(model: Any, coupling: channels.Coupling) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """How many weights of every unit's kernels let something through.

    Args:
        model: flat functional; of a kernel with a BatchNormalization behind it, weights with a scale of zero count as zero.
        coupling: of the model.

    Returns:
        Group -> (units,), 0 where what the unit hands on does not depend on the model's inputs; and the groups that
        this is not known of, with the reason.
    """
    held = signals.collect(model, {"weights"})
    scales: Any = {}
    with suppress(CutError):  # no kernel has one
        scales = signals.collect(model, {"scale"})
    given = {
        layer: {"weights": found["weights"] * (scales.get(layer, {}).get("scale", np.ones(1)) != 0)}
        for layer, found in held.items()
        if "weights" in found
    }
    return scoring.units(coupling, "l0", given, None, "sum"), scoring.unscored(coupling, "l0", given)


def blocks(model: Any, include: str = ".*", exclude: str | None = None) -> tuple[list[Block], dict[str, str]]:
    """The groups of a model that can be cut and trained, and the others with the reason why they are none of these.

    Args:
        model: flat functional tf_keras model.
        include, exclude: as for ``shrinking.left_whole``.

    Raises:
        RecipeError: an expression matches nothing.
    """
    coupling = channels.couple(channel_graph.describe(model))
    trainable = {variable.ref() for variable in model.trainable_variables}
    found, whole = [], {}
    for name, why in shrinking.left_whole(coupling, include, exclude).items():
        group = coupling.group(name)
        frozen = [member.layer for member in group.producers if _variable(model, member).ref() not in trainable]
        if why is None and frozen:
            why = f"'{frozen[0]}' is not trained"
        if why is not None:
            whole[name] = why
            continue
        own = [member for member in group.members if member.role == "producer" or _makes(member)]
        parts = [_part(model, member, group.units) for member in own if _variable(model, member).ref() in trainable]
        found.append(Block(name, group.units, tuple(parts)))
    return found, whole


def _makes(member: channels.Member) -> bool:
    return member.role == "channel" and member.weight in MAKING


def _variable(model: Any, member: channels.Member) -> Any:
    return channel_graph.variable(model.get_layer(member.layer), member.weight)


def _part(model: Any, member: channels.Member, units: int) -> Part:
    variable = _variable(model, member)
    length = int(variable.shape[member.axis])
    counts = np.bincount(member.units, minlength=units)
    table = np.full((int(counts.max()), units), NOWHERE)
    back = np.full(length, NOWHERE)
    for unit in range(units):
        places = member.indices(unit)
        table[: len(places), unit] = places
        back[places] = np.arange(len(places)) * units + unit
    return Part(variable, member.axis, table, back)


def _order(part: Part) -> list[int]:
    """The axes of the variable with that of the channels last."""
    rank = len(part.variable.shape)
    return [axis for axis in range(rank) if axis != part.axis] + [part.axis]


def _columns(part: Part, value: Any) -> Any:
    """(rows, units) of a value of the part's shape."""
    order = _order(part)
    if order != sorted(order):
        value = tf.transpose(value, order)
    flat = tf.reshape(value, [-1, len(part.back)])
    if part.plain:
        return flat
    filled = tf.pad(flat, [[0, 0], [0, 1]])  # the last column is what NOWHERE reads
    places = np.where(part.table == NOWHERE, len(part.back), part.table)
    return tf.reshape(tf.gather(filled, places.ravel(), axis=1), [-1, part.table.shape[1]])


def _uncolumns(part: Part, columns: Any, old: Any) -> Any:
    """``_columns`` undone; indices of other groups keep what they have."""
    order, shape = _order(part), part.variable.shape.as_list()
    if not part.plain:
        wide = tf.reshape(columns, [-1, part.table.size])
        columns = tf.gather(wide, np.maximum(part.back, 0), axis=1)
    value = tf.reshape(columns, [shape[axis] for axis in order])
    if order != sorted(order):
        value = tf.transpose(value, [int(axis) for axis in np.argsort(order)])
    if (part.back == NOWHERE).any():
        along = [-1 if axis == part.axis else 1 for axis in range(len(shape))]
        value = tf.where((part.back != NOWHERE).reshape(along), value, old)
    return value
