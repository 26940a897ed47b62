"""A target's latency without the target: from cycles that its emulator counts, else from the model's shapes, else the reason.

What comes out says what it is: ``predicted``, with the error that was validated for its way and precision, or absent with the
reason. A figure for another number of threads or another clock than was validated is told apart, as ``extrapolated_ms``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from edgeprune import analytic, prediction, registry, tflite
from edgeprune.analytic import Layer, Precision
from edgeprune.errors import ArtefactError, DeviceError
from edgeprune.target import Backend, Runtime, Target

# Which kernels a package runs a model with unless told otherwise.
KERNELS: Mapping[str, Mapping[str, str]] = {
    "tflite-runtime": {"int8": "ruy", "fp32": "xnnpack"},
    "ai-edge-litert": {"int8": "xnnpack", "fp32": "xnnpack"},
}
BUILT_IN = "ruy"  # what a runtime's own kernels multiply with
Resolver = Literal["default", "without_delegates", "reference"]
COUNTED, FROM_SHAPES = "cycles counted under the emulator", "from the shapes alone"


class OpCounts(Protocol):
    """One op's share of the cycles."""

    @property
    def cycles(self) -> float: ...


class Counts(Protocol):
    """One inference on one thread, counted."""

    @property
    def instructions(self) -> int: ...
    @property
    def cycles(self) -> float: ...
    @property
    def ops(self) -> Sequence[OpCounts]: ...
    @property
    def runtime(self) -> str: ...


class Counter(Protocol):
    """A backend that can count cycles."""

    def uncountable(self, target: Target, runtime: str | None = None) -> str | None:
        """None, or why nothing can be counted here, and what to do about it."""

    def count(
        self,
        model: Path,
        target: Target,
        runtime: str | None = None,
        resolver: Resolver = "default",
        by_op: bool = True,
    ) -> Counts:
        """One inference, with ``by_op`` the cycles of each op."""


class Board(NamedTuple):
    """A target as predictions need it.

    Attributes:
        target: the facts.
        constants: of its core; None where nothing was validated.
        prices: of its core; None where nothing was counted.
        threads: to run with.
    """

    target: Target
    constants: prediction.Constants | None
    prices: analytic.Analytic | None
    threads: int


def board(target: Target, threads: int | None = None) -> Board:
    """What is known for predicting a target's latency; ``threads`` None: what it names."""
    core = target.cpu.core
    fitted, priced = (registry.beside("targets", "latency", f"{core}{end}.yaml") for end in ("", ".analytic"))
    return Board(
        target,
        prediction.load(fitted) if fitted.is_file() else None,
        analytic.load(priced) if priced.is_file() else None,
        threads or target.runtime.threads,
    )


def counter(backend: Backend) -> Counter | None:
    """The backend as a counter; None where it cannot count."""
    return backend if hasattr(backend, "count") else None  # type: ignore[return-value]


