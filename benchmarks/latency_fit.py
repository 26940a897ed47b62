"""From counted cycles to a Pi 4's milliseconds: fit the model's constants on published latencies, and judge them.

    python benchmarks/latency_fit.py rpi4_latency.csv
    python benchmarks/latency_fit.py rpi4_latency.csv --judge other_rows.csv       figures that nothing was fitted on

The table has one published latency a row (``benchmarks/latency_rows.py`` says how rows are read). For every row the network's
.tflite is made (``latency_networks.py``; a file of that name in the cache's folder ``models`` is taken as it is) and counted
under the emulator with the kernels that the row used; both are kept in the cache, so that only the first run takes long.
Then, for int8 and float apart, the constants of `edgeprune.prediction` are fitted, and every family of networks is predicted
by constants fitted on the others alone. (Run ``benchmarks/analytic_fit.py`` first: it says which op the counted cycles belong
to.) The table of errors is printed; constants, names of the rows and errors are written to ``devices/latency/CORE.yaml``, and
every figure to ``benchmarks/results/latency.json``. Exits with 1 where a bar does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import latency_counts
import latency_networks
import latency_rows
import numpy as np
from rich.console import Console
from rich.table import Table

from edgeprune import analytic, cache, calibration, files, prediction, registry, tflite, yaml_files
from edgeprune import target as targets

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "latency.json"
CONSTANTS = HERE.parent / "devices" / "latency"
BARS = {"int8": {"mape_pct": 6.0, "worst_pct": 15.0, "rank_correlation": 0.99}, "fp32": {"mape_pct": 12.0}}
HEADER = "# Written by benchmarks/latency_fit.py; run it again to change anything here.\n"


class Counted(NamedTuple):
    """A row with what was counted for it.

    Attributes:
        works: counted cycles, by op.
        analytic: the same from shapes alone.
        crossed_bytes: what a simulation of the caches says that crosses to the memory; only compared.
    """

    row: latency_rows.Row
    works: list[prediction.Work]
    analytic: list[prediction.Work]
    crossed_bytes: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="published latencies: rpi4_latency.csv")
    parser.add_argument("--judge", type=Path, action="append", default=[], help="more rows, which nothing is fitted on")
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--folder", type=Path, default=cache.folder("latency"), help="for models and counts")
    parser.add_argument("--jobs", type=int, default=2, help="files that are counted at once")
    parser.add_argument("--constants", type=Path, help="where to write them; default: devices/latency/CORE.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    target = targets.load(registry.file("targets", arguments.target))
    rows = latency_rows.read(arguments.table)
    counted = _counted(rows, arguments, target)
    fits = {
        precision: _fit(_of(counted, precision), target) for precision in ("int8", "fp32") if _of(counted, precision)
    }
    constants = _constants(fits, counted, arguments, target)
    where = arguments.constants or CONSTANTS / f"{target.cpu.core}.yaml"
    files.write_text_atomic(where, HEADER + yaml_files.dump(constants.model_dump(mode="json", exclude_none=True)))
    record = _record(counted, fits, constants, target)
    for path in arguments.judge:
        record["judged"] = _judged(_counted(latency_rows.read(path), arguments, target), constants, target)
    files.write_text_atomic(arguments.results, json.dumps(record, indent=1) + "\n")
    _print(record)
    return 0 if all(_held(record)) else 1


def _counted(rows: Sequence[latency_rows.Row], arguments: argparse.Namespace, target: targets.Target) -> list[Counted]:
    """Make, count and describe the file of every row; rows of networks that nobody can make are named and left out."""
    known = []
    for row in rows:
        path = arguments.folder / "models" / row.file
        if not path.exists():
            try:
                latency_networks.files([row.network], path.parent)
            except ValueError as problem:
                print(f"left out: {row.name}: {problem}", file=sys.stderr)
                continue
        known.append(row)
    folder = arguments.folder / "models"
    jobs = [latency_counts.Job(folder / row.file, *row.runtime, caches=True) for row in known]
    counts = latency_counts.counts(jobs, arguments.folder / "counts", target, arguments.jobs)
    prices = analytic.load(CONSTANTS / f"{target.cpu.core}.analytic.yaml")
    return [_described(row, job.file, found, prices) for row, job, found in zip(known, jobs, counts, strict=True)]


def _described(row: latency_rows.Row, file: Path, counts: dict[str, Any], prices: analytic.Analytic) -> Counted:
    """The row's work, counted and from its shapes.

    The counted cycles, of the whole, are shared out by the analytic model: which op they belong to matters for ops that
    one thread runs alone, and these are a few percent of any row.
    """
    layers = analytic.layers(tflite.read(file))
    memory = counts["memory"]
    lines = memory["l2_read_misses"] + memory["l2_write_misses"] + memory["writebacks"]
    guessed = prediction.from_shapes(layers, prices, row.kernels, row.precision)  # type: ignore[arg-type]
    scale = counts["cycles"] / sum(work.cycles for work in guessed)
    works = [work._replace(cycles=work.cycles * scale) for work in guessed]
    return Counted(row, works, guessed, lines * memory["line_bytes"])


def _of(counted: Sequence[Counted], precision: str) -> list[Counted]:
    return [one for one in counted if one.row.precision == precision]


class Judged(NamedTuple):
    """One precision: the published figures, and what constants say that were fitted on all of them, or on other families."""

    rows: list[latency_rows.Row]
    terms: prediction.Terms
    fitted: np.ndarray
    left_out: np.ndarray

    @property
    def ms(self) -> np.ndarray:
        return np.array([row.ms for row in self.rows])

    def error(self, family: str | None = None) -> prediction.Error:
        """Of predictions by constants that were fitted without the row's family."""
        chosen = np.array([family in (None, row.family) for row in self.rows])
        return prediction.Error(**calibration.judge(self.left_out[chosen], self.ms[chosen])._asdict())


