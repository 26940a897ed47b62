"""The one engine that decides what stays: scores -> masks of weights, or kept channels of coupled groups.

Layers are ranked within **scopes**: each for itself (``layer``), all together (``network``), those of one kind together
(``isomorphic``), or as regular expressions say. Of every scope the exact count goes, rounded down; of equal scores the
first stays. Then **floors** and **multiples** hold: no layer is left with less than its floor, nor without anything, and
where a count of channels must be a multiple it is rounded up. A ratio is therefore what may go at most.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import CutError, RecipeError
from edgeprune.granularity import Array, Granularity, Mask
from edgeprune.registry import suggestion

Stair = Callable[[int], int]  # a count of channels -> the next count from there upwards that pays
Multiple = int | Stair
Scope = str | Sequence[str]
SCOPES = ("layer", "network", "isomorphic")
NORMS: dict[str, Callable[[Array], Any]] = {
    "sum": lambda scores: np.sum(scores),
    "mean": lambda scores: np.mean(scores),
    "max": lambda scores: np.max(scores),
    "l2": lambda scores: np.sqrt(np.sum(np.square(scores))),
}
ALMOST = 1e-9  # 0.3 * 10 is 3.0000000000000004 and 0.29 * 100 is 28.999999999999996: both mean a whole number
T = TypeVar("T")


def masks(
    scores: Mapping[str, Array],
    sparsity: float | Mapping[str, float],
    granularity: Granularity,
    scope: Scope = "layer",
    floors: float | Mapping[str, float] | None = None,
    multiples: Multiple | Mapping[str, Multiple] | None = None,
    kinds: Mapping[str, Hashable] | None = None,
) -> dict[str, Mask]:
    """Which weights stay.

    Args:
        scores: layer -> scores, finite, higher = keep.
        sparsity: share of the groups of weights that goes at most, 0..1 (1 excluded); or name or regular expression of
            layers -> share, where layers that nothing names stay whole.
        granularity: what goes together.
        scope: ``layer``, ``network``, ``isomorphic``, or regular expressions: the layers that one matches in full are ranked
            together, each of the others for itself.
        floors: what every layer keeps at least: a share (float, 0..1) or a count of groups (int); or names -> either.
        multiples: of which the count of groups kept is a multiple, or a function that rounds it up, as ``stairs`` makes;
            or names -> either. A layer that is smaller stays whole.
        kinds: for ``isomorphic``: layer -> its class; without it, layers whose scores have the same shape are of one.

    Returns:
        Layer -> mask of the shape of its scores, True = stays.

    Raises:
        RecipeError: a share out of range, a name or expression that matches nothing, a pattern that a layer cannot carry.
        CutError: a layer would be left empty, the floors cannot hold, a multiple is larger than the layer, or scores that
            are not finite.
    """
    _check_pattern(granularity, sparsity, floors, multiples)
    if granularity.whole and scope == "layer":
        raise RecipeError(
            "Whole layers are ranked against each other: choose scope network, isomorphic, or expressions."
        )
    given = {name: _finite(name, values) for name, values in scores.items()}
    reduced = {name: granularity.reduce(values) for name, values in given.items()}
    plan = _Plan(
        scores={name: values.ravel() for name, values in reduced.items()},
        ratios=_named(sparsity, list(given), 0.0, "sparsity"),
        classes=_classes(scope, {name: values.shape for name, values in given.items()}, kinds),
        floors=_named(floors, list(given), 0, "floors"),
        multiples=_named(multiples, list(given), 1, "multiples"),
        whole=granularity.whole,
    )
    plan.check_multiples(set(multiples) if isinstance(multiples, Mapping) else set())
    return {
        name: granularity.expand(keep.reshape(reduced[name].shape), given[name].shape)
        for name, keep in plan.kept().items()
    }


def cuts(
    group_scores: Mapping[str, Array],
    ratio: float | Mapping[str, float],
    multiples: Multiple | Mapping[str, Multiple] | None = None,
    floors: float | Mapping[str, float] | None = None,
    scope: Scope = "layer",
    kinds: Mapping[str, Hashable] | None = None,
    steps: Mapping[str, int] | None = None,
) -> dict[str, NDArray[np.intp]]:
    """Which units of coupled groups stay, as ``channels.apply`` wants them.

    Args:
        group_scores: group -> a score per unit, (units,), finite, higher = keep; groups that cannot be cut are not here.
        ratio: share of the units that goes at most, 0..1 (1 excluded); or names -> share, as in ``masks``.
        multiples: as in ``masks``, in channels.
        floors, scope, kinds: as in ``masks``; groups of equal size are isomorphic if no kinds are given.
        steps: group -> channels that go with one unit (`channels.Group.step`); 1 for groups that are not named.

    Returns:
        Group -> the units that stay, ascending, never none.

    Raises:
        RecipeError, CutError: as ``masks``.
    """
    given = {name: _finite(name, values).ravel() for name, values in group_scores.items()}
    plan = _Plan(
        scores=given,
        ratios=_named(ratio, list(given), 0.0, "ratios"),
        classes=_classes(scope, {name: values.shape for name, values in given.items()}, kinds),
        floors=_named(floors, list(given), 0, "floors"),
        multiples=_named(multiples, list(given), 1, "multiples"),
        steps=dict(steps or {}),
    )
    plan.check_multiples(set(multiples) if isinstance(multiples, Mapping) else set())
    return {name: np.flatnonzero(keep) for name, keep in plan.kept().items()}


def stairs(step: int, until: int, beyond: int) -> Stair:
    """Multiples of ``step`` up to ``until`` channels, of ``beyond`` above.

    >>> [stairs(16, 64, 64)(count) for count in (1, 16, 17, 64, 65)]
    [16, 16, 32, 64, 128]
    """

    def stair(count: int) -> int:
        size = step if count <= until else beyond
        return math.ceil(count / size) * size

    return stair


def normalised(scores: Mapping[str, Array], by: str) -> dict[str, Array]:
    """Each layer's scores over their sum, mean, max or l2 norm, so that layers can be ranked against each other.

    Args:
        scores: layer -> scores, >= 0.
        by: ``sum``, ``mean``, ``max`` or ``l2``.

    Returns:
        Layer -> float64 scores of the same shape; scores that are all 0 stay 0.

    Raises:
        RecipeError: another word.
    """
    if by not in NORMS:
        raise RecipeError(f"Scores cannot be normalised by '{by}'.{suggestion(by, NORMS)} Known: {', '.join(NORMS)}.")
    exact = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    return {name: values / (float(NORMS[by](values)) or 1.0) for name, values in exact.items()}


class _Room(NamedTuple):
    """Names that are ranked together, and what goes of them."""

    names: list[str]
    total: int
    gone: int


@dataclass
class _Plan:
    """Everything that decides, by name; scores are flat."""

    scores: dict[str, Array]
    ratios: dict[str, float]
    classes: list[list[str]]
    floors: dict[str, float]
    multiples: dict[str, Multiple]
    whole: bool = False
    steps: dict[str, int] = field(default_factory=dict)

    def kept(self) -> dict[str, Mask]:
        """Name -> which of its groups stay, in the order that the scores were given."""
        found: dict[str, Mask] = {}
        for names in self.classes:
            found |= self._ranked(self._room(names))
        return {name: self._rounded(name, found[name]) for name in self.scores}

    def check_multiples(self, named: set[str]) -> None:
        """Refuse a multiple with which nothing could go: of a layer that is named with it, or of all that are cut."""
        cut = {name for name in self.scores if self.ratios[name] > 0}
        small = {name for name in cut if self._smallest(name) > self._channels(name)}
        wrong = small & named or (small if small == cut else set())
        if wrong:
            name = max(sorted(wrong), key=self._channels)
            raise CutError(
                f"'{name}' has {self._channels(name)} channels, fewer than the {self._smallest(name)} that its multiple asks for"
                f"{'' if name in named else ', and no layer has more'}: nothing could go. Use a multiple of at most "
                f"{self._channels(name)}, or leave it out."
            )

    def _channels(self, name: str) -> int:
        return len(self.scores[name]) * self.steps.get(name, 1)

    def _smallest(self, name: str) -> int:
        """The least count of channels that its multiple allows."""
        return _stair(self.multiples[name])(1)

    def _least(self, name: str) -> int:
        """How many of its groups stay at least."""
        size, floor = len(self.scores[name]), self.floors[name]
        counted = isinstance(floor, numbers.Integral)
        if floor < 0 or not (counted or floor <= 1):
            raise RecipeError(
                f"The floor of '{name}' is {floor}. Give a share from 0.0 to 1.0, or a count as a whole number >= 0."
            )
        count = int(floor) if counted else math.ceil(floor * size - ALMOST)
        return min(max(count, 0 if self.whole else 1), size)

    def _room(self, names: list[str]) -> _Room:
        """What goes of the names; the floors have been seen to."""
        ratio = self._ratio(names)
        total = sum(len(self.scores[name]) for name in names)
        free = min(total - sum(self._least(name) for name in names), total - 1)
        gone = math.floor(ratio * total + ALMOST)
        if gone > free and len(names) > 1:
            raise CutError(
                f"{ratio:g} of {_listed(names)} is {gone} of {total}, but at least {total - free} must stay, so that every layer "
                f"keeps its floor: lower the ratio to at most {math.floor(free / total * 1000) / 1000:g}, or the floors."
            )
        return _Room(names, total, max(min(gone, free), 0))

    def _ratio(self, names: list[str]) -> float:
        ratios = {name: self.ratios[name] for name in names}
        for name, ratio in ratios.items():
            if not 0 <= ratio <= 1:
                raise RecipeError(f"The ratio of '{name}' is {ratio:g}; it is the share that goes, from 0 to below 1.")
            if ratio == 1:
                raise CutError(
                    f"A ratio of 1 would leave nothing of '{name}'. Choose one below 1, or remove the layer."
                )
        if len(set(ratios.values())) > 1:
            raise RecipeError(
                f"{_listed(names)} are ranked together but have different ratios ({', '.join(f'{r:g}' for r in ratios.values())}). "
                "Give them one ratio, or use scope layer."
            )
        return ratios[names[0]]

    def _ranked(self, room: _Room) -> dict[str, Mask]:
        """The highest of all the names together, after what the floors protect."""
        pieces = []
        for name in room.names:
            protected = highest(self.scores[name], self._least(name))
            pieces.append(np.where(protected, np.inf, self.scores[name]))
        keep = highest(np.concatenate(pieces), room.total - room.gone)
        ends = np.cumsum([len(piece) for piece in pieces])[:-1]
        return dict(zip(room.names, np.split(keep, ends), strict=True))

    def _rounded(self, name: str, keep: Mask) -> Mask:
        """With the best of what goes brought back until the count of channels pays."""
        count, step, stair = int(keep.sum()), self.steps.get(name, 1), _stair(self.multiples[name])
        wanted = count
        while 0 < wanted < len(keep) and stair(wanted * step) != wanted * step:
            wanted += 1
        return keep if wanted == count else highest(self.scores[name], wanted)


def highest(scores: Array, count: int) -> Mask:
    """Where the ``count`` highest scores are; of equals the first.

    Args:
        scores: (n,).
        count: 0..n.

    Returns:
        (n,), True ``count`` times.
    """
    if not 0 < count < len(scores):
        return np.full(len(scores), count > 0)
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    keep = scores > least
    keep[np.flatnonzero(scores == least)[: count - int(keep.sum())]] = True
    return keep


def _stair(multiple: Multiple) -> Stair:
    if callable(multiple):
        return multiple
    if multiple < 1:
        raise RecipeError(f"A multiple of channels must be >= 1, got {multiple}.")
    return stairs(multiple, 0, multiple)


def _finite(name: str, values: Array) -> Array:
    scores = np.asarray(values)
    wrong = int((~np.isfinite(scores)).sum())
    if wrong:
        raise CutError(
            f"{wrong} of the {scores.size} scores of '{name}' are not finite, so nothing can be ranked by them. Check whether "
            "the training diverged, or choose another criterion."
        )
    return scores


def _check_pattern(granularity: Granularity, sparsity: Any, floors: Any, multiples: Any) -> None:
    """Refuse what an n:m pattern cannot hold."""
    allowed = granularity.sparsities
    if not allowed:
        return
    shares = list(sparsity.values()) if isinstance(sparsity, Mapping) else [sparsity]
    wrong = [share for share in shares if not any(math.isclose(share, one, abs_tol=ALMOST) for one in allowed)]
    if wrong:
        raise RecipeError(
            f"A sparsity of {wrong[0]:g} does not fit the pattern {granularity.name}. It can be "
            f"{', '.join(f'{one:g}' for one in allowed)}."
        )
    if floors is not None or multiples is not None:
        raise RecipeError(
            f"The pattern {granularity.name} fixes how many weights stay: leave floors and multiples out."
        )


def _classes(
    scope: Scope, shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, Hashable] | None
) -> list[list[str]]:
    """The names that are ranked together."""
    keys: dict[str, Hashable]
    if not isinstance(scope, str):
        patterns = _patterns(scope, list(shapes), "scope")
        keys = {name: patterns.get(name, (name,)) for name in shapes}
    elif scope in SCOPES:
        keys = {
            name: {"layer": name, "network": "", "isomorphic": (kinds or shapes).get(name, name)}[scope]
            for name in shapes
        }
    else:
        raise RecipeError(
            f"There is no scope '{scope}'.{suggestion(scope, SCOPES)} Give {', '.join(SCOPES)}, or a list of regular expressions."
        )
    classes: dict[Hashable, list[str]] = {}
    for name, key in keys.items():
        classes.setdefault(key, []).append(name)
    return list(classes.values())


def _named(values: T | Mapping[str, T] | None, names: list[str], otherwise: T, what: str) -> dict[str, T]:
    """A value for every name: the one for all, or that of the name itself, or of the first expression that matches it."""
    if values is None:
        return dict.fromkeys(names, otherwise)
    if not isinstance(values, Mapping):
        return dict.fromkeys(names, values)
    patterns = _patterns([word for word in values if word not in names], names, what)
    return {name: values[name] if name in values else values.get(patterns.get(name, ""), otherwise) for name in names}


def _patterns(words: Sequence[str], names: list[str], what: str) -> dict[str, str]:
    """Name -> the first expression that matches it in full."""
    found: dict[str, str] = {}
    for word in words:
        try:
            matched = [name for name in names if re.fullmatch(word, name)]
        except re.error as error:
            raise RecipeError(f"{what}: '{word}' is not a regular expression: {error}.") from error
        if not matched:
            raise RecipeError(
                f"{what}: '{word}' matches no layer.{suggestion(word, names)} It must match a whole name of: {_listed(names)}."
            )
        found = {**dict.fromkeys(matched, word), **found}
    return found


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
