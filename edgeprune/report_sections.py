"""The sections of a run's page, each from its block of the report to the words and bars that the template shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune import report_figures, report_words
from edgeprune.progress import duration
from edgeprune.report_view import (
    ABSENT,
    ROLES,
    Block,
    Figure,
    Row,
    big,
    block,
    count,
    decimals,
    higher_is_better,
    memory,
    metric_name,
    number,
    percent,
    rows,
    share,
)

SNR_FULL_DB, SNR_EXACT_DB, SNR_LOW_DB = 60.0, 100.0, 10.0  # a full bar; what is called exact; what is marked
PANELS = ("metric", "size_bytes", "size_gzip_bytes", "macs", "latency")


def join(*parts: Any, sep: str = ", ") -> str:
    return sep.join(str(part) for part in parts if part)


def day(run: Block) -> str:
    return str(run.get("created") or "")[:16].replace("T", " ")


def metric_words(report: Block) -> str:
    metric = block(report, "metric")
    on = f"on {count(metric['samples'])} samples" if number(metric.get("samples")) is not None else ""
    of = f"of the {metric['split']} split" if metric.get("split") else ""
    better = "higher" if higher_is_better(report) else "lower"
    return f"The metric is {join(metric_name(report), on, of, sep=' ')}; {better} is better."


# Pictures and tables


def panels(table: Sequence[Row]) -> list[dict[str, Any]]:
    """One picture for each figure of `PANELS` that at least one candidate has."""
    shown = [row for row in table if row.key in PANELS]
    return [_panel(row.label, row.figures) for row in shown if any(f.value is not None for f in row.figures)]


def _panel(label: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """Three bars on one scale."""
    lengths = report_figures.bars([figure.value for figure in figures])
    bars = [
        # The origin of a latency is in the table; beside a bar there is room for the figure alone.
        {"role": role, "name": name, "text": f.short, "title": f.reason or f.text, **bar._asdict()}
        for (role, name), f, bar in zip(ROLES.items(), figures, lengths, strict=True)
    ]
    return {"label": label, "bars": bars}


def comparison_panels(comparison: Block) -> list[dict[str, Any]]:
    """One picture for each comparable figure of `PANELS` that two runs have, one bar per run."""
    shown = []
    for key in PANELS:
        figures = [Figure(**run["figures"][key]) for run in comparison["runs"]]
        values = [figure.value for figure in figures]
        if key not in comparison["comparable"] or len(values) - values.count(None) < 2:
            continue
        bars = [
            {"name": run["name"], "text": f.short, "title": f.reason or f.text, **bar._asdict()}
            for run, f, bar in zip(comparison["runs"], figures, report_figures.bars(values), strict=True)
        ]
        shown.append({"label": comparison["labels"][key], "bars": bars})
    return shown


def _optional(value: Any, show: Any) -> str:
    known = number(value)
    return ABSENT if known is None else str(show(known))


def _percent_wide(value: float | None) -> float | None:
    return None if value is None else round(100 * min(max(value, 0.0), 1.0), 2)


def layer(layer: Block) -> dict[str, Any]:
    sparsity, target = number(layer.get("sparsity")), number(layer.get("sparsity_target"))
    pattern, why = block(layer, "n_of_m"), str(layer.get("reason") or "")
    text = _optional(sparsity, share)
    name = str(layer.get("name", "?"))
    return {
        "name": name,
        "type": str(layer.get("type") or ""),
        "params": _optional(layer.get("params"), count),
        "granularity": str(layer.get("granularity") or ""),
        "target": _optional(target, share),
        "keras": _optional(layer.get("sparsity_keras"), share),
        "text": text,
        "n_of_m": _optional(pattern.get("share"), percent) if pattern else "",
        "reason": why,
        "width": _percent_wide(sparsity) or 0,
        "mark": _percent_wide(target),
        "title": f"{name}: {'left alone, ' + why if why else f'sparsity {text}, target {_optional(target, share)}'}",
    }


def signal(report: Block) -> dict[str, Any]:
    """The signal-to-noise ratio that every layer keeps in the file, as bars; empty where none was recorded."""
    found = [(entry, number(entry.get("snr_db"))) for entry in rows(block(report, "verify"), "layers")]
    bars = [
        {
            "name": str(entry.get("layer") or "?"),
            "text": "exact" if snr_db >= SNR_EXACT_DB else f"{snr_db:.0f} dB",
            "width": _percent_wide(snr_db / SNR_FULL_DB),
            "low": snr_db < SNR_LOW_DB,
            "title": f"{entry.get('layer')}, {entry.get('op')}: {snr_db:.1f} dB",
        }
        for entry, snr_db in found
        if snr_db is not None
    ]
    against = str(block(report, "verify").get("compared_with") or "the Keras model")
    return {"signal": bars, "signal_against": against}


def ops(report: Block) -> dict[str, Any]:
    """The ops one by one and by kind, float ones marked."""
    ops = rows(report, "ops")
    total = sum(number(op.get("macs")) or 0 for op in ops)
    kinds: dict[tuple[str, str], list[Block]] = {}
    for op in ops:
        kinds.setdefault((str(op.get("op", "?")), str(op.get("dtype", "?"))), []).append(op)
    by_kind = [
        {"op": op, "dtype": dtype, "count": len(members), **_cost(members, dtype, total)}
        for (op, dtype), members in sorted(kinds.items(), key=lambda kind: -_macs(kind[1]))
    ]
    one_by_one = [
        {
            **{
                key: str(op.get(key, "") if op.get(key) is not None else "")
                for key in ("index", "op", "layer", "dtype")
            },
            **_cost([op], str(op.get("dtype")), total),
        }
        for op in ops
    ]
    floats = sum(op["fallback"] for op in one_by_one)
    words = f"{len(ops)} ops, {big(total)} MACs. " + (
        f"{floats} of them run in float, marked below." if floats else "None of them runs in float."
    )
    return {"op_kinds": by_kind, "ops": one_by_one, "ops_words": words}


def _macs(ops: Sequence[Block]) -> float:
    return sum(number(op.get("macs")) or 0 for op in ops)


def _cost(ops: Sequence[Block], dtype: str, total: float) -> dict[str, Any]:
    macs = _macs(ops)
    part = macs / total if total else 0.0
    return {
        "macs": big(macs) if macs else "",
        "share": percent(part) if macs else "",
        "width": _percent_wide(part),
        "fallback": dtype.startswith("float"),
    }


def training(name: str, history: Block) -> dict[str, Any]:
    """The pictures of one training stage: loss and each metric, train and validation, the schedule behind them."""
    epochs = rows(history, "epochs")
    sparsity = _schedule(history, epochs)
    quantities = dict.fromkeys(
        key.removeprefix("val_") for epoch in epochs for key in epoch if key not in _NOT_CURVES and key != "val_"
    )
    pictures = []
    for key in quantities:
        both = (("training", "train", key), ("validation", "val", f"val_{key}"))
        series = [report_figures.Series(label, style, _points(epochs, column)) for label, style, column in both]
        series = [one for one in series if any(y is not None for _, y in one.points)]
        if series:
            words = f"{key} over epochs of stage {name}"
            pictures.append((key, report_figures.curves(words, series, sparsity)))
    styles = [("train", "training"), ("val", "validation")] + ([("zeros", "sparsity (right axis)")] if sparsity else [])
    return {"name": name, "words": _training_words(epochs), "pictures": pictures, "legend": styles}


_NOT_CURVES = frozenset({"epoch", "seconds", "sparsity", "learning_rate", "strength"})


def _points(epochs: Sequence[Block], key: str) -> list[report_figures.Point]:
    return [(number(epoch.get("epoch")) or index, number(epoch.get(key))) for index, epoch in enumerate(epochs, 1)]


def _schedule(history: Block, epochs: Sequence[Block]) -> list[report_figures.Point]:
    """The planned sparsity; where no plan is recorded, what the epochs had, held level before the first."""
    planned = [
        (number(point.get("epoch")) or 0.0, number(point.get("sparsity"))) for point in rows(history, "schedule")
    ]
    if planned:
        return planned
    reached = _points(epochs, "sparsity")
    known = [(x, y) for x, y in reached if y is not None]
    return [(0.0, known[0][1]), *known] if any(y for _, y in known) else []


def _training_words(epochs: Sequence[Block]) -> str:
    seconds = [number(epoch.get("seconds")) for epoch in epochs]
    took = duration(sum(s for s in seconds if s is not None)) if any(s is not None for s in seconds) else ""
    rates = [rate for rate in (number(epoch.get("learning_rate")) for epoch in epochs) if rate is not None]
    rate = (
        "" if not rates else f"learning rate {rates[0]:.3g}" + (f" to {rates[-1]:.3g}" if rates[-1] != rates[0] else "")
    )
    return join(f"{len(epochs)} epoch{'' if len(epochs) == 1 else 's'}", rate, took)


# Facts


def verify_metric(report: Block) -> list[tuple[str, str]]:
    given = block(block(report, "verify"), "metric")
    names = {"keras_float": "Keras float", "fake_quant": "Keras, fake-quantized", "tflite": "the .tflite file"}
    label = metric_name(report)
    return [(f"{label}, {words}", _optional(given[key], decimals)) for key, words in names.items() if key in given]


def arm_facts(report: Block) -> list[tuple[str, str]]:
    """What ran on Arm kernels, figure by figure; empty where nothing did (`report_words.arm_sentence` says why)."""
    arm = block(report, "arm")
    if number(arm.get("metric")) is None:
        return []
    name, steps = metric_name(report), number(arm.get("largest_difference_steps"))
    facts: list[tuple[str, str]] = [
        (f"{name} on Arm kernels", decimals(arm["metric"])),
        (f"{name} on this host, same samples", _optional(arm.get("host_metric"), decimals)),
        ("same answer", _optional(arm.get("agreement"), lambda part: f"{percent(part)} of samples")),
        ("largest difference", "" if steps is None else report_words.steps(steps)),
        ("samples", join(_optional(arm.get("samples"), count), arm.get("selection"))),
        ("runtime", join(arm.get("runtime"), arm.get("cpu"), arm.get("emulated") and "emulated")),
        ("tensor arena", _optional(arm.get("arena_bytes"), memory)),
        ("peak memory of the process", _optional(arm.get("peak_rss_bytes"), memory)),
    ]
    return [(words, value) for words, value in facts if value not in ("", ABSENT)]


def splits(report: Block) -> list[dict[str, str]]:
    splits = block(block(report, "data"), "splits")
    return [
        {
            "name": str(name),
            "samples": _optional(block(splits, name).get("samples"), count),
            "used_for": join(*(block(splits, name).get("used_for") or [])) or "nothing",
            "part_of": str(block(splits, name).get("part_of") or ""),
        }
        for name in splits
    ]


def data_words(data: Block) -> str:
    classes = number(data.get("classes"))
    kind = join(data.get("task"), classes is not None and f"{count(classes)} classes")
    seed = data.get("seed")
    return join(data.get("source"), kind, "" if seed is None else f"split with seed {seed}", sep="; ")


def model(model: Block) -> list[tuple[str, str]]:
    labels = model.get("labels")
    facts = [
        ("name", join(model.get("name"))),
        ("source", join(model.get("source"))),
        *_ports(model, "input"),
        *_ports(model, "output"),
        ("labels", join(*labels) if isinstance(labels, list) else ""),
    ]
    return [(name, words) for name, words in facts if words]


def _ports(model: Block, kind: str) -> list[tuple[str, str]]:
    """Inputs or outputs; where there are several, each by its name."""
    ports = rows(model, f"{kind}s")
    if len(ports) < 2:
        return [(kind, _tensor(block(model, kind)))]
    return [(f"{kind} {port.get('name') or '?'}", _tensor(port)) for port in ports]


def _tensor(tensor: Block) -> str:
    """'32 × 32 × 3; int8; value = 0.00392 × (integer + 128); ...': what a caller needs to feed the file."""
    shape = tensor.get("shape")
    words = " × ".join(str(size) for size in shape) if isinstance(shape, list) else ""
    scale, zero = number(tensor.get("scale")), number(tensor.get("zero_point"))
    quantized = "" if scale is None or zero is None else f"value = {scale:.6g} × {_plus('integer', -zero)}"
    prepared, offset = (number(block(tensor, "preprocess").get(key)) for key in ("scale", "offset"))
    given = "" if prepared is None or offset is None else f"value = {_plus(f'{prepared:.6g} × raw datum', offset)}"
    return join(words, tensor.get("dtype"), quantized, given.replace("(", "").replace(")", ""), sep="; ")


def _plus(words: str, value: float) -> str:
    """'(integer + 128)'; nothing is added for 0."""
    return words if value == 0 else f"({words} {'+' if value > 0 else '−'} {abs(value):.6g})"


def environment(report: Block) -> list[tuple[str, str]]:
    environment = block(report, "environment")
    packages = block(environment, "packages")
    facts = [("edgeprune", report.get("edgeprune")), ("target", report.get("target")), ("seed", report.get("seed"))]
    facts += [(key, value) for key, value in environment.items() if not isinstance(value, Mapping | list)]
    facts += list(packages.items())
    return [(str(name), str(value)) for name, value in facts if value is not None]


def stages(report: Block) -> list[tuple[str, str]]:
    return [(str(s.get("name", "?")), _optional(s.get("seconds"), duration)) for s in rows(report, "stages")]
