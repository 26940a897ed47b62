"""Quantization-aware training with fake quantizers that keeps the pruned zeros (PQAT).

Takes the role ``model``. Where fake quantizers carry every layer, leaves ``quantized``, the fake-quantized model as a
SavedModel. Where they do not, the other layers are trained with them all the same; then the trained weights go into the
float model, which is left as ``model`` for the convert stage to quantize after training, and a note says for which
layers and why. Zeros are kept in either case, and so are the clusters of a cluster stage (CQAT; with zeros PCQAT).

With ``prune`` the zeros are laid here, while the weights train on the int8 grid; then it leaves ``masks`` too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from edgeprune.errors import RecipeError
from edgeprune.option_types import Block, Expression, NofM
from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions
from edgeprune.validation import Strict

# Stages that may not come after this one: what they change is converted no more.
LAST_OF = ("train", "shrink", "prune", "sparsify", "gate", "regularize", "cluster", "quantize")
SPREADS = True  # over devices
WORTHWHILE = 0.1  # of the trainable weights: with fewer behind fake quantizers, training them is time for nothing


class Prune(Strict):
    """How zeros are laid while training with fake quantizers; a weight's score is its magnitude on the int8 grid."""

    granularity: Literal["weight", "block", "n:m"] = Field("weight", description="what lives or dies together")
    pattern: NofM = Field("2:4", description="for n:m: keep n of every m consecutive input channels")
    block: Block = Field([4, 1], description="for block: consecutive input channels x output channels")
    schedule: Literal["polynomial", "constant"] = Field(
        "polynomial", description="how sparsity rises; an n:m pattern takes one more zero per block at a time"
    )
    initial: float = Field(0.0, ge=0, lt=1, description="sparsity at `begin`, 0..1")
    final: float = Field(
        0.5, gt=0, lt=1, description="sparsity from `end` on, 0..1; for n:m it follows from the pattern"
    )
    begin: float = Field(0.0, ge=0, le=1, description="share of the stage's steps after which pruning starts, 0..1")
    end: float = Field(
        0.6, gt=0, le=1, description="share of the stage's steps after which the final sparsity is reached, 0..1"
    )
    power: float = Field(3.0, gt=0, le=100, description="of the polynomial; 1 is a straight line")
    frequency: int | None = Field(None, ge=1, description="steps between mask updates; null: a hundredth of the ramp")
    include: Expression = Field(".*", description="regular expression: only layers whose whole name matches")
    exclude: Expression | None = Field(None, description="regular expression: no layer whose whole name matches")
    control: bool = Field(
        False,
        description="train a second model to compare with: pruned for the first half of the epochs, with fake quantizers for the rest",
    )

    @model_validator(mode="after")
    def _possible(self) -> Prune:
        if not self.begin < self.end:
            raise ValueError(f"begin ({self.begin}) must be smaller than end ({self.end})")
        return self


class Options(FitOptions):
    """Options of the quantize stage."""

    epochs: int = Field(2, ge=0, le=10_000, description="passes over the training split; 0: only calibrate")
    learning_rate: float = Field(3e-4, gt=0, le=10, description="of the first step")
    fold: Literal["dense", "all"] = Field(
        "dense",
        description="BatchNormalization folded before training: into Dense only (into convolutions while training), or into all",
    )
    preserve: bool = Field(True, description="keep zeros at zero while training (PQAT)")
    preserve_clusters: bool = Field(
        True, description="keep what a cluster stage made equal equal while training (CQAT; with zeros PCQAT)"
    )
    prune: Prune | None = Field(
        None, description="lay zeros while training: `{}` or the keys below; null: keep only those that are there"
    )
    skip: Expression | None = Field(
        None, description="regular expression: layers whose whole name matches get their ranges after training instead"
    )

    @model_validator(mode="after")
    def _prunes_in_epochs(self) -> Options:
        least = 2 if self.prune and self.prune.control else 1
        if self.prune and self.epochs < least:
            raise ValueError(f"prune needs at least {least} epoch{'s' if least > 1 else ''} here, got {self.epochs}")
        return self


