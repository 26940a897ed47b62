"""The fair league of methods: who takes part, on which terms, and what a cell of it came to.

Everybody trains for the same number of epochs in all: the epochs of a recipe's stages are scaled in proportion, rounded so
that their sum is exact. Everybody is asked for the same share of weights, or of multiply-accumulates, to go: the option that
a recipe's ``method.aim`` names is set to it. What a method does besides stays as its recipe says. Plain data and arithmetic;
``bench_run`` runs it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from edgeprune import recipe, registry
from edgeprune.errors import RecipeError
from edgeprune.recipe import Recipe, StageSpec

SCHEMA = 1
BASELINES = (
    "dense-ptq",
    "dense",
)  # recipes that remove nothing; the first one's float figures are what all are judged against
QUICK = {"stages.profile.count": False}  # a latency from the shapes alone: no emulator runs for minutes in every cell


class Terms(NamedTuple):
    """What is equal for everybody in a league.

    Attributes:
        model, data: as for ``edgeprune.build``.
        target: a name of ``edgeprune list targets``, or the path of a target's file.
        epochs: that every method trains in all.
        trained: whether the model comes with trained weights, which no method trains anew.
        overrides: dotted path in every recipe -> value; what a recipe has no stage for is left out.
    """

    model: str
    data: str | None
    target: str
    epochs: int
    trained: bool
    overrides: Mapping[str, Any] = {}


class Cell(NamedTuple):
    """One build of a league.

    Attributes:
        method: a name of ``edgeprune list methods``, or one of ``BASELINES``.
        share: of the weights (or multiply-accumulates) that goes, 0..1; None: the method has a share of its own.
        seed: of the splits, the first weights and everything random.
    """

    method: str
    share: float | None
    seed: int

    @property
    def name(self) -> str:
        """How its folder is called.

        >>> Cell("rigl", 0.9, 2).name, Cell("dense", None, 0).name
        ('rigl-0.9-seed2', 'dense-seed0')
        """
        return "-".join([self.method, *([] if self.share is None else [f"{self.share:g}"]), f"seed{self.seed}"])


def chosen(words: Sequence[str] | None) -> list[str]:
    """The methods that take part, each once: those that are named, or all.

    Raises:
        NameUnknown: one is none; the nearest.
    """
    known = registry.names("methods")
    for word in words or ():
        if word not in known:
            raise registry.unknown("method", word, known)
    return list(dict.fromkeys(words)) if words else known


def checked_shares(shares: Iterable[float]) -> list[float]:
    """Shares in order, each once.

    Raises:
        RecipeError: one is not between 0 and 1.
    """
    found = sorted(set(shares))
    for share in found:
        if not 0 < share < 1:
            raise RecipeError(
                f"--sparsity {share:g}: a share of the weights that goes lies above 0 and below 1 (0.9: nine of ten go)."
            )
    if not found:
        raise RecipeError("--sparsity is empty. Give one share or more that goes, such as 0.9,0.98.")
    return found


def check_overrides(methods: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Refuse an override for a stage that nobody has: it would change nothing, and nobody would notice.

    Raises:
        RecipeError: there is one; the nearest stage.
    """
    known = {spec.label for method in [*BASELINES, *methods] for spec in recipe.load(method).stages}
    for key in overrides:
        label = key.split(".")[1] if key.startswith("stages.") else None
        if label is not None and label not in known:
            raise RecipeError(
                f"--set {key}: no recipe of this league has a stage '{label}'.{registry.suggestion(label, known)} They have: "
                f"{', '.join(sorted(known))}."
            )


def cells(methods: Sequence[str], shares: Sequence[float], seeds: Sequence[int]) -> list[Cell]:
    """Every build of a league, in the order in which they are begun.

    Baselines come first. Seeds follow one another, since what two methods have in common (a trained network) is of one seed:
    builds that run side by side then seldom wait for each other.
    """
    found: list[Cell] = []
    for method in [*BASELINES, *methods]:
        about = recipe.load(method).file.method
        own = about is None or about.aim is None
        asked = [None] if own else [share for share in shares if about and about.asked(share) is not None]
        found += [Cell(method, share, seed) for share in asked for seed in seeds]
    return found


def left_out(methods: Sequence[str], shares: Sequence[float]) -> list[str]:
    """Which methods cannot take part at which shares, and why."""
    words = []
    for method in methods:
        about = recipe.load(method).file.method
        too_small = [share for share in shares if about and about.aim and about.asked(share) is None]
        if about and too_small:
            shown = ", ".join(f"{share:g}" for share in too_small)
            words.append(
                f"{method} takes no part at {shown}: its other stages alone take {about.besides:g} of the weights."
            )
    return words


