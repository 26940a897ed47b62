"""The space that a search looks through: how many units each group of channels keeps, and a word for each other choice.

A candidate names a count for every knob and a word for every choice; what it costs is known from the shapes alone, what it
loses only after an evaluation. Samplers (`edgeprune.samplers`) and the allocation of budgets see nothing of a model but this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from edgeprune import masks, registry
from edgeprune.errors import CutError, RecipeError
from edgeprune.granularity import Array

Candidate = Mapping[str, int | str]  # knob -> units that stay; choice -> word
Costs = Mapping[str, float]
Scores = Mapping[str, Array]

CRITERION, ZEROS, QUANTIZE = "criterion", "zeros", "quantize"  # the choices that edgeprune's own proxy knows
LATENCY, MACS, PARAMS, SIZE, DROP = "latency_ms", "macs", "params", "size_bytes", "drop"  # what a limit can be of

HALVINGS = 12  # of the share that a candidate is drawn by: finer than a channel of most networks


class Knob(NamedTuple):
    """A group of coupled channels that can be cut.

    Attributes:
        name: of the group.
        units: in the uncut network.
        kept: counts of units that may stay, ascending; the last is ``units``.
        features: what an agent may see of it, numbers by name: ``place`` (0 first .. 1 last), ``macs_share`` and
            ``params_share`` (of the network's, 0..1), ``units``, ``step``, ``kernel``, ``stride``, ``depthwise`` (0 or 1).
    """

    name: str
    units: int
    kept: tuple[int, ...]
    features: Mapping[str, float] = {}

    def nearest(self, count: float) -> int:
        """The allowed count nearest to a number; of two that are equally near the larger."""
        return min(reversed(self.kept), key=lambda allowed: abs(allowed - count))

    def at_most(self, count: float) -> int:
        """The largest allowed count up to a number, the least where there is none."""
        return max((allowed for allowed in self.kept if allowed <= count), default=self.kept[0])


class Told(NamedTuple):
    """A finished evaluation.

    Attributes:
        candidate: what was evaluated.
        drop: how much worse the metric is than the uncut model's, in the metric's unit; below 0: better.
        costs: of the candidate, by name.
        notes: what the sampler noted when it proposed it, plain data.
    """

    candidate: Candidate
    drop: float
    costs: Costs
    notes: Mapping[str, Any] = {}


class Proposal(NamedTuple):
    """What a sampler wants evaluated next, and what it wants to read of it in the history later, as plain data."""

    candidate: Candidate
    notes: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Space:
    """Everything that can be chosen, and what is known of it without an evaluation.

    Attributes:
        knobs: in the network's order.
        choices: choice -> its words, the first of which is the default; never empty.
        costs: candidate -> cost by name: ``macs``, ``params``, ``size_bytes`` and, where the target's latency can be predicted,
            ``latency_ms``. From shapes, in milliseconds of time.
        limits: cost, or ``drop`` -> the most that is allowed.
        scores: criterion -> group -> a score per unit, (units,), >= 0, higher = keep.
    """

    knobs: tuple[Knob, ...]
    choices: Mapping[str, tuple[str, ...]]
    costs: Callable[[Candidate], Costs]
    limits: Mapping[str, float] = field(default_factory=dict)
    scores: Callable[[str], Scores] = lambda criterion: {}

    def __post_init__(self) -> None:
        """Raises:
        CutError: nothing can be cut.
        RecipeError: a choice has no words, or a name stands for two things.
        """
        if not self.knobs:
            raise CutError("No group of channels can be cut, so there is nothing to search.")
        names = [*(knob.name for knob in self.knobs), *self.choices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(f"'{twice[0]}' names two things of the search. Give the layer another name.")
        empty = [name for name, words in self.choices.items() if not words]
        if empty:
            raise RecipeError(f"The choice '{empty[0]}' has no words: give it one at least.")

    def knob(self, name: str) -> Knob:
        """The knob of that name.

        Raises:
            NameUnknown: there is none.
        """
        for knob in self.knobs:
            if knob.name == name:
                return knob
        raise registry.unknown("knob", name, [knob.name for knob in self.knobs])

    def whole(self) -> Candidate:
        """Nothing cut, the first word of every choice."""
        return {knob.name: knob.units for knob in self.knobs} | {name: words[0] for name, words in self.choices.items()}

    def smallest(self) -> Candidate:
        """Everything cut as far as it may be, the first word of every choice."""
        return {**self.whole(), **{knob.name: knob.kept[0] for knob in self.knobs}}

    def clamp(self, candidate: Mapping[str, float | str]) -> Candidate:
        """The nearest candidate that is allowed.

        Args:
            candidate: numbers for knobs, words for choices; what is not named is as in ``whole``.

        Raises:
            NameUnknown: a name that is neither a knob nor a choice, or a word that is none of its choice's.
        """
        known = self.whole()
        for name in candidate:
            if name not in known:
                raise registry.unknown("knob or choice", name, known)
        counts = {knob.name: knob.nearest(float(candidate.get(knob.name, knob.units))) for knob in self.knobs}
        words = {name: _word(name, candidate.get(name, given[0]), given) for name, given in self.choices.items()}
        return {**counts, **words}

    def uniform(self, width: float, words: Mapping[str, str] | None = None) -> Candidate:
        """Every knob at the same share of its units, 0..1, to the nearest allowed count."""
        return self.clamp({**{knob.name: width * knob.units for knob in self.knobs}, **(words or {})})

    def random(self, generator: Generator) -> Candidate:
        """Every allowed count of a knob, every word of a choice with the same probability."""
        counts = {knob.name: knob.kept[int(generator.integers(len(knob.kept)))] for knob in self.knobs}
        words = {name: given[int(generator.integers(len(given)))] for name, given in self.choices.items()}
        return {**counts, **words}

    def over(self, costs: Costs) -> dict[str, float]:
        """By how much limits of cost are broken: cost -> share above its limit (0.1: ten percent); ``drop`` is not looked at."""
        shares = {
            name: (costs[name] - most) / max(abs(most), 1e-12) for name, most in self.limits.items() if name in costs
        }
        return {name: share for name, share in shares.items() if share > 0}

    def feasible(self, candidate: Candidate) -> bool:
        """Whether it breaks no limit of cost."""
        return not self.over(self.costs(candidate))

    def check(self) -> None:
        """Refuse limits of cost that nothing meets.

        Raises:
            CutError: the smallest candidate breaks one; what it costs.
        """
        least = self.costs(self.smallest())
        broken = [f"{name} {self.limits[name]:g} (at least {least[name]:g} remain)" for name in self.over(least)]
        if broken:
            raise CutError(
                f"No candidate keeps {' and '.join(broken)}, with everything cut as far as floors and multiples allow. Ask for more, or "
                "lower floors and multiples."
            )

    def fit(self, candidate: Candidate) -> Candidate:
        """The candidate where it keeps all limits of cost; else its knobs drawn to their least counts by as little as it takes.

        All knobs lose the same share of what they could still lose, found by bisection; where nothing helps, the smallest.
        """
        if self.feasible(candidate):
            return candidate
        low, high, found = 0.0, 1.0, self._drawn(candidate, 1.0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = self._drawn(candidate, middle)
            if self.feasible(tried):
                high, found = middle, tried
            else:
                low = middle
        return found

    def _drawn(self, candidate: Candidate, share: float) -> Candidate:
        return {
            **candidate,
            **{
                knob.name: knob.at_most(int(candidate[knob.name]) - share * (int(candidate[knob.name]) - knob.kept[0]))
                for knob in self.knobs
            },
        }

    def cut(self, candidate: Candidate) -> dict[str, list[int]]:
        """The units that stay, as ``channels.apply`` wants them: the best by the candidate's criterion; whole groups are left out."""
        smaller = [knob for knob in self.knobs if int(candidate[knob.name]) < knob.units]
        if not smaller:
            return {}
        scores = self.scores(str(candidate.get(CRITERION, "")))
        return {
            knob.name: np.flatnonzero(masks.highest(np.asarray(scores[knob.name]), int(candidate[knob.name]))).tolist()
            for knob in smaller
        }

    def digest(self) -> str:
        """Equal exactly for spaces with the same knobs, choices and limits."""
        plain = {
            "knobs": [[knob.name, knob.units, list(knob.kept)] for knob in self.knobs],
            "choices": {name: list(words) for name, words in self.choices.items()},
            "limits": dict(self.limits),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def allowed(units: int, step: int, multiple: masks.Multiple, floor: float = 0.0) -> tuple[int, ...]:
    """The counts of a group's units that may stay.

    Args:
        units: in the uncut network.
        step: channels that go with one unit.
        multiple: of which the count of channels is a multiple, or a stair (`edgeprune.shrinking.stair`).
        floor: share of the units that stays at least, 0..1.

    >>> allowed(20, 1, 8)
    (8, 16, 20)
    """
    pays = (lambda count: -(-count // multiple) * multiple) if isinstance(multiple, int) else multiple
    least = max(1, int(np.ceil(floor * units - 1e-9)))
    counts = [count for count in range(least, units) if pays(count * step) == count * step]
    return (*counts, units)


def ratios(candidate: Candidate, knobs: Sequence[Knob]) -> dict[str, float]:
    """Knob -> the share of its units that goes, 0..1, as ``stages.shrink.ratios`` wants it; whole knobs are left out.

    ``masks.cuts`` rounds down what goes; the share is taken so that exactly the count stays.
    """
    gone = {knob.name: knob.units - int(candidate[knob.name]) for knob in knobs}
    return {knob.name: gone[knob.name] / knob.units for knob in knobs if gone[knob.name]}


def _word(name: str, word: Any, known: Sequence[str]) -> str:
    if word not in known:
        raise registry.unknown(f"word for {name}", str(word), known)
    return str(word)
