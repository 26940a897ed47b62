"""A SavedModel -> a .tflite file, in a child process, looked at before anybody trusts it.

The converter crashes on some models, hangs on others, and gives float where int8 was asked for without a word. Here
each of these is a `ConversionError` that says what happened and where the converter's own log lies.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np

from edgeprune import files, tflite, tflite_compact
from edgeprune.errors import ConversionError, RunFolderError
from edgeprune.inference import words
from edgeprune.keras.export import LAYERS_FILE

WORKER = "edgeprune.keras.conversion_worker"
Representative = np.ndarray | Path | Mapping[str, np.ndarray]
Io = Literal["int8", "uint8", "float32"]

_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # equal weights give equal bytes
    "PYTHONSAFEPATH": "1",  # a tensorflow.py in the user's folder is not TensorFlow
    "CUDA_VISIBLE_DEVICES": "-1",  # converting is work for the processor; the card stays with the training
    "TF_CPP_MIN_LOG_LEVEL": "1",
}
_LOOPS = ("Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "GRU", "LSTM", "RNN", "SimpleRNN")
SPARES = 2  # processes that are kept: a build of a large model needs so many, and the next model's needs them again
_LAST_LINES = 5  # of the log, in a message
# What TensorFlow says at every start.
_CHATTER = re.compile(r"[IW]\d{4} |WARNING: All log messages|Extension modules:|\s*$")
_PROBLEM = re.compile(r"'tfl?\.[\w.]+' op [^\n]*")
_LAYER = re.compile(r'"(?:[^"/]+/)*([^"/]+)/[^"/]+@__inference')


class Converter:
    """A converter process, started at once so that it loads TensorFlow while its first model is still being prepared; one
    that is idle at the end waits for a later `Converter`.

    >>> with Converter(workspace / "converter.log") as converter:                   # doctest: +SKIP
    ...     converter.convert(folder, workspace / "model.tflite")
    """

    def __init__(self, log: Path, timeout_s: float = 600) -> None:
        """Start the process, or take the one that waits.

        Args:
            log: takes what TensorFlow says, at the end; kept.
            timeout_s: for one conversion, > 0 s.
        """
        self.log = log
        self.timeout_s = timeout_s
        self._child: _Child | None = _spare.take()

    def __enter__(self) -> Converter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def convert(
        self,
        saved_model: Path,
        output: Path,
        *,
        representative: Representative | None = None,
        io: Io = "int8",
        per_channel_dense: bool = False,
        compact: bool = True,
    ) -> Path:
        """Convert a model that `export.save` wrote. A process that died is started anew for the next model.

        Args:
            saved_model: the folder.
            output: the .tflite file; written only when it is what was asked for.
            representative: samples that set the int8 ranges (PTQ), cast to the inputs' types: (n, ...) for one input,
                the .npy file of such an array, or Keras' input name -> (n, ...). None for a model with fake quantizers,
                which brings its ranges, and for float32.
            io: type of inputs and outputs but for indices, which stay integers; uint8 is int8 but for its zero point;
                float32 converts without any quantization.
            per_channel_dense: a scale for each output of a Dense layer (old runtimes may refuse it), not one for all.
            compact: store equal vectors once, see `tflite_compact`; otherwise the file is as the converter made it.

        Returns:
            ``output``.

        Raises:
            ConversionError: no samples; the converter refused, crashed, hung or was killed; or the file is not ``io``
                at its inputs and outputs, or entirely float although int8 was asked for.
            RunFolderError: the output cannot be written.
        """
        facts = _exported(saved_model)
        with files.writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=files.TEMPORARY, dir=output.parent)
        with folder:
            work = Path(folder.name).absolute()  # the process may have been started in another folder
            made = work / "model.tflite"
            with files.writing(output):
                samples = _stored(representative, facts["inputs"], work / "samples.npz")
            request = {
                "saved_model": str(saved_model.absolute()),
                "output": str(made),
                "representative": samples,
                "io": io,
            }
            self._ask({**request, "per_channel_dense": per_channel_dense}, saved_model, facts)
            content = made.read_bytes()
        _check(content, io, saved_model)
        return files.write_bytes_atomic(output, tflite_compact.compact(content) if compact else content)

    def close(self) -> None:
        """Give the process back, or end it in the middle of a conversion, and keep its log."""
        child, self._child = self._child, None
        if child is not None:
            self._keep(child.said())
            _spare.give(child)

    def _keep(self, said: str) -> None:
        """Add to the log; a full disk may cost the log, not the model."""
        with contextlib.suppress(RunFolderError, OSError):
            before = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
            files.write_text_atomic(self.log, before + said)

    def _ask(self, request: Mapping[str, Any], saved_model: Path, facts: Mapping[str, Any]) -> None:
        """Have one request done.

        Raises:
            ConversionError: it was not; unless the converter just refused, its process is gone.
        """
        self._child = child = self._child or _Child()
        try:
            answer = child.ask(request, self.timeout_s)
        except TimeoutError as error:
            raise ConversionError(
                f"Converting {saved_model} took longer than {self.timeout_s:g} s and was stopped; nothing was written. "
                f"Allow it more with --set stages.convert.timeout_s=N. What the converter said last: "
                f"{_tail(self._lose())} (all of it: {self.log})"
            ) from error
        except EOFError as error:
            if not child.own:  # how it died, only who started it learns: ask one of our own
                self._lose()
                return self._ask(request, saved_model, facts)
            raise ConversionError(
                _death(child.process.returncode, self._lose(), saved_model, self.log, facts)
            ) from error
        except BaseException:  # a keyboard interrupt must not leave a process behind
            self.close()
            raise
        if "error" in answer:
            self._keep(answer["error"] + "\n")
            raise ConversionError(_refusal(answer["error"], saved_model, self.log))

    def _lose(self) -> str:
        """End the process, and return what it said."""
        said = ""
        if self._child is not None:
            self._child.end()
            said, self._child = self._child.said(), None
        self._keep(said)
        return said


def convert(
    saved_model: Path,
    output: Path,
    *,
    representative: Representative | None = None,
    io: Io = "int8",
    per_channel_dense: bool = False,
    timeout_s: float = 600,
) -> Path:
    """`Converter.convert` for one model; the log gets the output's name with the suffix ``.log``."""
    with Converter(output.with_suffix(".log"), timeout_s) as converter:
        return converter.convert(
            saved_model, output, representative=representative, io=io, per_channel_dense=per_channel_dense
        )