def _fit(counted: Sequence[Counted], target: targets.Target) -> Judged:
    rows = [one.row for one in counted]
    ms = np.array([row.ms for row in rows])
    features, known = prediction.system([one.works for one in counted], *_machine(target))
    constants = calibration.fit(features, ms, known)
    left_out = calibration.leave_one_out(features, ms, [row.family for row in rows], known)
    terms = prediction.Terms(**{name: _short(value) for name, value in zip(prediction.TERMS, constants, strict=True)})
    return Judged(rows, terms, features @ constants + known, left_out)


def _machine(target: targets.Target) -> tuple[float, int, float]:
    """Clock, threads and bandwidth of the target, all of which the model needs.

    Raises:
        SystemExit: the target does not say one of them.
    """
    clock, bandwidth = target.cpu.clock_mhz, target.memory.bandwidth_gb_s
    if clock is None or bandwidth is None:
        raise SystemExit(f"the target {target.name} does not say its clock and memory bandwidth; both are needed")
    return clock, target.runtime.threads, bandwidth


def _short(value: float) -> float:
    """Four significant digits: more would claim more than rows can tell."""
    return float(f"{value:.4g}")


def _constants(
    fits: dict[str, Judged], counted: Sequence[Counted], arguments: argparse.Namespace, target: targets.Target
) -> prediction.Constants:
    clock, threads, bandwidth = _machine(target)
    return prediction.Constants(
        core=str(target.cpu.core),
        written_by=f"benchmarks/latency_fit.py {arguments.table.name}",
        source="MLPerf Inference v1.1 open division, Krai (Raspberry Pi 4, TFLite 2.5, ruy); XNNPACK README (64-bit)",
        clock_mhz=clock,
        threads=threads,
        bandwidth_gb_s=bandwidth,
        fits={
            precision: prediction.Fit(
                terms=fit.terms,
                error=_rounded(fit.error()),
                families={family: _rounded(fit.error(family)) for family in sorted({row.family for row in fit.rows})},
                analytic_error=_analytic_error(_of(counted, precision), target),
                shortest_ms=float(fit.ms.min()),
                longest_ms=float(fit.ms.max()),
                rows=tuple(row.name for row in fit.rows),
            )
            for precision, fit in fits.items()
        },
    )