def run(state: State, options: Options) -> State:
    """Prepare, fake-quantize, calibrate, fit; then export, or give the trained weights back to the float model.

    Raises:
        ConversionError: a recurrent layer would crash the converter.
        RecipeError: clusters cannot be kept, or nothing can be pruned.
    """
    from edgeprune.keras import conversion, export, intake, preparation, quantization, recurrent, replicas, training

    training.start(state.run.seed)
    model = intake.load_own(state.path("model"))
    recurrent.refuse_loops(model)
    prepared = preparation.prepare(model, options.fold)
    skip = [layer.name for layer in prepared.model.layers if options.skip and re.fullmatch(options.skip, layer.name)]
    plan = quantization.plan(prepared.model, skip)
    shared = _shared(state, options, prepared.model)
    facts: dict[str, Any] = {
        "rewrites": [{"name": done.name, "layers": list(done.layers)} for done in prepared.done],
        "layers": [layer._asdict() for layer in plan],
    }
    left = quantization.post_training(plan)
    share = quantization.trainable(prepared.model, plan)
    if left and (share < WORTHWHILE or options.epochs == 0):
        _refuse_untrained(state, options, left)
        return _leave(state, prepared.model, facts, plan, [], 0)
    pruning = _Pruning(state, options, options.prune, prepared.model, plan) if options.prune else None
    preserve = options.preserve and "masks" in state.files

    def quantizing() -> Any:
        return quantization.quantize(prepared.model, preserve, skip, shared, pruning.layers if pruning else None)

    quantized = quantizing()
    samples = quantization.calibrate(quantized, (x for x, _ in state.run.data.calibration.batches(64)))
    goal = training.objective(prepared.model, state.run.data.tasks)
    history: list[dict[str, Any]] = []
    if share:
        with replicas.spread(state, quantized, quantizing) as placed:
            callbacks, schedule = pruning.follow(placed) if pruning else ((), None)
            history = training.fit(placed, state, options, goal, callbacks, schedule)
    quantization.settle(quantized)
    quantization.widen(quantized)  # ranges move while training
    if pruning:
        state = pruning.told(state, quantized, skip, history)
    conversion.prewarm()  # it loads TensorFlow while the model is exported
    state = _with_clusters(state, options, "channel" if left else "asked")
    if left:
        return _leave(state, quantization.unquantized(quantized, prepared.model), facts, plan, history, samples)
    return state.add(
        files={"quantized": export.save(quantized, state.workspace / "quantized")},
        history=_history(state, history),
        quantization={**facts, "trained": True, "mixed": False, "calibrated_on": samples},
        summaries={state.label: _summary(history, samples)},
    )


def _history(state: State, history: list[dict[str, Any]]) -> dict[str, Any]:
    told = state.facts.get("history", {}).get(state.label, {})
    return {state.label: {"epochs": history, **told}} if history else {}


def _shared(state: State, options: Options, model: Any) -> dict[str, Any]:
    """Name of every clustered layer -> the scope of its clusters; nothing where they are not kept.

    Raises:
        RecipeError: the rewrites before training have given a kernel more values than its clusters are.
    """
    from edgeprune import clusters
    from edgeprune.keras import clustering

    if not options.preserve_clusters:
        return {}
    entries = state.facts.get("clustering", {}).get("layers", {})
    found = {name: entry for name, entry in entries.items() if entry["asked"]}
    for name, entry in found.items():
        values = clusters.distinct(clustering.kernel_of(model.get_layer(name)).numpy(), entry["scope"])
        if values > entry["asked"]:
            raise RecipeError(
                f"The layer '{name}' was clustered to {entry['asked']} values, but has {values} after the rewrites of stages."
                f"{state.label}: a scale was multiplied into its kernel. Give stages.{state.label}.fold and the cluster stage's fold "
                "the same value."
            )
    return {name: entry["scope"] for name, entry in found.items()}


def _with_clusters(state: State, options: Options, kept: str) -> State:
    """The state that knows where the file's clusters are counted: as asked, in each channel, or not at all."""
    if "clustering" not in state.facts:
        return state
    return state.add(clustering={"kept": kept if options.preserve_clusters else None})


def _refuse_untrained(state: State, options: Options, left: Any) -> None:
    """Raises:
    RecipeError: the stage was to prune while training, and there is nothing to train.
    """
    if options.prune:
        raise RecipeError(
            f"stages.{state.label}.prune needs layers that are trained with fake quantizers, and here too few are: {_reasons(left)}. "
            "Take a prune stage before it instead."
        )


