"""Damaged and hostile files: each is read or refused by name, in seconds and bounded memory. The process never dies.

Files are changed in four ways (bits, bytes, truncation, splices) and, because the checksums of an archive end most of
these early, also inside: the configuration's values one by one, and the weights, packed anew. A child process takes them
all; where it dies or hangs, the file at which it did so is known.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import resource
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import artefacts
from fuzzing import tried

from edgeprune import tflite
from edgeprune.errors import ArtefactError

MEMORY = 14 * 2**30  # address space of a child, most of which TensorFlow reserves and does not use
SECONDS = 30  # for one file, on a busy machine
STRANGE = (
    None,
    True,
    -1,
    0,
    2**31,
    10**12,
    10**400,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 999,
    "Dense",
    "/etc/passwd",
)


def changed(content: bytes, seed: int) -> bytes:
    """The bytes with bits flipped, bytes overwritten, parts moved, or the end cut off."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    data = bytearray(content)
    way = rng.randrange(5)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        place, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 32))
        if way == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[place : place + size] = rng.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * size
        elif way == 2:
            source = rng.randrange(len(data))
            data[place : place + size] = data[source : source + size]
        elif way == 3:
            data[place : place + 4] = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4, "little")
        else:
            return bytes(data[: rng.randrange(len(data))])
    return bytes(data)


def changed_config(text: str, seed: int) -> str:
    """The configuration with one to three of its values replaced, removed, doubled, or swapped with others."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    config = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(config))
        container, key = rng.choice(places)
        way = rng.randrange(4)
        if way == 0:
            container[key] = rng.choice(STRANGE)
        elif way == 1:
            other, source = rng.choice(places)
            container[key] = json.loads(json.dumps(other.get(source) if isinstance(other, dict) else other[source]))
        elif way == 2 and isinstance(container, dict):
            del container[key]
        else:
            container[key] = (
                [container[key]] if rng.random() < 0.5 else {"config": container[key], "class_name": "Dense"}
            )
    return json.dumps(config)


def _places(value: Any):
    """Every (container, key) inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def repacked(content: bytes, seed: int) -> bytes:
    """A .keras archive with its configuration or its weights changed, and sound checksums."""
    made = io.BytesIO()
    member = ("config.json", "config.json", "config.json", "model.weights.h5", "metadata.json")[seed % 5]
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == member:
                data = changed(data, seed) if name.endswith("h5") else changed_config(data.decode(), seed).encode()
            new.writestr(name, data)
    return made.getvalue()


def reconfigured(content: bytes, seed: int) -> bytes:
    """A .h5 file with its configuration changed."""
    import h5py

    made = io.BytesIO(content)
    with h5py.File(made, "r+") as file:
        file.attrs["model_config"] = changed_config(file.attrs["model_config"], seed)
    return made.getvalue()


WAYS = {"bytes": changed, "inside": repacked, "configuration": reconfigured}


def _keras2():
    from edgeprune.keras import keras

    x = inputs = keras.Input((4, 4, 2), name="image")
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(3, 3, activation="relu", name="conv")(x))
    return keras.Model(inputs, keras.layers.Dense(2, name="classes")(keras.layers.Flatten(name="flat")(x)))


def _keras3(operation: bool):
    """With an operation in its graph, which a .h5 file of Keras 3 cannot hold, or without."""
    from edgeprune.keras.keras3 import keras3

    keras = keras3()
    x = inputs = keras.Input((4, 4, 2), name="image")
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(3, 3, activation="relu", name="conv")(x))
    return keras.Model(
        inputs, keras.layers.Dense(2, name="classes")(keras.layers.Flatten(name="flat")(x * 2.0 if operation else x))
    )


