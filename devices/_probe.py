"""The profiling script: one file that is copied to a board, or run under an emulator, and needs nothing of edgeprune.

Runs on Python 3.7 or newer with NumPy and ``tflite_runtime`` or ``ai_edge_litert``, and nothing else to install. By hand::

    python3 probe.py model.tflite --threads 4                               # latency, and what the board did meanwhile
    python3 probe.py model.tflite --threads 4 --soak 60 --log soak.jsonl    # an hour, second by second

For programs: one JSON request goes in (a file named on the command line, or standard input), one line of JSON comes out, on
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
     "pin": false,                   # true: stay on so many cores as there are threads, the fastest and last ones
     "conditions": false,            # true: governor, clock and temperature, before and after the timed invocations
     "stream": false,                # true: times as they come, one marked line of JSON twice a second, then the reply
     "runtime": null,                # "tflite-runtime" or "ai-edge-litert"; null: the one that is there
     "resolver": "default",          # or "without_delegates", "reference": which kernels
     "delegate": null}               # shared library of a delegate, such as "libedgetpu.so.1"; null: none

The reply's times are integers in nanoseconds and cover ``invoke()`` alone. A failure is a reply too:
``{"schema": 1, "error": {"kind": "request|runtime|model|inputs|unexpected", "message": "..."}}``.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module, util
from importlib.machinery import PathFinder
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
    "pin": False,
    "conditions": False,
    "stream": False,
    "runtime": None,
    "resolver": "default",
    "delegate": None,
}

TELL_S = 0.5  # between two lines of a stream
THROTTLED_FILE = "/sys/devices/platform/soc/soc:firmware/get_throttled"

# What `import numpy` brings and no runtime asks for: half a second under an emulator, or on a small board.
UNASKED = frozenset({"numpy.fft", "numpy.ma", "numpy.polynomial", "numpy.random"})

Tell = Any  # a function of one event; Callable[[Any], None] is more than Python 3.8 can say here


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


class Later:
    """Finds modules that are loaded when something of them is asked for."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        """As `importlib.abc.MetaPathFinder.find_spec`."""
        found = PathFinder.find_spec(name, path, target) if name in UNASKED else None
        if found is not None and found.loader is not None:
            found.loader = util.LazyLoader(found.loader)
        return found


def hurry() -> None:
    """Leave out of NumPy what nobody may ask for, until somebody does; before NumPy is imported."""
    if Later not in sys.meta_path:
        sys.meta_path.insert(0, Later)


def describe_machine() -> dict[str, Any]:
    """What this machine says of itself."""
    return {
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _sha256(content: bytes) -> str:
    import hashlib  # where programs only start, they need not wait for it

    return hashlib.sha256(content).hexdigest()


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


def pin(threads: int) -> list[int] | None:
    """Keep this process on as many cores as it has threads, before it has any; None where that cannot be done.

    The fastest cores come first, and among equals the last: interrupts are served on the first.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    speeds = {core: _number(_core(core) / "cpuinfo_max_freq") or 0 for core in os.sched_getaffinity(0)}
    chosen = sorted(speeds, key=lambda core: (speeds[core], core))[-threads:]
    try:
        os.sched_setaffinity(0, chosen)
    except OSError:
        return None
    return sorted(chosen)


