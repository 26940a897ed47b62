"""Honest advice after a profile: what a model's time goes to on a target, what it wastes there, and the next thing to try.

Every piece of advice is a sentence and the ops and layers that it is about. It is read off the file, the target's facts and
the milliseconds of the ops; where those are not known (a board that nothing was counted for), the multiply-accumulates stand
in for them, and the sentence says so. `edgeprune.advice_findings` has the findings; here is what to do about them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from edgeprune import accelerator, analytic, prediction, tflite
from edgeprune.advice_findings import (
    KERNELS,
    WORTHWHILE,
    Advice,
    View,
    bound,
    depthwise,
    ends_the_model,
    lanes,
    lost_to_lanes,
    mapped,
    named,
    silent,
    silent_channels,
    some,
    streamed,
    zeros,
)
from edgeprune.errors import ArtefactError
from edgeprune.report_time import WORTH_SAYING, milliseconds
from edgeprune.report_view import percent
from edgeprune.target import Target
from edgeprune.tflite_objects import Op, TFLiteFile

ONCE = 0.5  # share of the latency that is once per inference: above it the ops are not worth more effort


def advise(file: TFLiteFile, target: Target, figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What there is to say after a profile, the next thing to try last.

    Args:
        file: what was profiled.
        target: where.
        figures: of `profiling.profile`: ``ops`` with the ``ms`` of each (None where not known), ``fixed_ms`` and ``runtimes``.

    Returns:
        `Advice` as plain data.
    """
    known = [op.get("ms") for op in figures.get("ops", [])]
    ms = [float(one) for one in known if one is not None]
    whole = len(ms) == len(file.ops) and sum(ms) > 0
    view = View(
        *(file, target, analytic.layers(file), ms if whole else []),
        once_ms=float(figures.get("fixed_ms") or 0.0),
        runtimes=figures.get("runtimes") or [],
        verdict=_verdict(file, target),
    )
    rules = (bound, depthwise, lanes, zeros, silent, mapped, streamed, following)
    return [asdict(one) for rule in rules if (one := rule(view)) is not None]


def _verdict(file: TFLiteFile, target: Target) -> accelerator.Verdict | None:
    chip = accelerator.of(target)
    try:
        return None if chip is None else chip.check(file, target)
    except ArtefactError:
        return None


def following(view: View) -> Advice:
    """The next thing to try: what costs no accuracy first."""
    heavy = view.costliest(op for op in view.file.ops if op.op in KERNELS and not ends_the_model(view.file, op))[:3]
    steps: tuple[Callable[[View, Sequence[Op]], Advice | None], ...] = (
        _quantize,
        _map,
        _other_runtime,
        _enough,
        _remove_silent,
        _fill_lanes,
        _hold,
    )
    return next((found for step in steps if (found := step(view, heavy)) is not None), None) or _shrink(view, heavy)


def _quantize(view: View, _: Sequence[Op]) -> Advice | None:
    if prediction.precision(view.layers) == "int8":
        return None
    floats = [view.file.ops[index] for index in tflite.float_ops(view.file)]
    return view.about(
        "next",
        "Next: quantize it. The model computes in float; `edgeprune build` makes and proves an int8 one.",
        floats,
    )


def _map(view: View, _: Sequence[Op]) -> Advice | None:
    left = mapped(view)
    if left is None:
        return None
    words = f"Next: bring the ops that stay on the CPU to the accelerator: `edgeprune check FILE.tflite --target {view.target.name}`."
    return Advice("next", words, left.ops, left.layers, left.share)


def _other_runtime(view: View, _: Sequence[Op]) -> Advice | None:
    known = [(str(one["runtime"]), one["latency"].get("ms")) for one in view.runtimes]
    figures = [(name, float(ms)) for name, ms in known if ms]
    if len(figures) < 2:
        return None
    (own, now), (other, then) = figures[0], min(figures[1:], key=lambda pair: pair[1])
    if now < WORTH_SAYING * then:
        return None
    return Advice(
        "next",
        f"Next: run the same file under {other}: {now / then:.2f} times as fast as under {own}, and nothing is lost.",
    )


def _enough(view: View, _: Sequence[Op]) -> Advice | None:
    whole = view.once_ms + sum(view.ms)
    if not view.ms or view.once_ms < ONCE * whole:
        return None
    return Advice(
        "next",
        f"Next: nothing that removes weights. {milliseconds(view.once_ms)} of {milliseconds(whole)} are once per inference; without any "
        f"op at all it would be {whole / view.once_ms:.2f} times as fast. Spend the room on accuracy.",
    )


def _remove_silent(view: View, _: Sequence[Op]) -> Advice | None:
    counts = silent_channels(view)
    lost = sum(view.share([view.file.ops[index]]) * _part(view, index, count) for index, count in counts.items())
    if lost < WORTHWHILE:
        return None
    ops = view.costliest(view.file.ops[index] for index in counts)
    words = (
        f"Next: remove the output channels that hold nothing but zeros, in {named(view, ops)}: {percent(lost)} {view.of}, for channels "
        "that say the same every time. The stage `shrink` with `criterion: magnitude` takes them first."
    )
    return view.about("next", words, ops)


def _part(view: View, index: int, count: int) -> float:
    return count / max(view.layers[index].kernel[0], 1)


def _fill_lanes(view: View, _: Sequence[Op]) -> Advice | None:
    found, lost = lanes(view), lost_to_lanes(view)
    if found is None or lost < WORTHWHILE:
        return None
    words = f"Next: take channel counts that fill the kernels' steps in {some(list(found.layers))}; that alone is up to {percent(lost)}."
    return Advice("next", words, found.ops, found.layers, found.share)


def _hold(view: View, heavy: Sequence[Op]) -> Advice | None:
    if streamed(view) is None:
        return None
    words = "Next: make the parameters fit on the chip: `--set stages.shrink.params=0.5` removes channels until half of them stay."
    return view.about("next", words, heavy)


def _shrink(view: View, heavy: Sequence[Op]) -> Advice:
    found = bound(view)
    aim = "params" if found is not None and found.words.startswith("Memory") else "macs"
    if not heavy:
        return Advice(
            "next", "Next: nothing of this model can be removed: it has no kernels whose channels are its own."
        )
    return view.about(
        "next",
        f"Next: remove channels where the time is, in {named(view, heavy)} ({percent(view.share(heavy))} {view.of}). `edgeprune "
        f"sensitivity MODEL --data DATA` says which can go, `--set stages.shrink.{aim}=0.5` removes them.",
        heavy,
    )
