"""What the stage that removes channels can be asked for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from edgeprune import sensitivity_ratios
from edgeprune.errors import RecipeError
from edgeprune.option_types import Criterion, Expression, Floor, Step, expressions
from edgeprune.recipe import FitOptions, Recipe

CRITERION = "fisher"  # ahead of every other that needs no BatchNormalization (docs/league.md)
HEARD = ("normalise", "aggregate", "consumers", "scales", "normalise_groups")  # options: who has a say, and how much
AIMS = {"macs": "macs", "params": "params", "latency": "latency_ms", "latency_ms": "latency_ms"}  # option -> cost


def _leaves_something(given: Any) -> Any:
    """Refuse a share of 1 or more in words that say what would work."""
    if isinstance(given, (int, float)) and not isinstance(given, bool) and given >= 1:
        raise ValueError(
            "that would leave nothing of a layer; give the share that goes, from 0 to below 1 (0.5 removes half of the channels)"
        )
    return given


Ratio = Annotated[float, BeforeValidator(_leaves_something), Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def _read_ratios(given: Any) -> Any:
    """The mapping that a file holds; anything else as it is."""
    try:
        return sensitivity_ratios.read(given) if isinstance(given, str) else given
    except RecipeError as error:
        raise ValueError(str(error)) from error


_RATIO = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
Ratios = Annotated[
    dict[str, Ratio],
    BeforeValidator(_read_ratios),
    WithJsonSchema({"anyOf": [{"type": "object", "additionalProperties": _RATIO}, {"type": "string"}]}),
]


class Options(FitOptions):
    """Options of the shrink stage."""

    criterion: Criterion = Field(CRITERION, description="what a channel is worth: a name of `edgeprune list criteria`")
    ratio: Ratio | None = Field(
        None,
        description="share of every group's units that goes, 0..1; null: what another aim asks for (`macs`, `params`, `latency`, "
        "`latency_ms`), else 0.5",
    )
    macs: Share | None = Field(
        None, description="instead of ratio: share of the multiply-accumulates that stays at most, 0..1"
    )
    params: Share | None = Field(None, description="instead of ratio: share of the parameters that stays at most, 0..1")
    latency: Share | None = Field(
        None, description="instead of ratio: share of the latency predicted for the target that stays at most, 0..1"
    )
    latency_ms: float | None = Field(
        None, gt=0, description="instead of ratio: latency predicted for the target, at most, ms"
    )
    zeros: bool = Field(
        False,
        description="instead of ratio: the units go whose kernels are all zero (or behind which a BatchNormalization's scale is), as "
        "penalties and gates leave them",
    )
    scope: Literal["layer", "network", "isomorphic"] | list[str] = Field(
        "layer",
        description="what is ranked together: every group for itself, all, groups that are built alike, or those that a regular "
        "expression matches",
    )
    ratios: Ratios = Field(
        {},
        description="name or regular expression of groups -> a ratio of their own, 0..1; or a file of them, as `edgeprune sensitivity` "
        "writes it (ratios.yaml)",
    )
    floors: Floor | dict[str, Floor] | None = Field(
        None, description="what every group keeps at least: a share (0.25) or a count of units (4); or names -> either"
    )
    multiples: Step | dict[str, Step] | None = Field(
        None,
        description="the channels that stay are a multiple of this; or names -> multiples; null (and for names that are not "
        "given): the target's; 1: any count",
    )
    include: Expression = Field(".*", description="regular expression: only groups or layers whose whole name matches")
    exclude: Expression | None = Field(
        None, description="regular expression: no group or layer whose whole name matches"
    )
    blocks: int = Field(
        0, ge=0, le=1000, description="whole branches of additions to remove first, those of the lowest mean score"
    )
    rounds: int = Field(1, ge=1, le=100, description="how often to score, cut and fine-tune; each keeps the same share")
    samples: int = Field(512, ge=1, description="training samples that the criterion's signals are collected on")
    normalise: Literal["sum", "mean", "max", "l2"] | None = Field(
        "mean", description="what a kernel's scores are divided by before kernels are compared; null: nothing"
    )
    aggregate: Literal["mean", "sum", "max"] = Field(
        "mean", description="of the scores of the kernels that lose a unit together"
    )
    normalise_groups: Literal["sum", "mean", "max", "l2"] | None = Field(
        None,
        description="what a group's scores are divided by before groups are compared, where kernels were not normalised",
    )
    consumers: bool = Field(
        False, description="whether the kernels that read a channel have a say too, not only those that make it"
    )
    scales: bool = Field(
        False,
        description="whether the scale of the BatchNormalization behind a kernel has a say too, where there is one",
    )
    epochs: int = Field(8, ge=0, le=10_000, description="passes over the training split, shared by the rounds")

    _compile = field_validator("scope", "ratios", "floors", "multiples")(expressions)

    @model_validator(mode="after")
    def _one_aim(self) -> Options:
        given = [name for name in ("ratio", *AIMS) if getattr(self, name) is not None] + ["zeros"] * self.zeros
        if len(given) > 1:
            raise ValueError(f"give one of ratio, {', '.join([*AIMS])} and zeros, not {' and '.join(given)}")
        if self.zeros and self.rounds > 1:
            raise ValueError("units that are zero go at once: leave rounds at 1")
        if 0 < self.epochs < self.rounds:
            raise ValueError(f"{self.epochs} epochs cannot be shared by {self.rounds} rounds: give one per round, or 0")
        return self

    def heard(self) -> dict[str, Any]:
        """Who has a say in a unit's score, and how much, in the words of `edgeprune.scoring.units`."""
        return {name: getattr(self, name) for name in HEARD}


def heard(recipe: Recipe) -> dict[str, Any]:
    """``Options.heard`` of the recipe's first shrink stage; nothing where it has none."""
    return next((spec.options.heard() for spec in recipe.stages if isinstance(spec.options, Options)), {})