def read_conditions(cores: list[int] | None = None, ask_firmware: bool = True) -> dict[str, Any]:
    """What decides how fast the board is at this moment; None for what it does not tell.

    Args:
        cores: the ones that work; None: all.
        ask_firmware: call ``vcgencmd`` where the kernel does not tell; it takes some milliseconds of a core.

    Returns:
        ``governor``; ``clock_mhz`` of the slowest core and ``max_clock_mhz`` of the same; ``temperature_c`` of the hottest
        zone; ``throttled``: the Raspberry Pi firmware's bits (low: now, from bit 16: since it was started);
        ``cooling``: sum of the states of the kernel's devices that slow the processor down, 0: none does.
    """
    folders = [_core(core) for core in (cores or range(os.cpu_count() or 1))]
    clocks = [(_number(folder / "scaling_cur_freq"), folder) for folder in folders]
    known = [(clock, folder) for clock, folder in clocks if clock]
    clock, slowest = min(known, key=lambda pair: pair[0]) if known else (None, folders[0])
    fastest = _number(slowest / "cpuinfo_max_freq")
    thermal = Path("/sys/class/thermal")
    heats = [_number(zone / "temp") for zone in sorted(thermal.glob("thermal_zone*"))]
    heat = max((heat for heat in heats if heat is not None), default=None)
    return {
        "governor": _text(slowest / "scaling_governor"),
        "clock_mhz": clock / 1000 if clock else None,
        "max_clock_mhz": fastest / 1000 if fastest else None,
        "temperature_c": heat / 1000 if heat is not None else None,
        "throttled": _throttled(ask_firmware),
        "cooling": _cooling(thermal),
    }


def _core(core: int) -> Path:
    return Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq")


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip("\0\n ")
    except (OSError, ValueError):  # not there, or a sensor that gives no reading
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _throttled(ask_firmware: bool) -> int | None:
    """The Raspberry Pi's bits, from the kernel or from ``vcgencmd``."""
    text = _text(Path(THROTTLED_FILE))
    program = shutil.which("vcgencmd") if text is None and ask_firmware else None
    if program:
        import subprocess

        try:
            asked = subprocess.run([program, "get_throttled"], stdout=subprocess.PIPE, timeout=5, check=True)
            text = asked.stdout.decode().partition("=")[2]
        except (OSError, subprocess.SubprocessError):
            return None
    try:
        return int((text or "").strip(), 16)
    except ValueError:
        return None


def _cooling(thermal: Path) -> int | None:
    devices = [device for device in thermal.glob("cooling_device*") if "cpufreq" in (_text(device / "type") or "")]
    states = [_number(device / "cur_state") for device in devices]
    return sum(state for state in states if state is not None) if states else None


def load_delegate(module: Any, library: str) -> Any:
    """A delegate out of its shared library."""
    try:
        return module.load_delegate(library)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        hint = "; install it (Debian: libedgetpu1-std) and plug the device in" if "edgetpu" in library else ""
        raise ProbeError(
            "runtime", f"the delegate {library} cannot be loaded: {error or 'no reason given'}{hint}"
        ) from error


def load(module: Any, content: bytes, threads: int, resolver: str, delegate: str | None = None) -> tuple[Any, int]:
    """An interpreter with its tensors allocated, and the nanoseconds that took."""
    options: dict[str, Any] = {"num_threads": threads}
    if delegate is not None:
        options["experimental_delegates"] = [load_delegate(module, delegate)]
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

    def time(self, count: int, tell: Tell | None = None) -> list[int]:
        """``count`` timed invocations, over the samples in turn; ``tell`` gets the new times now and then, between two."""
        times, told, since = [], 0, time.monotonic()
        for index in range(count):
            times.append(self.invoke(index % len(self.arrays[0])))
            if tell and (index == count - 1 or time.monotonic() - since >= TELL_S):
                tell(times[told:])
                told, since = len(times), time.monotonic()
        return times

    def time_for(self, seconds: float) -> list[int]:
        """Timed invocations for so long, one at least."""
        end = time.monotonic() + seconds
        times = [self.invoke(0)]
        while time.monotonic() < end:
            times.append(self.invoke(len(times) % len(self.arrays[0])))
        return times

    def evaluate(self, samples: int, tell: Tell | None = None) -> list[Any]:
        """The outputs of the first ``samples`` samples, one array (samples, ...) per output; ``tell`` gets their number."""
        import numpy as np

        rows: list[list[Any]] = [[] for _ in self.outputs]
        since = time.monotonic()
        for sample in range(samples):
            self.invoke(sample)
            if tell and time.monotonic() - since >= TELL_S:
                tell({"schema": SCHEMA, "event": "evaluated", "done": sample + 1, "total": samples})
                since = time.monotonic()
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


