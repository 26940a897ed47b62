"""Gather what the stages found into report.json and report.html, and put the model where the user looks for it.

Leaves ``model.tflite``, ``model.keras`` (the compressed float model, as Keras 3 saves it), ``report.json`` and ``report.html``
in the run folder.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import edgeprune
from edgeprune import files, metrics
from edgeprune import report as reports
from edgeprune.pipeline import State
from edgeprune.validation import Strict

PACKAGES = ("tensorflow", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "numpy")
ROLES = ("float", "dense_int8", "final")
WHY_NOT = "the float model is not run on the target"
MODEL = "model.tflite"  # where the user looks for it


class Options(Strict):
    """The report stage has no options."""


def run(state: State, options: Options) -> State:
    """Write the report; every figure in it comes from a stage."""
    folder = state.run.folder
    compressed = "compressed" if "compressed" in state.files else "model"
    for role, name in (("final", MODEL), (compressed, "model.keras")):
        if role in state.files:
            files.write_bytes_atomic(folder / name, state.path(role).read_bytes())
    report = assemble(state)
    reports.write(folder, report)
    missed = [name for name, limit in report["budget"].items() if limit["met"] is False]
    summary = f"missed: {', '.join(missed)}" if missed else str(folder / reports.PAGE_NAME)
    return state.add(summaries={state.label: summary})


def assemble(state: State) -> dict[str, Any]:
    """report.json, schema 1."""
    run, facts = state.run, state.facts
    candidates = _candidates(facts)
    return {
        "schema": reports.SCHEMA,
        "edgeprune": edgeprune.__version__,
        "target": run.target.name,
        "target_title": run.target.title,
        "seed": run.seed,
        "run": {
            "name": run.folder.name,
            "created": run.about.get("created"),
            "recipe_name": run.recipe.name,
            "command": run.about.get("command"),
        },
        "recipe": run.recipe.resolved(),
        "metric": {
            "name": run.metric.name,
            "higher_is_better": run.metric.higher_is_better,
            "split": "test",
            "samples": len(run.data.test),
        },
        "candidates": candidates,
        "stages": list(facts.get("stages", [])),
        "budget": _budget(state, candidates),
        **_budgeting(state),
        "model": {"source": run.about.get("model"), **facts.get("model", {}), "labels": list(run.data.labels)},
        "data": _data(state),
        "history": facts.get("history", {}),
        "shrink": facts.get("shrink", {}),
        "sparsify": facts.get("sparsify", {}),
        "quantization": _quantization(facts),
        "layers": _layers(facts),
        "clusters": facts.get("clusters", {}),
        "ops": facts.get("ops", []),
        "verify": facts.get("verify"),
        "arm": facts.get("arm"),
        "time": facts.get("time", {}),
        "advice": facts.get("advice", []),
        "zeros": {"words": list(run.target.zeros.words)},
        "environment": _environment(),
        "notes": [*run.about.get("notes", []), *run.data.provenance.get("notes", []), *facts.get("notes", [])],
    }


def _candidates(facts: Mapping[str, Any]) -> dict[str, Any]:
    latency = facts.get("latency", {})
    absent = {"ms": None, "reason": WHY_NOT}
    found = dict(facts.get("candidates", {}))
    if "final" in found:
        found["final"] = {**found["final"], "file": MODEL}
    return {role: {**found[role], "latency": latency.get(role, absent)} for role in ROLES if role in found}


def _budget(state: State, candidates: Mapping[str, Any]) -> dict[str, Any]:
    """Every limit of the recipe with the figure it is about; ``met`` is None where there is no figure to judge by."""
    limits = state.run.recipe.file.budget.model_dump()
    actual = _actual(state, candidates)
    return {name: _judged(limits[name], found) for name, found in actual.items() if limits[name] is not None}


def _budgeting(state: State) -> dict[str, Any]:
    """``attempts``, one by one, and in ``budgeting`` what they have in common; {} where the budgets drove nothing."""
    told = state.run.about.get("budgeting")
    if not told:
        return {}
    return {"attempts": told["attempts"], "budgeting": {key: told[key] for key in told if key != "attempts"}}


def _judged(limit: float, actual: float | None) -> dict[str, Any]:
    if actual is None:
        return {"limit": limit, "actual": None, "met": None, "reason": "no stage of the recipe gives this figure here"}
    return {"limit": limit, "actual": actual, "met": actual <= limit}


def _actual(state: State, candidates: Mapping[str, Any]) -> dict[str, float | None]:
    """Limit -> the figure that it is about; None where no stage gives it."""
    arena = state.facts.get("arm", {}).get("arena_bytes")
    found: dict[str, float | None] = dict.fromkeys(("max_drop", "max_size_kib", "max_latency_ms", "max_macs"))
    found["max_arena_kib"] = None if arena is None else arena / 1024
    if "final" not in candidates:
        return found
    final = candidates["final"]
    reference = candidates.get("float", {}).get("metric")
    return found | {
        "max_drop": None if reference is None else metrics.drop(state.run.metric, reference, final["metric"]),
        "max_size_kib": final["size_bytes"] / 1024,
        "max_latency_ms": final["latency"]["ms"],
        "max_macs": final["macs"],
    }


def _data(state: State) -> dict[str, Any]:
    """Which samples went where; only the stages that ran are named."""
    data = dict(state.run.data.provenance)
    trained = [label for label, history in state.facts.get("history", {}).items() if history["epochs"]]
    used = {
        "train": trained,
        "calibration": [
            name for name, there in (("quantize", "quantization" in state.facts), ("dense_int8", True)) if there
        ],
        "validation": ["monitoring"] if trained else [],
        "test": ["metric"],
    }
    data["splits"] = {name: {**split, "used_for": used.get(name, [])} for name, split in data.get("splits", {}).items()}
    return data


def _quantization(facts: Mapping[str, Any]) -> dict[str, Any]:
    """How every layer became int8, and what the model was rewritten by on the way.

    ``trained``: whether fake quantizers were trained with; ``mixed``: whether some layers had none; ``layers``: ``name``,
    ``kind``, ``how`` and ``reason`` of each; ``rewrites``: ``name`` and ``layers`` of each.
    """
    without = {
        "trained": False,
        "mixed": False,
        "layers": [],
        "reason": "no stage of the recipe trains for quantization",
    }
    found = facts.get("quantization", without)
    return {**found, "rewrites": [*found.get("rewrites", []), *facts.get("rewrites", [])]}


def _layers(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was planned for each layer, with what verify found in the file."""
    planned = facts.get("pruning", {}).get("layers", {})
    found = facts.get("verified_layers", {})
    return [{**planned.get(name, {"name": name}), **found.get(name, {})} for name in dict.fromkeys([*planned, *found])]


def _environment() -> dict[str, Any]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": versions}
