"""MLPerf Tiny's five networks, made int8 here, against the int8 files that their authors published.

    python benchmarks/mlperf_tiny.py FOLDER --cifar10 cifar10.npz --keywords keyword_spotting.npz

FOLDER holds the benchmark's trained models and the authors' .tflite of each (mlcommons/tiny, Apache-2.0). Every network is
built twice: quantized after training (`ptq`), and pruned 2:4 and trained with fake quantizers (`nm24`, one epoch each at a
rate that hardly moves the weights: what is looked at is the file). Where a test set is given the quality of both files is
measured on it; elsewhere samples are noise over the range that the authors' file takes. Writes
benchmarks/results/mlperf_tiny.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import data, inference, metrics, tflite

RESULTS = Path(__file__).parent / "results" / "mlperf_tiny.json"
NOISE = 512  # samples where no data set is given


class Network(NamedTuple):
    """A network of the benchmark: the trained model, the authors' int8 file, and how stored samples become its inputs."""

    model: str
    authors: str
    task: str = "classification"
    scale: float = 1.0
    offset: float = 0.0
    samples: str | None = None


NETWORKS = {
    "image classification": Network("pretrainedResnet.h5", "pretrainedResnet_quant.tflite", samples="cifar10"),
    "keyword spotting": Network(
        "kws_ref_model", "kws_ref_model.tflite", scale=0.5847, offset=-83 * 0.5847, samples="keywords"
    ),
    "visual wake words": Network("vww_96.h5", "vww_96_int8.tflite"),
    "anomaly detection": Network("ad01.h5", "ad01_int8.tflite", task="regression"),
    "streaming wake word": Network("str_ww_ref_model.h5", "str_ww_ref_model.tflite"),
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--keywords", type=Path)
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    record: dict[str, Any] = {"what": __doc__.splitlines()[0], "networks": {}}
    for name, network in NETWORKS.items():
        record["networks"][name] = _compare(network, arguments)
        print(json.dumps({name: record["networks"][name]}), flush=True)
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    good = [row["authors"]["size_bytes"] * 1.1 >= row["ptq"]["size_bytes"] for row in record["networks"].values()]
    return 0 if all(good) else 1


def _compare(network: Network, arguments: argparse.Namespace) -> dict[str, Any]:
    authors = arguments.folder / network.authors
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        given = getattr(arguments, network.samples or "", None)
        source = _npz(given, work) if given else _noise(network, authors, work)
        found = {"authors": {"size_bytes": authors.stat().st_size}}
        for recipe in ("ptq", "nm24"):
            report = _build(arguments, network, source, recipe, work / recipe)
            found[recipe] = _figures(report)
        if given:
            found["authors"]["metric"] = _quality(authors, network, source)
            found["test_samples"] = report["metric"]["samples"]
        return found


def _npz(path: Path, work: Path) -> Path:
    """The samples as edgeprune reads them: one set without a training part is split by it."""
    with np.load(path) as arrays:
        if "x_train" in arrays:
            return path
        stored = work / "samples.npz"
        np.savez(stored, x=arrays["x_test"], y=arrays["y_test"])
    return stored


def _noise(network: Network, authors: Path, work: Path) -> Path:
    """Samples over the range that the authors' file takes at its input."""
    port = inference.Runner(authors).inputs[0]
    low, high = ((edge - port.zero_point) * port.scale for edge in (-128, 127))
    random = np.random.default_rng(0)
    x = random.uniform(low, high, (NOISE, *port.shape)).astype("float32")
    classes = inference.Runner(authors).outputs[0].shape[-1]
    y = x if network.task == "regression" else np.arange(NOISE) % classes
    stored = work / "noise.npz"
    np.savez(stored, x=x, y=y)
    return stored


def _options(network: Network) -> dict[str, Any]:
    return {
        "data.preprocess.scale": network.scale,
        "data.preprocess.offset": network.offset,
        "data.validation": 0.0,
    }


def _build(arguments: argparse.Namespace, network: Network, source: Path, recipe: str, out: Path) -> dict[str, Any]:
    sets: dict[str, Any] = _options(network)
    if recipe == "nm24":
        for stage in ("prune", "quantize"):
            sets |= {f"stages.{stage}.epochs": 1, f"stages.{stage}.learning_rate": 1e-5}
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "edgeprune", "build", str(arguments.folder / network.model), "--data", str(source)]
    command += ["--target", arguments.target, "--recipe", recipe, "--out", str(out), "--quiet", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    report["inventory"] = tflite.inventory(tflite.read(out / "model.tflite"))
    return report


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    verify, final = report["verify"], report["candidates"]["final"]
    return {
        "metric": final["metric"],
        "float_metric": report["candidates"]["float"]["metric"],
        "size_bytes": final["size_bytes"],
        "float_ops": len(verify["float_ops"]),
        "int8": verify.get("int8"),
        "snr_db": verify.get("snr_db"),
        "zeros_proven": verify["zeros_match"],
        "arm": {
            key: value for key, value in report.get("arm", {}).items() if key in ("metric", "agreement", "samples")
        },
    }


def _quality(authors: Path, network: Network, source: Path) -> float:
    """The authors' file on the test split of the very same data."""
    preprocess = {"scale": network.scale, "offset": network.offset}
    options = data.DataOptions.model_validate({"preprocess": preprocess, "validation": 0.0})
    split = data.load(str(source), options).test
    metric = metrics.choose("classification", None)
    return float(metric(split.y, inference.outputs(inference.Runner(authors), split)))


if __name__ == "__main__":
    sys.exit(main())