def prewarm() -> None:
    """Start a process for the next `Converter` now: it loads TensorFlow (3 to 5 s) while something else is done.

    A fork of this process may use it, while this one waits for its end.
    """
    _spare.fill()


def drop() -> None:
    """End the processes that wait."""
    _spare.drop()


class _Child:
    """One worker process and the pipes to it."""

    def __init__(self) -> None:
        self.idle = True
        self._starter = os.getpid()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        self._told = 0  # bytes of it that `said` has returned
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | _ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for the parent alone, which then ends this one
        )

    @property
    def own(self) -> bool:
        """Whether this very process started it; else the one did that this one was forked from."""
        return os.getpid() == self._starter

    def alive(self) -> bool:
        """Whether it has not ended, as far as can be known."""
        if self.own:
            return self.process.poll() is None
        try:
            os.kill(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises:
            TimeoutError: there was none in time.
            EOFError: the process died.
        """
        self.idle = False
        try:
            self._pipe("stdin").write(json.dumps(request).encode() + b"\n")
            self._pipe("stdin").flush()
            answer: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout_s))
            self.idle = True
            return answer
        except (BrokenPipeError, EOFError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self.own:
                    self.process.wait(5)  # its exit status says how it died
            raise EOFError from error

    def said(self) -> str:
        """What it has said on standard error since this was asked last."""
        handle = self._said.fileno()
        text = os.pread(handle, os.fstat(handle).st_size - self._told, self._told)  # leaves alone where it writes
        self._told += len(text)
        return text.decode("utf-8", "replace")

    def end(self) -> None:
        """Kill the process if it still lives."""
        self.idle = False
        if self.own:
            self.process.kill()
            self.process.wait()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        for name in ("stdin", "stdout"):
            with contextlib.suppress(OSError):  # an unwritten request is lost with the process
                self._pipe(name).close()

    def _pipe(self, name: Literal["stdin", "stdout"]) -> IO[bytes]:
        pipe: IO[bytes] = getattr(self.process, name)
        return pipe

    def _line(self, deadline: float) -> bytes:
        handle, line = self._pipe("stdout").fileno(), b""
        while not line.endswith(b"\n"):
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(handle, 65_536)
            if not read:
                raise EOFError
            line += read
        return line


class _Spare:
    """Processes that wait for their `Converter`: at most as many as the convert stage has side by side."""

    def __init__(self) -> None:
        self.waiting: list[_Child] = []
        atexit.register(self.drop)

    def fill(self) -> None:
        known, self.waiting = self.waiting, []
        for child in known:
            child.said()  # belongs to an earlier model
            if child.alive():
                self.waiting.append(child)
            else:
                child.end()
        if not self.waiting:
            self.waiting.append(_Child())

    def take(self) -> _Child:
        while self.waiting:
            child = self.waiting.pop()
            if child.alive():
                return child
            child.end()  # it died waiting
        return _Child()

    def give(self, child: _Child) -> None:
        """Keep a process that has nothing to do; end it if enough wait already, or it is still at work."""
        if len(self.waiting) < SPARES and child.idle and child.alive():
            self.waiting.append(child)
        else:
            child.end()

    def drop(self) -> None:
        while self.waiting:
            self.waiting.pop().end()


_spare = _Spare()


def _exported(saved_model: Path) -> dict[str, Any]:
    """What `export.save` wrote down about a model.

    Raises:
        ConversionError: the folder is none of `export.save`'s.
    """
    try:
        facts: dict[str, Any] = json.loads((saved_model / LAYERS_FILE).read_text(encoding="utf-8"))
        facts["inputs"] = dict(zip(facts["inputs"], facts["dtypes"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise ConversionError(
            f"{saved_model} is no model that edgeprune exported, or it is damaged: {error}. Export the Keras model again."
        ) from error
    return facts


def _stored(representative: Representative | None, inputs: Mapping[str, str], path: Path) -> str | None:
    """Write the samples by input name and of the input's type, the only form in which the converter takes them all.

    Raises:
        ConversionError: there are none, or too few inputs, or numbers that are not finite. The converter would take no
            samples at all for an answer and give a float model.
    """
    if representative is None:
        return None
    given = np.load(representative, mmap_mode="r") if isinstance(representative, Path) else representative
    if not isinstance(given, Mapping):
        given = {next(iter(inputs)): given}
    arrays = dict(zip(words(list(given)), given.values(), strict=True))
    if set(arrays) != set(inputs):
        raise ConversionError(
            f"The calibration samples are for {', '.join(sorted(arrays))}, but the model's inputs are "
            f"{', '.join(inputs)}. Give samples for each input, by its name."
        )
    arrays = {name: np.asarray(array, dtype=inputs[name]) for name, array in arrays.items()}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ConversionError(
            f"The calibration set holds {', '.join(f'{n} samples for {name}' for name, n in counts.items())}. "
            "Quantizing after training needs at least one (better 100 or more), and as many for every input: set "
            "data.calibration."
        )
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ConversionError(
            "The calibration samples hold NaN or infinite values. Expected finite numbers: clean the data."
        )
    np.savez(path, **arrays)
    return str(path)


def _check(content: bytes, io: Io, saved_model: Path) -> None:
    """Believe the file, not the converter.

    Raises:
        ConversionError: it has other types at its inputs or outputs, or is float where int8 was asked for.
    """
    file = tflite.read(content)
    wrong = next((each for each in tflite.int8_violations(file, io) if each.kind == "port"), None)
    if wrong:
        raise ConversionError(
            f"The converter made of {saved_model} a file that is not as asked. {wrong.message} Only an input that is nothing "
            "but an index (an Embedding's) may stay an integer; else calibrate or quantize the model first."
        )
    if io != "float32" and tflite.int8_share(file) == 0:
        raise ConversionError(
            f"The converter left every op of {saved_model} in float behind {io} inputs and outputs. Expected int8 ops: "
            "give a model with fake quantizers, or calibration samples."
        )


def _death(status: int | None, said: str, saved_model: Path, log: Path, facts: Mapping[str, Any]) -> str:
    """What to say of a process that ended without an answer."""
    name = signal.Signals(-status).name if status is not None and status < 0 else None
    advice = {
        "SIGSEGV": _loops(facts),
        "SIGKILL": "Something outside ended it, mostly the system when memory runs out: close other programs, or "
        "lower data.calibration.",
    }.get(name or "", "Simplify the model layer by layer until it passes, and report the layer.")
    how = f"crashed with {name}" if name else f"ended with exit status {status}"
    return (
        f"The converter {how} on {saved_model}; nothing was written. {advice} Its last words: {_tail(said)} "
        f"(all of them: {log})"
    )


def _loops(facts: Mapping[str, Any]) -> str:
    """Which layers a segmentation fault comes from, as far as is known."""
    loops = {f"'{layer['name']}' ({layer['kind']})" for layer in facts["layers"] if layer["kind"] in _LOOPS}
    here = f", here {', '.join(sorted(loops))}" if loops else " and this model shows none: please report it"
    return (
        f"Recurrent layers that run as a loop are known to do that{here}. edgeprune writes them out step by step "
        "(edgeprune.keras.recurrent.unroll) unless they are masked, stateful, or have an open number of steps: change "
        "that, or build them with unroll=True."
    )


def _refusal(error: str, saved_model: Path, log: Path) -> str:
    """What to say of a conversion that the converter refused: the op and the layer where its message has them."""
    if "inference_input_type" in error:  # its words for: nothing here is quantized
        return (
            f"{saved_model} has no fake quantizers, so its int8 ranges are unknown. Give calibration samples "
            "(representative=...), or put a quantize stage before this one."
        )
    problem = _PROBLEM.search(error)
    if problem is None:
        first = error.strip().splitlines()[0][:300]
        return f"The converter refused {saved_model}: {first} Its whole message is in {log}."
    layer = _LAYER.search(error)
    where = f" at the layer '{layer[1]}'" if layer else ""
    return (
        f"The converter refused {saved_model}{where}: {problem[0][:300]}. Build that part of layers that TensorFlow "
        f"Lite has int8 kernels for; the converter's whole message is in {log}."
    )


def _tail(said: str) -> str:
    """The end of a log; of a crash its beginning, which says in which phase it happened."""
    lines = [line.strip() for line in said.splitlines() if not _CHATTER.match(line)]
    crash = next((place for place, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    shown = lines[-_LAST_LINES:] if crash is None else lines[crash : crash + _LAST_LINES]
    return " | ".join(shown)[:600] or "nothing"
