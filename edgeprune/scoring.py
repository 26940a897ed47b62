"""From the scores of kernels to the scores of what can be removed: one score per unit of a coupled group.

A unit is made by channels of one or more kernels (the *members* of its group). A criterion scores every kernel; of each the
slices that belong to a unit are pooled, the members are made comparable, and what they say is aggregated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import criteria, masks, registry
from edgeprune.channels import Coupling, Group, Member
from edgeprune.errors import CutError, RecipeError
from edgeprune.granularity import POOLINGS

Array = NDArray[np.floating]
Signals = Mapping[str, Mapping[str, Any]]  # layer -> signal -> its array; the kernel's outputs last

# Scores of a unit, (members, units), NaN where a member has no part of it -> (units,).
AGGREGATES: dict[str, Callable[[Array], Array]] = {
    "mean": lambda scores: np.nanmean(scores, axis=0),
    "sum": lambda scores: np.nansum(scores, axis=0),
    "max": lambda scores: np.nanmax(scores, axis=0),
}


def needed(criterion: str, scales: bool = False) -> tuple[str, ...]:
    """The signals that a criterion asks for: the names of its parameters; with ``scales`` what ``units`` asks for besides.

    Raises:
        NameUnknown: there is no such criterion.
    """
    names = tuple(inspect.signature(registry.function("criteria", criterion)).parameters)
    return (*names, "scale") if scales and "scale" not in names else names


def able(missing: set[str]) -> list[str]:
    """The criteria that need none of the missing signals, sorted."""
    return [name for name in registry.names("criteria") if not missing & set(needed(name))]


def units(
    coupling: Coupling,
    criterion: str,
    signals: Signals,
    normalise: str | None = "mean",
    aggregate: str = "mean",
    consumers: bool = False,
    scales: bool = False,
    normalise_groups: str | None = None,
) -> dict[str, Array]:
    """A score per unit of every group that can be cut and scored.

    Args:
        coupling: of the model that the signals are of.
        criterion: a name in ``edgeprune.criteria``.
        signals: layer -> signal -> array, as ``keras.signals.collect`` gives them.
        normalise: how members become comparable, a name in ``masks.NORMS``; None: not at all.
        aggregate: of what the members say of a unit: ``mean``, ``sum`` or ``max``.
        consumers: whether the kernels that read the channels have a say too, by their input slices (Fang et al. 2023,
            "DepGraph"); only with criteria that score weights.
        scales: whether the BatchNormalization behind a kernel that makes the channels has a say too, by |gamma| (Liu et al. 2017,
            "slimming"), where the signals hold a ``scale``: a kernel in front of one can be scaled at will and nothing changes.
        normalise_groups: how groups become comparable, as ``normalise``: with ``normalise=None`` and ``"mean"`` large kernels have
            more of a say in their group, and no group more than another.

    Returns:
        Group -> (units,) float64, higher = keep, as ``inhabited`` leaves them. Groups for which ``unscored`` has a reason are
        left out.

    Raises:
        NameUnknown: there is no such criterion.
        RecipeError: no such normalisation or aggregation.
        CutError: there are groups that can be cut, and the criterion can score none of them; or scores are not finite.
    """
    _check_words((normalise, normalise_groups), aggregate)
    scores = _kernel_scores(criterion, signals)
    gammas = {layer: np.abs(given["scale"]) for layer, given in signals.items() if scales and "scale" in given}
    found = {}
    for group in _cuttable(coupling):
        rows = [
            _spread(values, member, group.units)
            for member, values in _members(coupling, group, criterion, scores, normalise, consumers, gammas)
        ]
        if rows and np.isfinite(np.stack(rows)).any(axis=0).all():
            found[group.name] = AGGREGATES[aggregate](np.stack(rows))
    if not found and _cuttable(coupling):
        name, reason = next(iter(unscored(coupling, criterion, signals).items()))
        given = set.intersection(*(set(one) for one in signals.values())) if signals else set()
        words = [word for word in registry.names("criteria") if set(needed(word)) <= given]
        raise CutError(
            f"The criterion '{criterion}' can score no channels of this model: '{name}': {reason}. With the signals at hand "
            f"these would work: {', '.join(words) or 'none'}."
        )
    return inhabited(coupling, {name: _normalised(values, normalise_groups) for name, values in found.items()})


def inhabited(coupling: Coupling, scores: Mapping[str, Array]) -> dict[str, Array]:
    """Scores by which no kernel comes out empty.

    Where kernels are concatenated and then added to something, each holds only some of the group's units. If all of those rank
    last, a cut would leave nothing of it, so the best of them is given the score of the group's best.

    Args:
        coupling: of the model.
        scores: group -> (units,), higher = keep.

    Returns:
        The same; other arrays for the groups where it matters.
    """
    found = dict(scores)
    for group in coupling.groups:
        parts = {tuple(np.unique(member.units)) for member in group.members} if group.name in found else set()
        partial = sorted(part for part in parts if len(part) < group.units)
        if partial:
            values = np.array(found[group.name])
            best = [part[int(values[list(part)].argmax())] for part in partial]
            values[best] = values.max()
            found[group.name] = values
    return found


def unscored(coupling: Coupling, criterion: str, signals: Signals) -> dict[str, str]:
    """The groups that can be cut but that the criterion cannot score, each with the reason; they stay whole."""
    wanted = set(needed(criterion))
    main = _main_kernels(coupling)
    reasons = {}
    for group in _cuttable(coupling):
        layers = [member.layer for member in group.producers if main[member.layer] == member.weight]
        covered = {int(unit) for member in _scorable(coupling, group, signals, wanted) for unit in member.units}
        if len(covered) < group.units:
            lacking = {
                layer: sorted(wanted - set(signals.get(layer, ())))
                for layer in layers
                if wanted - set(signals.get(layer, ()))
            }
            reasons[group.name] = "; ".join(f"'{layer}' has no {', '.join(names)}" for layer, names in lacking.items())
    return reasons


def _check_words(norms: Sequence[str | None], aggregate: str) -> None:
    if aggregate not in AGGREGATES:
        raise RecipeError(
            f"There is no aggregation '{aggregate}'.{registry.suggestion(aggregate, AGGREGATES)} Known: {', '.join(AGGREGATES)}."
        )
    for norm in filter(None, norms):
        masks.normalised({}, norm)  # refuses other words


def _normalised(values: Array, by: str | None) -> Array:
    return masks.normalised({"": values}, by)[""] if by else values


def _cuttable(coupling: Coupling) -> list[Group]:
    return [group for group in coupling.groups if group.cuttable]


def _main_kernels(coupling: Coupling) -> dict[str, str]:
    """Layer -> the weight that signals describe: the first that makes channels. Of a recurrent layer, not the second."""
    found: dict[str, str] = {}
    for node in coupling.graph.nodes:
        for use in node.uses:
            if use.role == "producer":
                found.setdefault(node.layer, use.weight)
    return found


def _kernel_scores(criterion: str, signals: Signals) -> dict[str, Array]:
    """Layer -> its kernel's scores, for every layer that has all the signals."""
    wanted, function = needed(criterion), registry.function("criteria", criterion)
    scores = {}
    for layer, given in signals.items():
        if all(name in given for name in wanted):
            scores[layer] = function(**{name: given[name] for name in wanted})
            if not np.isfinite(scores[layer]).all():
                raise CutError(
                    f"'{criterion}' gives '{layer}' scores that are not finite, so nothing can be ranked by them. Check whether the "
                    "training diverged, or choose another criterion."
                )
    return scores


