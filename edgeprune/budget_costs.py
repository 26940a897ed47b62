"""What a cut costs as a file on the target, and the cut whose file comes nearest to an aim from below."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import allocation, budget_limits, forecast, profiling, progress, registry, sensitivity, tflite
from edgeprune.budget_limits import ARENA
from edgeprune.errors import BudgetError, DeviceError
from edgeprune.measurement import Request
from edgeprune.pipeline import Run
from edgeprune.recipe import Recipe
from edgeprune.search_space import LATENCY, MACS, SIZE, Candidate, Costs, Space

CONVERT, PROFILE = "convert", "profile"  # stages whose options say how a file is made and run
SETTLING = 8  # corrections of an aim at most
CALIBRATION = 32  # samples for files whose costs alone are looked at


def confirming(run: Run, path: Path, space: Space, folder: Path, wanted: set[str]) -> Callable[[Candidate], Costs]:
    """Candidate -> costs of the cut of a model as a file on the target; only what somebody asks for is measured."""
    from edgeprune.keras import budget_model, graph, intake

    model = graph.flatten(intake.load_own(path))
    convert, profile = _options(run.recipe, CONVERT), _options(run.recipe, PROFILE)
    key = {
        "inputs": dict(run.inputs),
        "connection": [run.connection.kind, run.connection.address],
        "convert": convert.model_dump(mode="json"),
        "profile": profile.model_dump(mode="json"),
        "wanted": sorted(wanted),
        "model": str(path.relative_to(run.folder)),
    }
    store = sensitivity.Store(folder / "costs", key)
    few = run.data.calibration.evenly(CALIBRATION).inputs()

    def measured(candidate: Candidate) -> Costs:
        cut = {knob.name: int(candidate[knob.name]) for knob in space.knobs if candidate[knob.name] != knob.units}
        place = folder / "costs" / "file"
        return costs(run, budget_model.converted(model, cut, few, place, convert.timeout_s), wanted)

    return lambda candidate: dict(store.get(f"costs {digest(dict(candidate))}", lambda: measured(candidate)))


def _options(recipe: Recipe, stage: str) -> Any:
    """Of the first stage of a kind; where there is none, what it has by default."""
    found = [spec.options for spec in recipe.stages if spec.stage == stage]
    return found[0] if found else registry.module("stages", stage).Options()


def costs(run: Run, path: Path, wanted: set[str]) -> dict[str, float]:
    """What a file costs on the run's target: ``size_bytes``, ``macs``, and where they are wanted ``latency_ms``, ``arena_bytes``.

    Raises:
        BudgetError: one that is wanted cannot be told; the reason.
    """
    file = tflite.read(path)
    found: dict[str, float] = {SIZE: file.size_bytes, MACS: tflite.macs(file)}
    try:
        if LATENCY in wanted:
            found[LATENCY] = _latency(run, path)
        if ARENA in wanted:
            found[ARENA] = _arena(run, path)
    except DeviceError as error:
        raise BudgetError(f"{named(sorted(wanted))}: {error}") from error
    return found


def _latency(run: Run, path: Path) -> float:
    """As the profile stage tells it, ms."""
    options, device = _options(run.recipe, PROFILE), profiling.backend(run.connection)
    if forecast.counter(device) is None:
        shown = progress.Silent()
        figures = profiling.profile(
            path, run.target, run.connection, options.threads, shown, options.warmups, options.runs
        )
    else:
        figures = forecast.forecast(path, forecast.board(run.target, options.threads), device, counted=options.count)
    latency = figures["latency"]
    if latency["ms"] is None:
        raise DeviceError(f"the latency on {run.target.title} is not known: {latency['reason']}")
    return float(latency["ms"])


def _arena(run: Run, path: Path) -> float:
    """Of the target's own runtime, bytes."""
    with profiling.backend(run.connection).session(run.target, run.connection) as session:
        reply = session.run(path, Request())
    if reply.arena_bytes is None:
        raise DeviceError(f"the runtime of {run.target.title} does not tell its arena")
    return float(reply.arena_bytes)


class Settled(NamedTuple):
    """A cut for an aim: what it was predicted to cost, what it does cost as a file, and what is to be said of it."""

    candidate: Candidate
    predicted: Costs
    confirmed: Costs
    note: str


def settle(
    space: Space,
    curves: allocation.Curves,
    targets: Mapping[str, float],
    even: float,
    confirm: Callable[[Candidate], Costs],
) -> Settled:
    """The cut whose file comes nearest to the targets from below.

    The allocation works with predictions; what a file really costs is some factor more or less, and nearly the same factor for
    neighbouring cuts. So the aim is corrected by it until the file fills 95 to 100 % of a target, or no other cut does better.

    Args:
        space, curves, even: as for `allocation.allocate`.
        targets: cost -> the most, of the file.
        confirm: candidate -> costs of its file.
    """
    whole = space.whole()
    tried: dict[str, Settled] = {}
    candidate, seen = whole, confirm(whole)
    aims = dict(targets)
    for _ in range(SETTLING):
        predicted = space.costs(candidate)
        tried[digest(dict(candidate))] = Settled(candidate, predicted, seen, "")
        full = _filled(targets, seen)
        if full <= 1 and (full >= allocation.FULL or candidate == whole):
            break
        aims = {name: most * predicted[name] / seen[name] for name, most in targets.items()}
        try:
            candidate = allocation.allocate(space, curves, aims, even)
        except BudgetError as error:
            candidate = error.nearest.candidate
        if digest(dict(candidate)) in tried:
            if full <= 1 or candidate == space.smallest():
                break
            candidate = _gentlest_below(space, curves, aims, even, tried)
        seen = confirm(candidate)
    below = [one for one in tried.values() if _filled(targets, one.confirmed) <= 1]
    if not below:
        return min(tried.values(), key=lambda one: _filled(targets, one.confirmed))
    best = max(below, key=lambda one: _filled(targets, one.confirmed))
    full = _filled(targets, best.confirmed)
    if full < allocation.FULL and best.candidate != whole:
        return best._replace(
            note=f"it takes {100 * full:.0f} % of the aim; channels go in steps, and one more of any group would be too much"
        )
    return best


def _gentlest_below(
    space: Space,
    curves: allocation.Curves,
    aims: Mapping[str, float],
    even: float,
    tried: Mapping[str, Settled],
) -> Candidate:
    """The first other cut that ever lower aims lead to."""
    for step in range(1, 40):
        lower = {name: most * 0.98**step for name, most in aims.items()}
        try:
            candidate = allocation.allocate(space, curves, lower, even)
        except BudgetError as error:
            return error.nearest.candidate
        if digest(dict(candidate)) not in tried:
            return candidate
    return space.smallest()


def _filled(targets: Mapping[str, float], costs: Costs) -> float:
    """How much of the fullest target is taken, 1 for all of it."""
    return max(costs[name] / most for name, most in targets.items())


def named(limits: Iterable[str]) -> str:
    """Costs by the names of their limits: ``max_latency_ms, max_macs``."""
    return ", ".join(budget_limits.NAMES[name] for name in limits)


def digest(plain: Any) -> str:
    """Equal exactly for equal plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