def _rounded(error: prediction.Error) -> prediction.Error:
    found = error.model_dump()
    return prediction.Error(
        **{name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
    )


def _analytic_error(counted: Sequence[Counted], target: targets.Target) -> prediction.Error:
    """Of milliseconds from the shapes alone, every family by constants fitted on the others' counted cycles."""
    ms, families = np.array([one.row.ms for one in counted]), np.array([one.row.family for one in counted])
    features, known = prediction.system([one.works for one in counted], *_machine(target))
    shaped, shaped_known = prediction.system([one.analytic for one in counted], *_machine(target))
    predicted = np.empty(len(ms))
    for family in sorted(set(families)):
        left = families == family
        constants = calibration.fit(features[~left], ms[~left], known[~left])
        predicted[left] = shaped[left] @ constants + shaped_known[left]
    return _rounded(prediction.Error(**calibration.judge(predicted, ms)._asdict()))


def _record(
    counted: Sequence[Counted], fits: dict[str, Judged], constants: prediction.Constants, target: targets.Target
) -> dict[str, Any]:
    """Everything that was found, row by row."""
    rows = [
        {
            "name": row.name,
            "family": row.family,
            "precision": precision,
            "published_ms": row.ms,
            "fitted_ms": round(float(fitted), 4),
            "left_out_ms": round(float(left), 4),
        }
        for precision, fit in fits.items()
        for row, fitted, left in zip(fit.rows, fit.fitted, fit.left_out, strict=True)
    ]
    works = {one.row.name: one.works for one in counted}
    crossed = {one.row.name: one.crossed_bytes for one in counted}
    for row in rows:
        row["cycles"] = round(sum(work.cycles for work in works[row["name"]]))
        row["traffic_bytes"] = round(sum(work.traffic_bytes for work in works[row["name"]]))
        row["crossed_bytes"] = round(crossed[row["name"]])
    return {
        "what": (__doc__ or "").splitlines()[0],
        "target": target.name,
        "constants": constants.model_dump(mode="json", exclude={"fits": {"__all__": {"rows"}}}),
        "bars": BARS,
        "other_models": {precision: _others(_of(counted, precision), target) for precision in fits},
        "rows": rows,
    }


def _others(counted: Sequence[Counted], target: targets.Target) -> dict[str, Any]:
    """What was tried instead, judged in the same way: MAPE, worst and constants of each."""
    ms = np.array([one.row.ms for one in counted])
    families = [one.row.family for one in counted]
    system, known = prediction.system([one.works for one in counted], *_machine(target))
    bytes_ms = np.array([sum(work.traffic_bytes for work in one.works) for one in counted]) / (
        1e6 * _machine(target)[2]
    )
    crossed_ms = np.array([one.crossed_bytes for one in counted]) / (1e6 * _machine(target)[2])
    tried = {
        "no memory": (system, known - bytes_ms),
        "memory with a factor of its own": (np.column_stack([system, bytes_ms]), known - bytes_ms),
        "traffic that a simulation of the caches counts": (system, known - bytes_ms + crossed_ms),
    }
    found = {}
    for name, (features, alone) in tried.items():
        error = calibration.judge(calibration.leave_one_out(features, ms, families, alone), ms)
        constants = [_short(value) for value in calibration.fit(features, ms, alone)]
        found[name] = {"constants": constants, "mape_pct": error.mape_pct, "worst_pct": error.worst_pct}
    return found


def _judged(
    counted: Sequence[Counted], constants: prediction.Constants, target: targets.Target
) -> dict[str, dict[str, Any]]:
    """Rows that nothing was fitted on: their errors by precision."""
    found: dict[str, dict[str, Any]] = {}
    for precision, fit in constants.fits.items():
        own = _of(counted, precision)
        if own:
            predicted = np.array([prediction.predict(one.works, fit.terms, *_machine(target)).ms for one in own])
            error = calibration.judge(predicted, np.array([one.row.ms for one in own]))
            ms = {one.row.name: round(float(value), 4) for one, value in zip(own, predicted, strict=True)}
            found[precision] = {**error._asdict(), "predicted_ms": ms}
    return found


def _held(record: dict[str, Any]) -> list[bool]:
    """Whether each bar holds."""
    fits = record["constants"]["fits"]
    errors = {precision: fits[precision]["error"] for precision in BARS if precision in fits}
    return [
        errors[precision][name] >= bar if name == "rank_correlation" else errors[precision][name] <= bar
        for precision, bars in BARS.items()
        if precision in errors
        for name, bar in bars.items()
    ]


def _print(record: dict[str, Any]) -> None:
    """The constants and the leave-one-family-out table."""
    console = Console(width=120)
    table = Table(
        "precision", "left out", "rows", "MAPE %", "worst %", "rank", title="Each family by the others' constants"
    )
    for precision, fit in record["constants"]["fits"].items():
        for family, error in [*fit["families"].items(), ("all", fit["error"])]:
            rank = error.get("rank_correlation")
            cells = (error["figures"], f"{error['mape_pct']:.2f}", f"{error['worst_pct']:.2f}")
            table.add_row(precision, family, *map(str, cells), "-" if rank is None else f"{rank:.4f}")
        table.add_section()
    console.print(table)
    for precision, fit in record["constants"]["fits"].items():
        console.print(f"{precision}: {fit['terms']}, analytic {fit.get('analytic_error')}")
    for precision, error in record.get("judged", {}).items():
        console.print(f"judged on other rows, {precision}: {error}")
    console.print("all bars hold" if all(_held(record)) else f"bars that do not all hold: {record['bars']}")


if __name__ == "__main__":
    sys.exit(main())
