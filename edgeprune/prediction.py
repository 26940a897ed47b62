"""From counted cycles to a board's milliseconds: a small model with a meaning, its constants, and its validated error.

With ``t`` threads at ``f`` kHz, memory that moves ``B`` bytes in a millisecond, and for every op its cycles on one thread and
the bytes of its weights, inputs and outputs::

    op_ms = compute · cycles / (f · t) + bytes / B        an op that the runtime spreads over the threads
          =           cycles /  f      + bytes / B        one that it does not
    ms    = fixed + Σ op_ms

``compute`` is how far the threads stay behind dividing the work among them: they wait for each other at the end of every op,
and for the caches, which counted cycles do not know. ``bytes / B`` says that every weight and every activation crosses the
memory bus once for each op that touches it, and that nothing hides the time this takes; ``B`` is the measured bandwidth that
the target names. (Left free, a factor before it is fitted as about 1 on a Pi 4, int8 and float alike, and the traffic that a
simulation of the caches counts does no better: ``benchmarks/results/latency.json``.) ``fixed`` is once per inference.

``compute`` and ``fixed`` are all that is fitted: one pair for each core and precision, whatever the runtime, in a YAML file
that ``benchmarks/latency_fit.py`` writes: fitted on published latencies, judged on families of networks that it was not fitted
on. What a prediction says of its error is that judgement, and where it does not hold (another core, clock, number of
threads), there is a reason instead of a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgeprune import analytic, yaml_files
from edgeprune.analytic import Analytic, Layer, Precision
from edgeprune.errors import TargetError
from edgeprune.validation import Strict, validate

Array = npt.NDArray[Any]
TERMS = ("compute", "fixed_ms")

DELEGATE = "xnnpack"  # kernels that come as a delegate, which takes whole chains of ops
# Ops that the built-in kernels spread over the threads; a delegate's (XNNPACK) spread all of theirs.
THREADED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})

Constant = Annotated[float, Field(ge=0)]


class Work(NamedTuple):
    """What one op asks of the processor and of the memory.

    Attributes:
        cycles: on one thread, all its data in the first cache.
        traffic_bytes: of weights, inputs and outputs.
        threaded: whether the runtime spreads it over the threads.
    """

    cycles: float
    traffic_bytes: float
    threaded: bool


class Terms(Strict):
    """The constants of one precision."""

    compute: Constant = Field(description="time of threaded ops over that of dividing their cycles among the threads")
    fixed_ms: Constant = Field(description="once per inference, ms")


class Error(Strict):
    """How far predictions were from published latencies that the constants were not fitted on."""

    figures: int = Field(ge=1, description="how many latencies were judged")
    mape_pct: float = Field(ge=0, description="mean of the absolute errors, percent: what `error_pct` says")
    worst_pct: float = Field(ge=0, description="the largest error, percent")
    rank_correlation: float | None = Field(None, description="Spearman's; null with fewer than three latencies")


class Fit(Strict):
    """One precision: constants, what they were fitted on, and how far they are off."""

    terms: Terms = Field(description="the constants, fitted on all rows")
    error: Error = Field(description="of the emulator's cycles, every family judged by constants fitted on the others")
    families: dict[str, Error] = Field(description="the same, family by family")
    analytic_error: Error | None = Field(None, description="of cycles from the shapes alone, judged likewise")
    shortest_ms: float = Field(gt=0, description="the shortest latency that was judged; below it nothing is validated")
    longest_ms: float = Field(gt=0, description="the longest one")
    rows: tuple[str, ...] = Field(strict=False, min_length=1, description="the published latencies by name")


class Constants(Strict):
    """What is known of one core."""

    core: str = Field(description="as in targets")
    written_by: str = Field(description="the command that fits them")
    source: str = Field(description="the table of published latencies")
    clock_mhz: float = Field(gt=0, description="of the boards that the latencies were published for")
    threads: int = Field(ge=1, description="likewise")
    bandwidth_gb_s: float = Field(
        gt=0, description="of the memory, as the target had it when the constants were fitted"
    )
    fits: dict[Precision, Fit] = Field(description="precision of the model -> its constants")


class Predicted(NamedTuple):
    """A latency and where it goes: ``ms = fixed_ms + sum(op_ms)``."""

    ms: float
    fixed_ms: float
    op_ms: tuple[float, ...]


def load(path: Path) -> Constants:
    """Read a core's constants.

    Raises:
        TargetError: the file is unreadable or does not validate.
    """
    return validate(Constants, yaml_files.read(path, TargetError), str(path), TargetError)


def predict(works: Sequence[Work], terms: Terms, clock_mhz: float, threads: int, bandwidth_gb_s: float) -> Predicted:
    """Milliseconds of one inference, and of each of its ops (the equation above)."""
    parts = [split(work, clock_mhz, threads, bandwidth_gb_s) for work in works]
    op_ms = tuple(terms.compute * divided + known for divided, known in parts)
    return Predicted(terms.fixed_ms + sum(op_ms), terms.fixed_ms, op_ms)


def scaled(terms: Terms, validated_threads: int, threads: int) -> Terms:
    """The constants for another number of threads: no waiting on one, and the same more of it with each thread more."""
    if threads == validated_threads or validated_threads == 1:
        return terms
    waiting = (terms.compute - 1) * (threads - 1) / (validated_threads - 1)
    return terms.model_copy(update={"compute": max(1.0, 1 + waiting)})


def works(layers: Sequence[Layer], cycles: Sequence[float], kernels: str) -> list[Work]:
    """Each op's work.

    Args:
        layers: the ops' shapes.
        cycles: of each op, counted or from its shape.
        kernels: what runs them: a delegate spreads all ops over the threads.
    """
    return [
        Work(own, layer.bytes, kernels == DELEGATE or layer.op in THREADED)
        for layer, own in zip(layers, cycles, strict=True)
    ]


def from_shapes(layers: Sequence[Layer], prices: Analytic, kernels: str, precision: Precision) -> list[Work]:
    """Each op's work without an emulator; `Analytic.known` says for what."""
    return works(layers, analytic.cycles(layers, prices.prices[kernels][precision]), kernels)


def precision(layers: Sequence[Layer]) -> Precision:
    """Which constants hold for a model: those of the precision that most of its multiplications have."""
    macs = {kind: sum(analytic.macs(layer) for layer in layers if layer.precision == kind) for kind in analytic.BYTES}
    return "fp32" if macs["fp32"] > macs["int8"] else "int8"


def split(work: Work, clock_mhz: float, threads: int, bandwidth_gb_s: float) -> tuple[float, float]:
    """An op's milliseconds: those that ``compute`` multiplies, and those that no constant does."""
    alone_ms = work.cycles / (1e3 * clock_mhz)
    memory_ms = work.traffic_bytes / (1e6 * bandwidth_gb_s)
    return (alone_ms / threads, memory_ms) if work.threaded else (0.0, alone_ms + memory_ms)


def system(
    models: Sequence[Sequence[Work]], clock_mhz: float, threads: int, bandwidth_gb_s: float
) -> tuple[Array, Array]:
    """Whole models as a linear system: what the constants multiply, (models, `TERMS`), and what none does, (models,), ms."""
    sums = [np.sum([split(work, clock_mhz, threads, bandwidth_gb_s) for work in works], axis=0) for works in models]
    return np.array([[divided, 1.0] for divided, _ in sums]), np.array([known for _, known in sums])
