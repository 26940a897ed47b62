"""Train the float model, or only evaluate it when it comes trained.

Takes the role ``model``; leaves ``model`` and ``float``, the reference that every later figure is compared with.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions


class Options(FitOptions):
    """Options of the train stage."""

    epochs: int = Field(10, ge=0, le=10_000, description="passes over the training split")
    when: Literal["untrained", "always"] = Field(
        "untrained",
        description="untrained: only a model that comes without trained weights; always: fine-tune a trained one too",
    )


def run(state: State, options: Options) -> State:
    """Fit when asked, then keep the result as the float reference."""
    from edgeprune.keras import intake, program, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    why = program.why_not(model)
    wanted = not why and options.epochs > 0 and (options.when == "always" or not state.run.inputs["trained"])
    history = []
    if wanted:
        history = training.fit(model, state, options, training.objective(model, state.run.data.tasks))
    saved = intake.save(model, state.workspace / "model.keras")
    summary = f"{len(history)} epochs, loss {history[-1]['loss']:.4f}" if history else "taken as it is"
    return state.add(
        files={"model": saved, "float": saved},
        history={state.label: {"epochs": history}} if history else {},
        notes=[f"{why}. It is not trained, and becomes int8 after training only."] if why else [],
        summaries={state.label: summary},
    )