def _originals(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras advises against .h5
        _keras2().save(folder / "keras2.keras", save_format="keras")
        _keras2().save(folder / "keras2.h5", save_format="h5")
        _keras3(True).save(folder / "keras3.keras")
        _keras3(False).save(folder / "keras3.h5")


Job = tuple[str, str, int]  # file, way, seed


def _load(folder: Path, job: Job) -> None:
    """Load one changed model file."""
    from edgeprune.keras import guard, intake

    guard.SECONDS = 2.0  # these are tiny
    name, way, seed = job
    path = folder / f"{seed}{Path(name).suffix}"
    path.write_bytes(WAYS[way]((folder / name).read_bytes(), seed))
    intake.load(path)


def _infer(folder: Path, job: Job) -> None:
    """Run one changed .tflite file, one sample and then two."""
    from edgeprune.inference import Runner

    name, way, seed = job
    runner = Runner(WAYS[way]((folder / name).read_bytes(), seed), threads=1)
    for count in (1, 2):
        runner.run(*(np.zeros((count, *port.shape), np.float32) for port in runner.inputs))


def _work(connection: Any, task: Any, folder: Path, jobs: list[Job]) -> None:
    """In a child: do the task for each job, and say how that ended."""
    from edgeprune.errors import EdgepruneError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    for job in jobs:
        try:
            task(folder, job)
            connection.send("taken")
        except EdgepruneError as error:
            connection.send("refused" if str(error) else "refused without a word")
        except BaseException as error:
            connection.send(f"{type(error).__name__}: {error}")


def outcomes(task: Any, folder: Path, jobs: list[Job]) -> dict[Job, str]:
    """How each job ended. Where a child dies or falls silent, that is its job's outcome, and the next child goes on."""
    found: dict[Job, str] = {}
    while len(found) < len(jobs):
        spawning = multiprocessing.get_context("spawn")
        here, there = spawning.Pipe(duplex=False)
        left = jobs[len(found) :]
        child = spawning.Process(target=_work, args=(there, task, folder, left), daemon=True)
        child.start()
        there.close()
        for job in left:
            try:
                found[job] = here.recv() if here.poll(SECONDS) else "took too long"
            except EOFError:
                child.join(10)
                found[job] = f"the process ended with {child.exitcode}"
            if found[job].startswith(("the process ended", "took too long")):
                break
        child.kill()
        child.join()
    return found


def counted(found: dict[Job, str], record: Any) -> None:
    """Say how many files were tried, and how many of them were taken; anything but taken or refused is a failure."""
    bad = {job: outcome for job, outcome in found.items() if outcome not in ("taken", "refused")}
    taken = sum(outcome == "taken" for outcome in found.values())
    record("files_tried", len(found))
    record("files_taken", taken)
    print(f"{len(found)} changed files tried: {taken} taken, {len(found) - taken - len(bad)} refused by name")
    assert not bad, f"{len(bad)} of {len(found)} changed files were neither taken nor refused by name"
    assert 0 < taken < len(found)


MODEL_FILES = (
    ("keras2.keras", "inside", 90),
    ("keras3.keras", "inside", 90),
    ("keras2.h5", "configuration", 60),
    ("keras3.h5", "configuration", 60),
    ("keras2.h5", "bytes", 60),
    ("keras3.h5", "bytes", 30),
    ("keras2.keras", "bytes", 30),
    ("keras3.keras", "bytes", 30),
)


@pytest.mark.slow
def test_changed_keras_files(tmp_path, record_property):
    pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")
    _originals(tmp_path)
    jobs = [(name, way, seed) for name, way, count in MODEL_FILES for seed in range(tried(count))]
    counted(outcomes(_load, tmp_path, jobs), record_property)


def test_1000_changed_tflite_files_are_read_or_refused(record_property):
    content = artefacts().final.read_bytes()
    found = {}
    for seed in range(1000):
        try:
            tflite.inventory(tflite.read(changed(content, seed)))
            found["final", "bytes", seed] = "taken"
        except ArtefactError:
            found["final", "bytes", seed] = "refused"
    counted(found, record_property)


def test_changed_tflite_files_are_run_or_refused(record_property):
    made = artefacts()
    names = (made.final.name, made.float32.name)
    jobs = [(name, "bytes", seed) for name in names for seed in range(1000, 1000 + tried(200))]
    counted(outcomes(_infer, made.final.parent, jobs), record_property)
