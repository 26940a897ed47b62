"""Whole builds as processes of their own, killed and interrupted: what is resumed ends in the same file, byte for byte."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from samples import HEARING_INTERRUPTS

import edgeprune
from edgeprune import yaml_files

pytestmark = pytest.mark.slow

STAGES = {
    "train": {"epochs": 6, "batch_size": 8, "when": "always"},
    "shrink": {"ratio": 0.25, "multiples": 1, "rounds": 2, "epochs": 6, "batch_size": 8, "distill": {}},
    "prune": {"epochs": 6, "batch_size": 8},
    "quantize": {"epochs": 6, "batch_size": 8},
    "convert": {},
    "verify": {"samples": 16},
    "report": {},
}


class Built:
    """A run folder, and the processes that build it."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.folder = home, home / name

    def start(self) -> subprocess.Popen[str]:
        """Begin the build, or go on with it."""
        words = (
            ["--resume"]
            if (self.folder / "run.json").exists()
            else ["net.keras", "--data", "data.npz", "--recipe", "recipe.yaml"]
        )
        command = [sys.executable, "-m", "edgeprune", "build", *words, "--out", self.folder.name, "--quiet"]
        return subprocess.Popen(
            [*HEARING_INTERRUPTS, *command],
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> bytes:
        """The .tflite file that comes out."""
        process = self.start()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        return (self.folder / "model.tflite").read_bytes()

    def wait_for(self, pattern: str, process: subprocess.Popen[str]) -> None:
        """Return when a file that matches is in the run folder."""
        while process.poll() is None and not any(self.folder.glob(pattern)):
            time.sleep(0.01)
        assert any(self.folder.glob(pattern)), process.communicate()[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, data and a recipe."""
    from keras_models import samples, small

    from edgeprune.keras import intake

    home = tmp_path_factory.mktemp("home")
    intake.save(small(), home / "net.keras")
    x, y = samples()
    np.savez(home / "data.npz", x=x, y=y)
    (home / "recipe.yaml").write_text(yaml_files.dump({"name": "tiny", "data": {"calibration": 32}, "stages": STAGES}))
    return home


@pytest.fixture(scope="module")
def unbroken(home):
    """The file of a build in this process that nothing happened to, and the seconds that each of its stages took."""
    out = home / "unbroken"
    result = edgeprune.build(home / "net.keras", home / "data.npz", recipe=str(home / "recipe.yaml"), out=out)
    return result.tflite.read_bytes(), {stage["name"]: stage["seconds"] for stage in result.report["stages"]}


KILLS = ((2, "shrink"), (4, "quantize"))  # at a random moment of these stages
INTERRUPTS = ("stages/3-prune.partial/checkpoint.npz", "stages/5-convert.partial")  # when these are there


@pytest.mark.long
def test_killed_and_interrupted_and_resumed_it_ends_in_the_same_file(home, unbroken):
    """A build that is killed in every other stage, and interrupted in the stages between."""
    content, seconds = unbroken
    random = np.random.Generator(np.random.PCG64(0))
    built = Built(home, "broken")
    for (number, label), moment in zip(KILLS, INTERRUPTS, strict=True):
        process = built.start()
        built.wait_for(f"stages/{number}-{label}*", process)
        time.sleep(random.uniform(0.0, seconds[label]))
        process.kill()  # SIGKILL, of the process alone: what it has started has to end by itself
        process.communicate()
        process = built.start()
        built.wait_for(moment, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err == "Interrupted; resume with: edgeprune build --resume --out broken\n"
    assert built.finish() == content
    left = {
        path.name
        for path in built.folder.rglob("*")
        if path.name.endswith(".partial") or path.name.startswith(".edgeprune-")
    }
    assert left == set()
