"""How much each group of channels matters: the metric against the pruning ratio, one group at a time, nothing retrained.

Every point of a curve is one cut of one group, of the units that a criterion ranks lowest, rounded as a target wants it; all
else stays whole. Beside it stands what the cut saves. Samples are held out from training, and never those of the test split:
what is chosen by these curves must not have seen it.

A point depends on the model, the samples and the units that stay, and on nothing else; it is kept by these in ``DIR/cache`` as
soon as it is known. So a run that was killed goes on where it was, and other ratios, criteria or targets share what is equal.

(Li et al. 2017, "Pruning filters for efficient ConvNets", choose their ratios by such curves.)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

import edgeprune
from edgeprune import files, masks, registry, sensitivity_ratios, shrinking
from edgeprune.channel_blocks import Block
from edgeprune.channels import Coupling, Group
from edgeprune.errors import CutError, RecipeError, RunFolderError
from edgeprune.granularity import Array
from edgeprune.metrics import Metric, drop
from edgeprune.progress import Progress
from edgeprune.shrink_options import CRITERION

SCHEMA = 1
RATIOS = (0.1, 0.25, 0.5, 0.75, 0.9)

Scores = Mapping[str, Array]
Costs = Mapping[str, float]


class Removal(NamedTuple):
    """What is taken out for one point.

    Attributes:
        cut: group -> the units that are kept.
        block: the word for a branch that goes whole (``block_word``).
    """

    cut: Mapping[str, Sequence[int]]
    block: str | None = None

    def digest(self) -> str:
        """Equal exactly for what leaves the same."""
        plain = {"cut": {name: list(map(int, units)) for name, units in self.cut.items()}, "block": self.block}
        return _digest(plain)


def block_word(block: Block) -> str:
    """A block's name and where it is added: the first alone may stand for two, where a layer's output is added twice."""
    return f"{block.name} at {block.addition}"


class Subject(Protocol):
    """A trained model with its samples.

    Attributes:
        coupling, blocks: what can be taken out.
        metric: what it is judged by.
        key: plain data that decides every ``value``.
    """

    coupling: Coupling
    blocks: Sequence[Block]
    metric: Metric
    key: Mapping[str, Any]

    def scores(self, criterion: str) -> tuple[Scores, Mapping[str, str]]:
        """A score per unit of each group; why a group that can be cut has none."""

    def value(self, removal: Removal) -> float:
        """The metric without what is removed."""

    def costs(self, removal: Removal) -> Costs:
        """What is left costs: ``macs``, ``params``, and whatever else there is a model of, by name."""


@dataclass(frozen=True)
class Question:
    """What is asked of a subject.

    Attributes:
        criterion: what ranks the units.
        ratios: shares of a group's units that go, 0..1 (1 excluded), ascending.
        include, exclude: regular expressions over names of groups, layers and blocks.
        multiple: counts of channels that pay.
        max_drop: how much worse the metric may be for the ratios that are told; None: none are told.
    """

    criterion: str = CRITERION
    ratios: Sequence[float] = RATIOS
    include: str = ".*"
    exclude: str | None = None
    multiple: masks.Multiple = 1
    max_drop: float | None = None

    def __post_init__(self) -> None:
        registry.function("criteria", self.criterion)
        wrong = [ratio for ratio in self.ratios if not 0 <= ratio < 1]
        if wrong or not self.ratios:
            raise RecipeError(
                f"ratios: got {', '.join(f'{ratio:g}' for ratio in wrong) or 'none'}; a ratio is the share of channels that goes, from "
                "0 to below 1, such as 0.1,0.25,0.5."
            )
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise RecipeError(f"max_drop: got {self.max_drop:g}; give 0 or more, in the metric's own unit.")
        for what, expression in (("include", self.include), ("exclude", self.exclude or "")):
            try:
                re.compile(expression)
            except re.error as error:
                raise RecipeError(f"{what}: '{expression}' is not a regular expression: {error}.") from error


def parsed_ratios(words: str) -> tuple[float, ...]:
    """``"0.5, 0.1"`` -> ``(0.1, 0.5)``.

    Raises:
        RecipeError: one is no number.
    """
    try:
        return tuple(sorted({float(word) for word in words.split(",")}))
    except ValueError as error:
        raise RecipeError(f"ratios: got '{words}'; give numbers with commas between them: 0.1,0.25,0.5.") from error


# What is kept


class Store:
    """Values that were paid for, in one file per model and samples."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Args:
        folder: is made when the first value comes.
        key: what decides the values, but for what each is asked for with.
        """
        self._key = {"edgeprune": edgeprune.__version__, **key}
        self._path = folder / f"{_digest(self._key)[:16]}.json"
        self._held: dict[str, Any] = {}
        if self._path.exists():
            self._held = self._read()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of that name; one that is not there yet is made, and written before anything else is done."""
        if name not in self._held:
            self._held[name] = make()
            record = {"key": self._key, "values": self._held}
            files.write_text_atomic(self._path, json.dumps(record))
        return self._held[name]

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))["values"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{self._path} is damaged: {error}. Delete it; its points are measured anew."
            ) from error
        return found


