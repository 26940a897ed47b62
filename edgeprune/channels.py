"""Which channels must be removed together: the analysis that every removal of channels stands on.

Removing output channel i of a convolution removes row i of whatever reads it, entry i of every BatchNormalization on the
way, channel i of whatever it is added to, and so on to the next kernel. ``couple`` finds these sets exactly, index by
index, from a description of the network (`Graph`, made by ``edgeprune.keras.channel_graph``):

* a **unit** is what can only go as a whole: one or more channels of one or more layers;
* a **group** is the units that share the outputs of a layer: what a criterion ranks against each other;
* a **cut** says which units of which groups are kept, ``{"conv1": [0, 2, 3]}``; ``apply`` turns it into the indices that
  remain of every axis of every weight.

What cannot be followed stays as it is, group by group, with the reason. (Fang et al. 2023, DepGraph: Towards Any Structural
Pruning, calls a group a dependency group and finds it by layers; here it is found by channels.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeprune import channel_rules, registry
from edgeprune.channel_rules import AxisKey, Graph, Node, Shape, Use
from edgeprune.errors import CutError

__all__ = ["Coupling", "Cut", "Graph", "Group", "Member", "Node", "Use", "apply", "couple", "kept", "shapes"]

Cut = Mapping[str, Sequence[int]]  # group -> the units that are kept


class Member(NamedTuple):
    """The part of one weight's axis that belongs to a group.

    Attributes:
        layer, weight, axis: whose.
        role: ``producer``, ``consumer`` or ``channel``, as in `Use`.
        positions: the indices on the axis, ascending.
        units: for each of them its unit, 0 to the group's ``units`` - 1.
    """

    layer: str
    weight: str
    axis: int
    role: str
    positions: np.ndarray
    units: np.ndarray

    def indices(self, unit: int) -> np.ndarray:
        """The indices on the axis that go when the unit goes."""
        return self.positions[self.units == unit]


@dataclass(frozen=True)
class Group:
    """Channels that are ranked against each other, because a layer's outputs hold them.

    Attributes:
        name: of its first producing layer.
        units: how many parts it can lose, one by one.
        step: channels that a layer loses with one unit: 1, unless a grouped convolution or a normalization binds them.
        members: everything that goes with them, in the network's order.
        reasons: why it is left whole; empty if it can be cut.
        inexact: why cutting it computes something else than zeroing it would (LayerNormalization); empty if it does not.
    """

    name: str
    units: int
    step: int
    members: tuple[Member, ...]
    reasons: tuple[str, ...] = ()
    inexact: tuple[str, ...] = ()

    @property
    def cuttable(self) -> bool:
        return not self.reasons

    @property
    def producers(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role == "producer")

    @property
    def consumers(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.role == "consumer")


@dataclass(frozen=True)
class Coupling:
    """The result of the analysis.

    Attributes:
        graph: what was analysed.
        groups: in the network's order.
        axes: every weight axis that follows channels -> the class of every index.
        tensors: every tensor -> its channel axis (without the batch) and the class of every channel.
        group_of, unit_of: class -> number of its group (-1: it belongs to none, and stays) and its unit in it.
    """

    graph: Graph
    groups: tuple[Group, ...]
    axes: Mapping[AxisKey, np.ndarray]
    tensors: Mapping[str, tuple[int, np.ndarray]]
    group_of: np.ndarray
    unit_of: np.ndarray

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            NameUnknown: there is none (with the nearest that there is).
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise registry.unknown("channel group", name, [group.name for group in self.groups])


def couple(graph: Graph) -> Coupling:
    """Follow every channel through the network.

    Returns:
        The groups, every index of every weight accounted for. Groups that cannot be cut are there, with the reasons.
    """
    found = channel_rules.trace(graph)
    _, class_of = np.unique(_components(found.count, found.pairs), return_inverse=True)
    axes = {key: class_of[slots] for key, slots in found.axes.items()}
    group_of, unit_of, names = _numbered(axes, found.roles, int(class_of.max(initial=-1)) + 1)
    members = _members(axes, found.roles, group_of, unit_of, len(names))
    reasons = _by_group(found.whole, class_of, group_of, len(names))
    inexact = _by_group(found.inexact, class_of, group_of, len(names))
    steps = [1] * len(names)
    for slots in found.made.values():
        owner = int(group_of[class_of[slots[0]]])
        if owner >= 0:
            steps[owner] = max(steps[owner], int(np.bincount(class_of[slots]).max()))
    groups = []
    for number, name in enumerate(names):
        units = int((group_of == number).sum())
        alone = ["go only together, as one"] if units == 1 else []
        why = tuple(reasons[number] or alone)
        groups.append(Group(name, units, steps[number], tuple(members[number]), why, tuple(inexact[number])))
    tensors = {
        name: (carried.axis, class_of[carried.slots]) for name, carried in found.carried.items() if carried is not None
    }
    return Coupling(graph, tuple(groups), axes, tensors, group_of, unit_of)


def apply(coupling: Coupling, cut: Cut) -> dict[AxisKey, np.ndarray]:
    """What remains of every weight axis that the cut touches.

    Args:
        coupling: from ``couple``.
        cut: group -> its units that are kept, in any order; groups that are not named are kept whole.

    Returns:
        (layer, weight, axis) -> the indices that remain, ascending, never none; axes that keep all are left out.

    Raises:
        NameUnknown: no such group.
        CutError: the group cannot be cut, a unit is not there or named twice, or a layer would be left empty.
    """
    staying = kept(coupling, cut)
    remaining = {}
    for key, classes in coupling.axes.items():
        mask = staying[classes]
        if not mask.all():
            remaining[key] = np.flatnonzero(mask)
    _check_not_empty(remaining)
    return remaining


def shapes(coupling: Coupling, cut: Cut) -> dict[str, Shape]:
    """The shape of every tensor (without the batch) after the cut; raises as ``apply`` does."""
    apply(coupling, cut)
    staying = kept(coupling, cut)
    after = dict(coupling.graph.tensors)
    for name, (axis, classes) in coupling.tensors.items():
        if after[name][axis] is not None:
            after[name] = (*after[name][:axis], int(staying[classes].sum()), *after[name][axis + 1 :])
    return after


def kept(coupling: Coupling, cut: Cut) -> np.ndarray:
    """Class -> whether it stays. The groups and units are checked as by ``apply``, layers that are left empty are not."""
    numbers = {group.name: number for number, group in enumerate(coupling.groups)}
    staying = np.ones(len(coupling.group_of), dtype=bool)
    for name, units in cut.items():
        group = coupling.group(name)
        chosen = _checked(group, units)
        classes = np.flatnonzero(coupling.group_of == numbers[name])
        staying[classes] = np.isin(coupling.unit_of[classes], chosen)
    return staying


def _checked(group: Group, units: Iterable[int]) -> np.ndarray:
    """The units as an array, or the reason why they cannot be what is kept."""
    chosen = np.asarray(list(units))
    if chosen.size and chosen.dtype.kind not in "iu":
        raise CutError(
            f"The units kept of '{group.name}' are {chosen.dtype}, not whole numbers from 0 to {group.units - 1}."
        )
    if len(np.unique(chosen)) != len(chosen) or (chosen.size and not 0 <= chosen.min() <= chosen.max() < group.units):
        raise CutError(
            f"The units kept of '{group.name}' are {sorted(chosen.tolist())}; each must be one of 0 to {group.units - 1}, named once."
        )
    if not chosen.size:
        raise CutError(f"Nothing is kept of '{group.name}': keep at least 1 of its {group.units} units.")
    if group.reasons and len(chosen) < group.units:
        raise CutError(
            f"'{group.name}' cannot be cut: its channels {'; '.join(group.reasons)}. Keep all {group.units} units, or leave it out "
            "of the cut."
        )
    return chosen


def _check_not_empty(remaining: Mapping[AxisKey, np.ndarray]) -> None:
    for (layer, weight, axis), indices in remaining.items():
        if not len(indices):
            raise CutError(
                f"Nothing would be left of '{layer}' ({weight}, axis {axis}): keep at least one unit that it holds, or remove the "
                "layer."
            )


def _components(count: int, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """For each of ``count`` things the smallest of those it is tied to, directly or through others.

    Roots are hooked onto smaller roots, then all paths are halved until they are flat; repeated until no pair disagrees.
    """
    root = np.arange(count)
    sides = [np.broadcast_arrays(one, other) for one, other in pairs]
    if not sides:
        return root
    left, right = (np.concatenate([np.ravel(pair[side]) for pair in sides]) for side in (0, 1))
    while True:
        one, other = root[left], root[right]
        apart = one != other
        if not apart.any():
            return root
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(root[root], root):
            root = root[root]


def _numbered(
    axes: Mapping[AxisKey, np.ndarray], roles: Mapping[AxisKey, str], classes: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Class -> group and unit; the groups' names. Classes that one producer makes are of one group."""
    made = {key: values for key, values in axes.items() if roles[key] == "producer" and len(values)}
    root = _components(classes, [(values[:1], values) for values in made.values()])
    numbers: dict[int, int] = {}
    names: list[str] = []
    for (layer, _, _), values in made.items():
        first = int(root[values[0]])
        if first not in numbers:
            numbers[first] = len(names)
            names.append(layer)
    group_of = np.array([numbers.get(int(one), -1) for one in root], dtype=int)
    unit_of = np.zeros(classes, dtype=int)
    order = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[order], prepend=-2))
    for start, end in zip(starts, [*starts[1:], classes], strict=True):
        unit_of[order[start:end]] = np.arange(end - start)
    return group_of, unit_of, names


