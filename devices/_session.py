"""One way to run the probe in a child process, shared by the backends that start it on this machine.

A `Launcher` says how a Python is started; a `ProbeSession` writes request, model and inputs to a scratch folder, starts
the probe there, and turns its one marked line into a `Reply`. Where times do not matter (under an emulator), the
samples to evaluate are shared out over several processes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeprune.devices import _probe
from edgeprune.errors import ArtefactError, DeviceError
from edgeprune.measurement import Kind, Measurement, Reply, Request, Tensor

PROBE = Path(_probe.__file__)
FEWEST_SAMPLES_PER_WORKER = 32  # below this, starting another process costs more than it saves
LAST_WORDS = 600  # characters of standard error worth showing

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Launcher:
    """How a Python with a TFLite runtime is started, and what its figures mean.

    Args:
        command: what stands before the probe's path.
        environment: all of the child's environment.
        kind: ``measured`` or ``emulated``.
        threads: default number of threads.
        cpu: the emulated core; None: what the probe finds.
        runtime: package to use; None: the one that is there.
        workers: processes that may share an evaluation; 1 where times matter.
        delegate: shared library of the delegate to run models with; None: none.
        program: what stands for the probe behind the command.
    """

    command: tuple[str, ...]
    environment: Mapping[str, str]
    kind: Kind
    threads: int = 1
    cpu: str | None = None
    runtime: str | None = None
    workers: int = 1
    delegate: str | None = None
    program: tuple[str, ...] = (str(PROBE),)


@contextlib.contextmanager
def open_session(launcher: Launcher) -> Iterator[ProbeSession]:
    """A session with a scratch folder that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        yield ProbeSession(launcher, Path(folder))


class ProbeSession:
    """Runs models through the probe; satisfies `edgeprune.target.Session`."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self._launcher = launcher
        self._folder = folder

    def run(self, model: Path | bytes, request: Request) -> Reply:
        """Run a .tflite as the request says; see `edgeprune.target.Session`."""
        content = model if isinstance(model, bytes) else read_model(model)
        (self._folder / "model.tflite").write_bytes(content)
        shares = _shares(request, self._launcher.workers)
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(self._start(index, share)) for index, share in enumerate(shares)]
            answers = [child.answer(request.timeout_s) for child in children]
        outputs = [unpack((self._folder / f"outputs{index}.npz").read_bytes()) for index in range(len(shares))]
        joined = tuple(np.concatenate(parts) for parts in zip(*outputs, strict=True))
        return self._reply(answers[0], joined)

    def identify(self) -> dict[str, Any]:
        """Runtime and machine, without a model; proves that the interpreter can be imported."""
        with self._start(0, Request(timeout_s=300), model=None) as child:
            return child.answer(300)

    @contextlib.contextmanager
    def _start(self, index: int, share: Request, model: str | None = "model.tflite") -> Iterator[Child]:
        body = self._body(index, share) | {"model": model}
        path = self._folder / f"request{index}.json"
        path.write_text(json.dumps(body), encoding="utf-8")
        command = [*self._launcher.command, *self._launcher.program, str(path)]
        with start(command, self._launcher.environment, self._folder, f"words{index}.txt") as child:
            yield child

    def _body(self, index: int, share: Request) -> dict[str, Any]:
        inputs = None
        if share.inputs is not None:
            inputs = f"inputs{index}.npz"
            (self._folder / inputs).write_bytes(pack(share.inputs))
        threads = share.threads or self._launcher.threads
        words = body(share, threads, self._launcher.runtime) | {"delegate": self._launcher.delegate}
        return words | {"inputs": inputs, "outputs": f"outputs{index}.npz"}

    def _reply(self, answer: dict[str, Any], outputs: tuple[Array, ...]) -> Reply:
        cpu = {"cpu": self._launcher.cpu} if self._launcher.cpu else {}
        return reply_of(answer, outputs, self._launcher.kind, answer["device"] | cpu)


def body(request: Request, threads: int, runtime: str | None) -> dict[str, Any]:
    """A request in the probe's words, but for the names of files."""
    return {
        "schema": _probe.SCHEMA,
        "samples": request.samples,
        "seed": request.seed,
        "evaluate": request.evaluate,
        "warmups": request.warmups,
        "runs": request.runs,
        "threads": threads,
        "runtime": runtime,
        "resolver": request.resolver,
    }


