"""What the stage that lays zeros can be asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from edgeprune import catalogue
from edgeprune.option_types import Block, Criterion, Expression, NofM, member, n_of_m
from edgeprune.recipe import FitOptions
from edgeprune.validation import Strict


class Adapt(Strict):
    """How the run finds each layer's sparsity, and where to stop."""

    max_drop: float = Field(
        0.01,
        ge=0,
        le=1e6,
        description="largest loss of the metric on the validation split, in its own unit; a round that loses more is undone and is the "
        "last",
    )
    steps: int = Field(6, ge=1, le=100, description="sparsities that are tried of every layer in each round")
    lowest: float = Field(0.01, gt=0, lt=1, description="share of its weights that a layer keeps at least, 0..1")


class Options(FitOptions):
    """Options of the sparsify stage."""

    criterion: Criterion = Field(
        "magnitude", description="what a weight is worth: a name of `edgeprune list criteria` that ranks weights"
    )
    granularity: Literal["weight", "block", "n:m", "channel"] = Field(
        "weight",
        description="what lives or dies together; channel: coupled channels, for masked soft alone, with a shrink stage after it",
    )
    pattern: NofM = Field("2:4", description="for n:m: keep n of every m consecutive input channels")
    block: Block = Field([4, 1], description="for block: consecutive input channels x output channels")
    scope: Literal["layer", "network"] = Field(
        "layer", description="what is ranked together: every layer for itself, or all"
    )
    distribution: Annotated[str, AfterValidator(member("distributions"))] = Field(
        "uniform", description="for scope layer: how sparse each one becomes, a name of `edgeprune list distributions`"
    )
    schedule: Literal["polynomial", "constant"] = Field(
        "constant", description="how sparsity rises; constant: all at `begin`"
    )
    initial: float = Field(0.0, ge=0, lt=1, description="polynomial: sparsity at `begin`, 0..1")
    final: float = Field(
        0.5, gt=0, lt=1, description="sparsity from `end` on, 0..1; for n:m it follows from the pattern"
    )
    begin: float = Field(0.0, ge=0, lt=1, description="share of a round's steps after which zeros are laid, 0..1")
    end: float = Field(
        0.75, gt=0, le=1, description="share of a round's steps after which masks stay as they are, 0..1"
    )
    power: float = Field(3.0, gt=0, le=100, description="of the polynomial; 1 is a straight line")
    frequency: int | None = Field(
        None,
        ge=1,
        description="steps between mask updates; null: a hundredth of begin..end, at least 16; for masked soft an epoch",
    )
    masked: Literal["hold", "dense", "soft"] = Field(
        "hold",
        description="hold: zeros stay; dense: the weights behind the mask are trained on and may come back at an update; soft: zeroed at "
        "updates, free until the next",
    )
    grow: Literal["random", "gradient"] | None = Field(
        None,
        description="at updates the smallest weights go and as many others come: at random (SET), or those with the largest gradient "
        "(RigL); null: none come",
    )
    drop: float = Field(
        0.3, gt=0, lt=1, description="for grow: share of the weights that goes at the first update, 0..1"
    )
    anneal: bool = Field(True, description="for grow: whether that share falls to 0 at `end` by the half cosine")
    iterations: int = Field(
        1,
        ge=1,
        le=1000,
        description="how often to score and cut at every update, each keeping the same share (SynFlow: 100)",
    )
    rounds: int = Field(
        1, ge=1, le=100, description="how often to cut and train; each keeps the same share of the weights"
    )
    start: Literal["model", "early", "fresh"] = Field(
        "model",
        description="weights to begin with: as the stage gets them; those that `train.keep` kept; or drawn anew by the seed",
    )
    rewind: Literal["weights", "learning-rate"] | None = Field(
        None,
        description="weights: every round trains from the weights that `train.keep` kept, with train's learning rate from there on; "
        "learning-rate: only the learning rate goes back; null: neither",
    )
    controls: list[Literal["random", "reinitialised"]] = Field(
        [],
        description="for rewind weights: what the ticket is compared with, each trained as the last round was: random masks of the same "
        "sparsities; the ticket's masks with weights drawn anew",
    )
    restore: Literal["obs"] | None = Field(
        None,
        description="obs: what remains of a layer makes up for what goes (Optimal Brain Surgeon's update), without training",
    )
    adapt: Adapt | None = Field(
        None,
        description="each layer as sparse as the validation loss bears, up to `final` in all: `{}` or the keys below",
    )
    samples: int = Field(
        512, ge=1, description="training samples that a criterion sees before a training; at an update in it, one batch"
    )
    include: Expression = Field(".*", description="regular expression: only layers whose whole name matches")
    exclude: Expression | None = Field(None, description="regular expression: no layer whose whole name matches")
    epochs: int = Field(8, ge=0, le=10_000, description="passes over the training split, shared by the rounds")

    @model_validator(mode="after")
    def _fit_together(self) -> Options:
        for wrong, words in _contradictions(self):
            if wrong:
                raise ValueError(words)
        return self

    @property
    def at_once(self) -> bool:
        """Whether masks are cut before a round trains, on the weights that the last one left."""
        return self.masked == "hold" and self.schedule == "constant" and self.begin == 0

    @property
    def sparsity(self) -> float:
        """The share of zeros that is asked for, 0..1."""
        if self.granularity != "n:m":
            return self.final
        n, m = n_of_m(self.pattern)
        return (m - n) / m


