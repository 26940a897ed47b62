"""How much of a network is removed: which groups may be cut, in which steps, and with which ratio an aim is reached.

All ratios count against the uncut network, also in the later rounds of an iterative cut: what is gone already counts as
gone, so the roundings of the rounds (to whole units, to multiples of channels) do not add up. After a share p of the
rounds the ratio is

    1 - (1 - ratio)^p

so every round keeps the same share of what it is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import masks, registry, scoring
from edgeprune.channel_blocks import Block
from edgeprune.channels import Coupling, Group
from edgeprune.errors import CutError, RecipeError
from edgeprune.granularity import Array
from edgeprune.target import ChannelMultiple

HALVINGS = 24  # of the interval that a ratio is searched in: far finer than a channel of any network
GONE = -1.0  # the score of what an earlier round removed: below all others, which are >= 0
Units = NDArray[np.intp]


def left_whole(coupling: Coupling, include: str = ".*", exclude: str | None = None) -> dict[str, str | None]:
    """Which groups may be cut.

    Args:
        coupling: of the network.
        include, exclude: regular expressions: only, or no groups whose whole name matches, or that of a layer that makes
            their channels.

    Returns:
        Every group -> None if it may be cut, else why it is left whole.

    Raises:
        RecipeError: an expression matches nothing.
    """
    names = {group.name: [group.name, *(member.layer for member in group.producers)] for group in coupling.groups}
    wanted = _matching(include, names, "include")
    unwanted = _matching(exclude, names, "exclude") if exclude is not None else set()
    return {group.name: _why_whole(group, wanted, unwanted) for group in coupling.groups}


def _matching(expression: str, names: Mapping[str, Sequence[str]], what: str) -> set[str]:
    found = {name for name, words in names.items() if any(re.fullmatch(expression, word) for word in words)}
    if names and not found:
        known = list(dict.fromkeys(word for words in names.values() for word in words))
        raise RecipeError(
            f"{what}: '{expression}' matches no group of channels.{registry.suggestion(expression, known)} It must match a whole name of: "
            f"{', '.join(known)}."
        )
    return found


def _why_whole(group: Group, wanted: set[str], unwanted: set[str]) -> str | None:
    if group.reasons:
        return f"its channels {'; '.join(group.reasons)}"
    if group.name in unwanted:
        return "named by exclude"
    return None if group.name in wanted else "not named by include"


def stair(multiple: ChannelMultiple | None) -> masks.Multiple:
    """The counts of channels that pay on a target: outputs of one layer are the inputs of the next, so both steps hold."""
    if multiple is None:
        return 1
    step = math.lcm(multiple.out, multiple.in_)
    if multiple.until is None or multiple.beyond is None:
        return step
    return masks.stairs(step, multiple.until, math.lcm(multiple.beyond, multiple.in_))


def smallest(multiple: masks.Multiple) -> int:
    """The least count of channels that a multiple or a stair allows."""
    return multiple(1) if callable(multiple) else multiple


def kinds(groups: Sequence[Group]) -> dict[str, Hashable]:
    """Groups that are built alike, whatever their sizes: what their members are and do, in the network's order.

    Fang et al., "Isomorphic pruning for vision models" (2024).
    """
    return {
        group.name: tuple((member.weight, member.axis, member.role) for member in group.members) for group in groups
    }


@dataclass(frozen=True)
class Rules:
    """How groups are cut, with the words of `masks.cuts`.

    Attributes:
        units: group -> its units in the uncut network; what is not here is left whole.
        scope, floors, multiples, kinds, steps: as in `masks.cuts`.
        ratios: names or expressions -> a ratio of their own.
    """

    units: Mapping[str, int]
    scope: masks.Scope = "layer"
    ratios: Mapping[str, float] = field(default_factory=dict)
    floors: float | Mapping[str, float] | None = None
    multiples: masks.Multiple | Mapping[str, masks.Multiple] | None = None
    kinds: Mapping[str, Hashable] | None = None
    steps: Mapping[str, int] | None = None

    def cut(self, scores: Mapping[str, Array], ratio: float, progress: float = 1.0) -> dict[str, Units]:
        """The units that stay.

        Args:
            scores: group -> a score per unit that is still there, >= 0, higher = keep.
            ratio: share of the uncut network's units that goes in the end, 0..1 (1 excluded), where no other is given.
            progress: share of the rounds that are done after this cut, 0..1.

        Returns:
            Group -> what stays of the units that are still there, ascending; groups that lose nothing are left out.

        Raises:
            RecipeError, CutError: as ``masks.cuts``.
        """
        whole = {name: self._uncut(name, scores[name]) for name in self.units}
        ratios: float | dict[str, float] = _reached(ratio, progress)
        if self.ratios:
            every = {**self.ratios, ".*": self.ratios.get(".*", ratio)}
            ratios = {name: _reached(share, progress) for name, share in every.items()}
        found = masks.cuts(whole, ratios, self.multiples, self.floors, self.scope, self.kinds, self.steps)
        left = {name: units[units < len(scores[name])] for name, units in found.items()}
        return {name: units for name, units in left.items() if len(units) < len(scores[name])}

    def without_zeros(self, scores: Mapping[str, Array]) -> dict[str, Units]:
        """The cut that removes the units whose score is zero, as far as floors and multiples allow; one of a group stays.

        Args:
            scores: as in ``cut``.

        Returns:
            As ``cut`` returns it.
        """
        given = {name: np.asarray(values) > 0 for name, values in scores.items()}
        ratios = {name: min(1 - float(alive.mean()), 1 - 1 / alive.size) for name, alive in given.items()}
        rules = replace(self, scope="layer", ratios=ratios)
        return rules.cut({name: alive.astype(np.float64) for name, alive in given.items()}, 0.0)

    def _uncut(self, name: str, scores: Array) -> Array:
        return np.concatenate([scores, np.full(self.units[name] - len(scores), GONE)])

    def reach(
        self,
        scores: Mapping[str, Array],
        measure: Callable[[dict[str, Units]], float],
        most: float,
        what: str,
        of: str = "of the uncut model's",
    ) -> tuple[float, dict[str, Units]]:
        """The gentlest cut that leaves at most so much of the uncut network's cost.

        The ratio is found by bisection. Where several groups lose units at that ratio, and not all of them have to, those with the
        most to lose are spared.

        Args:
            scores: as in ``cut``.
            measure: cut -> what remains of the cost; a higher ratio has no higher cost.
            most: the aim, likewise.
            what: the option that asks for it, for the message.
            of: what both are counted in, likewise.

        Returns:
            The ratio, 0..1, and the cut, as ``cut`` returns it.

        Raises:
            CutError: no ratio reaches the aim; what remains at least.
        """
        low, high, gentle, best = 0.0, 1.0, self.cut(scores, 0.0), None
        least, problem = measure(gentle), None
        if least <= most:
            return 0.0, gentle
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            try:
                tried = self.cut(scores, ratio)
            except CutError as error:  # more than the floors allow, or nothing that may go
                high, problem = ratio, error
                continue
            left = measure(tried)
            if left <= most:
                high, best = ratio, tried
            else:
                low, least, gentle = ratio, min(least, left), tried
        if best is not None:
            return high, _spared(best, gentle, scores, lambda cut: measure(cut) <= most)
        if low == 0.0 and problem is not None:
            raise problem
        raise CutError(
            f"{what}: {most:g} is asked for, but at least {math.ceil(least * 1000) / 1000:g} {of} remain, with the "
            "floors and multiples that hold and the groups that stay whole (`edgeprune inspect MODEL --groups` says why). Ask for "
            "that or more, or lower floors and multiples."
        )


def _reached(ratio: float, progress: float) -> float:
    return ratio if progress == 1 else 1 - (1 - ratio) ** progress


def _spared(
    cut: dict[str, Units],
    gentle: Mapping[str, Units],
    scores: Mapping[str, Array],
    enough: Callable[[dict[str, Units]], bool],
) -> dict[str, Units]:
    """The cut, with the units of a gentler one for as many groups as can be, those first that lose the most score."""

    def lost(name: str) -> float:
        kept = gentle.get(name, slice(None))
        return float(scores[name][kept].sum() - scores[name][cut[name]].sum())

    for name in sorted(cut, key=lost, reverse=True):
        tried = {**cut, name: gentle[name]} if name in gentle else {key: cut[key] for key in cut if key != name}
        if len(tried.get(name, scores[name])) > len(cut[name]) and enough(tried):
            cut = tried
    return cut


def entry(group: Group, reason: str | None, cut: Mapping[str, Units], scores: Mapping[str, Array]) -> dict[str, Any]:
    """What became of a group, for the report's ``shrink`` block.

    Args:
        group: before the cut.
        reason: why it was left whole; None where it was not.
        cut: group -> the units that stay, of those that were cut.
        scores: group -> a score per unit, of those that have any.
    """
    kept = cut.get(group.name)
    total = float(scores[group.name].sum()) if group.name in scores else 0.0
    return {
        "name": group.name,
        "layers": list(dict.fromkeys(member.layer for member in group.producers)),
        "step": group.step,
        "units_before": group.units,
        "units_after": group.units if kept is None else len(kept),
        "score_kept": 1.0 if kept is None or not total else float(scores[group.name][kept].sum()) / total,
        "reason": reason,
        "inexact": list(group.inexact) if kept is not None else [],
    }


def weakest(blocks: Sequence[Block], criterion: str, signals: scoring.Signals) -> tuple[Block, float]:
    """The block whose kernels have the lowest mean score, and that score.

    Args:
        blocks: what can be removed whole.
        criterion, signals: as for ``scoring.units``; kernels that the criterion cannot score have no say.

    Raises:
        CutError: it can score none of them.
    """
    wanted, function = scoring.needed(criterion), registry.function("criteria", criterion)
    able = {layer for layer, given in signals.items() if all(name in given for name in wanted)}
    scored = []
    for block in blocks:
        scores = [
            function(**{name: signals[layer][name] for name in wanted}).ravel()
            for layer in block.layers
            if layer in able
        ]
        if scores:
            scored.append((block, float(np.concatenate(scores).mean())))
    if not scored:
        raise CutError(
            f"The criterion '{criterion}' can score no kernel of {', '.join(block.name for block in blocks)}: choose another, or "
            "leave blocks at 0."
        )
    return min(scored, key=lambda pair: pair[1])