# The analysis


def analyse(subject: Subject, question: Question, store: Store, progress: Progress) -> dict[str, Any]:
    """Take out group after group.

    Returns:
        JSON-ready. ``criterion``, ``ratios`` (asked for); ``metric``: ``name``, ``higher_is_better``, ``value`` (uncut);
        ``costs``: name -> that of the uncut model; ``groups`` and ``blocks``, in the network's order: ``name``, ``layers``,
        ``units``, ``step`` (channels per unit), ``reason`` (why it has no points), ``inexact``, ``points``: ``ratio`` (asked
        for), ``removed`` (share that went, 0..1), ``kept`` (units), ``metric``, ``drop`` (in the metric's unit, > 0 is worse), and
        for each cost ``NAME_saved``. ``max_drop``, ``chosen`` (group -> ratio) and ``together`` (a point: all of these at once),
        the last three None without a ``max_drop``.

    Raises:
        RecipeError: include or exclude matches nothing.
        CutError: nothing can be cut, or ranked by the criterion.
    """
    progress.stage("rank", 1, 2)
    began = time.monotonic()
    scores, reasons = _ranked(subject, question, store)
    cuts = {
        name: _cuts(subject.coupling.group(name), scores[name], question) for name, why in reasons.items() if not why
    }
    blocks = [block for block in subject.blocks if _asked_for(block, question)]
    _check_some(subject, question, reasons, cuts, blocks)
    progress.done(f"{len(cuts)} groups by {question.criterion}", time.monotonic() - began)
    teller = _Teller(subject, store, progress, 1 + sum(map(len, cuts.values())) + len(blocks))
    progress.stage("cut", 2, 2)
    began = time.monotonic()
    teller.value(Removal({}))
    groups = [
        _group(group, reasons[group.name], cuts.get(group.name, {}), teller, question)
        for group in subject.coupling.groups
    ]
    whole = [_block(block, teller) for block in blocks]
    chosen = _chosen(groups, question.max_drop)
    together = {name: cuts[name][ratio] for name, ratio in (chosen or {}).items() if ratio}
    result = {
        "criterion": question.criterion,
        "ratios": list(question.ratios),
        "metric": {
            "name": subject.metric.title,
            "higher_is_better": subject.metric.higher_is_better,
            "value": teller.value(Removal({})),
        },
        "costs": dict(subject.costs(Removal({}))),
        "groups": groups,
        "blocks": whole,
        "max_drop": question.max_drop,
        "chosen": chosen,
        "together": None if chosen is None else teller.point(Removal(together)),
    }
    progress.done(teller.summary(), time.monotonic() - began)
    return result


def _ranked(subject: Subject, question: Question, store: Store) -> tuple[Scores, dict[str, str | None]]:
    """Scores of the groups that may be cut; every group -> None, or why it has no points."""
    whole = shrinking.left_whole(subject.coupling, question.include, question.exclude)
    if all(whole.values()):
        return {}, whole

    def collected() -> list[dict[str, Any]]:
        scores, unscored = subject.scores(question.criterion)
        return [{name: np.asarray(values).tolist() for name, values in scores.items()}, dict(unscored)]

    found, unscored = store.get(f"scores {question.criterion}", collected)
    scores = {name: np.asarray(values, dtype=float) for name, values in found.items()}
    reasons = {name: why or unscored.get(name) for name, why in whole.items()}
    least = shrinking.smallest(question.multiple)
    for group in subject.coupling.groups:
        if not reasons[group.name] and group.units * group.step <= least:
            size = group.units * group.step
            reasons[group.name] = f"it has {size} channels, and they pay in steps of {least}"
    return scores, reasons


