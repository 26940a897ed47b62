"""Quantization-aware training with TFMOT that keeps the pruned zeros (PQAT).

Takes the role ``model``; leaves ``quantized``, the fake-quantized model as a SavedModel. Where a layer cannot be trained
this way, the stage says which and leaves the model to post-training quantization, which keeps the zeros as well.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions


class Options(FitOptions):
    """Options of the quantize stage."""

    epochs: int = Field(2, ge=0, le=10_000, description="passes over the training split; 0: only calibrate")
    learning_rate: float = Field(3e-4, gt=0, le=10, description="of the first step")
    fold: Literal["dense", "all"] = Field(
        "dense",
        description="BatchNormalization folded before training: into Dense only (TFMOT folds the others while it trains), or into all",
    )
    preserve: bool = Field(True, description="keep zeros at zero while training (PQAT)")


def run(state: State, options: Options) -> State:
    """Fold, rewrite, fake-quantize, calibrate, fit, export."""
    from edgeprune.keras import conversion, export, folding, intake, pooling, quantization, training

    training.start(state.run.seed)
    model, folded = folding.fold(intake.load_own(state.path("model")), options.fold)
    model, pooled = pooling.globalize(model)
    strangers = quantization.unsupported(model)
    if strangers:
        return _leave(state, strangers)
    quantized = quantization.quantize(model, options.preserve and "masks" in state.files)
    calibration = state.run.data.calibration
    samples = quantization.calibrate(quantized, (x for x, _ in calibration.batches(64)))
    history = training.fit(quantized, state, options, training.objective(model, state.run.data.task))
    conversion.prewarm()  # it loads TensorFlow while the model is exported
    return state.add(
        files={"quantized": export.save(quantized, state.workspace / "quantized")},
        history={state.label: {"epochs": history}} if history else {},
        quantization={"trained": True, "calibrated_on": samples, "folded": folded, "global_pools": pooled},
        summaries={state.label: _summary(history, samples)},
    )


def _leave(state: State, strangers: dict[str, str]) -> State:
    named = ", ".join(f"{name} ({kind})" for name, kind in strangers.items())
    return state.add(
        quantization={"trained": False, "reason": f"TFMOT cannot train these layers: {named}"},
        notes=[
            f"Quantized after training instead of trained: TFMOT's quantization-aware training does not take {named}."
        ],
        summaries={state.label: f"left to post-training quantization: {named}"},
    )


def _summary(history: list[dict[str, Any]], samples: int) -> str:
    trained = f"{len(history)} epochs, loss {history[-1]['loss']:.4f}, " if history else ""
    return f"{trained}ranges from {samples} calibration samples"