def answer(request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The reply to a request; ``tell`` gets what comes before it."""
    cores = pin(request["threads"]) if request["pin"] else None
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
    interpreter, load_ns = load(module, content, request["threads"], request["resolver"], request["delegate"])
    reply.update(_run(interpreter, content, request, cores, tell))
    reply.update(load_ns=load_ns, threads=request["threads"], resolver=request["resolver"], pinned_to=cores)
    reply.update(peak_rss_bytes=peak_rss_bytes())
    return reply


def _run(
    interpreter: Any, content: bytes, request: dict[str, Any], cores: list[int] | None, tell: Tell
) -> dict[str, Any]:
    import numpy as np

    inputs = interpreter.get_input_details()
    runner = Runner(interpreter, read_inputs(request, inputs))
    before = read_conditions(cores) if request["conditions"] else None
    warmups = runner.time(request["warmups"], _teller("warmups_ns", request, cores, tell))
    samples = runner.time(request["runs"], _teller("samples_ns", request, cores, tell))
    after = read_conditions(cores) if request["conditions"] else None
    evaluated = len(runner.arrays[0]) if request["evaluate"] else 1
    outputs = runner.evaluate(evaluated, tell if request["stream"] else None)
    if request["outputs"] is not None:
        np.savez(request["outputs"], **{str(index): array for index, array in enumerate(outputs)})
    return {
        "model": {"bytes": len(content), "sha256": _sha256(content)},
        "inputs": [describe_tensor(detail) for detail in inputs],
        "outputs": [describe_tensor(detail) for detail in runner.outputs],
        "warmups_ns": warmups,
        "samples_ns": samples,
        "conditions": {"before": before, "after": after} if request["conditions"] else None,
        "evaluated": evaluated,
        "digests": [_sha256(np.ascontiguousarray(array).tobytes()) for array in outputs],
        "arena": measure_arena(interpreter, content),
    }


def _teller(key: str, request: dict[str, Any], cores: list[int] | None, tell: Tell) -> Tell | None:
    """What passes new times on, with the clock and the heat they were taken at; None when nobody wants them."""
    if not request["stream"]:
        return None

    def pass_on(times: Any) -> None:
        conditions = read_conditions(cores, ask_firmware=False) if request["conditions"] else None
        tell({"schema": SCHEMA, "event": "times", key: times, "conditions": conditions})

    return pass_on


# --- by hand, on a board


def parse_arguments(arguments: list[str]) -> Any:
    """The words of a person."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="probe.py", description="Time a .tflite on this machine, and say what the machine did meanwhile."
    )
    parser.add_argument("model", metavar="model.tflite")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads to run it with (default 1)")
    parser.add_argument("--runs", type=int, default=50, metavar="N", help="timed invocations (default 50)")
    parser.add_argument("--warmups", type=int, default=10, metavar="N", help="invocations before them (default 10)")
    parser.add_argument("--runtime", choices=list(RUNTIMES), help="which one (default: the one that is there)")
    parser.add_argument("--inputs", metavar="FILE", help=".npy or .npz to feed, quantized as the model wants it")
    parser.add_argument("--outputs", metavar="FILE.npz", help="store the outputs of every sample")
    parser.add_argument("--json", action="store_true", help="print the whole reply as JSON")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="go on for so long")
    parser.add_argument(
        "--every", type=float, default=1.0, metavar="S", help="with --soak: seconds per line (default 1)"
    )
    parser.add_argument("--log", metavar="FILE.jsonl", help="with --soak: append a line of JSON for each of them")
    words = parser.parse_args(arguments)
    if min(words.threads, words.runs) < 1 or words.warmups < 0 or words.every <= 0 or (words.soak or 1) <= 0:
        parser.error("numbers must be above 0")
    if words.log and not words.soak:
        parser.error("--log goes with --soak MINUTES")
    return words