def reply_of(
    answer: dict[str, Any],
    outputs: tuple[Array, ...],
    kind: Kind,
    device: dict[str, Any],
    doubts: tuple[str, ...] = (),
) -> Reply:
    """The probe's answer as a `Reply`."""
    emulated, runtime = kind == "emulated", answer["runtime"]
    metadata = {
        "runtime": f"{runtime['package']} {runtime['version']}",
        "cpu": device["cpu"],
        "threads": answer["threads"],
        "resolver": answer["resolver"],
        "model_sha256": answer["model"]["sha256"],
    }
    times = (milliseconds(answer["samples_ns"]), milliseconds(answer["warmups_ns"]))
    return Reply(
        kind=kind,
        measurement=Measurement(kind, *times, metadata, doubts=doubts),
        inputs=_tensors(answer["inputs"]),
        outputs_info=_tensors(answer["outputs"]),
        outputs=outputs,
        digests=tuple(sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in outputs),
        runtime=runtime,
        device=device,
        load_ms=None if emulated else answer["load_ns"] / 1e6,
        arena_bytes=answer["arena"]["bytes"],
        arena_how=answer["arena"]["how"],
        peak_rss_bytes=None if emulated else answer["peak_rss_bytes"],
    )


@contextlib.contextmanager
def start(command: Sequence[str], environment: Mapping[str, str], folder: Path, words: str) -> Iterator[Child]:
    """A child process that answers with one marked line; it is gone after the block, with all that it has started.

    Args:
        folder: where it works.
        words: name of the file in it that takes its standard error.
    """
    with (folder / words).open("w+b") as stream:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches us, not it: we stop it, with all it has started
        )
        try:
            yield Child(process, folder / words)
        finally:
            _stop(process)


@dataclass(frozen=True)
class Child:
    """A running probe, and the file that takes its standard error."""

    process: subprocess.Popen[bytes]
    words: Path

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Wait for the reply.

        Raises:
            ArtefactError: the runtime refuses the model.
            DeviceError: no answer in time, a crash, or another error of the probe's.
        """
        try:
            output, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"The probe gave no answer in {timeout_s:g} s. Give it fewer runs or samples.") from error
        reply = parse_reply(output.decode("utf-8", "replace"))
        if reply is None:
            raise DeviceError(self._obituary())
        if "error" in reply:
            kind, message = reply["error"]["kind"], reply["error"]["message"]
            raise (ArtefactError if kind == "model" else DeviceError)(
                f"The probe could not do it: {message}.{self._last_words()}"
            )
        return reply

    def _obituary(self) -> str:
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        advice = "the model may use an operator it cannot run"
        return f"The TFLite runtime {how} before it answered; {advice}.{self._last_words()}"

    def _last_words(self) -> str:
        text = " ".join(self.words.read_text(encoding="utf-8", errors="replace").split())
        return f" Its last words: {text[-LAST_WORDS:]}" if text else ""


def parse_reply(output: str) -> dict[str, Any] | None:
    """The JSON behind the last mark in the probe's standard output; None when there is none."""
    lines = [line for line in output.splitlines() if line.startswith(_probe.MARK)]
    if not lines:
        return None
    reply: dict[str, Any] = json.loads(lines[-1].removeprefix(_probe.MARK))
    return reply


def _shares(request: Request, workers: int) -> list[Request]:
    """The request cut into at most ``workers`` pieces of consecutive samples; the first keeps the timed runs."""
    if not request.evaluate or request.inputs is None:
        return [request]
    samples = len(request.inputs[0])
    pieces = max(1, min(workers, samples // FEWEST_SAMPLES_PER_WORKER))
    cuts = [samples * piece // pieces for piece in range(pieces + 1)]
    return [
        Request(
            inputs=tuple(array[start:end] for array in request.inputs),
            evaluate=True,
            warmups=request.warmups if start == 0 else 0,
            runs=request.runs if start == 0 else 0,
            threads=request.threads,
            resolver=request.resolver,
            timeout_s=request.timeout_s,
        )
        for start, end in pairwise(cuts)
    ]


def read_model(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}. Give the path of a .tflite file.") from error


def pack(arrays: Sequence[Array]) -> bytes:
    """Arrays as the .npz that the probe reads."""
    stream = io.BytesIO()
    named: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
    np.savez(stream, **named)
    return stream.getvalue()


def unpack(data: bytes) -> list[Array]:
    """Arrays of an .npz that the probe wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return [stored[key] for key in sorted(stored.files, key=int)]


def milliseconds(times_ns: Sequence[int]) -> tuple[float, ...]:
    return tuple(time / 1e6 for time in times_ns)


def _tensors(details: Sequence[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(**{**detail, "shape": tuple(detail["shape"])}) for detail in details)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a child that is still there, with everything it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout:
        process.stdout.close()
