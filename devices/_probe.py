"""The profiling script: one file that is copied to a board, or run under an emulator, and needs nothing of edgeprune.

Runs on Python 3.7 or newer with NumPy and ``tflite_runtime`` or ``ai_edge_litert``, and nothing else to install.
One JSON request goes in (a file named on the command line, or standard input), one line of JSON comes out, on
standard output, behind ``MARK``. Whatever the runtime prints goes to standard error: the probe takes standard output
away from it, at the level of file descriptors, before the runtime is imported.

Request (schema 1), paths relative to the working folder::

    {"schema": 1,
     "model": "model.tflite",        # null: say which runtime and which machine this is, and stop
     "inputs": "inputs.npz",         # arrays "0", "1", ... in the order of the model's inputs, (samples, ...), of the
                                     # model's own dtype: already quantized; or a .npy; null: seeded random
     "samples": 1, "seed": 0,        # of the random inputs
     "evaluate": true,               # true: outputs of every sample; false: of the first
     "outputs": "outputs.npz",       # where they are saved, arrays "0", "1", ...; null: nowhere
     "warmups": 5, "runs": 50,       # timed invocations, kept apart
     "threads": 1,
     "runtime": null,                # "tflite-runtime" or "ai-edge-litert"; null: the one that is there
     "resolver": "default"}          # or "without_delegates", "reference": which kernels

The reply's times are integers in nanoseconds and cover ``invoke()`` alone. A failure is a reply too:
``{"schema": 1, "error": {"kind": "request|runtime|model|inputs|unexpected", "message": "..."}}``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

SCHEMA = 1
MARK = "@edgeprune-probe "
RUNTIMES = {"tflite-runtime": "tflite_runtime", "ai-edge-litert": "ai_edge_litert"}
RESOLVERS = {"default": "AUTO", "without_delegates": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "reference": "BUILTIN_REF"}
DEFAULTS = {
    "schema": SCHEMA,
    "model": None,
    "inputs": None,
    "samples": 1,
    "seed": 0,
    "evaluate": False,
    "outputs": None,
    "warmups": 0,
    "runs": 0,
    "threads": 1,
    "runtime": None,
    "resolver": "default",
}


class ProbeError(Exception):
    """What cannot be done, and which part of the request it is about."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def listed(words: Iterable[Any]) -> str:
    """Words for a message."""
    return ", ".join(str(word) for word in words)


def read_request(text: str) -> dict[str, Any]:
    """The request with its defaults filled in; an unknown key, or another schema, is an error."""
    try:
        request = json.loads(text)
    except ValueError as error:
        raise ProbeError("request", f"the request is not JSON: {error}") from error
    unknown = sorted(set(request) - set(DEFAULTS))
    if unknown:
        raise ProbeError("request", f"unknown keys {listed(unknown)}; known: {listed(DEFAULTS)}")
    request = dict(DEFAULTS, **request)
    if request["schema"] != SCHEMA:
        raise ProbeError("request", f"schema {request['schema']!r}; this probe speaks schema {SCHEMA}")
    if request["resolver"] not in RESOLVERS:
        raise ProbeError("request", f"resolver {request['resolver']!r}; known: {listed(RESOLVERS)}")
    return request


def find_runtime(wanted: str | None) -> tuple[Any, dict[str, Any]]:
    """The interpreter module, and which package of which version it is."""
    names = [wanted] if wanted else list(RUNTIMES)
    reasons = []
    for name in names:
        if name not in RUNTIMES:
            raise ProbeError("request", f"runtime {name!r}; known: {listed(RUNTIMES)}")
        try:
            package = import_module(RUNTIMES[name])
            module = import_module(RUNTIMES[name] + ".interpreter")
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        return module, {"package": name, "version": getattr(package, "__version__", None)}
    raise ProbeError("runtime", f"no runtime can be imported ({listed(reasons)}); pip install {names[-1]}")


