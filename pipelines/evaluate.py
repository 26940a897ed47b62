"""Keep a trained model as the float reference that every later figure is compared with.

Takes the role ``model``; leaves ``float``. Its metric on the test split is measured once, in ``verify``, together with
those of the files made from it.
"""

from __future__ import annotations

from edgeprune.pipeline import State
from edgeprune.validation import Strict


class Options(Strict):
    """The evaluate stage has no options."""


def run(state: State, options: Options) -> State:
    """Show the metric on the validation split, so that a wrong input scale is seen before hours of training."""
    from edgeprune.keras import intake, training

    model = intake.load_own(state.path("model"))
    saved = intake.save(model, state.workspace / "model.keras")
    split = state.run.data.validation if len(state.run.data.validation) else state.run.data.calibration
    metric, outputs = state.run.metric, training.outputs(model, split)
    others = [f"{each.title} {each(split.y, outputs):.4f}" for each in metric.others.values()]
    figures = ", ".join([f"{metric.title} {metric(split.y, outputs):.4f}", *others])
    return state.add(
        files={"float": saved},
        summaries={state.label: f"{figures} on {len(split)} samples that are not the test split"},
    )
