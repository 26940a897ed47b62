"""Run a .tflite on a target: its time where a time means something, its results on the target's kernels everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import registry, tflite
from edgeprune.data import Split, strata, stratified
from edgeprune.errors import DeviceError
from edgeprune.inference import Runner
from edgeprune.measurement import Reply, Request
from edgeprune.progress import Progress
from edgeprune.target import Backend, Connection, Target

WARMUPS, RUNS = 10, 50


def profile(
    path: Path,
    target: Target,
    connection: Connection,
    threads: int | None,
    progress: Progress,
    warmups: int = WARMUPS,
    runs: int = RUNS,
) -> dict[str, Any]:
    """Latency, memory and output digests of a model on a target, with seeded random inputs.

    Args:
        path: the ``.tflite`` file.
        connection: a board, or what the target runs on without one.
        threads: None: what the target names.
        progress: told when the run begins.
        warmups, runs: invocations before and during timing; under an emulator, where times mean nothing, one run is made.

    Returns:
        ``profile --json``: ``latency`` as in report.json, ``runtime``, memory, digests, and one entry per op.

    Raises:
        DeviceError: the target cannot be run here; the reason and what to do about it.
        ArtefactError: the file cannot be read, or the runtime refuses it.
    """
    file = tflite.read(path)
    device = backend(connection)
    reason = device.unavailable(target, connection)
    if reason:
        raise DeviceError(f"'{target.name}' cannot be run: {reason}.")
    started = time.monotonic()
    progress.stage(f"profile on {target.name}", 1, 1)
    with device.session(target, connection) as session:
        reply = session.run(path, Request(warmups=warmups, runs=runs, threads=threads))
    progress.done(reply.runtime_name, time.monotonic() - started)
    ops = [{"index": op.index, "op": op.op, "ms": None} for op in file.ops]
    return {
        **reply.to_dict(),
        "target": target.name,
        "size_bytes": file.size_bytes,
        "macs": tflite.macs(file),
        "ops": ops,
    }


class Evaluation(NamedTuple):
    """A model's raw outputs for some samples of the test split, on a target.

    Attributes:
        split: the samples.
        selection: in words, which they are.
        inputs: each (n, ...) as they were fed, of the model's own dtype, in the file's order.
        reply: of the device; ``outputs`` are the raw outputs in the file's order.
    """

    split: Split
    selection: str
    inputs: tuple[np.ndarray, ...]
    reply: Reply


def evaluate(
    path: Path,
    split: Split,
    samples: int,
    seed: int,
    target: Target,
    connection: Connection,
    runner: Runner,
) -> Evaluation:
    """Run (a stated part of) a split through a model on the target's own kernels.

    Args:
        split: usually the test split; nothing is chosen by the result.
        samples: at most so many; more are drawn evenly over the classes.
        seed: of the drawing.
        runner: the same file here, which orders and quantizes what is fed.

    Raises:
        DeviceError: the target cannot be run here.
    """
    part, selection = _part(split, samples, seed)
    batches = [_stored(runner, x) for x, _ in part.batches(256)]
    inputs = tuple(np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    with backend(connection).session(target, connection) as session:
        reply = session.run(path, Request(inputs=inputs, evaluate=True))
    return Evaluation(part, selection, inputs, reply)


def unavailable(target: Target, connection: Connection) -> str | None:
    """None, or why the target cannot be run from here, and what to do about it."""
    return backend(connection).unavailable(target, connection)


def absent(reason: str) -> Mapping[str, Any]:
    """The ``latency`` block of a figure that nobody has."""
    return {"ms": None, "reason": reason}


def backend(connection: Connection) -> Backend:
    """The module in devices/ that a connection names.

    Raises:
        DeviceError: there is none; for a board, what to do instead.
    """
    if connection.kind not in registry.names("backends") and "." not in connection.kind:
        where = (
            f"the board '{connection.address}'"
            if connection.address
            else f"a target whose backend is '{connection.kind}'"
        )
        raise DeviceError(
            f"This version of edgeprune cannot reach {where}: it has no backend '{connection.kind}' (it has "
            f"{', '.join(registry.names('backends'))}). Leave out --board to use the target's emulator, or copy the model and "
            "devices/_probe.py to the board and run it there (docs/boards.md)."
        )
    found: Backend = registry.module("backends", connection.kind)
    return found


def _stored(runner: Runner, x: Any) -> list[np.ndarray]:
    return [port.quantize(array) for port, array in zip(runner.inputs, runner.in_order(x), strict=True)]


def _part(split: Split, samples: int, seed: int) -> tuple[Split, str]:
    if len(split) <= samples:
        return split, "the whole test split"
    classes = strata(split)
    chosen = stratified(classes, samples, np.random.Generator(np.random.PCG64(seed)))
    how = "drawn evenly over the classes" if len(np.unique(classes)) > 1 else "drawn at random"
    return split.select(chosen), f"{samples} of the {len(split)} test samples, {how} (seed {seed})"
