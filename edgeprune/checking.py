"""What ``edgeprune check FILE.tflite`` says: which ops are int8, which are not and why, and whether the file keeps the int8
guarantee. Read from the file alone, without TensorFlow and without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune import tflite, tflite_integer
from edgeprune.target import Target


def check(path: Path, target: Target) -> dict[str, Any]:
    """Everything that ``edgeprune check FILE.tflite --json`` prints, as plain data.

    Args:
        path: the file.
        target: where it will run.

    Returns:
        ``file``, ``target``, ``ops`` (``index``, ``op``, ``layer``, ``int8``, ``reason``: why it is not), ``violations`` of
        the int8 guarantee in words, ``notes`` and ``summary``.

    Raises:
        ArtefactError: the file cannot be read.
    """
    file = tflite.read(path)
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
    if target.delegate is not None:
        notes.append(
            f"{target.title} has a {target.delegate.name} accelerator. Which ops it takes is not said here: this is what its "
            "CPU would run."
        )
    words = (
        "fully int8"
        if not violations
        else f"{len(floats)} float ops, {len(violations)} violations of the int8 guarantee"
    )
    return {
        "file": str(path),
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