def forecast(
    path: Path,
    place: Board,
    backend: Backend,
    runtime: str | None = None,
    by_op: bool = True,
    resolver: Resolver = "default",
    counted: bool = True,
) -> dict[str, Any]:
    """A file's latency on a board, with where it comes from.

    Args:
        path: the ``.tflite`` file.
        place: from `board`.
        backend: what runs the target here; one that counts is asked first.
        runtime: package; None: the target's.
        by_op: whether it is wanted op by op; the whole alone is counted sooner.
        resolver: which of the runtime's kernels; all but the default are its built-in ones.
        counted: whether to count, where that can be done; else the shapes alone say it, at once.

    Returns:
        ``latency`` as in report.json, ``runtime``, ``kernels``, ``how`` (`COUNTED`, `FROM_SHAPES` or None), ``cycles`` (one
        thread), ``instructions``, ``traffic_bytes`` (weights, inputs and outputs of all ops), ``fixed_ms`` and ``ops``
        (``index``, ``op``, ``layer``, ``ms``, ``cycles``); what is not known is None. ``uncounted``: why nothing was counted.

    Raises:
        ArtefactError: the file cannot be read, or the runtime refuses it.
    """
    file = tflite.read(path)
    layers = analytic.layers(file)
    package = runtime or place.target.runtime.package
    precision = prediction.precision(layers)
    kernels = KERNELS[package][precision] if resolver == "default" else BUILT_IN
    job = {"runtime": package, "resolver": resolver, "by_op": by_op or kernels != prediction.DELEGATE}
    counts, uncounted = _counted(path, place, backend, job) if counted else (None, "counting was not asked for")
    works = _works(place, layers, kernels, precision, counts)
    how = COUNTED if counts else FROM_SHAPES if works else None
    predicted = _predicted(works, place, precision)
    ops = [
        {
            "index": op.index,
            "op": op.op,
            "layer": op.layer,
            "ms": predicted.op_ms[op.index] if predicted else None,
            "cycles": works[op.index].cycles if works else None,
        }
        for op in file.ops
    ]
    return {
        "latency": latency(place, layers, precision, how, predicted),
        "runtime": counts.runtime if counts else package,
        "kernels": kernels,
        "how": how,
        "cycles": round(counts.cycles) if counts else round(sum(work.cycles for work in works)) if works else None,
        "instructions": counts.instructions if counts else None,
        "traffic_bytes": sum(work.traffic_bytes for work in works) if works else None,
        "fixed_ms": predicted.fixed_ms if predicted else None,
        "ops": ops,
        "uncounted": uncounted,
    }


