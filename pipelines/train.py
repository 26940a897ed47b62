"""Train the float model, or only evaluate it when it comes trained.

Takes the role ``model``; leaves ``model`` and ``float``, the reference that every later figure is compared with; where they
are to be kept, the weights of an early epoch as ``early``, for stages that rewind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgeprune.errors import RecipeError
from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions

EARLY = "early.keras"
SPREADS = True  # over devices


class Options(FitOptions):
    """Options of the train stage."""

    epochs: int = Field(10, ge=0, le=10_000, description="passes over the training split")
    when: Literal["untrained", "always"] = Field(
        "untrained",
        description="untrained: only a model that comes without trained weights; always: fine-tune a trained one too",
    )
    keep: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the epochs after which the weights are kept besides, 0..1, for sparsify to rewind to; 0: the first "
        "ones; of a model that is not trained here the given ones; null: none are kept",
    )


def run(state: State, options: Options) -> State:
    """Fit when asked, then keep the result as the float reference."""
    from edgeprune.keras import intake, program, replicas, statistics, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    why = program.why_not(model)
    wanted = not why and options.epochs > 0 and (options.when == "always" or not state.run.inputs["trained"])
    history = []
    early = state.workspace / EARLY
    kept = round((options.keep or 0.0) * options.epochs) if wanted else 0
    if options.keep is not None and kept == 0:
        intake.save(model, early)
    if wanted:
        _check_teacher(state, options)
        with replicas.spread(state, model) as placed:
            callbacks = _keepers(placed, early, kept) if kept else []
            history = training.fit(placed, state, options, training.objective(model, state.run.data.tasks), callbacks)
        statistics.settle(model, state.run.data.train)
    saved = intake.save(model, state.workspace / "model.keras")
    summary = f"{len(history)} epochs, loss {history[-1]['loss']:.4f}" if history else "taken as it is"
    return state.add(
        files={"model": saved, "float": saved, **({} if options.keep is None else {"early": early})},
        history={state.label: {"epochs": history}} if history else {},
        early=_early(options, kept),
        notes=[f"{why}. It is not trained, and becomes int8 after training only."] if why else [],
        summaries={state.label: summary},
    )


def _check_teacher(state: State, options: Options) -> None:
    """Raises:
    RecipeError: the model would have to learn from itself as it came, untrained.
    """
    if options.distill and options.distill.teacher == "given" and not state.run.inputs["trained"]:
        raise RecipeError(
            f"stages.{state.label}.distill.teacher: the model as this stage gets it is not trained yet, so it has nothing to teach. Give "
            "the path of a trained one, or distill in a later stage."
        )


def _keepers(model: Any, early: Path, kept: int) -> list[Any]:
    """A callback that saves the model after so many epochs, before they are checkpointed."""
    from edgeprune.keras import graph, intake, keras

    def save(epoch: int, logs: Any) -> None:
        if epoch + 1 == kept:
            intake.save(graph.rebuild(model), early)

    keeper = keras.callbacks.LambdaCallback(on_epoch_end=save)
    keeper._supports_tf_logs = True  # or Keras would wait for the loss after every call
    return [keeper]


def _early(options: Options, kept: int) -> dict[str, Any]:
    """How training went on from the weights that were kept; empty if none were."""
    if options.keep is None:
        return {}
    words = {name: getattr(options, name) for name in ("learning_rate", "decay", "optimizer")}
    return {"share": kept / max(options.epochs, 1), "epochs": options.epochs, **words}