def _members(
    axes: Mapping[AxisKey, np.ndarray],
    roles: Mapping[AxisKey, str],
    group_of: np.ndarray,
    unit_of: np.ndarray,
    groups: int,
) -> list[list[Member]]:
    """For each group the parts of the axes that belong to it."""
    members: list[list[Member]] = [[] for _ in range(groups)]
    for key, classes in axes.items():
        owners, units = group_of[classes], unit_of[classes]
        order = np.argsort(owners, kind="stable")
        starts = np.flatnonzero(np.diff(owners[order], prepend=-2))
        for first, end in zip(starts, [*starts[1:], len(order)], strict=True):
            owner, positions = int(owners[order[first]]), order[first:end]
            if owner >= 0:
                members[owner].append(Member(*key, roles[key], positions, units[positions]))
    return members


def _by_group(
    notes: Iterable[tuple[np.ndarray, str]], class_of: np.ndarray, group_of: np.ndarray, groups: int
) -> list[list[str]]:
    """For each group the distinct reasons that concern any of its channels, in the network's order."""
    found: list[dict[str, None]] = [{} for _ in range(groups)]
    for slots, reason in notes:
        for number in np.unique(group_of[class_of[slots]]):
            if number >= 0:
                found[number][reason] = None
    return [list(reasons) for reasons in found]
