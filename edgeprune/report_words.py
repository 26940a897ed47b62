"""What a report says in sentences: Arm kernels, proofs, budgets, layers left alone, what the zeros buy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeprune.report_view import (
    ABSENT,
    Block,
    block,
    count,
    decimals,
    metric_name,
    number,
    percent,
    reason,
    rows,
)


def arm_sentence(report: Block) -> str:
    """What the target's own kernels say, or how to have them asked."""
    arm = block(report, "arm")
    if not arm:
        return "Not run on Arm kernels: not recorded."
    if number(arm.get("metric")) is None:
        how = f" To get it: {arm['how']}" if arm.get("how") else ""
        return f"Not run on Arm kernels: {reason(arm).rstrip('.')}.{how}"
    name = metric_name(report)
    where = ", ".join(str(arm[key]) for key in ("runtime", "cpu") if arm.get(key))
    parts = [f"{name} {decimals(arm['metric'])} on Arm kernels ({where}{', emulated' if arm.get('emulated') else ''})"]
    if number(arm.get("host_metric")) is not None:
        parts.append(f"{decimals(arm['host_metric'])} on this host with the same samples")
    parts.append(_agreement(arm))
    if number(arm.get("samples")) is not None:
        selection = f", {arm['selection']}" if arm.get("selection") else ""
        parts.append(f"{count(arm['samples'])} samples{selection}")
    return "; ".join(part for part in parts if part) + "."


def _agreement(of: Block) -> str:
    """'same answer on 99.9 % of samples, outputs at most 1 quantization step apart'."""
    words = []
    if number(of.get("agreement")) is not None:
        words.append(f"same answer on {percent(of['agreement'])} of samples")
    largest = number(of.get("largest_difference_steps"))
    if largest is not None:
        words.append(f"outputs at most {steps(largest)} apart" if largest else "outputs equal")
    return ", ".join(words)


def steps(value: float) -> str:
    """'1 quantization step', '3 quantization steps'."""
    return f"{value:g} quantization step{'' if value == 1 else 's'}"


def advice(report: Block) -> list[str]:
    """What the profile made of the model (`edgeprune.advice`), the next thing to try last."""
    return [str(one["words"]) for one in rows(report, "advice") if one.get("words")]


def verify_sentences(report: Block) -> list[tuple[bool | None, str]]:
    """What was proven on the file: (held?, words); None where nothing was claimed."""
    verify = block(report, "verify")
    if not verify:
        return [(None, "not verified: not recorded")]
    if reason(verify, ""):
        return [(None, f"not verified: {reason(verify)}")]
    found: list[tuple[bool | None, str]] = []
    int8 = number(verify.get("int8_share"))
    if int8 is not None:
        found.append((int8 == 1, f"{percent(int8)} of the ops are int8{_float_ops(verify)}"))
    if isinstance(block(verify, "int8").get("holds"), bool):
        found += _guarantee(block(verify, "int8"))
    if isinstance(verify.get("zeros_match"), bool):
        held = verify["zeros_match"]
        found.append((held, f"the zeros in the file {'equal' if held else 'do not equal'} the masks"))
    if isinstance(verify.get("n_of_m_match"), bool):
        held = verify["n_of_m_match"]
        found.append((held, f"{_patterns(report)} {'holds' if held else 'does not hold'} in every block of its layers"))
    if _agreement(verify):
        diverges = block(verify, "first_divergence")
        words = f"against {verify.get('compared_with') or 'the fake-quantized Keras model'}: {_agreement(verify)}"
        if diverges:
            layer = f" ({diverges['layer']})" if diverges.get("layer") else ""
            words += f"; they part at op {diverges.get('index')} {diverges.get('op', '')}{layer}, "
            words += f"by {diverges.get('steps')} steps"
        found.append((None if not diverges else False, words))
    return found or [(None, "not verified: not recorded")]


def _guarantee(int8: Block) -> list[tuple[bool | None, str]]:
    """Whether the file is int8 throughout; float ops are told with the share of int8 ops."""
    if int8["holds"]:
        return [
            (
                True,
                "every tensor is int8 (int32 biases), the shapes are fixed, and the file is no larger than that needs",
            )
        ]
    return [(False, str(entry.get("message"))) for entry in rows(int8, "violations") if entry.get("kind") != "float_op"]