def brief(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a forecast beside others."""
    return {key: figures[key] for key in ("runtime", "kernels", "latency", "cycles")}


def others(path: Path, place: Board, backend: Backend, counted: bool = True) -> list[dict[str, Any]]:
    """The same in `brief` for every other runtime that there is, where it can be told."""
    found = []
    for package in get_args(Runtime.model_fields["package"].annotation):
        if package == place.target.runtime.package:
            continue
        try:
            figures = forecast(path, place, backend, package, by_op=False, counted=counted)
        except (DeviceError, ArtefactError):  # a runtime that does not take the model is no advice
            continue
        if figures["latency"]["ms"] is not None:
            found.append(brief(figures))
    return found


def milliseconds(place: Board, precision: Precision = "int8") -> Callable[[Sequence[Layer]], float]:
    """What a list of ops takes on a board, from shapes alone: for thousands of candidates.

    Raises:
        DeviceError: nothing was validated for this board, or its prices are not known; the reason.
    """
    kernels = KERNELS[place.target.runtime.package][precision]
    reason = _unvalidated(place, precision)
    if reason is None and (place.prices is None or not place.prices.known(kernels, precision)):
        reason = f"nothing was counted for {kernels} on {place.target.cpu.core}, {precision}"
    if reason or place.constants is None or place.prices is None:
        raise DeviceError(f"The latency on '{place.target.name}' cannot be predicted: {reason}.")
    prices, terms, machine = place.prices, place.constants.fits[precision].terms, _machine(place)
    return lambda layers: (
        prediction.predict(prediction.from_shapes(layers, prices, kernels, precision), terms, *machine).ms
    )


def predictor(target: Target) -> Callable[[Sequence[Layer]], float] | None:
    """``milliseconds`` of an int8 model with what the target names; None where nothing can predict it."""
    try:
        return milliseconds(board(target))
    except DeviceError:
        return None


def latency(
    place: Board,
    layers: Sequence[Layer],
    precision: Precision,
    how: str | None,
    predicted: prediction.Predicted | None,
) -> dict[str, Any]:
    """The ``latency`` block: a figure with its validated error, or the reason why there is none."""
    reason = _unvalidated(place, precision) or _mixed(layers)
    if reason is None and how is None:
        reason = f"nothing was counted on {place.target.cpu.core} for these kernels; install the emulator: edgeprune emulator install"
    fit = place.constants.fits.get(precision) if place.constants else None
    error = None if fit is None else fit.error if how == COUNTED else fit.analytic_error
    if reason is None and (error is None or predicted is None):
        reason = "its error is not validated; install the emulator: edgeprune emulator install"
    if reason is not None or error is None or predicted is None:
        block: dict[str, Any] = {"ms": None, "reason": reason}
        return block if predicted is None else block | {"extrapolated_ms": predicted.ms}
    return {
        "ms": predicted.ms,
        "kind": "predicted",
        "error_pct": error.mape_pct,
        "worst_error_pct": error.worst_pct,
        "threads": place.threads,
        "how": how,
        "warning": _outside(predicted.ms, fit) if fit else None,
    }


def _outside(ms: float, fit: prediction.Fit) -> str | None:
    """What to know about a latency that is outside all that were judged; None for one inside."""
    if ms < fit.shortest_ms:
        return (
            f"shorter than any latency that the prediction was validated on ({fit.shortest_ms:g} ms): how much of the "
            f"{fit.terms.fixed_ms:g} ms that are once per inference such a model takes, nobody has checked"
        )
    if ms > fit.longest_ms:
        return f"longer than any latency that the prediction was validated on ({fit.longest_ms:g} ms)"
    return None


def _counted(path: Path, place: Board, backend: Backend, job: Mapping[str, Any]) -> tuple[Counts | None, str | None]:
    """The counts, or why there are none."""
    found = counter(backend)
    if found is None:
        return None, "this backend cannot count"
    reason = found.uncountable(place.target, job["runtime"])
    return (None, reason) if reason else (found.count(path, place.target, **job), None)


def _works(
    place: Board, layers: Sequence[Layer], kernels: str, precision: Precision, counts: Counts | None
) -> list[prediction.Work] | None:
    """Every op's work, counted or from its shapes; None where neither is known."""
    if counts is not None:
        whole = [counts.cycles, *[0.0] * (len(layers) - 1)]  # where it does not matter whose they are
        return prediction.works(layers, [op.cycles for op in counts.ops] or whole, kernels)
    if place.prices is None or not place.prices.known(kernels, precision):
        return None
    return prediction.from_shapes(layers, place.prices, kernels, precision)


def _predicted(
    works: Sequence[prediction.Work] | None, place: Board, precision: Precision
) -> prediction.Predicted | None:
    """Milliseconds, validated or not; None where there are no constants or no work."""
    if works is None or place.constants is None or precision not in place.constants.fits:
        return None
    if place.target.cpu.clock_mhz is None or place.target.memory.bandwidth_gb_s is None:
        return None
    terms = prediction.scaled(place.constants.fits[precision].terms, place.constants.threads, place.threads)
    return prediction.predict(works, terms, *_machine(place))


def _machine(place: Board) -> tuple[float, int, float]:
    clock, bandwidth = place.target.cpu.clock_mhz, place.target.memory.bandwidth_gb_s
    if clock is None or bandwidth is None:
        raise DeviceError(f"The target '{place.target.name}' does not say its clock and memory bandwidth.")
    return clock, place.threads, bandwidth


def _unvalidated(place: Board, precision: Precision) -> str | None:
    """None, or why no error is known for a prediction."""
    target, constants = place.target, place.constants
    measure = "measure it with --board USER@HOST"
    if target.delegate:
        return f"the {target.title} runs most of a model on its accelerator, which is not counted; {measure}"
    if constants is None or precision not in constants.fits:
        return (
            f"no published latencies of a {target.cpu.core or 'processor of an unknown kind'} were there to validate a "
            f"prediction on; {measure}"
        )
    if place.threads != constants.threads:
        return (
            f"predictions are validated with {constants.threads} threads, and {place.threads} were asked for; {measure}"
        )
    given = (target.cpu.clock_mhz, target.memory.bandwidth_gb_s)
    if given != (constants.clock_mhz, constants.bandwidth_gb_s):
        return (
            f"predictions are validated at {constants.clock_mhz:g} MHz and {constants.bandwidth_gb_s:g} GB/s, and the target "
            f"has {given[0] or '?'} MHz and {given[1] or '?'} GB/s; {measure}"
        )
    return None


def _mixed(layers: Sequence[Layer]) -> str | None:
    """Why a model that is neither int8 nor float is not predicted; None for one that is."""
    macs = {kind: sum(analytic.macs(layer) for layer in layers if layer.precision == kind) for kind in ("int8", "fp32")}
    if min(macs.values()) > 0.05 * sum(macs.values()):
        return "the model multiplies in int8 and in float, and predictions are validated for models that do one of both"
    return None
