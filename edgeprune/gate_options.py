"""What the stage that trains gates can be asked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from edgeprune.option_types import Expression, Floor, Step, expressions, member
from edgeprune.recipe import FitOptions

OF_CHANNELS = ("floors", "multiples")


class Options(FitOptions):
    """Options of the gate stage."""

    gate: Annotated[str, AfterValidator(member("gates"))] = Field(
        "hard-concrete", description="what closes weights or channels: a name of `edgeprune list gates`"
    )
    granularity: Literal["weight", "channel"] = Field(
        "weight",
        description="what has a gate: every weight, or every unit of coupled channels, which goes for good when closed",
    )
    final: float | None = Field(
        0.5,
        gt=0,
        lt=1,
        description="share that goes, exactly, 0..1: of the weights; of channels, of what `cost` counts; null: what the gates find",
    )
    cost: Literal["weights", "macs", "latency"] | None = Field(
        None,
        description="what an open gate costs: its weights, their multiply-accumulates, or (channels alone) the latency predicted for "
        "the target; null: weights for weights, macs for channels",
    )
    strength: float | None = Field(
        None,
        gt=0,
        description="of the penalty: what the loss gets for every open weight, over the number of training samples; null: as much "
        "as meets `final`, found on the way; without `final` the gate's own",
    )
    begin: float = Field(
        0.0, ge=0, lt=1, description="share of the gates' steps after which they are asked to close, 0..1"
    )
    end: float = Field(
        0.6, gt=0, le=1, description="share of the gates' steps after which all of `final` is asked, 0..1"
    )
    power: float = Field(
        3.0, gt=0, le=100, description="of the polynomial that what is asked follows; 1: a straight line"
    )
    rate: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="how many times as fast as weights gates learn; null: as fast as lets them open and close several times",
    )
    tune: float = Field(
        0.4,
        ge=0,
        lt=1,
        description="share of the epochs, rounded down, that train what is left when the gates are gone, 0..1",
    )
    scope: Literal["layer", "network"] | None = Field(
        None, description="for weights: where `final` is exact, in every kernel or over all; null: the gate's own"
    )
    floors: Floor | dict[str, Floor] | None = Field(
        None,
        description="for channels: what every group keeps at least, a share (0.25) or a count of units (4); or names -> either",
    )
    multiples: Step | dict[str, Step] | None = Field(
        None,
        description="for channels: those that stay are a multiple of this; or names -> multiples; null: the target's; 1: any count",
    )
    include: Expression = Field(".*", description="regular expression: only layers or groups whose whole name matches")
    exclude: Expression | None = Field(
        None, description="regular expression: no layer or group whose whole name matches"
    )
    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training split, fine-tuning included")

    _compile = field_validator("floors", "multiples")(expressions)

    @model_validator(mode="after")
    def _together(self) -> Options:
        if not self.begin < self.end:
            raise ValueError(f"begin ({self.begin}) must be smaller than end ({self.end})")
        if self.granularity == "weight" and self.cost == "latency":
            raise ValueError(
                "zeros of single weights change no latency: give cost weights or macs, or granularity channel"
            )
        given = [name for name in OF_CHANNELS if getattr(self, name) is not None]
        if self.granularity == "weight" and given:
            raise ValueError(f"{' and '.join(given)} hold for channels: give granularity channel, or leave them out")
        if self.granularity == "channel" and self.scope is not None:
            raise ValueError("channels are ranked over the network: leave scope out")
        return self

    @property
    def counted(self) -> str:
        """What is counted: ``weights``, ``macs`` or ``latency``."""
        return self.cost or ("weights" if self.granularity == "weight" else "macs")

    @property
    def gated_epochs(self) -> int:
        """Epochs with gates; the others fine-tune."""
        return max(1, self.epochs - int(self.epochs * self.tune))
