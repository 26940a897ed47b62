"""Runs models once between two marks, for the plugin that counts what the emulated core executes.

Started like the probe, beside which it lies: a JSON request in the file named on the command line, one line of JSON out,
behind the probe's mark. Request (schema 1), paths relative to the working folder::

    {"schema": 1,
     "runtime": "tflite-runtime",     # as in the probe's request
     "resolver": "default",           # likewise: which kernels run the models
     "warmups": 2, "invocations": 1,  # of each model; the latter are marked
     "model": "model.tflite",         # run on seeded random inputs
     "parts": "parts.json"}           # [{"file": "op0.tflite", "tensors": [0, 3]}, ...]: models that are run on what these
                                      # tensors of the first held, afterwards; may be empty

Every marked invocation is a region of the plugin's output; its label is 0 for the model, and 1, 2, ... for the parts. The
reply has what the probe says of runtime and machine, ``arena`` of the model, and for every part null or why it could not
run: what cannot stand alone is the caller's to judge.

The parts are not even looked at before the model has run: a heap that was used otherwise has other gaps, and malloc takes a
few instructions more or less to find one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from edgeprune.devices import _probe
except ImportError:  # in the guest, where the probe lies beside this
    import _probe  # type: ignore[import-not-found,no-redef]

SCHEMA = 1
MAGIC = 0x45445052  # these as in _plugin.c
RUNTIME, OUTSIDE, BEGIN, END, START = 1, 2, 3, 4, 5
WITH_MEMORY = 1


def tell(command: int, first: int = 0, second: int = 0) -> None:
    """Tell the plugin; without one, the system refuses a file descriptor that nobody has, and nothing happens."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(MAGIC, first, second, command)


def images(package: Path, maps: str) -> list[tuple[int, int, int]]:
    """Which code is the runtime's and which is Python's: (command, start, bytes) of every mapping.

    Args:
        package: the folder of the runtime's package.
        maps: what /proc/self/maps says.
    """
    found = []
    python = os.path.realpath(sys.executable)
    for line in maps.splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6 or "x" not in fields[1]:
            continue
        path = os.path.realpath(fields[5])
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if path == python:
            found.append((OUTSIDE, start, end - start))
        elif package in Path(path).parents:
            found.append((RUNTIME, start, end - start))
    return found


def random_inputs(details: Sequence[dict[str, Any]]) -> list[Any]:
    """Uniform over all of int8 or uint8, and in [-1, 1) for floats; zeros where values may be indices."""
    import random

    import numpy as np

    generator = random.Random(0)  # noqa: S311 - numbers to multiply
    arrays = []
    for detail in details:
        shape, dtype = tuple(int(size) for size in detail["shape"]), np.dtype(detail["dtype"])
        count = int(np.prod(shape))
        if dtype in (np.int8, np.uint8):
            arrays.append(np.frombuffer(_drawn(generator, count), dtype).reshape(shape))
        elif dtype.kind == "f":
            values = np.frombuffer(_drawn(generator, 2 * count), np.uint16)
            arrays.append((values.astype(dtype) / dtype.type(32768) - dtype.type(1)).reshape(shape))
        else:
            arrays.append(np.zeros(shape, dtype))
    return arrays


def _drawn(generator: Any, count: int) -> bytes:
    drawn: bytes = generator.getrandbits(8 * count).to_bytes(count, "little")
    return drawn


def invoke(interpreter: Any, arrays: Sequence[Any], label: int | None = None) -> None:
    """Run one sample from a fresh state, marked when it has a label."""
    interpreter.reset_all_variables()
    for detail, array in zip(interpreter.get_input_details(), arrays):  # noqa: B905 - strict= came with Python 3.10
        interpreter.set_tensor(detail["index"], array)
    if label is not None:
        tell(BEGIN, label)
    interpreter.invoke()
    if label is not None:
        tell(END, label)


def recorded(module: Any, content: bytes, wanted: set[int]) -> dict[int, Any]:
    """What tensors of a model hold after it ran on random inputs; only those that can be read."""
    interpreter = module.Interpreter(
        model_content=content,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    invoke(interpreter, random_inputs(interpreter.get_input_details()))
    found = {}
    for index in wanted:
        with contextlib.suppress(ValueError):
            found[index] = interpreter.get_tensor(index)
    return found


def count(module: Any, file: str, request: dict[str, Any], label: int, arrays: list[Any] | None) -> dict[str, Any]:
    """Warm a model up, run it marked, and tell its arena."""
    content = Path(file).read_bytes()
    interpreter, _ = _probe.load(module, content, 1, request["resolver"])
    if arrays is None:
        arrays = random_inputs(interpreter.get_input_details())
    for _ in range(request["warmups"]):
        invoke(interpreter, arrays)
    for _ in range(request["invocations"]):
        invoke(interpreter, arrays, label)
    arena: dict[str, Any] = _probe.measure_arena(interpreter, content)
    return arena


def count_parts(module: Any, request: dict[str, Any]) -> list[str | None]:
    """Count the parts; for each, None or why it could not run."""
    parts = json.loads(Path(request["parts"]).read_text(encoding="utf-8"))
    if not parts:
        return []
    tell(START)
    wanted = {index for part in parts for index in part["tensors"]}
    tensors = recorded(module, Path(request["model"]).read_bytes(), wanted)
    return [_refusal(module, request, label, part, tensors) for label, part in enumerate(parts, 1)]


def _refusal(
    module: Any, request: dict[str, Any], label: int, part: dict[str, Any], tensors: dict[int, Any]
) -> str | None:
    missing = [index for index in part["tensors"] if index not in tensors]
    if missing:
        return f"the tensors {_probe.listed(missing)} of the whole model cannot be read"
    try:
        count(module, part["file"], request, label, [tensors[index] for index in part["tensors"]])
    except (_probe.ProbeError, ValueError, RuntimeError) as error:
        return str(error)
    return None


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request."""
    _probe.hurry()
    module, runtime = _probe.find_runtime(request["runtime"])
    for image in images(Path(os.path.realpath(module.__file__)).parent, Path("/proc/self/maps").read_text()):
        tell(*image)
    tell(START, WITH_MEMORY)
    try:
        arena = count(module, request["model"], request, 0, None)
    except (ValueError, RuntimeError) as error:
        raise _probe.ProbeError("model", f"the runtime cannot run the model: {error}") from error
    reply = {"schema": SCHEMA, "runtime": runtime, "device": _probe.describe_machine(), "arena": arena}
    return {**reply, "parts": count_parts(module, request)}


def main(arguments: list[str]) -> int:
    """Answer the request; 0 when done, 1 when the reply is an error."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        reply = answer(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    except _probe.ProbeError as error:
        reply = {"schema": SCHEMA, "error": {"kind": error.kind, "message": str(error)}}
    except Exception as error:  # the caller is a program: it must get its line, whatever happens
        reply = {"schema": SCHEMA, "error": {"kind": "unexpected", "message": f"{type(error).__name__}: {error}"}}
    channel.write("\n" + _probe.MARK + json.dumps(reply) + "\n")
    channel.flush()
    return 1 if "error" in reply else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
