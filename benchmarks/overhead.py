"""What the methods that act while a network trains cost: seconds of an epoch, against plain training.

    python benchmarks/overhead.py [--networks lenet5,resnet8] [--methods rigl,l0]

Every method's own stage trains a network with weights for a few epochs through the pipeline, as in a build: callbacks, mask updates,
checkpoints and all. Between the methods, again and again, the stage `train` trains the same network as long, and `quantize` does
for methods that act on fake quantizers. The fastest epoch of each counts, the first, in which the step is compiled, left out; the
samples are noise. Masks are updated once in an epoch of 64 steps: at a hundred updates in all, a run of 30 epochs of CIFAR-10 has
one in 470. Methods whose own epochs are plain training, with a mask at most (fine-tuning, rewinding, pruning before
training, removing channels), stand as `fine-tune`.

Wants a machine that does nothing else; the load is noted. Writes benchmarks/results/overhead.json; what is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import records

from edgeprune import api, files, recipe, registry
from edgeprune.progress import Silent

RESULTS = Path(__file__).parent / "results" / "overhead.json"
METHODS = (
    *(
        "fine-tune",
        "gradual-reactivation",
        "rigl",
        "set",
        "tfmot-gradual",
        "block",
        "two-of-four-gradual",
        "soft-filter",
    ),
    *(
        "l1",
        "elastic-net",
        "reweighted-l1",
        "growing",
        "sparse-group-lasso",
        "group-lasso",
        "growing-channels",
        "slimming",
    ),
    *("l0", "learned-masks", "movement", "soft-threshold", "variational-dropout", "targeted-dropout"),
    *("l0-channels", "learned-masks-channels", "learned-masks-latency", "targeted-dropout-channels", "attention"),
    *("cluster", "prune-while-qat"),
)
BASELINES = {"train": "dense-ptq", "quantize": "dense"}  # stage -> whose recipe has it
SHARE = 0.8
SETTINGS = {"batch_size": 32, "steps": 64, "epochs": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="lenet5,resnet8", help="names of `edgeprune list models`")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    record = records.opened(given.results, __doc__, SETTINGS)
    for network in given.networks.split(","):
        found = record.setdefault("networks", {}).setdefault(network, {"plain": {}, "methods": {}})
        with tempfile.TemporaryDirectory() as folder:
            run = _Run(network, Path(folder))
            for method in given.methods.split(","):
                if method not in found["methods"]:
                    against = "quantize" if method == "prune-while-qat" else "train"
                    plain = [run.seconds(BASELINES[against], against)]
                    row = {"seconds": run.seconds(method), "against": against, "load": round(os.getloadavg()[0], 2)}
                    plain.append(run.seconds(BASELINES[against], against))
                    row["plain"] = min(plain)
                    found["methods"][method] = row | {"more": round(row["seconds"] / row["plain"] - 1, 3)}
                    files.write_text_atomic(given.results, json.dumps(record, indent=1) + "\n")
                    print(network, method, found["methods"][method], flush=True)


class _Run:
    """One network with weights, and noise to train it on."""

    def __init__(self, network: str, folder: Path) -> None:
        from edgeprune.keras import intake

        self.folder = folder
        model = registry.module("models", network).build()
        self.file = intake.save(model, folder / "given.keras")
        random, count = np.random.default_rng(0), SETTINGS["batch_size"] * SETTINGS["steps"]
        x = random.integers(0, 255, (round(count / 0.9) + 64, *model.input_shape[1:]), dtype=np.uint8)
        y = random.integers(0, model.output_shape[-1], len(x))
        self.data = (x[:-64], y[:-64]), (x[-64:], y[-64:])

    def seconds(self, method: str, stage: str | None = None) -> float:
        """Of the fastest epoch of a method's own stage, or of the named one."""
        chosen = recipe.load(method)
        label = stage or _own(chosen)
        words = chosen.resolved()["stages"]
        options: dict[str, Any] = {**words[label], "epochs": SETTINGS["epochs"], "batch_size": SETTINGS["batch_size"]}
        if "tune" in options:
            options["tune"] = 0.0  # epochs of plain training at the end
        for updated in (options, options.get("prune") or {}):
            if "frequency" in updated:
                updated["frequency"] = SETTINGS["steps"]
        if label == "train":
            options["when"] = "always"
        plain = {
            "name": method,
            "data": {"validation": 0.1, "calibration": 32},
            "stages": {label: _asked(chosen, label, options)},
        }
        out = self.folder / "run"
        api.build(str(self.file), self.data, recipe=plain, out=out, force=True, progress=Silent())
        state = json.loads((out / "stages" / f"1-{label}" / "state.json").read_text(encoding="utf-8"))
        epochs = state["facts"]["history"][label]["epochs"]
        return float(min(epoch["seconds"] for epoch in epochs[1:]))


def _own(chosen: recipe.Recipe) -> str:
    """The first stage that is the method's own: not the training before it, nor the quantization behind it if that is plain."""
    return next(
        spec.label
        for spec in chosen.stages
        if isinstance(spec.options, recipe.FitOptions)
        and spec.stage != "train"
        and (spec.stage != "quantize" or spec.options.prune)
    )


def _asked(chosen: recipe.Recipe, label: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's options with the share that all are asked for, where they say it in this stage."""
    about = chosen.file.method
    if about is None or about.aim is None or about.aim.split(".")[1] != label:
        return dict(options)
    *parents, last = about.aim.split(".")[2:]
    asked = dict(options)
    inner = asked
    for part in parents:
        inner[part] = dict(inner[part])
        inner = inner[part]
    inner[last] = about.asked(SHARE if about.removes == "weights" else 0.5)
    return asked


if __name__ == "__main__":
    main()
