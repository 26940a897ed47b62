"""Run the model on the target: its metric and outputs on the target's own kernels, its latency, and where the time goes.

Takes the role ``final`` (and ``dense_int8`` for its latency). Without a board the target's emulator runs it, and counts the
cycles of which the latency is predicted; where that cannot be had either, the latency is predicted from the shapes alone, the
build goes on, and the report says what is missing and how to get it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from pydantic import Field

from edgeprune import agreement, columns, fleet, forecast, inference, profiling
from edgeprune.data_options import Task
from edgeprune.errors import DeviceError, MissingDependency
from edgeprune.pipeline import State
from edgeprune.validation import Strict

ROLES = ("final", "dense_int8")


class Options(Strict):
    """Options of the profile stage."""

    samples: int = Field(
        500, ge=1, le=1_000_000, description="at most so many test samples are run on the target's kernels"
    )
    threads: int | None = Field(None, ge=1, le=64, description="for timing; null: what the target names")
    count: bool = Field(
        True,
        description="count the cycles that a predicted latency is made of, under the emulator; false: predict from the shapes alone, "
        "which takes no time and says less",
    )
    warmups: int = Field(10, ge=0, le=10_000, description="invocations before the timed ones")
    runs: int = Field(50, ge=1, le=100_000, description="timed invocations")


def run(state: State, options: Options) -> State:
    """Evaluate and time; an absent device is a fact of the report, not a failure of the build."""
    target, connection = state.run.target, state.run.connection
    reason = profiling.unavailable(target, connection)
    if reason:
        return _absent(state, reason, options)
    try:
        on_device = _evaluate(state, options)
        figures = _figures(state, options)
    except (DeviceError, MissingDependency) as error:
        return _absent(state, str(error), options)
    latencies = {role: found["latency"] for role, found in figures.items()}
    boards = _others(state, options)
    return state.add(
        arm=on_device | ({"boards": boards} if boards else {}),
        latency=latencies,
        time=_time(figures),
        advice=figures["final"].get("advice", []),
        notes=[f"On {one['board']}: {_figure(one['latency'])}." for one in boards],
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


def _figures(state: State, options: Options) -> dict[str, dict[str, Any]]:
    """What is known of the time of every model: measured on a board or here, else predicted."""
    run, roles = state.run, [role for role in ROLES if role in state.files]
    missing = {
        role: {"latency": dict(profiling.absent(f"the recipe makes no {role} model"))}
        for role in ROLES
        if role not in roles
    }
    device = profiling.backend(run.connection)
    if forecast.counter(device) is None:
        how = (run.target, run.connection, options.threads, run.progress, options.warmups, options.runs)
        return {role: profiling.profile(state.path(role), *how) for role in roles} | missing
    place = forecast.board(run.target, options.threads)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # every count is a process of its own
        jobs = {
            role: pool.submit(forecast.forecast, state.path(role), place, device, counted=options.count)
            for role in roles
        }
        others = pool.submit(forecast.others, state.path("final"), place, device, options.count)
        found = {role: future.result() for role, future in jobs.items()}
        found["final"]["runtimes"] = [forecast.brief(found["final"]), *others.result()]
    found["final"] = profiling.advised(state.path("final"), run.target, found["final"])
    return found | missing


def _predictable(state: State) -> bool:
    """Whether a latency may be known although nothing runs: not on a board that was named."""
    connection, target = state.run.connection, state.run.target
    if connection.address:
        return False
    return target.delegate is not None or forecast.counter(profiling.backend(connection)) is not None


def _time(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report's ``time`` block (`edgeprune.report_time`); {} where nothing is known of any op."""
    final = figures["final"]
    ops = {
        role: [{key: op.get(key) for key in ("index", "op", "layer", "ms")} for op in found.get("ops", [])]
        for role, found in figures.items()
    }
    if not any(op["ms"] is not None for found in ops.values() for op in found):
        return {}
    return {
        "kind": final["latency"].get("kind"),
        "how": final.get("how"),
        "runtime": final.get("runtime"),
        "ops": ops,
        "fixed_ms": {role: found.get("fixed_ms") for role, found in figures.items()},
        "cycles": {role: found.get("cycles") for role, found in figures.items()},
        "runtimes": final.get("runtimes", []),
    }


def _others(state: State, options: Options) -> list[dict[str, Any]]:
    """The final model's latency on the other boards that were named: none of them is judged on, so one that fails is told."""
    run = state.run
    if not run.others:
        return []
    places = [fleet.Place(run.target, connection) for connection in run.others]
    how = {"warmups": options.warmups, "runs": options.runs}
    found = fleet.profile(state.path("final"), places, options.threads, run.progress, **how)
    return [
        {"board": figures["board"], "latency": figures.get("latency") or dict(profiling.absent(figures["error"]))}
        for figures in found
    ]


def _absent(state: State, reason: str, options: Options) -> State:
    """Nothing was run; where the latency can be told without, it is."""
    figures: dict[str, dict[str, Any]] = {role: {"latency": dict(profiling.absent(reason))} for role in ROLES}
    if _predictable(state):
        with contextlib.suppress(DeviceError):
            figures = _figures(state, options)
    return state.add(
        arm={"reason": reason},
        latency={role: found["latency"] for role, found in figures.items()},
        time=_time(figures),
        advice=figures["final"].get("advice", []),
        notes=[f"Nothing was run on {state.run.target.title}: {reason}."],
        summaries={state.label: f"not run: {reason}"},
    )


def _figure(latency: Mapping[str, Any]) -> str:
    return str(latency["reason"]).rstrip(".") if latency["ms"] is None else f"{latency['ms']:.2f} ms"


def _summary(metric: str, device: dict[str, Any], latency: dict[str, Any]) -> str:
    where = f"{device['runtime']} on {'emulated ' if device['emulated'] else ''}{device['cpu'] or 'this machine'}"
    time = f", {latency['ms']:.2f} ms" if latency.get("ms") is not None else ""
    return f"{where}: {metric} {device['metric']:.4f} on {device['samples']} samples (host {device['host_metric']:.4f}){time}"
