"""Fit the constants of the Edge TPU's predicted latency on published rows, and write them with the error they reach.

    python benchmarks/coral_models.py models/
    python benchmarks/coral_fit.py coral_latency.csv edgetpu_compiled.csv models/ edgetpu_models/

LATENCIES is a table of published latencies (device, model, latency_ms, ...), COMPILED what the Edge TPU compiler made of
networks (est_cycles, instr_bytes_exec, ...), MODELS the folder of ``coral_models.py``, SOURCES the files that COMPILED is
about. Every step is a least-squares fit with non-negative coefficients on relative errors:

1. cycles per step of each kind, on the compiler's own estimates;
2. instruction bytes per op and strip, on the compiled files;
3. on the accelerator's rows: how much of the estimated cycles of convolutions, and of the rest, a chip really takes, and
   the rates of every link; that the compiler is right (a share of 1) counts as a row of weight PRIOR;
4. what int8 ops cost on the Coral Dev Board's CPU: MACs on the rows of its CPU alone, ops without MACs on DeepLab, which
   leaves a large resizing and an argmax to the CPU; and how much faster the desktop PC did the same.

Then step 3 is done anew without each network in turn, and judged on it. DeepLab is not judged: step 4 rests on it alone.
Writes devices/accelerators/edgetpu_latency.yaml.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import files, tflite, yaml_files
from edgeprune.devices import _edgetpu_latency as latency
from edgeprune.devices import _edgetpu_mapping as mapping
from edgeprune.devices._edgetpu_facts import facts

CLOCK_MHZ = 500.0
ROUND_TRIP_MS = {"usb": 0.28, "pcie": 0.0}  # measured on USB 3; over PCIe the rows cannot tell it from the transfer
PRIOR = 0.05
STREAMING = ("desktop-usb3", "devboard-pcie")  # hosts with rows of networks that do not fit the chip
CPU_RUN_ALONE = "deeplab_v3_513"  # the network whose CPU part is long
# Word in the table of latencies -> file of coral_models.py.
NETWORKS = {
    "mobilenet_v1_1.0_224_quant": "mobilenet_v1_1.0_224",
    "inception_v1_224_quant": "inception_v1_224",
    "Inception v1": "inception_v1_224",
    "ResNet-50 V1": "resnet_50_v1_299",
    "VGG16": "vgg16_224",
    "EfficientNet-EdgeTpu-M": "efficientnet_edgetpu_m_240",
    "DeepLab V3": "deeplab_v3_513",
}
NOT_USED = {
    "Inception-ResNet V2": "57 ms is less than its 56 MB of parameters need at the rate that VGG16 and ResNet-50 show",
    "MobileNet v1 SSD": "the source model is not at hand",
    "MobileNet v2 SSD": "the source model is not at hand",
    "SqueezeNet": "the source model is not at hand, and the table does not say which version was run",
}
CPU_ALONE = "Coral Dev Board CPU"


class Computer(NamedTuple):
    """A host in the table: its title, the links it stands for, how its rows begin, and its CPU's time over the Dev Board's."""

    title: str
    links: tuple[str, ...]
    devices: tuple[str, ...]
    cpu_time: float | None


HOSTS = {
    "desktop-usb3": Computer("desktop PC, USB 3", ("usb",), ("x86_64", "Coral USB Accelerator (USB 3.0)"), None),
    "rpi4-usb3": Computer("Raspberry Pi 4, USB 3", ("usb",), ("Raspberry Pi 4B",), None),
    "rpi3-usb2": Computer("Raspberry Pi 3, USB 2", ("usb",), ("Raspberry Pi 3B",), 1.5 / 1.4),  # same core, 1.4 GHz
    "devboard-pcie": Computer("Coral Dev Board, PCIe", ("pcie",), ("Coral Dev Board (Edge TPU)",), 1.0),
}


class Network(NamedTuple):
    """A network at hand."""

    work: latency.Work
    macs: int


class Row(NamedTuple):
    """One published latency of a network at hand."""

    network: str
    host: str
    ms: float
    device: str


class Fit(NamedTuple):
    """What step 3 finds: shares of the estimated cycles, and ms per byte of every link."""

    conv: float
    rest: float
    transfer: dict[str, float]
    streaming: dict[str, float]

    @property
    def coefficients(self) -> list[float]:
        """In the order of ``_features``."""
        return [self.conv, self.rest, *self.transfer.values(), *self.streaming.values()]


class Before(NamedTuple):
    """What steps 1 and 2 find."""

    cycles: Any
    instructions: latency.Instructions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name in ("latencies", "compiled", "models", "sources"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=latency.FILE)
    arguments = parser.parse_args()
    table = _table(arguments.latencies)
    networks = {path.stem: _network(path) for path in sorted(arguments.models.glob("*.tflite"))}
    before = _before(_table(arguments.compiled), arguments.sources)
    rows = [row for row in _rows(table) if row.network in networks]
    judgeable = [row for row in rows if row.network != CPU_RUN_ALONE]
    fit = _fit(judgeable, networks, before)
    predicted = _left_out(judgeable, networks, before)
    fitted = {row: _on_chip_ms(row, networks[row.network].work, fit, before) for row in judgeable}
    fitted |= {row: row.ms for row in rows if row.network == CPU_RUN_ALONE}  # step 4 makes that so
    record = _record(fit, before, _cpu(rows, table, networks, fit, before), fitted, predicted)
    _print(judgeable, predicted)
    files.write_text_atomic(arguments.out, HEAD + yaml_files.dump(record))
    latency.constants.cache_clear()
    error = latency.constants().error
    print(
        f"\n{arguments.out}: mean error {error.mean_pct} %, worst {error.worst_pct} %, of {error.rows} rows left out in turn"
    )


HEAD = "# Written by benchmarks/coral_fit.py, which says how; do not edit by hand.\n"


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _network(path: Path) -> Network:
    file = tflite.read(path)
    mapped = frozenset(one.index for one in mapping.verdicts(file, facts()) if one.mapped)
    return Network(latency.work(file, mapped, facts()), tflite.macs(file))


def _rows(table: Iterable[Mapping[str, str]]) -> list[Row]:
    found = []
    for row in table:
        host = next((name for name, host in HOSTS.items() if row["device"].startswith(host.devices)), None)
        if host and row["model"] in NETWORKS:
            found.append(Row(NETWORKS[row["model"]], host, float(row["latency_ms"]), row["device"]))
    return found


def _relative(features: Any, wanted: Any, priors: int = 0) -> Any:
    """Coefficients >= 0 with the smallest relative errors of features · coefficients ≈ wanted; the first few rather 1."""
    from scipy.optimize import nnls  # comes with scikit-learn

    wanted = np.asarray(wanted, float)
    rows = np.asarray(features, float) / wanted[:, None]
    believed = PRIOR * np.eye(priors, rows.shape[1])
    return nnls(np.concatenate([rows, believed]), np.concatenate([np.ones(len(wanted)), PRIOR * np.ones(priors)]))[0]


def _before(table: Sequence[Mapping[str, str]], sources: Path) -> Before:
    """Steps 1 and 2, on the compiled files whose sources are at hand."""
    known = [(sources / Path(row["source"]).name, row) for row in table]
    compiled = [(_network(path).work, row) for path, row in known if path.exists()]
    cycles = _step(
        "cycles per step", [_kinds(work) for work, _ in compiled], [row["est_cycles"] for _, row in compiled]
    )
    pieces = [(work.ops, work.strips) for work, _ in compiled]
    per_op, per_strip = _step("instruction bytes", pieces, [row["instr_bytes_exec"] for _, row in compiled])
    size = latency.Instructions(bytes_per_op=_short(per_op), bytes_per_strip=_short(per_strip))
    return Before(cycles, size)


def _step(what: str, features: Any, wanted: Sequence[str]) -> Any:
    values = [int(value) for value in wanted]
    found = _relative(features, values)
    errors = abs(np.asarray(features) @ found / values - 1)
    print(f"{what}: {found.round(3)}; mean error {errors.mean():.1%}, worst {errors.max():.1%}, of {len(values)} files")
    return found


def _kinds(work: latency.Work) -> tuple[int, int, int]:
    return work.conv, work.depthwise, work.elementwise


def _fit(rows: Sequence[Row], networks: Mapping[str, Network], before: Before) -> Fit:
    """Step 3."""
    features = [_features(row, networks[row.network].work, before) for row in rows]
    wanted = [row.ms - _round_trip_ms(row) for row in rows]
    conv, rest, *links = (float(value) for value in _relative(features, wanted, priors=2))
    transfer = dict(zip(HOSTS, links, strict=False))
    return Fit(conv, rest, transfer, dict(zip(STREAMING, links[len(HOSTS) :], strict=True)))


def _features(row: Row, work: latency.Work, before: Before) -> list[float]:
    """What each coefficient multiplies. Streaming takes longer than what is computed meanwhile, in every row there is."""
    conv, depthwise, elementwise = before.cycles / (1e3 * CLOCK_MHZ) * (1 - work.streamed_share)
    crossing = work.border_bytes + latency.instruction_bytes(work, before.instructions)
    return [
        work.conv * conv,
        work.depthwise * depthwise + work.elementwise * elementwise,
        *(crossing * (host == row.host) for host in HOSTS),
        *(work.streamed_bytes * (host == row.host) for host in STREAMING),
    ]


def _round_trip_ms(row: Row) -> float:
    return ROUND_TRIP_MS[HOSTS[row.host].links[0]]


def _on_chip_ms(row: Row, work: latency.Work, fit: Fit, before: Before) -> float:
    """All but the CPU's part."""
    return _round_trip_ms(row) + float(np.dot(_features(row, work, before), fit.coefficients))


