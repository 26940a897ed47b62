"""Run a .tflite on a target: its time where a time means something, its results on the target's kernels everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import accelerator, advice, forecast, registry, tflite
from edgeprune.data import Split, strata, stratified
from edgeprune.errors import ArtefactError, DeviceError
from edgeprune.inference import Runner
from edgeprune.measurement import Reply, Request
from edgeprune.progress import Progress
from edgeprune.target import Backend, Connection, Target

WARMUPS, RUNS = 10, 50
# The custom ops that every runtime brings along; another one needs code that no board has.
KNOWN_CUSTOM = frozenset({"AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess"})


def profile(
    path: Path,
    target: Target,
    connection: Connection,
    threads: int | None,
    progress: Progress,
    warmups: int = WARMUPS,
    runs: int = RUNS,
    resolver: forecast.Resolver = "default",
) -> dict[str, Any]:
    """Latency, memory and output digests of a model on a target, with seeded random inputs.

    On a board the latency is measured. On an emulator, whose times mean nothing, the model runs once, and its latency is
    predicted (`edgeprune.forecast`); where there is no emulator it is predicted from the model's shapes alone.

    Args:
        path: the ``.tflite`` file.
        connection: a board, or what the target runs on without one.
        threads: None: what the target names.
        progress: told when the run begins.
        warmups, runs: invocations before and during timing.
        resolver: which of the runtime's kernels.

    Returns:
        ``profile --json``: ``latency`` as in report.json, ``runtime``, memory, digests, and one entry per op; of a
        prediction all of `forecast.forecast`, and ``runtimes``: the same model under this and the other ones. ``advice``: what
        to make of it (`advised`).

    Raises:
        DeviceError: the target cannot be run here; the reason and what to do about it.
        ArtefactError: the file cannot be read, or the runtime refuses it.
    """
    file = tflite.read(path)
    device = backend(connection)
    about = {"target": target.name, "size_bytes": file.size_bytes, "macs": tflite.macs(file)}
    reason = device.unavailable(target, connection)
    if reason:
        return about | advised(path, target, _unrun(path, target, connection, threads, resolver, reason))
    started = time.monotonic()
    progress.stage(f"profile on {target.name}", 1, 1)
    with ThreadPoolExecutor(2) as pool, device.session(target, connection) as session:
        place = forecast.board(target, threads) if forecast.counter(device) else None
        predicted = pool.submit(forecast.forecast, path, place, device, resolver=resolver) if place else None
        others = pool.submit(forecast.others, path, place, device) if place else None
        timed = Request(warmups=warmups, runs=runs, threads=threads, resolver=resolver, report=progress.step)
        reply = session.run(path, Request(resolver=resolver) if place else timed)
        ops = [{"index": op.index, "op": op.op, "ms": None} for op in file.ops]
        figures = {**reply.to_dict(), **about, "ops": ops}
        if predicted and others:
            figures |= predicted.result()
            figures["runtimes"] = [forecast.brief(figures), *others.result()]
    progress.done(reply.runtime_name, time.monotonic() - started)
    return advised(path, target, figures)


def advised(path: Path, target: Target, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a profile with ``advice`` (`edgeprune.advice`).

    A measurement knows no op's time: then the shapes say which share of it is whose, where they can.
    """
    if target.delegate is None and all(op.get("ms") is None for op in figures.get("ops", [])):
        place = forecast.board(target)
        estimated = forecast.forecast(path, place, backend(Connection(target.backend)), counted=False)
        timed = {**figures, "ops": estimated["ops"]}
    else:
        timed = figures
    return {**figures, "advice": advice.advise(tflite.read(path), target, timed)}


def _unrun(
    path: Path,
    target: Target,
    connection: Connection,
    threads: int | None,
    resolver: forecast.Resolver,
    reason: str,
) -> dict[str, Any]:
    """What can be said of a model that cannot be run here.

    Raises:
        ArtefactError: it has ops that no runtime knows, so that it would run nowhere.
        DeviceError: nothing.
    """
    device, chip = backend(connection), accelerator.of(target)
    _refuse_unknown(path, target, chip)
    if chip is not None and connection.address is None:
        how = "what the accelerator takes of the model, its parameters and its link"
        latency = dict(chip.predict(tflite.read(path), target))
        return {"kind": "predicted", "latency": latency, "how": how, "uncounted": reason}
    place = forecast.board(target, threads)
    figures = forecast.forecast(path, place, device, resolver=resolver) if forecast.counter(device) else {}
    if figures.get("how") is None:
        raise DeviceError(f"'{target.name}' cannot be run: {reason}.")
    return {"kind": "predicted", **figures, "runtimes": [forecast.brief(figures)], "uncounted": reason}


def _refuse_unknown(path: Path, target: Target, chip: accelerator.Accelerator | None) -> None:
    file = tflite.read(path)
    custom = [op for op in file.ops if op.custom and op.op not in KNOWN_CUSTOM]
    if custom and chip is not None:  # what its compiler writes is custom as well
        taken = {placed.index for placed in chip.check(file, target).ops if placed.mapped}
        custom = [op for op in custom if op.index not in taken]
    if custom:
        named = ", ".join(dict.fromkeys(f"{op.op} (op {op.index})" for op in custom[:5]))
        raise ArtefactError(
            f"{path} holds ops that no TFLite runtime knows: {named}. Replace the layers that they come from by ones that convert to "
            "built-in ops."
        )


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


def rehearse(target: Target, connections: Sequence[Connection]) -> None:
    """Say now, and not after the training, that a backend does not exist or a board that was named cannot be used.

    Raises:
        DeviceError: a board cannot be reached, or is not the target.
        MissingDependency: a board has no TFLite runtime.
    """
    for connection in connections:
        found = backend(connection)
        if connection.address:
            with found.session(target, connection):
                pass


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