def _cuts(group: Group, scores: Array, question: Question) -> dict[float, tuple[int, ...]]:
    """Ratio -> the units that stay; the stage's own rounding. Ratios that leave what a lower one leaves are left out."""
    rules = shrinking.Rules({group.name: group.units}, multiples=question.multiple, steps={group.name: group.step})
    found: dict[float, tuple[int, ...]] = {}
    least = group.units
    for ratio in question.ratios:
        kept = rules.cut({group.name: scores}, ratio).get(group.name)
        if kept is not None and len(kept) < least:
            found[ratio], least = tuple(map(int, kept)), len(kept)
    return found


def _asked_for(block: Block, question: Question) -> bool:
    words = (block.name, *block.layers)
    unwanted = question.exclude is not None and any(re.fullmatch(question.exclude, word) for word in words)
    return not unwanted and any(re.fullmatch(question.include, word) for word in words)


def _check_some(
    subject: Subject,
    question: Question,
    reasons: Mapping[str, str | None],
    cuts: Mapping[str, Mapping[float, Any]],
    blocks: Sequence[Block],
) -> None:
    """
    Raises:
        CutError: there is no point.
    """
    if blocks or any(cuts.values()):
        return
    if cuts:
        raise CutError(
            f"No group loses a unit at the ratios {', '.join(f'{ratio:g}' for ratio in question.ratios)}: give larger ones"
            f"{_or_smaller_steps(question)}."
        )
    if not subject.coupling.groups:
        raise CutError("This model has no groups of channels: no layer of it makes channels that another one reads.")
    why = "; ".join(f"'{name}': {reason}" for name, reason in list(reasons.items())[:6])
    raise CutError(
        f"No group of this model can be cut: {why}. Ask for others with include{_or_smaller_steps(question)}."
    )


def _or_smaller_steps(question: Question) -> str:
    return ", or for any count of channels with multiple 1" if shrinking.smallest(question.multiple) > 1 else ""


class _Teller:
    """Points of the subject, from the store where it has them, with the progress told."""

    def __init__(self, subject: Subject, store: Store, progress: Progress, total: int) -> None:
        self._subject, self._store, self._progress, self._total = subject, store, progress, total
        self.kept = 0
        self._seen: set[str] = set()

    def value(self, removal: Removal) -> float:
        name = f"value {removal.digest()}"
        new, known = name not in self._seen, name in self._store
        value = float(self._store.get(name, lambda: self._subject.value(removal)))
        if new:
            self._seen.add(name)
            self.kept += known
            done = min(len(self._seen), self._total)  # all ratios together come on top
            self._progress.step(done, self._total, "points", **{self._subject.metric.name: value})
        return value

    def summary(self) -> str:
        return f"{len(self._seen)} points" + (f", {self.kept} of them from an earlier run" if self.kept else "")

    def point(self, removal: Removal) -> dict[str, Any]:
        """The metric, how much worse it is, and what is saved."""
        value, uncut = self.value(removal), self.value(Removal({}))
        before, after = self._subject.costs(Removal({})), self._subject.costs(removal)
        saved = {f"{name}_saved": before[name] - after[name] for name in before}
        return {"metric": value, "drop": drop(self._subject.metric, uncut, value), **saved}


def _group(
    group: Group, why: str | None, cuts: Mapping[float, Sequence[int]], teller: _Teller, question: Question
) -> dict[str, Any]:
    return {
        "name": group.name,
        "layers": list(dict.fromkeys(member.layer for member in group.producers)),
        "units": group.units,
        "step": group.step,
        "reason": why or (None if cuts else "no ratio takes a unit away" + _or_smaller_steps(question)),
        "inexact": list(group.inexact),
        "points": [
            {
                "ratio": ratio,
                "removed": round(1 - len(kept) / group.units, 6),
                "kept": len(kept),
                **teller.point(Removal({group.name: kept})),
            }
            for ratio, kept in cuts.items()
        ],
    }


def _chosen(groups: Sequence[Mapping[str, Any]], most: float | None) -> dict[str, float] | None:
    """A ratio for every group that has points; one that a shrink stage cannot cut either would be an error in its recipe."""
    if most is None:
        return None
    return {group["name"]: sensitivity_ratios.gentle(group["points"], most) for group in groups if group["points"]}


def _block(block: Block, teller: _Teller) -> dict[str, Any]:
    return {
        "name": block.name,
        "addition": block.addition,
        "layers": list(block.layers),
        **teller.point(Removal({}, block_word(block))),
    }


def points(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All points of all groups and blocks."""
    for group in result["groups"]:
        yield from group["points"]
    yield from result["blocks"]


def _digest(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
