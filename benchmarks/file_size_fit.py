"""What an int8 file holds besides its weights: the constants of `edgeprune.file_size`, and how far its predictions are off.

    python benchmarks/file_size_fit.py

Every built-in network is cut at random and converted (post-training quantization on noise: the size depends on shapes alone). The
constants are fitted by least squares on all files; the error is that of each network's files, predicted by constants that were
fitted on the other networks. Writes benchmarks/results/file_size.json; what is there is not converted again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import file_size, files, registry, search_space

RESULTS = Path(__file__).parent / "results" / "file_size.json"
CUTS = 4  # of every network, the uncut one besides
SAMPLES = 8  # of noise, that set the ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(registry.names("models")))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    record = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"files": []}
    sizes = {(row["model"], row["cut"]): row["size_bytes"] for row in record["files"]}
    record = {"files": []}
    for model in arguments.models.split(","):
        for row in _rows(model, sizes):
            record["files"].append(row)
            print(json.dumps(row), flush=True)
    record |= fitted(record["files"])
    files.write_text_atomic(arguments.results, json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: record[key] for key in ("constants", "mape_pct", "worst_pct")}))


def _rows(name: str, sizes: dict[tuple[str, int], int]) -> Iterator[dict[str, Any]]:
    """A row for every cut of a network, converted if it never was."""
    from edgeprune.keras import budget_model, intake
    from edgeprune.keras.costs import Meter
    from edgeprune.keras.latency import Stopwatch

    model = intake.named(name)[0]
    meter, watch = Meter(model), Stopwatch(model, lambda layers: 0.0)
    random = np.random.Generator(np.random.PCG64(0))
    noise = random.normal(size=(SAMPLES, *model.inputs[0].shape[1:])).astype("float32")
    for number in range(CUTS + 1):
        counts = {
            group.name: int(random.choice(search_space.allowed(group.units, group.step, 1, 0.25)))
            for group in meter.coupling.groups
            if group.cuttable
        }
        cut = counts if number else {}
        if (name, number) not in sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = budget_model.converted(model, cut, noise, Path(folder), 600)
                sizes[name, number] = path.stat().st_size
        layers = watch.layers({group: range(count) for group, count in cut.items()})
        yield {"model": name, "cut": number, "size_bytes": sizes[name, number], **file_size.parts(layers)._asdict()}


def fitted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The constants, and the error on networks that they were not fitted on."""
    errors = []
    for name in {row["model"] for row in rows}:
        constants = _least_squares([row for row in rows if row["model"] != name])
        for row in rows:
            if row["model"] == name:
                errors.append(100 * abs(_predicted(row, constants) / row["size_bytes"] - 1))
    constants = [round(value, 1) for value in _least_squares(rows)]
    return {
        "constants": dict(zip(("kernel_ops", "other_ops", "file"), constants, strict=True)),
        "mape_pct": round(float(np.mean(errors)), 2),
        "worst_pct": round(float(np.max(errors)), 2),
    }


def _least_squares(rows: list[dict[str, Any]]) -> list[float]:
    """Weighed by the size, since it is the share of it that is to be right."""
    table = np.array([[row["kernel_ops"], row["other_ops"], 1.0] for row in rows])
    left = np.array([row["size_bytes"] - row["held"] for row in rows], float)
    weights = 1 / np.array([row["size_bytes"] for row in rows], float)
    return [float(value) for value in np.linalg.lstsq(table * weights[:, None], left * weights, rcond=None)[0]]


def _predicted(row: dict[str, Any], constants: list[float]) -> float:
    return float(row["held"] + np.dot([row["kernel_ops"], row["other_ops"], 1.0], constants))


if __name__ == "__main__":
    main()