class _Pruning:
    """Pruning while the stage trains: what, when, and what is told of it."""

    def __init__(self, state: State, options: Options, given: Prune, model: Any, layers: Any) -> None:
        """Args:
            given: the stage's ``prune``.
            model: prepared.
            layers: the quantization plan.

        Raises:
            RecipeError: nothing can be pruned, or what is clustered would be.
        """
        from edgeprune.keras import pruning, quantization_pruning, training

        self.state, self.options, self.model, self.given = state, options, model, given
        self.pattern, self.ramp = pruning.pattern_of(given), pruning.ramp_of(given)
        if "clustering" in state.facts and options.preserve_clusters:
            raise RecipeError(
                f"stages.{state.label}.prune would take weights out of the clusters that an earlier stage has made. Prune before "
                f"clustering, or give the clusters up with stages.{state.label}.preserve_clusters=false."
            )
        self.plans = _carried(pruning.plan(model, self.pattern, self.given.include, self.given.exclude), layers)
        self.steps = options.epochs * training.steps_per_epoch(state.run.data.train, options)
        self.layers = quantization_pruning.ramped(self.plans, self.pattern, self.ramp, self.steps)
        if not self.layers:
            why = "; ".join(f"{plan.name}: {plan.reason}" for plan in self.plans if plan.left_alone)
            raise RecipeError(
                f"stages.{state.label}.prune found no layer that can carry the pattern {self.pattern} ({why}). Change granularity or "
                "include."
            )

    def follow(self, quantized: Any) -> tuple[list[Any], Any]:
        """Callbacks of the training, and the schedule to show."""
        from edgeprune.keras import pruning, quantization_pruning

        return [quantization_pruning.Clock(quantized)], pruning.schedule_function(self.ramp, self.pattern)

    def told(self, state: State, quantized: Any, skip: list[str], history: list[dict[str, Any]]) -> State:
        """The state with the masks, with what was done to every layer, and with the control."""
        from edgeprune.keras import pruning, quantization_pruning

        masks = quantization_pruning.final_masks(quantized)
        earlier = pruning.load_masks(state.path("masks")) if "masks" in state.files else {}
        layers = state.facts.get("pruning", {}).get("layers", {})
        entries = pruning.entries(self.plans, self.pattern, masks, self.ramp.final)
        kept = {name: entry for name, entry in layers.items() if name in earlier and name not in masks}
        schedule = pruning.schedule_function(self.ramp, self.pattern)
        control = self._control(skip, quantized, masks) if self.given.control else None
        return state.add(
            files={"masks": pruning.save_masks({**earlier, **masks}, state.workspace / "masks.npz")},
            pruning={"layers": {**entries, **kept}},
            history={state.label: {"epochs": history, "schedule": pruning.curve(schedule, self.options.epochs)}},
            quantization={"pruned_while_training": {"layers": len(masks), **({"control": control} if control else {})}},
            notes=[
                *(f"{plan.name} is not pruned: {plan.reason}" for plan in self.plans if plan.left_alone),
                *([_control_words(state, control)] if control else []),
            ],
        )

    def _control(self, skip: list[str], quantized: Any, masks: Mapping[str, Any]) -> dict[str, Any]:
        """Prune in float for half of the epochs, then train with fake quantizers and these zeros for the rest."""
        from edgeprune.keras import pruning_wrappers, quantization, replicas, tfmot, training

        first = self.options.epochs // 2
        goal = training.objective(self.model, self.state.run.data.tasks)
        steps = first * training.steps_per_epoch(self.state.run.data.train, self.options)

        def wrapping() -> Any:
            return pruning_wrappers.wrap(self.model, self.plans, self.pattern, self.ramp, steps)

        wrapped = wrapping()
        update = [tfmot.sparsity.keras.UpdatePruningStep()]
        with replicas.spread(self.state, wrapped, wrapping) as placed:
            training.fit(placed, self._inner("prune"), self._for(first), goal, update)
        pruned = pruning_wrappers.strip(wrapped)

        def quantizing() -> Any:
            return quantization.quantize(pruned, preserve=True, skip=skip)

        other = quantizing()
        quantization.calibrate(other, (x for x, _ in self.state.run.data.calibration.batches(64)))
        with replicas.spread(self.state, other, quantizing) as placed:
            training.fit(placed, self._inner("quantize"), self._for(self.options.epochs - first), goal)
        quantization.settle(other)
        data = self.state.run.data
        split = "validation" if len(data.validation) else "calibration"
        return {
            "epochs_pruning": first,
            "epochs_quantizing": self.options.epochs - first,
            "split": split,
            "samples": len(data.splits[split]),
            "metric": self._metric(quantized, split),
            "sparsity": _zeros(masks),
            "control_metric": self._metric(other, split),
            "control_sparsity": _zeros(pruning_wrappers.masks(wrapped)),
        }

    def _inner(self, name: str) -> State:
        """The state of one training of the control, with a workspace of its own."""
        folder = self.state.workspace / f"control-{name}"
        folder.mkdir(exist_ok=True)
        return replace(self.state, workspace=folder, label=f"{self.state.label}-control-{name}")

    def _for(self, epochs: int) -> Options:
        return self.options.model_copy(update={"epochs": epochs})

    def _metric(self, model: Any, split: str) -> float:
        from edgeprune.keras import training

        samples = self.state.run.data.splits[split]
        return float(self.state.run.metric(samples.y, training.outputs(model, samples)))


def _carried(plans: list[Any], layers: Any) -> list[Any]:
    """The plan without the layers that are not trained with fake quantizers."""
    reasons = {layer.name: layer.reason for layer in layers if layer.how == "post-training"}
    return [
        plan._replace(reason=f"not trained with fake quantizers: {reasons[plan.name]}", kernels=())
        if plan.name in reasons and plan.prunable
        else plan
        for plan in plans
    ]


def _zeros(masks: Mapping[str, Any]) -> float:
    """Share of zeros over all masks, 0..1."""
    return 1.0 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.size for mask in masks.values())


def _control_words(state: State, control: Mapping[str, Any]) -> str:
    name = state.run.metric.name
    return (
        f"Pruned while training with fake quantizers: {name} {control['metric']:.4f} at {control['sparsity']:.1%} zeros, on "
        f"{control['samples']} {control['split']} samples. The control, pruned for {control['epochs_pruning']} epochs and then trained "
        f"with fake quantizers for {control['epochs_quantizing']}: {control['control_metric']:.4f} at {control['control_sparsity']:.1%}."
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
        history=_history(state, history),
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
