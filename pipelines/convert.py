"""Convert to int8: the model that the recipe made, and the one the user would have had without it.

Takes the roles ``quantized`` (with fake quantizers) or else ``model`` (then quantized after training), and ``float``;
leaves ``final``, ``dense_int8`` (the float reference, quantized after training, nothing compressed), ``float_tflite``
(its float32 file, to compare sizes with), and as SavedModels ``reference`` (the float reference) and, where it was not
there yet, ``exported`` (what ``final`` was made from).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from edgeprune import files, tflite
from edgeprune.errors import ConversionError
from edgeprune.pipeline import State
from edgeprune.validation import Strict


class Options(Strict):
    """Options of the convert stage."""

    per_channel_dense: bool = Field(
        False, description="a scale for each output of a Dense layer; false: one for all, which every runtime takes"
    )
    timeout_s: float = Field(600, gt=0, le=86_400, description="for each of the three conversions, s")


def run(state: State, options: Options) -> State:
    """Export, then have one child process convert everything: TensorFlow is loaded once, and cannot take us with it."""
    from edgeprune.keras import conversion

    work = state.workspace
    files.sweep(work)  # what a killed conversion left
    with conversion.Converter(work / "converter.log", options.timeout_s) as converter:
        exported = _exported(state)  # while the child loads TensorFlow
        jobs = _jobs(state, options, exported)
        made: dict[str, Path] = {}
        facts: dict[str, Any] = {}
        notes: list[str] = []
        for place, job in enumerate(jobs, 1):
            started = time.monotonic()
            try:
                made[job.role] = converter.convert(job.source, work / job.name, **job.options)
            except ConversionError as error:
                if job.role == "final":
                    raise
                notes.append(f"There is no {job.role} to compare with. {error}")  # the build can go on without
                continue
            seconds = round(time.monotonic() - started, 3)
            facts[job.role] = {"seconds": seconds, "size_bytes": made[job.role].stat().st_size}
            state.run.progress.step(place, len(jobs), "files")
    return state.add(
        files={**{role: path for role, path in exported.items() if path.is_relative_to(work)}, **made},
        model=_ports(state, made["final"]),
        conversion=facts,
        notes=notes,
        summaries={
            state.label: ", ".join(f"{role} {path.stat().st_size / 1024:.1f} KiB" for role, path in made.items())
        },
    )


class _Job(NamedTuple):
    """One file to make: its role and name, the SavedModel it is made of, and the converter's options."""

    role: str
    name: str
    source: Path
    options: dict[str, Any]


def _exported(state: State) -> dict[str, Path]:
    """The SavedModels to convert: ``reference`` and ``quantized`` or ``exported``."""
    from edgeprune.keras import export, intake

    found = {"reference": export.save(intake.load_own(state.path("float")), state.workspace / "reference")}
    if "quantized" in state.files:
        return {**found, "quantized": state.path("quantized")}
    model = intake.load_own(state.path("model"))
    return {**found, "exported": export.save(model, state.workspace / "exported")}


def _jobs(state: State, options: Options, exported: Mapping[str, Path]) -> tuple[_Job, ...]:
    ranges = {"representative": state.run.data.calibration.inputs()}
    trained = "quantized" in exported
    source = exported["quantized" if trained else "exported"]
    own = {**({} if trained else ranges), "per_channel_dense": options.per_channel_dense}
    theirs = {**ranges, "per_channel_dense": True}  # the converter's own default
    return (
        _Job("final", "model.tflite", source, own),
        _Job("dense_int8", "dense_int8.tflite", exported["reference"], theirs),
        _Job("float_tflite", "float.tflite", exported["reference"], {"io": "float32"}),
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


def _summary(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{role} {entry['size_bytes'] / 1024:.1f} KiB" for role, entry in facts.items())
