"""Networks that people use, from a Keras 3 file to an int8 file on Arm kernels: one build each, one table.

    python benchmarks/zoo.py
    python benchmarks/zoo.py --models MobileNet MobileNetV2 --data cifar10.npz --train-images 4000

Each network of `keras.applications` is made by Keras 3 with random weights (its BatchNormalization statistics set by
data), 96x96x3, 10 classes, and saved as `.keras`. Then `edgeprune build` prunes it 2:4, trains it with fake quantizers,
converts it, proves it and runs it on the target's emulator. With --data the network is first trained on those images,
enlarged to 96x96. The weights are random or trained for minutes: the table shows that every step works, and how far
outputs move, not how accurate such a network can be. Writes benchmarks/results/zoo.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "zoo.json"
MODELS = (
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small",
    "MobileNetV3Large",
    "EfficientNetB0",
    "EfficientNetV2B0",
    "ResNet50",
    "ResNet50V2",
    "DenseNet121",
    "NASNetMobile",
    "Xception",
    "InceptionV3",
    "VGG16",
    "ConvNeXtTiny",
)
# Whose own layers bring 0..255 to where the network wants it.
TAKES_PIXELS = ("MobileNetV3", "EfficientNet", "ConvNeXt")
SIDE, CLASSES = 96, 10
COLUMNS = ("model", "params", "2:4", "trained", "ops", "float", "int8", "vs Keras", "Arm", "KiB", "s")

# Runs in a process of its own: Keras 3 and its memory go with it.
MAKE = """
import sys
import numpy as np
import keras
name, side, classes, pixels, data, epochs, out = sys.argv[1:]
keras.utils.set_random_seed(0)
model = getattr(keras.applications, name)(weights=None, input_shape=(int(side), int(side), 3), classes=int(classes))
with np.load(data) as arrays:
    x, y = arrays["x_train"], arrays["y_train"]
scale = 1.0 if pixels == "pixels" else 1 / 255
normal = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
for layer in normal:
    layer.momentum = 0.0  # what is left of the initial variance would fade the signal, layer by layer
model(x[:48].astype("float32") * scale, training=True)
for layer in normal:
    layer.momentum = 0.9
if int(epochs):
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    batches = keras.utils.PyDataset
    class Batches(batches):
        def __len__(self):
            return len(x) // 32
        def __getitem__(self, index):
            rows = slice(32 * index, 32 * index + 32)
            return x[rows].astype("float32") * scale, y[rows]
    model.fit(Batches(), epochs=int(epochs), verbose=2)
for layer in normal:
    layer.momentum = 0.99
model.save(out)
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument(
        "--data", type=Path, help="x_train, y_train, x_test, y_test with 32x32x3 images; default: noise"
    )
    parser.add_argument("--train-images", type=int, default=4000)
    parser.add_argument("--train-epochs", type=int, default=3)
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    stored = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.results.exists() else {}
    rows = stored.get("trained" if arguments.data else "random", {})
    for name in arguments.models:
        rows[name] = _row(name, arguments)
        print(json.dumps({name: rows[name]}), flush=True)
        record = {"what": __doc__.splitlines()[0], "input": [SIDE, SIDE, 3], "cpus": os.cpu_count(), **stored}
        record["trained" if arguments.data else "random"] = rows
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    _print(rows)
    return 0 if all(row.get("float_ops") == 0 for row in rows.values()) else 1


