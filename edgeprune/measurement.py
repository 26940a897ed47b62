"""Evidence: raw times with what they were taken on, and the question and the answer of one run on a device.

A measurement is immutable, keeps warm-ups apart from samples, and says what kind of figure it is. A time that is not a
board's latency (executed under an emulator) is never turned into one: ``latency()`` then gives the reason instead.
The JSON format is versioned. After pyperf (https://pyperf.readthedocs.io).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeprune.errors import DeviceError

SCHEMA = 2  # 1: first; 2: doubts
Kind = Literal["measured", "emulated", "predicted"]
KINDS: tuple[Kind, ...] = ("measured", "emulated", "predicted")

UNSTABLE_SPREAD = 0.10  # pyperf warns when the standard deviation passes 10 % of the mean
UNSTABLE_EXTREME = 0.50  # ... and when the slowest run is 50 % over the mean
FEWEST_SAMPLES = 5  # below this a percentile is an anecdote


@dataclass(frozen=True)
class Measurement:
    """Times of one model on one target.

    Args:
        kind: ``measured`` on the target, ``emulated`` (executed, but its times mean nothing), or ``predicted``.
        samples_ms: one time per invocation, ms, in the order taken; finite and > 0.
        warmups_ms: the invocations before, ms.
        metadata: what must be equal before two measurements may be compared: runtime, threads, cpu, ...
        error_pct: of a prediction: its validated error, percent.
        doubts: what happened on the board that makes its times doubtful, such as throttling; sentences without a full stop.
    """

    kind: Kind
    samples_ms: tuple[float, ...]
    warmups_ms: tuple[float, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    error_pct: float | None = None
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}; known: {', '.join(KINDS)}")
        if not all(np.isfinite(time) and time > 0 for time in (*self.samples_ms, *self.warmups_ms)):
            raise ValueError("a time is not a finite number of milliseconds above 0")
        if self.kind == "predicted" and self.error_pct is None:
            raise ValueError("a prediction needs its validated error: error_pct")
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    def percentile_ms(self, percent: float) -> float | None:
        """Time that ``percent`` (0..100) of the samples do not exceed, linear between two; None without samples."""
        return float(np.percentile(self.samples_ms, percent)) if self.samples_ms else None

    @property
    def p50_ms(self) -> float | None:
        """The median."""
        return self.percentile_ms(50)

    @property
    def p90_ms(self) -> float | None:
        """Nine of ten invocations are at least as fast."""
        return self.percentile_ms(90)

    @property
    def spread(self) -> float | None:
        """Standard deviation over mean, 0 = perfectly steady; None with fewer than two samples."""
        if len(self.samples_ms) < 2:
            return None
        return float(np.std(self.samples_ms, ddof=1) / np.mean(self.samples_ms))

    @property
    def unstable(self) -> str | None:
        """A plain warning when the samples do not support a figure, else None; predictions have no samples to doubt."""
        if self.kind == "predicted" or not self.samples_ms:
            return None
        if len(self.samples_ms) < FEWEST_SAMPLES:
            return f"only {len(self.samples_ms)} timed runs; take at least {FEWEST_SAMPLES}"
        if self.spread is not None and self.spread > UNSTABLE_SPREAD:
            return (
                f"the standard deviation is {self.spread:.0%} of the mean; quieten or cool the machine, take more runs"
            )
        over = max(self.samples_ms) / float(np.mean(self.samples_ms)) - 1
        if over > UNSTABLE_EXTREME:
            return f"the slowest run took {over:.0%} more than the mean; take more runs"
        return None

    def latency(self) -> dict[str, Any]:
        """The ``latency`` block of report.json: ``{"ms": 3.1, "kind": ...}`` or ``{"ms": None, "reason": ...}``."""
        if self.kind == "emulated":
            return {"ms": None, "reason": "executed under an emulator, whose wall time says nothing about the board"}
        if not self.samples_ms:
            return {"ms": None, "reason": "no timed runs were asked for"}
        block = {"ms": self.p50_ms, "kind": self.kind, "threads": self.metadata.get("threads")}
        if self.kind == "predicted":
            return block | {"error_pct": self.error_pct}
        return block | {
            "p90_ms": self.p90_ms,
            "runs": len(self.samples_ms),
            "spread": self.spread,
            "warning": "; ".join([*self.doubts, *([self.unstable] if self.unstable else [])]) or None,
        }

    def to_json(self) -> str:
        """Versioned JSON; ``from_json`` gives an equal measurement back."""
        data = {name: value for name, value in vars(self).items() if name != "metadata"}
        return json.dumps({"schema": SCHEMA, **data, "metadata": dict(self.metadata)})

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """Read what ``to_json`` wrote.

        Raises:
            DeviceError: not JSON, another schema, or no measurement.
        """
        try:
            data = json.loads(text)
            schema = data.pop("schema")
            if schema not in range(1, SCHEMA + 1):
                raise ValueError(f"schema {schema}; this version reads up to schema {SCHEMA}")
            lists = {
                "samples_ms": data["samples_ms"],
                "warmups_ms": data["warmups_ms"],
                "doubts": data.get("doubts", ()),
            }
            return cls(**{**data, **{name: tuple(values) for name, values in lists.items()}})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DeviceError(f"This is not a measurement that edgeprune wrote: {error}. Measure again.") from error


@dataclass(frozen=True, eq=False)
class Request:
    """What a session is asked to do with a model.

    Args:
        inputs: one array (samples, ...) per input of the model, of the model's own dtype (already quantized); None:
            ``samples`` seeded random ones.
        samples: number of random samples.
        seed: of the random samples.
        evaluate: give the outputs of every sample; else of the first.
        warmups: invocations before the timed ones.
        runs: timed invocations.
        threads: None: what the target names (under an emulator, where more threads only wait for each other: one).
        resolver: which kernels: ``default``, ``without_delegates``, ``reference``.
        timeout_s: longest wait for the answer, seconds.
        report: told how many of how many are through, and of what ("bytes", "runs"); where it raises, the run ends.
    """

    inputs: tuple[npt.NDArray[Any], ...] | None = None
    samples: int = 1
    seed: int = 0
    evaluate: bool = False
    warmups: int = 0
    runs: int = 0
    threads: int | None = None
    resolver: Literal["default", "without_delegates", "reference"] = "default"
    timeout_s: float = 1800.0
    report: Callable[[float, float, str], None] | None = None


@dataclass(frozen=True)
class Tensor:
    """An input or output, as the runtime sees it. real = scale · (q − zero_point); scale 0: not quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class Reply:
    """What a session answers.

    Args:
        kind: ``measured`` or ``emulated``.
        measurement: times and what they were taken on.
        inputs, outputs_info: the model's tensors.
        outputs: one array (samples, ...) per output, of the model's own dtype.
        digests: SHA-256 of each output over all samples, for comparing runs.
        runtime: package, version, and NumPy's version.
        device: what the machine says of itself; ``cpu`` is the emulated core under an emulator.
        load_ms: time to load the model and lay out its memory, ms; None under an emulator.
        arena_bytes: memory of everything that is not weights; None where it cannot be known.
        arena_how: how that was counted.
        peak_rss_bytes: peak memory of the process; None under an emulator, whose own memory it would hold.
    """

    kind: Kind
    measurement: Measurement
    inputs: tuple[Tensor, ...]
    outputs_info: tuple[Tensor, ...]
    outputs: tuple[npt.NDArray[Any], ...]
    digests: tuple[str, ...]
    runtime: Mapping[str, Any]
    device: Mapping[str, Any]
    load_ms: float | None
    arena_bytes: int | None
    arena_how: str | None
    peak_rss_bytes: int | None

    @property
    def runtime_name(self) -> str:
        """Such as ``tflite-runtime 2.14.0``."""
        return f"{self.runtime['package']} {self.runtime['version']}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the output arrays, as plain data for ``--json``."""
        return {
            "kind": self.kind,
            "latency": self.measurement.latency(),
            "runtime": self.runtime_name,
            "device": dict(self.device),
            "load_ms": self.load_ms,
            "arena_bytes": self.arena_bytes,
            "arena_how": self.arena_how,
            "peak_rss_bytes": self.peak_rss_bytes,
            "inputs": [asdict(tensor) for tensor in self.inputs],
            "outputs": [asdict(tensor) for tensor in self.outputs_info],
            "digests": list(self.digests),
            "measurement": json.loads(self.measurement.to_json()),
        }
