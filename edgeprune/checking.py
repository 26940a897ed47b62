"""What ``edgeprune check FILE.tflite`` says: which ops are int8, which are not and why, and whether the file keeps the int8
guarantee; of a target with an accelerator, which ops it takes and why not the others. Read from the file alone, without
TensorFlow and without running it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune import accelerator, tflite, tflite_integer
from edgeprune.accelerator import Verdict
from edgeprune.errors import ArtefactError
from edgeprune.target import Target

UNKNOWN = "BUILTIN_"  # how the reader names an op that its schema does not have


def check(path: Path, target: Target) -> dict[str, Any]:
    """Everything that ``edgeprune check FILE.tflite --json`` prints, as plain data.

    Args:
        path: the file.
        target: where it will run.

    Returns:
        ``file``, ``target``, ``ops`` (``index``, ``op``, ``layer``, ``int8``, ``reason``: why it is not), ``violations`` of
        the int8 guarantee in words, ``notes`` and ``summary``. Where the target has an accelerator, an op's ``reason`` is why
        that does not take it, beside ``mapped`` and ``advice``, and there are ``accelerator``, ``on_chip_bytes``,
        ``off_chip_bytes``, ``activation_bytes``, ``instruction_bytes``, ``latency``, ``first_cpu_op``, ``culprits`` and
        ``compiler``: see `edgeprune.accelerator.Verdict`.

    Raises:
        ArtefactError: the file cannot be read, or has ops that nobody knows; or the accelerator can run nothing of it.
    """
    file = tflite.read(path)
    _refuse_unknown(file)
    found = _int8(file, target)
    unit = accelerator.of(target)
    return found if unit is None else _with(found, unit.check(file, target))


def _refuse_unknown(file: tflite.TFLiteFile) -> None:
    unknown = [op for op in file.ops if op.op.startswith(UNKNOWN)]
    if unknown:
        numbers = ", ".join(sorted({op.op.removeprefix(UNKNOWN) for op in unknown}))
        raise ArtefactError(
            f"{file.path} has {len(unknown)} ops that the schema of TensorFlow Lite does not know (numbers {numbers}), the "
            f"first is op {unknown[0].index}. Update ai-edge-litert, or convert the model again."
        )


def _int8(file: tflite.TFLiteFile, target: Target) -> dict[str, Any]:
    """What holds of a file on any CPU."""
    floats, border = set(tflite.float_ops(file)), set(tflite.border_ops(file))
    ops = [
        {
            "index": op.index,
            "op": op.op,
            "layer": op.layer,
            "int8": op.index not in floats,
            "reason": _reason(file, op) if op.index in floats else None,
        }
        for op in file.ops
    ]
    violations = [violation.message for violation in tflite_integer.violations(file)]
    notes = list(file.notes)
    if border:
        notes.append(f"{len(border)} ops only convert the float inputs or outputs of the model.")
    words = (
        "fully int8"
        if not violations
        else f"{len(floats)} float ops, {len(violations)} violations of the int8 guarantee"
    )
    return {
        "file": str(file.path),
        "target": target.name,
        "ops": ops,
        "violations": violations,
        "notes": notes,
        "summary": {
            "ops": len(ops),
            "int8_share": tflite.int8_share(file),
            "float_ops": sorted(floats),
            "int8": not violations,
            "size_bytes": file.size_bytes,
            "words": f"{len(ops)} ops, {words}",
        },
    }


def _with(found: dict[str, Any], verdict: Verdict) -> dict[str, Any]:
    """The same with what an accelerator does."""
    ops = [
        op | {"mapped": placed.mapped, "reason": placed.reason, "advice": placed.advice, "after": placed.after}
        for op, placed in zip(found["ops"], verdict.ops, strict=True)
    ]
    cpu = len(ops) - verdict.mapped
    first = verdict.culprits[0] if verdict.culprits else None
    words = f"{found['summary']['words']}; {_shared(verdict.mapped, cpu, verdict.title)}"
    return found | {
        "ops": ops,
        "accelerator": verdict.title,
        "on_chip_bytes": verdict.on_chip_bytes,
        "off_chip_bytes": verdict.off_chip_bytes,
        "activation_bytes": verdict.activation_bytes,
        "activation_limit_bytes": verdict.activation_limit_bytes,
        "instruction_bytes": verdict.instruction_bytes,
        "latency": dict(verdict.latency),
        "first_cpu_op": first,
        "culprits": list(verdict.culprits),
        "compiler": verdict.compiler,
        "notes": [*found["notes"], *verdict.notes],
        "summary": found["summary"] | {"mapped": verdict.mapped, "cpu": cpu, "words": words},
    }


def _shared(mapped: int, cpu: int, title: str) -> str:
    if not cpu:
        return f"all of them run on the {title}"
    return f"{mapped} of them run on the {title}, {cpu} on the CPU"


def culprit_words(culprit: Mapping[str, Any]) -> str:
    """What an op that keeps others off the accelerator does, and what mending it would bring."""
    others = culprit["keeps_off"]
    frees = (
        "nothing more is mapped then, others stand in the way too"
        if not culprit["frees"]
        else f"{culprit['frees']} ops more are mapped then"
    )
    return (
        f"op {culprit['index']}, {culprit['op']}, sends {others} op{'s' * (others != 1)} after it to the CPU: {culprit['reason']}. "
        f"To mend it: {culprit['advice']} ({frees})."
    )


def _reason(file: tflite.TFLiteFile, op: tflite.Op) -> str:
    """Which of an op's activations are float."""
    given = [index for index in op.inputs if index >= 0 and not file.tensors[index].is_constant]
    reads = any(file.tensors[index].is_float for index in given)
    writes = any(file.tensors[index].is_float for index in op.outputs if index >= 0)
    if reads and writes:
        return "computes in float"
    return (
        "turns float to integers in the middle of the model"
        if reads
        else "turns integers to float in the middle of the model"
    )