def _row(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network's figures, or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        samples, epochs = _samples(work / "data.npz", arguments)
        pixels = "pixels" if name.startswith(TAKES_PIXELS) else "unit"
        words = [name, str(SIDE), str(CLASSES), pixels, str(samples), str(epochs), str(work / "model.keras")]
        made = subprocess.run([sys.executable, "-c", MAKE, *words], capture_output=True, text=True)
        if made.returncode:
            return {"error": made.stderr.strip().splitlines()[-1]}
        started = time.monotonic()
        built = _build(work, samples, pixels, trained=bool(epochs), target=arguments.target)
        seconds = round(time.monotonic() - started, 1)
        if built.returncode:
            return {"error": built.stderr.strip().splitlines()[-1], "seconds": seconds}
        report = json.loads((work / "run" / "report.json").read_text(encoding="utf-8"))
        return {**_figures(report), "seconds": seconds}


def _samples(path: Path, arguments: argparse.Namespace) -> tuple[Path, int]:
    """The .npz that everything is trained, calibrated and judged on, and how long the network is trained before."""
    import numpy as np

    random = np.random.default_rng(0)
    if arguments.data is None:
        # Blocks of 8x8 equal pixels: plain noise has no structure that survives a pooling.
        coarse = random.integers(0, 256, (96, SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
        x = coarse.repeat(8, axis=1).repeat(8, axis=2)
        y = np.arange(len(x)) % CLASSES
        np.savez(path, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
        return path, 0
    with np.load(arguments.data) as given:
        train = random.permutation(len(given["x_train"]))[: arguments.train_images]
        test = random.permutation(len(given["x_test"]))[: arguments.train_images // 10]
        splits = {"train": train, "test": test}
        arrays = {
            f"{part}_{split}": given[f"{part}_{split}"][rows] for split, rows in splits.items() for part in ("x", "y")
        }
    for split in splits:
        arrays[f"x_{split}"] = arrays[f"x_{split}"].repeat(SIDE // 32, axis=1).repeat(SIDE // 32, axis=2)
        arrays[f"y_{split}"] = arrays[f"y_{split}"].reshape(-1)
    np.savez(path, **arrays)
    return path, arguments.train_epochs


def _build(work: Path, samples: Path, pixels: str, trained: bool, target: str) -> subprocess.CompletedProcess[str]:
    sets = {
        "data.validation": 0.0,
        "data.calibration": 64,
        "data.preprocess.scale": 1.0 if pixels == "pixels" else 1 / 255,
        "stages.prune.epochs": 2 if trained else 1,
        "stages.prune.learning_rate": 0.0003 if trained else 0.00001,
        "stages.quantize.epochs": 1,
        "stages.quantize.learning_rate": 0.0001 if trained else 0.00001,
        "stages.profile.samples": 100 if trained else 8,
        "stages.verify.samples": 16,
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "edgeprune", "build", str(work / "model.keras"), "--data", str(samples), "--quiet"]
    command += ["--target", target, "--recipe", "nm24", "--out", str(work / "run"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600)


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    verify, arm = report["verify"], report.get("arm", {})
    pruned = [layer for layer in report["layers"] if layer.get("prunable")]
    quantization = report.get("quantization", {})
    return {
        "params": report["candidates"]["final"]["params"],
        "pruned_layers": len(pruned),
        "proven": bool(verify["zeros_match"] and verify["n_of_m_match"]),
        "trained_with_fake_quantizers": quantization.get("trained"),
        "post_training_layers": [
            layer["name"] for layer in quantization.get("layers", []) if layer["how"] == "post-training"
        ],
        "ops": len(report["ops"]),
        "float_ops": len(verify["float_ops"]),
        "int8": verify.get("int8"),
        "agreement": verify["agreement"],
        "rms_difference_steps": verify["rms_difference_steps"],
        "compared_with": verify["compared_with"],
        "metric": {name: report["candidates"][name]["metric"] for name in report["candidates"]},
        "arm": {key: arm.get(key) for key in ("runtime", "samples", "agreement", "reason") if arm.get(key) is not None},
        "size_bytes": report["candidates"]["final"]["size_bytes"],
        "size_gzip_bytes": report["candidates"]["final"]["size_gzip_bytes"],
        "stages": {stage["name"]: stage["seconds"] for stage in report["stages"]},
    }


def _print(rows: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for name, row in rows.items():
        if "error" in row:
            table.add_row(name, row["error"])
            continue
        how = {True: "all", False: "no"}.get(row["trained_with_fake_quantizers"], "-")
        if row["post_training_layers"]:
            how = f"all but {len(row['post_training_layers'])}"
        arm = row["arm"].get("agreement")
        words = (
            name,
            f"{row['params']:,}",
            f"{row['pruned_layers']} {'proven' if row['proven'] else 'LOST'}",
            how,
            row["ops"],
            row["float_ops"],
            "yes" if not row["int8"] or not row["int8"].get("violations") else "no",
            f"{row['agreement']:.3f}",
            "-" if arm is None else f"{arm:.3f}",
            f"{row['size_bytes'] / 1024:,.0f}",
            f"{row['seconds']:.0f}",
        )
        table.add_row(*map(str, words))
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