def _left_out(rows: Sequence[Row], networks: Mapping[str, Network], before: Before) -> dict[Row, float]:
    """Every row predicted by a fit that has not seen its network."""
    found = {}
    for name in sorted({row.network for row in rows}):
        fit = _fit([row for row in rows if row.network != name], networks, before)
        found |= {row: _on_chip_ms(row, networks[name].work, fit, before) for row in rows if row.network == name}
    return found


def _cpu(
    rows: Sequence[Row], table: Iterable[Mapping[str, str]], networks: Mapping[str, Network], fit: Fit, before: Before
) -> dict[str, float]:
    """Step 4: MACs per ns and ns per element on the Dev Board, and the desktop PC's time over the Dev Board's."""
    alone = [
        (NETWORKS.get(row["model"]), float(row["latency_ms"])) for row in table if row["device"].startswith(CPU_ALONE)
    ]
    rates = [networks[name].macs / (ms * 1e6) for name, ms in alone if name in networks and name != CPU_RUN_ALONE]
    rate = float(np.exp(np.mean(np.log(rates))))
    work = networks[CPU_RUN_ALONE].work
    left = {row.host: row.ms - _on_chip_ms(row, work, fit, before) for row in rows if row.network == CPU_RUN_ALONE}
    print(
        f"CPU: {rate:.2f} MACs/ns (of {len(rates)} networks: {min(rates):.2f} to {max(rates):.2f}); DeepLab's part: {left}"
    )
    per_element = (left["devboard-pcie"] - work.cpu_macs / rate / 1e6) / work.cpu_elements * 1e6
    return {
        "macs_per_ns": rate,
        "ns_per_element": per_element,
        "desktop-usb3": left["desktop-usb3"] / left["devboard-pcie"],
    }


