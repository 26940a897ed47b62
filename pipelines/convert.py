"""Convert to int8: the model that the recipe made, and the one the user would have had without it.

Takes the roles ``quantized`` (with fake quantizers) or else ``model`` (then prepared, if no stage did, and quantized
after training), and ``float``; leaves ``final``, ``dense_int8`` (the float reference, quantized after training, nothing
compressed), ``float_tflite`` (its float32 file, to compare sizes with), and as SavedModels ``reference`` (the float
reference) and, where it was not there yet, ``exported`` (what ``final`` was made from). The role ``model``, which has the
zeros, is written as ``compressed``, a Keras 3 file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from edgeprune import columns, inference, tflite
from edgeprune.errors import ConversionError, MissingDependency, ModelError
from edgeprune.pipeline import State
from edgeprune.validation import Strict

CALIBRATION_MACS, LEAST_SAMPLES = 5 * 10**10, 32
SHOWN = 8  # violations, in a message
MACS_PER_S = 5e8  # of the converter, which runs calibration samples one by one
LOAD_S = 5.0  # until a second converter has loaded TensorFlow
# Stages that may not come after this one: what they make of the model would not be in the file.
LAST_OF = ("train", "shrink", "prune", "sparsify", "gate", "regularize", "cluster", "quantize", "convert")
LOGS = ("converter.log", "reference.log")  # of the model's converter, and of the float reference's


class Options(Strict):
    """Options of the convert stage."""

    io: Literal["int8", "uint8"] = Field(
        "int8",
        description="type of the file's inputs and outputs; inputs that are indices (of an Embedding) stay int32",
    )
    require_int8: bool = Field(
        False,
        description="a file that is not int8 throughout is an error; false: the verify stage says op by op why not",
    )
    calibration_samples: int | None = Field(
        None,
        ge=1,
        description="of data.calibration's samples, taken evenly, to quantize after training with; null: all, but for large "
        "models as many as 5e10 multiply-accumulates last for, at least 32",
    )
    per_channel_dense: bool = Field(
        False, description="a scale for each output of a Dense layer; false: one for all, which every runtime takes"
    )
    timeout_s: float = Field(600, gt=0, le=86_400, description="for each of the three conversions, s")


def run(state: State, options: Options) -> State:
    """Export, then have child processes convert: a converter that crashes cannot take us with it.

    One, and a second one for the float reference's files if calibrating these takes longer than to start it.

    Raises:
        ConversionError: there is no final file, or it is not int8 throughout and the options require it.
    """
    from edgeprune.keras import conversion

    work = state.workspace
    made: dict[str, _Made] = {}
    with ExitStack() as stack:
        pool = stack.enter_context(
            ThreadPoolExecutor(2)
        )  # left last: an interrupt ends the children, and so the threads
        converters = [stack.enter_context(conversion.Converter(work / LOGS[0], options.timeout_s))]
        sources = _exported(state)  # while the child loads TensorFlow
        groups = _jobs(state, options, sources)
        if sources.macs * _samples(state, options, sources.macs) / MACS_PER_S > LOAD_S:
            converters.append(stack.enter_context(conversion.Converter(work / LOGS[1], options.timeout_s)))
        else:
            groups = (groups[0] + groups[1],)
        jobs = [pool.submit(_convert, *pair) for pair in zip(converters, groups, strict=True)]
        compressed, notes = _compressed(state)  # while the children convert
        for done in as_completed(jobs):
            made |= done.result()
            state.run.progress.step(len(made), sum(map(len, groups)), "files")
    exported = {role: path for role, path in sources.folders.items() if path.is_relative_to(work)}
    found = {role: item.path for role, item in made.items() if item.path}
    if options.require_int8:
        _require_int8(found["final"], options.io)
    return state.add(
        files={**exported, **found, **compressed},
        model=_ports(state, found["final"]),
        rewrites=sources.rewrites,
        conversion={role: {"seconds": made[role].seconds, "size_bytes": found[role].stat().st_size} for role in found},
        notes=[
            *notes,
            *(f"There is no {role} to compare with. {item.error}" for role, item in made.items() if item.error),
        ],
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


def _compressed(state: State) -> tuple[dict[str, Path], list[str]]:
    """The compressed float model as Keras 3 saves it; in a note, why that cannot be."""
    from edgeprune.keras import intake, keras3_save

    if "model" not in state.files:
        return {}, []
    try:
        model = intake.load_own(state.path("model"))
        return {"compressed": keras3_save.save(model, state.workspace / "compressed.keras")}, []
    except (MissingDependency, ModelError) as error:
        return {}, [f"model.keras is in the format of tf_keras (Keras 2), not of Keras 3. {error}"]


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


class _Sources(NamedTuple):
    """What is converted.

    Attributes:
        folders: the SavedModels ``reference`` and ``quantized`` or ``exported``.
        rewrites: what was done to the model here, before its export.
        macs: multiply-accumulates of the reference for one sample.
    """

    folders: dict[str, Path]
    rewrites: list[dict[str, Any]]
    macs: int


def _exported(state: State) -> _Sources:
    from edgeprune.keras import export, indices, inspect, intake, preparation, recurrent

    reference = intake.load_own(state.path("float"))
    macs = int(inspect.describe(reference)["macs"])
    for rewrite in (recurrent.unroll, indices.integer_inputs):  # without them there would be nothing to compare with
        reference, _ = rewrite(reference)
    found = {"reference": export.save(reference, state.workspace / "reference")}
    if "quantized" in state.files:
        return _Sources({**found, "quantized": state.path("quantized")}, [], macs)
    model, rewrites = intake.load_own(state.path("model")), []
    if "quantization" not in state.facts:  # that stage has prepared it
        prepared = preparation.prepare(model)
        model, rewrites = prepared.model, [{"name": each.name, "layers": list(each.layers)} for each in prepared.done]
    return _Sources({**found, "exported": export.save(model, state.workspace / "exported")}, rewrites, macs)


def _jobs(state: State, options: Options, sources: _Sources) -> tuple[tuple[_Job, ...], ...]:
    """What to make of the model, and what to make of the float reference."""
    work, exported = state.workspace, sources.folders
    ranges = {"representative": _representative(state, options, sources.macs)}
    trained = "quantized" in exported
    source = exported["quantized" if trained else "exported"]
    own = {**({} if trained else ranges), "io": options.io, "per_channel_dense": options.per_channel_dense}
    theirs = {**ranges, "io": options.io, "per_channel_dense": True, "compact": False}  # as the converter makes them
    return (
        (_Job("final", work / "model.tflite", source, own),),
        (
            _Job("dense_int8", work / "dense_int8.tflite", exported["reference"], theirs),
            _Job("float_tflite", work / "float.tflite", exported["reference"], {"io": "float32", "compact": False}),
        ),
    )


def _representative(state: State, options: Options, macs: int) -> Any:
    """Model inputs that set the ranges, evenly out of the calibration samples; for several inputs by their names."""
    return state.run.data.calibration.evenly(_samples(state, options, macs)).inputs()


def _samples(state: State, options: Options, macs: int) -> int:
    """How many samples set the ranges: 256 of a ResNet-50 would take the converter minutes."""
    count = options.calibration_samples or max(LEAST_SAMPLES, CALIBRATION_MACS // max(1, macs))
    return min(count, len(state.run.data.calibration))


def _require_int8(path: Path, io: str) -> None:
    """Raises:
    ConversionError: the file is not int8 throughout; why, op by op.
    """
    found = tflite.int8_violations(tflite.read(path), io)
    if found:
        shown = " ".join(violation.message for violation in found[:SHOWN])
        more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
        raise ConversionError(
            f"{path} is not int8 throughout, as require_int8 asks: {shown}{more} Change that, or build on and have it in the "
            "report with --set stages.convert.require_int8=false."
        )


def _ports(state: State, path: Path) -> dict[str, Any]:
    """What a program has to feed to the file and will get from it: the first of each, and all in the file's order."""
    runner = inference.Runner(path)
    preprocess = columns.named(state.run.data.preprocess)
    by_word = dict(zip(inference.words(list(preprocess)), preprocess.values(), strict=True))
    lone = preprocess.get(columns.LONE)
    inputs = [{**_port(port), "preprocess": (lone or by_word[port.name]).as_dict()} for port in runner.inputs]
    outputs = [_port(port) for port in runner.outputs]
    return {"input": inputs[0], "output": outputs[0], "inputs": inputs, "outputs": outputs}


def _port(port: inference.Port) -> dict[str, Any]:
    """One input or output; an index has neither scale nor zero point."""
    quantized = port.scale != 0
    return {
        "name": port.name,
        "shape": list(port.shape),
        "dtype": port.dtype.name,
        "scale": port.scale if quantized else None,
        "zero_point": port.zero_point if quantized else None,
    }