def settled(cell: Cell, terms: Terms) -> Recipe:
    """The recipe of a cell: its seed, its aim, and epochs that come to those of the league.

    Raises:
        RecipeError: the epochs are fewer than its stages need, or an override does not validate.
    """
    plain = recipe.load(cell.method)
    about = plain.file.method
    changes: dict[str, Any] = {"seed": cell.seed, **_fitting(plain, {**QUICK, **terms.overrides})}
    if about and about.aim and cell.share is not None:
        changes[about.aim] = about.asked(cell.share)
    data = {**plain.resolved(), "name": cell.name}
    asked = recipe.load(data, changes)
    epochs = shared_epochs(asked, terms.epochs, terms.trained)
    return recipe.load(asked.resolved(), {f"stages.{label}.epochs": count for label, count in epochs.items()})


def check_epochs(found: Iterable[Cell], terms: Terms) -> None:
    """Refuse a league that some of its methods cannot take part in, before anything is trained in vain.

    Raises:
        RecipeError: stages need more epochs than there are; how many, for all methods at once.
    """
    short: dict[str, dict[str, int]] = {}
    for method in dict.fromkeys(cell.method for cell in found):
        needs = needed_epochs(recipe.load(method), terms.trained)
        if sum(needs.values()) > terms.epochs:
            short[method] = needs
    if short:
        most = max(sum(needs.values()) for needs in short.values())
        listed = "; ".join(
            f"{method} at least {sum(needs.values())} ({', '.join(f'{label} {count}' for label, count in needs.items())})"
            for method, needs in short.items()
        )
        raise RecipeError(
            f"--epochs {terms.epochs} is fewer than some methods' stages need: {listed}. Give --epochs {most} or more, or name the "
            "others with --methods."
        )