def _record(
    fit: Fit, before: Before, cpu: Mapping[str, float], fitted: Mapping[Row, float], predicted: Mapping[Row, float]
) -> Any:
    conv, depthwise, elementwise = before.cycles
    return {
        "written_by": "benchmarks/coral_fit.py",
        "clock_mhz": CLOCK_MHZ,
        "cycles": {
            "conv": _short(conv * fit.conv),
            "depthwise": _short(depthwise * fit.rest),
            "elementwise": _short(elementwise * fit.rest),
        },
        "instructions": before.instructions.model_dump(),
        "cpu": {"macs_per_ns": _short(cpu["macs_per_ns"]), "ns_per_element": _short(cpu["ns_per_element"])},
        "hosts": {name: _host(name, host, fit, cpu, predicted) for name, host in HOSTS.items()},
        "error": _error(predicted),
        "networks": {name: _judged(name, fitted, predicted) for name in sorted({row.network for row in fitted})},
        "not_used": NOT_USED,
    }


def _host(
    name: str, host: Computer, fit: Fit, cpu: Mapping[str, float], predicted: Mapping[Row, float]
) -> dict[str, Any]:
    time = cpu.get(name, host.cpu_time)
    return {
        "title": host.title,
        "links": list(host.links),
        "transfer_bytes_per_ms": _short(1 / fit.transfer[name]),
        "streaming_bytes_per_ms": _short(1 / fit.streaming.get(name, fit.transfer[name])),
        "streaming_known": name in fit.streaming,
        "round_trip_ms": ROUND_TRIP_MS[host.links[0]],
        "cpu_time": None if time is None else _short(time),
        "error": _error({row: ms for row, ms in predicted.items() if row.host == name}),
    }


def _error(predicted: Mapping[Row, float]) -> dict[str, Any]:
    errors = [100 * abs(ms / row.ms - 1) for row, ms in predicted.items()]
    return {"mean_pct": _short(np.mean(errors), 3), "worst_pct": _short(max(errors), 3), "rows": len(errors)}


def _judged(name: str, fitted: Mapping[Row, float], predicted: Mapping[Row, float]) -> list[dict[str, Any]]:
    return [
        {
            "device": row.device,
            "published_ms": row.ms,
            "fitted_ms": _short(ms),
            "left_out_ms": _short(predicted[row]) if row in predicted else None,
        }
        for row, ms in fitted.items()
        if row.network == name
    ]


def _print(rows: Sequence[Row], predicted: Mapping[Row, float]) -> None:
    print(f"\n{'left out':28} {'on':44} {'published':>9} {'predicted':>9} {'error':>7}")
    for row in sorted(rows):
        ms = predicted[row]
        print(f"{row.network:28} {row.device[:44]:44} {row.ms:9.2f} {ms:9.2f} {ms / row.ms - 1:+7.1%}")


def _short(value: float, digits: int = 5) -> float:
    """So many significant digits."""
    return float(f"{float(value):.{digits}g}")


if __name__ == "__main__":
    main()