def _contradictions(options: Options) -> list[tuple[bool, str]]:
    """What would be silently without effect, or cannot be, in words."""
    nm, channel = options.granularity == "n:m", options.granularity == "channel"
    return [
        (not options.begin < options.end, f"begin ({options.begin}) must be smaller than end ({options.end})"),
        (
            0 < options.epochs < options.rounds,
            f"{options.epochs} epochs cannot be shared by {options.rounds} rounds: give one per round, or 0",
        ),
        (
            options.epochs == 0 and not (options.at_once and options.grow is None),
            "without epochs zeros are laid once: schedule constant, begin 0, masked hold, no grow",
        ),
        (
            options.grow is not None
            and not (options.at_once and options.granularity == "weight" and options.rounds == 1),
            "grow moves single weights at a constant sparsity: schedule constant, begin 0, masked hold, granularity weight, rounds 1",
        ),
        (options.scope == "network" and options.distribution != "uniform", "a distribution is for scope layer"),
        (nm and options.distribution != "uniform", "n:m fixes every layer's sparsity: leave distribution out"),
        (nm and options.scope == "network", "n:m fixes every layer's sparsity: leave scope out"),
        (nm and (options.rounds > 1 or options.iterations > 1), "n:m has no sparsities for rounds or iterations"),
        (channel and options.masked != "soft", "granularity channel is for masked soft"),
        (
            channel and (options.rounds, options.iterations, options.rewind, options.start) != (1, 1, None, "model"),
            "granularity channel silences the model as it comes: leave rounds, iterations, rewind and start out",
        ),
        (channel and options.distribution != "uniform", "a distribution is for layers' weights, not for channels"),
        (
            not channel and not catalogue.criterion(options.criterion).per_weight,
            f"{options.criterion} ranks channels, and here weights are ranked: choose a criterion that ranks weights (docs/criteria.md)",
        ),
        (options.rewind is not None and options.epochs == 0, "rewind needs epochs to train again"),
        (bool(options.controls) and options.rewind != "weights", "controls are compared with a ticket: rewind weights"),
        (
            options.adapt is not None
            and not (
                options.at_once
                and options.grow is None
                and options.scope == "layer"
                and options.granularity == "weight"
            ),
            "adapt chooses every layer's sparsity: schedule constant, begin 0, masked hold, granularity weight, scope layer, no grow",
        ),
        (
            options.adapt is not None and (options.distribution != "uniform" or options.iterations > 1),
            "adapt finds the distribution itself, in rounds: leave distribution and iterations out",
        ),
        (options.restore is not None and not options.at_once, "restore needs schedule constant, begin 0, masked hold"),
    ]
