"""Convert to int8: the model that the recipe made, and the one the user would have had without it.

Takes the roles ``quantized`` (with fake quantizers) or else ``model`` (then quantized after training), and ``float``;
leaves ``final``, ``dense_int8`` (the float reference, quantized after training, nothing compressed), ``float_tflite``
(its float32 file, to compare sizes with), and as SavedModels ``reference`` (the float reference) and, where it was not
there yet, ``exported`` (what ``final`` was made from).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from edgeprune import tflite
from edgeprune.errors import ConversionError
from edgeprune.pipeline import State
from edgeprune.validation import Strict

LOGS = ("converter.log", "reference.log")  # of the model's converter, and of the float reference's


class Options(Strict):
    """Options of the convert stage."""

    per_channel_dense: bool = Field(
        False, description="a scale for each output of a Dense layer; false: one for all, which every runtime takes"
    )
    timeout_s: float = Field(600, gt=0, le=86_400, description="for each of the three conversions, s")


def run(state: State, options: Options) -> State:
    """Export, then have two child processes convert: a converter that crashes cannot take us with it."""
    from edgeprune.keras import conversion

    work = state.workspace
    made: dict[str, _Made] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(
            ThreadPoolExecutor(2)
        )  # left last: an interrupt ends the children, and so the threads
        converters = [stack.enter_context(conversion.Converter(work / log, options.timeout_s)) for log in LOGS]
        exported = _exported(state)  # while the children load TensorFlow
        groups = _jobs(state, options, exported)
        jobs = [pool.submit(_convert, *pair) for pair in zip(converters, groups, strict=True)]
        for done in as_completed(jobs):
            made |= done.result()
            state.run.progress.step(len(made), sum(map(len, groups)), "files")
    found = {role: item.path for role, item in made.items() if item.path}
    return state.add(
        files={**{role: path for role, path in exported.items() if path.is_relative_to(work)}, **found},
        model=_ports(state, found["final"]),
        conversion={role: {"seconds": made[role].seconds, "size_bytes": found[role].stat().st_size} for role in found},
        notes=[f"There is no {role} to compare with. {item.error}" for role, item in made.items() if item.error],
        summaries={
            state.label: ", ".join(f"{role} {path.stat().st_size / 1024:.1f} KiB" for role, path in found.items())
        },
    )


def _convert(converter: Any, jobs: Sequence[_Job]) -> dict[str, _Made]:
    """One converter's files, one after the other. Without ``final`` there is no build; without the others there is."""
    made = {}
    for job in jobs:
        started = time.monotonic()
        try:
            path, error = converter.convert(job.source, job.output, **job.options), None
        except ConversionError as problem:
            if job.role == "final":
                raise
            path, error = None, str(problem)
        made[job.role] = _Made(path, round(time.monotonic() - started, 3), error)
    return made


class _Job(NamedTuple):
    """One file to make: its role, where it goes, the SavedModel it is made of, and the converter's options."""

    role: str
    output: Path
    source: Path
    options: dict[str, Any]


class _Made(NamedTuple):
    """What came of a job: a file, or why there is none."""

    path: Path | None
    seconds: float
    error: str | None


def _exported(state: State) -> dict[str, Path]:
    """The SavedModels to convert: ``reference`` and ``quantized`` or ``exported``."""
    from edgeprune.keras import export, intake

    found = {"reference": export.save(intake.load_own(state.path("float")), state.workspace / "reference")}
    if "quantized" in state.files:
        return {**found, "quantized": state.path("quantized")}
    model = intake.load_own(state.path("model"))
    return {**found, "exported": export.save(model, state.workspace / "exported")}


def _jobs(state: State, options: Options, exported: Mapping[str, Path]) -> tuple[tuple[_Job, ...], tuple[_Job, ...]]:
    """What to make of the model, and what to make of the float reference."""
    work, ranges = state.workspace, {"representative": state.run.data.calibration.inputs()}
    trained = "quantized" in exported
    source = exported["quantized" if trained else "exported"]
    own = {**({} if trained else ranges), "per_channel_dense": options.per_channel_dense}
    theirs = {**ranges, "per_channel_dense": True}  # the converter's own default
    return (
        (_Job("final", work / "model.tflite", source, own),),
        (
            _Job("dense_int8", work / "dense_int8.tflite", exported["reference"], theirs),
            _Job("float_tflite", work / "float.tflite", exported["reference"], {"io": "float32"}),
        ),
    )


def _ports(state: State, path: Path) -> dict[str, Any]:
    """What a program has to feed to the file and will get from it."""
    file = tflite.read(path)
    given, got = (_port(file.tensors[indices[0]]) for indices in (file.inputs, file.outputs))
    return {"input": {**given, "preprocess": state.run.data.preprocess.as_dict()}, "output": got}


def _port(tensor: tflite.Tensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape[1:]),
        "dtype": tensor.dtype,
        "scale": float(tensor.scales[0]),
        "zero_point": int(tensor.zero_points[0]),
    }