def _float_ops(verify: Block) -> str:
    ops = [f"{op.get('op')} {op.get('index')} ({op.get('layer') or 'no layer'})" for op in rows(verify, "float_ops")]
    return f"; left in float: {', '.join(ops)}" if ops else ""


def _patterns(report: Block) -> str:
    found = [layer["n_of_m"] for layer in rows(report, "layers") if isinstance(layer.get("n_of_m"), Mapping)]
    names = dict.fromkeys(f"{pattern.get('n')}:{pattern.get('m')}" for pattern in found)
    return " and ".join(names) or "n:m"


def quantization_sentence(report: Block) -> str:
    """How the layers became int8: 'Trained with fake quantizers: 9 layers trained, 3 fused into the op before them.'"""
    quantization = block(report, "quantization")
    if not quantization:
        return ""
    how = [str(layer.get("how")) for layer in rows(quantization, "layers")]
    counts = ", ".join(f"{how.count(word)} {words}" for word, words in _HOW.items() if word in how)
    layers = f": of {len(how)} layers {counts}" if counts else ""
    if quantization.get("trained") is not True:
        given = "" if how else f": {reason(quantization, 'the recipe asks for it')}"
        return f"Quantized after training, with ranges from calibration samples{layers}{given}."
    ranges = "; all ranges of the file come from calibration samples" if quantization.get("mixed") is True else ""
    return f"Trained with fake quantizers{layers}{ranges}."


_HOW = {
    "trained": "trained with their ranges",
    "fused": "computed inside the op before them",
    "passed on": "without a range of their own",
    "post-training": "left to ranges after training",
}


def post_training(report: Block) -> list[tuple[str, list[str]]]:
    """Layers that fake quantizers did not carry, grouped: (class and reason, names)."""
    groups: dict[str, list[str]] = {}
    for layer in rows(block(report, "quantization"), "layers"):
        if layer.get("how") == "post-training":
            why = f"{layer.get('kind') or 'layer'}: {reason(layer)}"
            groups.setdefault(why, []).append(str(layer.get("name", "?")))
    return list(groups.items())


def rewrites(report: Block) -> list[tuple[str, str]]:
    """What the model was rewritten by before it was quantized: (name, layers)."""
    found = []
    for rewrite in rows(block(report, "quantization"), "rewrites"):
        layers = rewrite.get("layers")
        found.append(
            (str(rewrite.get("name", "?")), ", ".join(map(str, layers)) if isinstance(layers, list) else ABSENT)
        )
    return found


def left_alone(report: Block) -> list[tuple[str, list[str]]]:
    """Layers with weights that were not pruned, grouped: (reason, names)."""
    groups: dict[str, list[str]] = {}
    for layer in rows(report, "layers"):
        if layer.get("reason"):
            groups.setdefault(str(layer["reason"]), []).append(str(layer.get("name", "?")))
    return list(groups.items())


def budgets(report: Block) -> list[tuple[bool | None, str]]:
    """(met?, 'drop 0.0028, at most 0.0100 allowed'); None where the figure is absent, which is not the same as met."""
    found: list[tuple[bool | None, str]] = []
    for name, given in block(report, "budget").items():
        if not isinstance(given, Mapping):
            continue
        limit, actual = number(given.get("limit")), number(given.get("actual"))
        label, render = _BUDGETS.get(name, (str(name).replace("_", " "), decimals))
        allowed = f"at most {ABSENT if limit is None else render(limit)} allowed"
        if actual is None:
            found.append((None, f"{label} not known, {allowed}: {reason(given.get('actual'), reason(given))}"))
        else:
            met = given.get("met") is True
            found.append((met, f"{label} {render(actual)}, {allowed}{'' if met else ': missed'}"))
    return found


_BUDGETS: dict[str, tuple[str, Any]] = {
    "max_drop": ("drop", decimals),
    "max_latency_ms": ("latency", lambda ms: f"{ms:.3g} ms"),
    "max_size_kib": ("size", lambda size: f"{size:,.1f} KiB"),
    "max_macs": ("MACs", count),
    "max_arena_kib": ("tensor arena", lambda size: f"{size:,.1f} KiB"),
}


def zeros_words(report: Block) -> list[str]:
    """What the zeros buy on this target and what they do not, in paragraphs."""
    words = block(report, "zeros").get("words")
    return [str(paragraph) for paragraph in words] if isinstance(words, list) else []