def describe_machine() -> dict[str, Any]:
    """What this machine says of itself."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str | None:
    """The board's name from the device tree, else the processor's from /proc/cpuinfo, else None."""
    try:
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    except OSError:
        pass
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "model", "hardware") and not value.strip().isdigit():
            return value.strip()
    return None


def load(module: Any, content: bytes, threads: int, resolver: str) -> tuple[Any, int]:
    """An interpreter with its tensors allocated, and the nanoseconds that took."""
    options: dict[str, Any] = {"num_threads": threads}
    if resolver != "default":
        options["experimental_op_resolver_type"] = module.OpResolverType[RESOLVERS[resolver]]
    start = time.perf_counter_ns()
    try:
        interpreter = module.Interpreter(model_content=content, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ProbeError("model", f"the runtime refuses the model: {error}") from error
    return interpreter, time.perf_counter_ns() - start


def describe_tensor(detail: dict[str, Any]) -> dict[str, Any]:
    """Name, shape, dtype and quantization of an input or output."""
    import numpy as np

    scale, zero_point = detail["quantization"]
    return {
        "name": detail["name"],
        "shape": [int(size) for size in detail["shape"]],
        "dtype": np.dtype(detail["dtype"]).name,
        "scale": float(scale),
        "zero_point": int(zero_point),
    }


def read_inputs(request: dict[str, Any], details: list[Any]) -> list[Any]:
    """One array (samples, ...) per input of the model, checked against it."""
    import numpy as np

    if request["inputs"] is None:
        return _random_inputs(details, request["samples"], request["seed"])
    try:
        stored = np.load(request["inputs"], allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ProbeError("inputs", f"{request['inputs']} cannot be read: {error}") from error
    arrays = [stored] if isinstance(stored, np.ndarray) else [stored[key] for key in sorted(stored.files, key=int)]
    _check_inputs(arrays, details)
    return arrays


def _check_inputs(arrays: list[Any], details: list[Any]) -> None:
    import numpy as np

    if len(arrays) != len(details):
        raise ProbeError("inputs", f"{len(arrays)} arrays for a model with {len(details)} inputs")
    counts = [len(array) for array in arrays]
    if len(set(counts)) != 1 or not counts[0]:
        raise ProbeError("inputs", f"samples per input: {listed(counts)}; they must agree and not be 0")
    for array, detail in zip(arrays, details):  # noqa: B905 - strict= came with Python 3.10
        shape, dtype = tuple(int(size) for size in detail["shape"][1:]), np.dtype(detail["dtype"])
        if array.shape[1:] != shape or array.dtype != dtype:
            given = f"{array.dtype} {array.shape[1:]}"
            raise ProbeError("inputs", f"input {detail['name']!r} takes samples {dtype} {shape}, given {given}")


def _random_inputs(details: list[Any], samples: int, seed: int) -> list[Any]:
    """Uniform over the whole range of an integer dtype; standard normal for floats."""
    import numpy as np

    generator = np.random.RandomState(seed)
    arrays = []
    for detail in details:
        shape, dtype = (samples, *(int(size) for size in detail["shape"][1:])), np.dtype(detail["dtype"])
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            arrays.append(generator.randint(limits.min, int(limits.max) + 1, size=shape, dtype=dtype))
        else:
            arrays.append(generator.standard_normal(shape).astype(dtype))
    return arrays


class Runner:
    """One interpreter, fed sample by sample."""

    def __init__(self, interpreter: Any, arrays: list[Any]) -> None:
        self.interpreter = interpreter
        self.inputs = interpreter.get_input_details()
        self.outputs = interpreter.get_output_details()
        self.arrays = arrays
        for detail in self.inputs:
            if len(detail["shape"]) and detail["shape"][0] != 1:
                raise ProbeError("model", f"batch size {detail['shape'][0]} is fixed in the model; it must be 1")

    def invoke(self, sample: int) -> int:
        """Run one sample, from a fresh state; the nanoseconds of ``invoke()``."""
        self.interpreter.reset_all_variables()
        for detail, array in zip(self.inputs, self.arrays):  # noqa: B905
            self.interpreter.set_tensor(detail["index"], array[sample : sample + 1])
        start = time.perf_counter_ns()
        self.interpreter.invoke()
        return time.perf_counter_ns() - start

    def time(self, count: int) -> list[int]:
        """``count`` timed invocations, over the samples in turn."""
        return [self.invoke(index % len(self.arrays[0])) for index in range(count)]

    def evaluate(self, samples: int) -> list[Any]:
        """The outputs of the first ``samples`` samples, one array (samples, ...) per output."""
        import numpy as np

        rows: list[list[Any]] = [[] for _ in self.outputs]
        for sample in range(samples):
            self.invoke(sample)
            for row, detail in zip(rows, self.outputs):  # noqa: B905
                row.append(self.interpreter.get_tensor(detail["index"]))
        return [np.concatenate(row) if row[0].ndim else np.stack(row) for row in rows]


def measure_arena(interpreter: Any, content: bytes) -> dict[str, Any]:
    """Bytes of memory behind the tensors that are not weights, and how they were counted.

    The runtimes tell no arena size, but they show where each tensor lies. The union of those intervals, less the ones
    inside the model file (weights), is what the planner really laid out, scratch tensors of the kernels included.
    A delegate keeps its tensors in its own workspace, out of sight; then the largest sum of live activations is
    given, a lower bound for any planner.
    """
    import numpy as np

    first = np.frombuffer(content, np.uint8).ctypes.data
    intervals, hidden = [], False
    for detail in interpreter.get_tensor_details():
        try:
            view = interpreter.tensor(detail["index"])()
        except (ValueError, RuntimeError):  # no memory: a delegate's, or never used
            hidden = True
            continue
        if not isinstance(view, np.ndarray):  # a tensor without axes comes as a copy; it takes a few bytes
            continue
        start = view.ctypes.data
        if view.nbytes and not first <= start < first + len(content):
            intervals.append((start, start + view.nbytes))
        del view  # a view that lives forbids the next invoke()
    if hidden:
        return {"bytes": live_bytes(interpreter), "how": "largest sum of live activations (a delegate hides its own)"}
    return {"bytes": union_bytes(intervals), "how": "tensor addresses"}


def union_bytes(intervals: Iterable[tuple[int, int]]) -> int:
    """Bytes covered by half-open intervals (start, end), each byte once.

    >>> union_bytes([(0, 4), (2, 6), (10, 11)])
    7
    """
    covered, reached = 0, 0
    for start, end in sorted(intervals):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered


def live_bytes(interpreter: Any) -> int | None:
    """The largest sum of activations alive at once, in the order of the operators; None where it cannot be known."""
    import numpy as np

    if not hasattr(interpreter, "_get_ops_details"):
        return None
    steps = [op for op in interpreter._get_ops_details() if "delegate" not in op["op_name"].lower()]
    sizes = {
        d["index"]: int(np.prod(d["shape"])) * np.dtype(d["dtype"]).itemsize for d in interpreter.get_tensor_details()
    }
    born = {detail["index"]: 0 for detail in interpreter.get_input_details()}
    died = {detail["index"]: len(steps) for detail in interpreter.get_output_details()}
    for index, step in enumerate(steps):
        for tensor in step["outputs"]:
            born.setdefault(int(tensor), index)
        for tensor in step["inputs"]:
            died[int(tensor)] = max(index, died.get(int(tensor), 0))
    alive = [(born[tensor], died.get(tensor, born[tensor]), sizes.get(tensor, 0)) for tensor in born]
    return max(
        (sum(size for start, end, size in alive if start <= at <= end) for at in range(len(steps))), default=None
    )


def peak_rss_bytes() -> int | None:
    """Peak resident memory of this process, bytes; None where the platform does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply to a request."""
    module, runtime = find_runtime(request["runtime"])
    import numpy as np

    runtime["numpy"] = np.__version__
    reply = {"schema": SCHEMA, "runtime": runtime, "device": describe_machine()}
    if request["model"] is None:
        return reply
    try:
        content = Path(request["model"]).read_bytes()
    except OSError as error:
        raise ProbeError("model", f"the model cannot be read: {error}") from error
    interpreter, load_ns = load(module, content, request["threads"], request["resolver"])
    reply.update(_run(interpreter, content, request))
    reply.update(load_ns=load_ns, threads=request["threads"], resolver=request["resolver"])
    reply.update(peak_rss_bytes=peak_rss_bytes())
    return reply


def _run(interpreter: Any, content: bytes, request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    inputs = interpreter.get_input_details()
    runner = Runner(interpreter, read_inputs(request, inputs))
    warmups = runner.time(request["warmups"])
    samples = runner.time(request["runs"])
    evaluated = len(runner.arrays[0]) if request["evaluate"] else 1
    outputs = runner.evaluate(evaluated)
    if request["outputs"] is not None:
        np.savez(request["outputs"], **{str(index): array for index, array in enumerate(outputs)})
    return {
        "model": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "inputs": [describe_tensor(detail) for detail in inputs],
        "outputs": [describe_tensor(detail) for detail in runner.outputs],
        "warmups_ns": warmups,
        "samples_ns": samples,
        "evaluated": evaluated,
        "digests": [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in outputs],
        "arena": measure_arena(interpreter, content),
    }


def main(arguments: list[str]) -> int:
    """Answer the request; 0 when done, 1 when the reply is an error."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        text = Path(arguments[0]).read_text(encoding="utf-8") if arguments else sys.stdin.read()
        reply = answer(read_request(text))
    except ProbeError as error:
        reply = {"schema": SCHEMA, "error": {"kind": error.kind, "message": str(error)}}
    except Exception as error:  # the caller is a program: it must get its line, whatever happens
        reply = {"schema": SCHEMA, "error": {"kind": "unexpected", "message": f"{type(error).__name__}: {error}"}}
    channel.write("\n" + MARK + json.dumps(reply) + "\n")
    channel.flush()
    return 1 if "error" in reply else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
