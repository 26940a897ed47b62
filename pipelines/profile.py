"""Run the model on the target: its latency where one can be measured, its metric and outputs on the target's own kernels.

Takes the role ``final`` (and ``dense_int8`` for its latency). Without a board the target's emulator runs it; where that
cannot be had either, the build goes on and the report says what is missing and how to get it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from edgeprune import agreement, columns, inference, profiling
from edgeprune.data_options import Task
from edgeprune.errors import DeviceError
from edgeprune.pipeline import State
from edgeprune.validation import Strict


class Options(Strict):
    """Options of the profile stage."""

    samples: int = Field(
        500, ge=1, le=1_000_000, description="at most so many test samples are run on the target's kernels"
    )
    threads: int | None = Field(None, ge=1, le=64, description="for timing; null: what the target names")
    warmups: int = Field(10, ge=0, le=10_000, description="invocations before the timed ones")
    runs: int = Field(50, ge=1, le=100_000, description="timed invocations")


def run(state: State, options: Options) -> State:
    """Evaluate and time; an absent device is a fact of the report, not a failure of the build."""
    target, connection = state.run.target, state.run.connection
    reason = profiling.unavailable(target, connection)
    if reason:
        return _absent(state, reason)
    try:
        on_device = _evaluate(state, options)
        latencies = {role: _latency(state, role, options) for role in ("final", "dense_int8")}
    except DeviceError as error:
        return _absent(state, str(error))
    return state.add(
        arm=on_device,
        latency=latencies,
        summaries={state.label: _summary(state.run.metric.title, on_device, latencies["final"])},
    )


def _evaluate(state: State, options: Options) -> dict[str, Any]:
    """The metric on the target's kernels, and how far its outputs are from this machine's for the same samples."""
    run, path = state.run, state.path("final")
    host = inference.Runner(path)
    done = profiling.evaluate(path, run.data.test, options.samples, run.seed, run.target, run.connection, host)
    ports = _ports(state, host.outputs)
    here, there = host.raw(*done.inputs), done.reply.outputs
    on_host, on_target = (
        columns.unnamed({name: host.outputs[place].dequantize(arrays[place]) for name, place in ports.items()})
        for arrays in (here, there)
    )
    compared = {
        name: _compare(host.outputs[place], here[place], there[place], run.data.tasks[name])
        for name, place in ports.items()
    }
    y, metric = done.split.y, run.metric
    judged = compared[metric.output or columns.LONE]
    return {
        "runtime": done.reply.runtime_name,
        "cpu": run.target.emulate.cpu or run.target.cpu.core,
        "emulated": done.reply.kind == "emulated",
        "samples": len(done.split),
        "selection": done.selection,
        "metric": metric(y, on_target),
        "host_metric": metric(y, on_host),
        "outputs": _each(metric.each(y, on_target), metric.each(y, on_host), compared),
        "agreement": judged.agreement,
        "equal_share": judged.equal_share,
        "largest_difference_steps": judged.largest_difference_steps,
        "arena_bytes": done.reply.arena_bytes,
        "arena_how": done.reply.arena_how,
        "peak_rss_bytes": done.reply.peak_rss_bytes,
        "digests": list(done.reply.digests),
    }


def _each(
    on_target: Mapping[str, float], on_host: Mapping[str, float], compared: Mapping[str, agreement.Comparison]
) -> dict[str, Any]:
    """The figures of every output; {} for a model with one."""
    return {
        name: {
            "metric": figure,
            "host_metric": on_host[name],
            "agreement": compared[name].agreement,
            "largest_difference_steps": compared[name].largest_difference_steps,
        }
        for name, figure in on_target.items()
    }


def _compare(port: inference.Port, here: np.ndarray, there: np.ndarray, task: Task) -> agreement.Comparison:
    boundary = agreement.boundary_of(port.scale, port.zero_point)
    return agreement.compare(here, there, task == "classification", boundary)


def _ports(state: State, ports: Sequence[inference.Port]) -> dict[str, int]:
    """For every output, by the name that y has, its place in the file.

    A rewrite may have put another layer last, and the file orders its outputs by itself: then the exported model, which has
    the file's names in the model's order, says which is which.
    """
    names, places = list(state.run.data.tasks), {port.name: place for place, port in enumerate(ports)}
    if len(names) == 1:
        return {names[0]: 0}
    words = inference.words(names)
    if set(words) != set(places):
        from edgeprune.keras.export import Exported

        role = "exported" if "exported" in state.files else "quantized"
        words = Exported(state.path(role)).output_names
    return {name: places[word] for name, word in zip(names, words, strict=True)}


def _latency(state: State, role: str, options: Options) -> dict[str, Any]:
    run = state.run
    if role not in state.files:
        return dict(profiling.absent(f"the recipe makes no {role} model"))
    if run.connection.kind == "qemu":  # not worth running: emulated time is never a latency
        return dict(
            profiling.absent(
                f"no {run.target.title} was given and emulated time is not its latency; measure it with --board USER@HOST"
            )
        )
    figures = profiling.profile(
        state.path(role), run.target, run.connection, options.threads, run.progress, options.warmups, options.runs
    )
    latency: dict[str, Any] = figures["latency"]
    return latency


def _absent(state: State, reason: str) -> State:
    return state.add(
        arm={"reason": reason},
        latency={role: dict(profiling.absent(reason)) for role in ("final", "dense_int8")},
        notes=[f"Nothing was run on {state.run.target.title}: {reason}."],
        summaries={state.label: f"not run: {reason}"},
    )


def _summary(metric: str, device: dict[str, Any], latency: dict[str, Any]) -> str:
    where = f"{device['runtime']} on {'emulated ' if device['emulated'] else ''}{device['cpu'] or 'this machine'}"
    time = f", {latency['ms']:.2f} ms" if latency.get("ms") is not None else ""
    return f"{where}: {metric} {device['metric']:.4f} on {device['samples']} samples (host {device['host_metric']:.4f}){time}"