def _fitting(plain: Recipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides whose stage the recipe has, unless they say nothing there: counts of channels where weights get gates."""
    stages = {spec.label: spec for spec in plain.stages}

    def fits(key: str) -> bool:
        if not key.startswith("stages."):
            return True
        _, label, option, *_ = [*key.split("."), ""]
        if label not in stages:
            return False
        idle = getattr(registry.module("stages", stages[label].stage), "idle", None)
        return idle is None or option not in idle(stages[label].options)

    return {key: value for key, value in overrides.items() if fits(key)}


def shared_epochs(loaded: Recipe, total: int, trained: bool) -> dict[str, int]:
    """Label of every training stage -> its epochs, which are in the recipe's proportions and add up to ``total``.

    Args:
        loaded: the recipe.
        total: epochs in all, at least those that `needed_epochs` finds.
        trained: whether the model comes trained, so that a stage which only trains an untrained one has nothing to do.
    """
    needs = needed_epochs(loaded, trained)
    training = {
        spec.label: int(spec.options.epochs) for spec in loaded.stages if getattr(spec.options, "epochs", 0) > 0
    }
    idle = dict.fromkeys((label for label in training if label not in needs), 0)
    return idle | (proportional({label: training[label] for label in needs}, needs, total) if needs else {})


def needed_epochs(loaded: Recipe, trained: bool) -> dict[str, int]:
    """Label of every stage that trains -> the epochs that it needs at least."""
    working = [spec for spec in loaded.stages if getattr(spec.options, "epochs", 0) > 0]
    return {
        spec.label: fewest(spec)
        for spec in working
        if not (trained and getattr(spec.options, "when", None) == "untrained")
    }


def fewest(spec: StageSpec) -> int:
    """The fewest epochs, at least one, that a stage's own options allow: one for every round, say."""
    options = spec.options.model_dump(mode="json")
    for count in range(1, spec.options.epochs):
        try:
            type(spec.options).model_validate({**options, "epochs": count})
        except ValueError:
            continue
        return count
    return int(spec.options.epochs)


def proportional(weights: Mapping[str, int], least: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers that add up to ``total``, as near to the weights' proportions as minima allow (largest remainders).

    Args:
        weights: name -> weight, > 0.
        least: name -> what it gets at least; they add up to at most ``total``.

    >>> proportional({"train": 30, "prune": 10, "quantize": 5}, {"train": 1, "prune": 1, "quantize": 1}, 10)
    {'train': 7, 'prune': 2, 'quantize': 1}
    >>> proportional({"train": 30, "shrink": 1}, {"train": 1, "shrink": 3}, 6)
    {'train': 3, 'shrink': 3}
    """
    free = dict(weights)
    held: dict[str, int] = {}
    while free:
        left = total - sum(held.values())
        quota = {name: left * weight / sum(free.values()) for name, weight in free.items()}
        short = [name for name in free if quota[name] < least[name]]
        if not short:
            break
        for name in short:
            held[name] = least[name]
            del free[name]
    found = {name: max(math.floor(quota[name] + 1e-9), least[name]) for name in free}
    by_remainder = sorted(free, key=lambda name: found[name] - quota[name])
    for name in by_remainder[: total - sum(held.values()) - sum(found.values())]:
        found[name] += 1
    return {name: held.get(name, found.get(name, 0)) for name in weights}


def common_stages(loaded: Recipe) -> int:
    """How many first stages of a recipe come before the one that the league changes, so that other cells have them too."""
    about = loaded.file.method
    labels = [spec.label for spec in loaded.stages]
    if about is None or about.aim is None:
        return 1
    label = about.aim.split(".")[1]
    return labels.index(label) if label in labels else 0


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a league keeps of a build's report.

    Returns:
        ``metric``, ``size_bytes``, ``size_gzip_bytes``, ``params``, ``macs``, ``sparsity`` and ``latency`` of the final file,
        ``dense_int8`` and ``float`` with the same of those; ``training_s``: seconds of all epochs, validation included;
        ``seconds``: of all stages; ``epochs``: label -> how many; ``int8`` and ``zeros_match``: whether these are proven (None:
        there was nothing to prove); where a stage compared lottery tickets, ``tickets``: kind -> metric on the validation split.
    """
    candidates = report["candidates"]
    kept = ("metric", "size_bytes", "size_gzip_bytes", "params", "macs", "sparsity", "latency")
    roles = {role: {key: found[key] for key in kept if key in found} for role, found in candidates.items()}
    history = {label: block.get("epochs", []) for label, block in report.get("history", {}).items()}
    verified = report.get("verify") or {}
    tickets = [block["tickets"] for block in report.get("sparsify", {}).values() if "tickets" in block]
    return {
        **roles["final"],
        "float": roles.get("float"),
        "dense_int8": roles.get("dense_int8"),
        "training_s": round(sum(epoch.get("seconds", 0.0) for epochs in history.values() for epoch in epochs), 3),
        "seconds": round(sum(stage["seconds"] for stage in report.get("stages", [])), 3),
        "epochs": {label: len(epochs) for label, epochs in history.items()},
        "int8": (verified.get("int8") or {}).get("holds"),
        "zeros_match": verified.get("zeros_match"),
        **({"tickets": tickets[-1]} if tickets else {}),
    }


# What the cells of one method and share come to together


class Spread(NamedTuple):
    """A figure over seeds: its mean, and the sample standard deviation (0 for a single seed)."""

    mean: float
    spread: float


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and spread; None of nothing.

    >>> spread([1.0, 3.0]), spread([2.0]), spread([])
    (Spread(mean=2.0, spread=1.4142135623730951), Spread(mean=2.0, spread=0.0), None)
    """
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def rows(found: Sequence[Mapping[str, Any]], higher_is_better: bool = True) -> list[dict[str, Any]]:
    """One row per method and share: every figure as mean and spread over its seeds, in the order of the cells.

    Args:
        found: cells (``method``, ``share``, ``seed``) with what ``figures`` keeps of them.
        higher_is_better: of the metric.

    Returns:
        ``method``, ``share``, ``seeds`` and, as ``{"mean", "spread"}`` or None, ``metric``, ``drop`` (against the float network
        of the same seed; positive is worse), ``size_bytes``, ``size_gzip_bytes``, ``params``, ``macs``, ``sparsity``,
        ``latency_ms``, ``training_s``. The first row is the float network itself, ``method`` "float", where it is there.
    """
    floats = {cell["seed"]: cell["float"] for cell in found if cell["method"] == BASELINES[0] and cell.get("float")}
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for seed, cell in floats.items():
        groups.setdefault(("float", None), []).append({"seed": seed, **cell})
    for cell in found:
        groups.setdefault((cell["method"], cell["share"]), []).append(cell)
    sign = 1 if higher_is_better else -1
    return [
        {
            "method": method,
            "share": share,
            "seeds": sorted(cell["seed"] for cell in group),
            **_together(group),
            "drop": _plain(
                spread(
                    [
                        sign * (floats[cell["seed"]]["metric"] - cell["metric"])
                        for cell in group
                        if cell["seed"] in floats
                    ]
                )
            ),
        }
        for (method, share), group in groups.items()
    ]


def _together(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    plain = ("metric", "size_bytes", "size_gzip_bytes", "params", "macs", "sparsity", "training_s")
    values = {key: [cell[key] for cell in group if cell.get(key) is not None] for key in plain}
    latencies = [(cell.get("latency") or {}).get("ms") for cell in group]
    values["latency_ms"] = [ms for ms in latencies if ms is not None]
    return {key: _plain(spread(given)) for key, given in values.items()}


def _plain(of: Spread | None) -> dict[str, float] | None:
    return None if of is None else {name: round(value, 6) for name, value in of._asdict().items()}


def front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """The Pareto front: the places of the points that none of the others beats in cost without losing in the metric.

    Args:
        points: (cost, metric).
        higher_is_better: of the metric.

    Returns:
        Places in order of cost; of equal points the first.

    >>> front([(10, 0.9), (5, 0.8), (7, 0.7), (10, 0.95)])
    [1, 3]
    """
    sign = 1 if higher_is_better else -1
    found: list[int] = []
    for place in sorted(range(len(points)), key=lambda at: (points[at][0], -sign * points[at][1], at)):
        if not found or sign * points[place][1] > sign * points[found[-1]][1]:
            found.append(place)
    return found