def by_hand(words: Any, say: Callable[[str], None]) -> int:
    """Do what a person asks; 0 when done, 1 when it cannot be, 130 when a soak run is interrupted."""
    request = dict(DEFAULTS, model=words.model, threads=words.threads, pin=True, conditions=True, runtime=words.runtime)
    request.update(warmups=words.warmups, runs=words.runs, inputs=words.inputs, outputs=words.outputs)
    request.update(evaluate=words.outputs is not None)
    try:
        if words.soak:
            return soak(request, words.soak * 60, words.every, words.log, say)
        reply = answer(request, lambda event: None)
    except ProbeError as error:
        say(f"Error: {error}")
        return 1
    say(json.dumps(reply) if words.json else "\n".join(in_words(reply)))
    return 0


def median(values: list[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def in_words(reply: dict[str, Any]) -> list[str]:
    """A reply as lines for a person."""
    times = sorted(time / 1e6 for time in reply["samples_ns"])
    after, runtime, device = reply["conditions"]["after"], reply["runtime"], reply["device"]
    lines = [
        f"{device['cpu'] or device['machine']}, {runtime['package']} {runtime['version']}, {reply['threads']} threads",
        f"latency   {median(times):.3f} ms (median of {len(times)}; {times[0]:.3f} to {times[-1]:.3f})",
        f"load      {reply['load_ns'] / 1e6:.1f} ms",
        f"arena     {(reply['arena']['bytes'] or 0) / 1024:.1f} KiB ({reply['arena']['how']})",
        f"before    {conditions_in_words(reply['conditions']['before'])}",
        f"after     {conditions_in_words(after)}",
    ]
    return lines + ([f"WARNING   {throttling_in_words(after)}"] if throttling_in_words(after) else [])


def conditions_in_words(conditions: dict[str, Any]) -> str:
    """Such as ``governor ondemand, 1500 of 1500 MHz, 51.1 °C``."""
    parts = [f"governor {conditions['governor']}" if conditions["governor"] else ""]
    if conditions["clock_mhz"]:
        highest = f" of {conditions['max_clock_mhz']:.0f}" if conditions["max_clock_mhz"] else ""
        parts.append(f"{conditions['clock_mhz']:.0f}{highest} MHz")
    if conditions["temperature_c"] is not None:
        parts.append(f"{conditions['temperature_c']:.1f} °C")
    return ", ".join(filter(None, parts)) or "the machine tells nothing"


def throttling_in_words(conditions: dict[str, Any]) -> str | None:
    """What slows the board down at this moment; None: nothing that it tells."""
    bits = conditions["throttled"] or 0
    names = ["under-voltage", "frequency capped", "throttled", "soft temperature limit"]
    said = [name for place, name in enumerate(names) if bits >> place & 1]
    said += ["the kernel cools the processor"] if conditions["cooling"] else []
    return ", ".join(said) or None


def soak(request: dict[str, Any], seconds: float, every_s: float, log: str | None, say: Callable[[str], None]) -> int:
    """Run on and on: a row for every ``every_s`` seconds into the log, one line a minute for the person, a summary."""
    cores = pin(request["threads"])
    module, runtime = find_runtime(request["runtime"])
    try:
        content = Path(request["model"]).read_bytes()
        sink = open(log, "a", encoding="utf-8") if log else None  # noqa: PTH123, SIM115
    except OSError as error:
        raise ProbeError("model", str(error)) from error
    interpreter, _ = load(module, content, request["threads"], request["resolver"], request["delegate"])
    runner = Runner(interpreter, read_inputs(request, interpreter.get_input_details()))
    model = {"file": request["model"], "sha256": _sha256(content)}
    head = {"schema": SCHEMA, "event": "soak", "model": model, "runtime": runtime, "device": describe_machine()}
    _log(sink, dict(head, threads=request["threads"], pinned_to=cores, started=time.strftime("%Y-%m-%dT%H:%M:%S%z")))
    rows: list[dict[str, Any]] = []
    status = 0
    try:
        for row in _rows(runner, cores, seconds, every_s):
            _log(sink, row)
            if not rows or row["t_s"] // 60 > rows[-1]["t_s"] // 60:
                say(f"{row['t_s'] / 60:6.1f} min  {row['p50_ms']:9.3f} ms  {conditions_in_words(row)}")
            rows.append(row)
    except KeyboardInterrupt:
        status = 130
    finally:
        if sink:
            sink.close()
    for line in soak_in_words(rows):
        say(line)
    return status


def _rows(runner: Runner, cores: list[int] | None, seconds: float, every_s: float) -> Iterable[dict[str, Any]]:
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        times = [taken / 1e6 for taken in runner.time_for(every_s)]
        row = {"t_s": round(time.monotonic() - start, 3), "runs": len(times), "p50_ms": median(times)}
        row.update(min_ms=min(times), max_ms=max(times))
        row.update(read_conditions(cores))
        yield row


def _log(sink: Any, row: dict[str, Any]) -> None:
    """One line that a power cut in the next second does not take back."""
    if sink:
        sink.write(json.dumps(row) + "\n")
        sink.flush()


def soak_in_words(rows: list[dict[str, Any]]) -> list[str]:
    """What a soak run showed: its first minute against its last, the heat, and when the board slowed itself down."""
    if not rows:
        return ["Nothing was measured."]
    last = rows[-1]["t_s"]
    first_ms = median([row["p50_ms"] for row in rows if row["t_s"] <= max(60.0, rows[0]["t_s"])])
    last_ms = median([row["p50_ms"] for row in rows if row["t_s"] >= last - 60.0])
    heats = [row["temperature_c"] for row in rows if row["temperature_c"] is not None]
    slowed = [row for row in rows if throttling_in_words(row)]
    lines = [f"{sum(row['runs'] for row in rows)} runs in {last / 60:.1f} min"]
    lines.append(f"first minute {first_ms:.3f} ms, last minute {last_ms:.3f} ms ({last_ms / first_ms - 1:+.1%})")
    if heats:
        lines.append(f"hottest {max(heats):.1f} °C")
    if slowed:
        at = slowed[0]
        lines.append(f"slowed down from minute {at['t_s'] / 60:.1f}, {at['p50_ms']:.3f} ms: {throttling_in_words(at)}")
    return lines


def main(arguments: list[str]) -> int:
    """A model on the command line: by hand. Else answer a request; 0 when done, 1 when the reply is an error."""
    requested = arguments[0] if len(arguments) == 1 and arguments[0].endswith(".json") else None
    asks = requested is None and (bool(arguments) or sys.stdin.isatty())
    words = parse_arguments(arguments) if asks else None
    hurry()
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Any) -> None:
        channel.write("\n" + MARK + json.dumps(event) + "\n")
        channel.flush()

    def say(line: str) -> None:
        channel.write(line + "\n")
        channel.flush()

    return by_hand(words, say) if asks else serve(requested, tell)


def serve(path: str | None, tell: Tell) -> int:
    """Answer the request in a file, or on standard input; 0 when done, 1 when the reply is an error."""
    try:
        text = Path(path).read_text(encoding="utf-8") if path else sys.stdin.read()
        reply = answer(read_request(text), tell)
    except ProbeError as error:
        reply = {"schema": SCHEMA, "error": {"kind": error.kind, "message": str(error)}}
    except Exception as error:  # the caller is a program: it must get its line, whatever happens
        reply = {"schema": SCHEMA, "error": {"kind": "unexpected", "message": f"{type(error).__name__}: {error}"}}
    tell(reply)
    return 1 if "error" in reply else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
