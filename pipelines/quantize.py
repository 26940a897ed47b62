"""Quantization-aware training with fake quantizers that keeps the pruned zeros (PQAT).

Takes the role ``model``. Where fake quantizers carry every layer, leaves ``quantized``, the fake-quantized model as a
SavedModel. Where they do not, the other layers are trained with them all the same; then the trained weights go into the
float model, which is left as ``model`` for the convert stage to quantize after training, and a note says for which
layers and why. Zeros are kept in either case.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions

LAST_OF = (
    "train",
    "shrink",
    "prune",
    "quantize",
)  # stages that may not come after this one: what they change is converted no more
WORTHWHILE = 0.1  # of the trainable weights: with fewer behind fake quantizers, training them is time for nothing


class Options(FitOptions):
    """Options of the quantize stage."""

    epochs: int = Field(2, ge=0, le=10_000, description="passes over the training split; 0: only calibrate")
    learning_rate: float = Field(3e-4, gt=0, le=10, description="of the first step")
    fold: Literal["dense", "all"] = Field(
        "dense",
        description="BatchNormalization folded before training: into Dense only (into convolutions while training), or into all",
    )
    preserve: bool = Field(True, description="keep zeros at zero while training (PQAT)")
    skip: str | None = Field(
        None, description="regular expression: layers whose whole name matches get their ranges after training instead"
    )

    @field_validator("skip")
    @classmethod
    def _compiles(cls, expression: str | None) -> str | None:
        try:
            re.compile(expression or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return expression


def run(state: State, options: Options) -> State:
    """Prepare, fake-quantize, calibrate, fit; then export, or give the trained weights back to the float model.

    Raises:
        ConversionError: a recurrent layer would crash the converter.
    """
    from edgeprune.keras import conversion, export, intake, preparation, quantization, recurrent, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    recurrent.refuse_loops(model)
    prepared = preparation.prepare(model, options.fold)
    skip = [layer.name for layer in prepared.model.layers if options.skip and re.fullmatch(options.skip, layer.name)]
    plan = quantization.plan(prepared.model, skip)
    facts: dict[str, Any] = {
        "rewrites": [{"name": done.name, "layers": list(done.layers)} for done in prepared.done],
        "layers": [layer._asdict() for layer in plan],
    }
    left = quantization.post_training(plan)
    share = quantization.trainable(prepared.model, plan)
    if left and (share < WORTHWHILE or options.epochs == 0):
        return _leave(state, prepared.model, facts, plan, [], 0)
    preserve = options.preserve and "masks" in state.files
    quantized = quantization.quantize(prepared.model, preserve, skip)
    samples = quantization.calibrate(quantized, (x for x, _ in state.run.data.calibration.batches(64)))
    goal = training.objective(prepared.model, state.run.data.tasks)
    history = training.fit(quantized, state, options, goal) if share else []
    quantization.widen(quantized)  # ranges move while training
    conversion.prewarm()  # it loads TensorFlow while the model is exported
    if left:
        return _leave(state, quantization.unquantized(quantized, prepared.model), facts, plan, history, samples)
    return state.add(
        files={"quantized": export.save(quantized, state.workspace / "quantized")},
        history={state.label: {"epochs": history}} if history else {},
        quantization={**facts, "trained": True, "mixed": False, "calibrated_on": samples},
        summaries={state.label: _summary(history, samples)},
    )


def _leave(state: State, model: Any, facts: dict[str, Any], plan: Any, history: list[Any], samples: int) -> State:
    """The prepared float model, its weights trained or not, as the model to be quantized after training."""
    from edgeprune.keras import intake, quantization

    words = _reasons(quantization.post_training(plan))
    trained = samples > 0
    how = "Trained with fake quantizers except" if trained else "Quantized after training instead of trained:"
    summary = f"{_summary(history, samples)}; post-training ranges" if trained else "left to post-training quantization"
    return state.add(
        files={"model": intake.save(model, state.workspace / "model.keras")},
        history={state.label: {"epochs": history}} if history else {},
        quantization={**facts, "trained": trained, "mixed": trained, "calibrated_on": samples, "reason": words},
        notes=[f"{how} {words}. All ranges of the file come from calibration samples."],
        summaries={state.label: f"{summary}: {words}"},
    )


def _reasons(layers: Any, shown: int = 5) -> str:
    """``norm_1, norm_2 (LayerNormalization: why)``, and so on: layers of one class with one reason stand together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        groups.setdefault((layer.kind, layer.reason), []).append(layer.name)
    return "; ".join(
        f"{', '.join(names[:shown])}{f' and {len(names) - shown} more' if len(names) > shown else ''} ({kind}: {reason})"
        for (kind, reason), names in groups.items()
    )


def _summary(history: list[dict[str, Any]], samples: int) -> str:
    trained = f"{len(history)} epochs, loss {history[-1]['loss']:.4f}, " if history else ""
    return f"{trained}ranges from {samples} calibration samples"
