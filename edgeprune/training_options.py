"""What every training stage can be asked for besides its epochs: a penalty on the weights, a teacher to learn from."""

from __future__ import annotations

import inspect
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from edgeprune import registry
from edgeprune.option_types import Expression, member
from edgeprune.validation import Strict

Unit = Annotated[float, Field(ge=0, le=1)]
TEACHERS = ("given", "float")
MODELS = (".keras", ".h5", ".hdf5")


class Penalty(Strict):
    """What pulls weights to zero while a stage trains."""

    kind: Annotated[str, AfterValidator(member("penalties"))] = Field(
        "l1", description="a name of `edgeprune list penalties`"
    )
    strength: float = Field(
        1e-4, gt=0, le=1e6, description="what the penalty is multiplied by before it is added to the loss"
    )
    mix: Unit = Field(0.5, description="for elastic_net and sparse_group_lasso: share of L1, 0..1")
    epsilon: float = Field(
        0.01,
        gt=0,
        le=1e3,
        description="for adaptive: the size of a weight that is pulled half as strongly as one at zero",
    )
    rise: Unit | None = Field(
        None,
        description="share of the stage's steps over which the strength rises evenly from 0, 0..1; null: at once, for growing over all",
    )
    sparsity: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of zeros that the strength is learned for, 0..1 (of whole units for group_lasso, of scales for slimming); "
        "for growing the share that is chosen to go, 0.5 unless given; null: the strength stays what it is",
    )
    end: float = Field(
        0.7,
        gt=0,
        le=1,
        description="for a learned strength: share of the stage's steps after which those zeros are there, 0..1",
    )
    choose: Literal["weights", "channels"] = Field(
        "weights", description="for growing: whether single weights or whole coupled channels are chosen to go"
    )
    include: Expression = Field(".*", description="regular expression: only layers whose whole name matches")
    exclude: Expression | None = Field(None, description="regular expression: no layer whose whole name matches")

    @model_validator(mode="after")
    def _serves(self) -> Penalty:
        """Options that the chosen penalty does not know would be silently without effect."""
        asked = needs(self.kind)
        of = {"mix": "mix", "epsilon": "epsilon", "choose": "chosen"}
        unused = [option for option, name in of.items() if option in self.model_fields_set and name not in asked]
        if unused and any(getattr(self, option) != type(self).model_fields[option].default for option in unused):
            raise ValueError(f"{self.kind} has no {' and no '.join(unused)}: leave it out")
        if self.kind == "l2" and self.sparsity is not None:
            raise ValueError(
                "l2 makes weights small but none zero, so no strength gives a sparsity: choose another kind"
            )
        return self


def needs(kind: str) -> tuple[str, ...]:
    """What a penalty is of and what it asks for: the names of its parameters."""
    return tuple(inspect.signature(registry.function("penalties", kind)).parameters)


class Attention(Strict):
    """How a student learns where its teacher looks."""

    weight: float = Field(1000.0, gt=0, le=1e9, description="what the distance between the maps is multiplied by")
    layers: list[str] | dict[str, str] | None = Field(
        None,
        description="whose outputs are compared: names or regular expressions; or the student's layer -> the teacher's; null: the "
        "last layer of every resolution that both have",
    )


class Distillation(Strict):
    """How a stage learns from a teacher besides the labels."""

    weight: Unit = Field(0.5, description="share of the loss that is the distance to the teacher's answers, 0..1")
    temperature: float = Field(4.0, gt=0, le=100, description="softens class scores; of no account for regression")
    teacher: str = Field(
        "given",
        min_length=1,
        description="given: the model as the stage gets it; float: the float reference that the train stage left; or the path of "
        "a .keras or .h5 file with the same inputs and outputs",
    )
    attention: Attention | None = Field(
        None,
        description="learn where the teacher looks too (attention transfer): `{}` or the keys below; null: only its answers",
    )

    @field_validator("teacher")
    @classmethod
    def _known(cls, teacher: str) -> str:
        if teacher not in TEACHERS and not teacher.endswith(MODELS):
            raise ValueError(
                f"there is no such teacher.{registry.suggestion(teacher, TEACHERS)} Give {', '.join(TEACHERS)}, or the path of a file "
                f"that ends in {', '.join(MODELS)}"
            )
        return teacher
