"""Kill a build with SIGKILL at random moments, resume it, and compare the file that comes out with an unbroken build's.

    python benchmarks/kill_resume.py --kills 10
    python benchmarks/kill_resume.py --kills 5 --seed 7 --results kill_states.json -- --recipe benchmarks/every_state.yaml
    python benchmarks/kill_resume.py --kills 3 -- resnet8.h5 --data cifar10.npz --recipe nm24

Words after ``--`` are those of ``edgeprune build``; without any it is the demo. Every kill has a run folder of its own,
and its moment is drawn evenly over the time that the unbroken build took, again where the build had ended by then.
Exits with 1 when a file differs.
Writes benchmarks/results/kill_resume.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "kill_resume.json"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("build", nargs="*", metavar="WORD", help="of `edgeprune build`; default: --target rpi4")
    arguments = parser.parse_args()
    words, moments = arguments.build or ["--target", "rpi4"], random.Random(arguments.seed)  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Path(folder) / "unbroken"
        seconds = _finish(words, unbroken)
        expected = _digest(unbroken)
        print(f"unbroken: {seconds:.1f} s, {expected[:12]}", flush=True)
        kills = []
        for number in range(arguments.kills):
            run = Path(folder) / f"run{number}"
            moment = _killed(words, run, lambda: moments.uniform(0, seconds))
            kills.append({"moment_s": round(moment, 2), **_resumed(words, run, expected)})
            print(json.dumps(kills[-1]), flush=True)
    record = {
        "what": "builds killed with SIGKILL at a random moment and resumed; identical: the same model.tflite, byte for byte",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform()},
        "command": ["edgeprune", "build", *words],
        "seed": arguments.seed,
        "unbroken_s": round(seconds, 1),
        "sha256": expected,
        "kills": kills,
        "identical": sum(kill["identical"] for kill in kills),
    }
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if all(kill["identical"] for kill in kills) else 1


def _killed(words: list[str], folder: Path, draw: Callable[[], float]) -> float:
    """Kill one build at a moment (s after its start), and say which."""
    while True:
        process, moment = _start(words, folder), draw()
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()  # of the process alone, as a user's `kill -9` does
            process.wait()
            return moment
        shutil.rmtree(folder)  # it had ended by then


def _resumed(words: list[str], folder: Path, expected: str) -> dict[str, Any]:
    """Go on with a killed build, and compare."""
    killed_in, resumable = _at_work(folder), (folder / "run.json").exists()
    seconds = _finish(["--resume"] if resumable else words, folder)
    return {
        "killed_in": killed_in,
        "resumed": resumable,
        "resumed_s": round(seconds, 1),
        "identical": _digest(folder) == expected,
    }


def _at_work(folder: Path) -> str:
    """The stage that had begun and not ended, as the run folder shows it."""
    stages = folder / "stages"
    partial = [path.name for path in stages.glob("*.partial")]
    finished = sorted((path.name for path in stages.glob("[0-9]*") if path.suffix != ".partial"), key=_place)
    return (
        partial[0].removesuffix(".partial")
        if partial
        else f"after {finished[-1]}"
        if finished
        else "before the first stage"
    )


def _place(name: str) -> int:
    return int(name.split("-")[0])


def _start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edgeprune", "build", *words, "--out", str(folder), "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _finish(words: list[str], folder: Path) -> float:
    """Build to the end; the seconds it took."""
    started = time.monotonic()
    code = _start(words, folder).wait()
    if code not in (0, 4):  # 4: a budget was missed, the file is there
        raise SystemExit(f"the build in {folder.name} ended with exit code {code}")
    return time.monotonic() - started


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.tflite").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