def _scorable(coupling: Coupling, group: Group, signals: Signals, wanted: set[str]) -> list[Member]:
    """The producers whose signals are all there."""
    main = _main_kernels(coupling)
    return [
        member
        for member in group.producers
        if main[member.layer] == member.weight and wanted <= set(signals.get(member.layer, ()))
    ]


def _members(
    coupling: Coupling,
    group: Group,
    criterion: str,
    scores: Mapping[str, Array],
    normalise: str | None,
    consumers: bool,
    gammas: Mapping[str, Array],
) -> list[tuple[Member, Array]]:
    """The members that have a say, each with a score per unit that it holds, in the order of the units."""
    main, pooling = _main_kernels(coupling), criteria.POOLING.get(criterion, "sum")
    found = []
    for member in (*group.producers, *(group.consumers if consumers else ())):
        if main.get(member.layer) != member.weight:
            continue
        reads = member.role == "consumer"
        length = len(coupling.axes[member.layer, member.weight, member.axis])
        for values in (scores.get(member.layer), None if reads else gammas.get(member.layer)):
            if values is None or (reads and values.ndim == 1):
                continue
            pooled = _pooled(_slices(values, -2 if reads else -1, length), member, pooling)
            found.append((member, _normalised(pooled, normalise)))
    return found


def _slices(scores: Array, axis: int, length: int) -> Array:
    """(length, ...): a row per index of a kernel's axis.

    Scores per channel of a recurrent layer are per unit, while its kernel has the gates side by side.
    """
    if scores.ndim == 1:
        return np.tile(scores, length // len(scores))
    return np.moveaxis(scores, axis, 0).reshape(length, -1)


def _pooled(slices: Array, member: Member, pooling: str) -> Array:
    """A score for each unit of the member: all its weights pooled, or the mean of its channels' scores."""
    order = np.argsort(member.units, kind="stable")
    starts = np.flatnonzero(np.diff(member.units[order]))
    pool = POOLINGS["mean" if slices.ndim == 1 else pooling]
    return np.array([pool(slices[part], axis=None) for part in np.split(member.positions[order], starts + 1)])


def _spread(values: Array, member: Member, count: int) -> Array:
    """(units of the group,), NaN where the member has no part."""
    row = np.full(count, np.nan)
    row[np.unique(member.units)] = values
    return row
