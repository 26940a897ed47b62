"""The published latencies as rows with a name, a family, and the file and kernels that stand for them.

A row of the table says device, runtime, model, input, precision and milliseconds. Of it become: the network (its .tflite is
made by `latency_networks`, unless a file of that name is already in the folder), the runtime whose kernels it ran, and the
family that is left out as a whole when the predictor is judged: MobileNetV1 and V2 under TFLite's own kernels (ruy), and
whatever was published for XNNPACK. Where XNNPACK's table has two figures for a network, the second is the 64-bit build's
(its README: "RPi 4 (BCM2711)", then "RPi 4 (BCM2711, ARM64)"); the 32-bit kernels are not those of the targets.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import NamedTuple

RUNTIMES = {"ruy": ("tflite-runtime", "without_delegates"), "xnnpack": ("ai-edge-litert", "default")}


class Row(NamedTuple):
    """One published latency.

    Attributes:
        network: such as ``mobilenet-v1-0.25-128``.
        precision: ``int8`` or ``fp32``.
        kernels: ``ruy`` or ``xnnpack``.
        ms: the published figure.
        clock_mhz, threads: of the board; None where the source does not say the clock.
    """

    network: str
    precision: str
    kernels: str
    ms: float
    clock_mhz: float | None
    threads: int

    @property
    def name(self) -> str:
        """Such as ``mobilenet-v1-0.25-128 int8 ruy``."""
        return f"{self.network} {self.precision} {self.kernels}"

    @property
    def file(self) -> str:
        """Name of the .tflite file."""
        return f"{self.network}-{self.precision}.tflite"

    @property
    def family(self) -> str:
        """What is left out together: such as ``mobilenet-v1 ruy``, or ``xnnpack``."""
        return "xnnpack" if self.kernels == "xnnpack" else f"{re.sub(r'-[0-9.]+-[0-9]+$', '', self.network)} ruy"

    @property
    def runtime(self) -> tuple[str, str]:
        """Package and resolver of the kernels."""
        return RUNTIMES[self.kernels]


def read(path: Path) -> list[Row]:
    """The rows of a table, one for each network, precision and kind of kernels; of equal ones the last stays.

    Raises:
        ValueError: a row says no precision, runtime or time that is known here.
    """
    with path.open(encoding="utf-8", newline="") as file:
        found = [_row(entry) for entry in csv.DictReader(file)]
    return list({row.name: row for row in found}.values())


def _row(entry: dict[str, str]) -> Row:
    precision = next((word for word in ("fp32", "int8") if word in entry["precision"].lower()), None)
    kernels = next((word for word in RUNTIMES if word in entry["runtime"].lower()), None)
    cores = re.search(r"(\d+)xCortex", entry["soc"])
    threads = re.match(r"\d+", entry["threads"]) or (cores and re.match(r"\d+", cores[1]))
    if precision is None or kernels is None or threads is None:
        raise ValueError(f"cannot read the row of {entry['model']}: precision, runtime or threads are not known here")
    clock = float(entry["clock_mhz"]) if entry["clock_mhz"] else None
    return Row(_network(entry), precision, kernels, float(entry["latency_ms"]), clock, int(threads[0]))


def _network(entry: dict[str, str]) -> str:
    """``mobilenet-v2-1.0-224`` for ``MobileNet v2 1.0X`` at 224x224x3; a name that has all of it stays."""
    words = entry["model"].strip().lower().replace(" ", "-")
    if re.search(r"-\d+$", words) and "x" not in words.rsplit("-", 1)[1]:
        return words
    side = re.match(r"\d+", entry["input"])
    width = re.search(r"-([\d.]+)x$", words)
    family = re.sub(r"-[\d.]+x$", "", words)
    return f"{family}-{width[1] if width else '1.0'}-{side[0] if side else '224'}"
