"""The keys of a recipe's ``data`` block, and the preprocessing that a model keeps for life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from edgeprune.validation import Strict

Task = Literal["classification", "regression"]
Role = Literal["x_train", "y_train", "x_val", "y_val", "x_test", "y_test", "x", "y", "labels"]


@dataclass(frozen=True)
class Preprocess:
    """What is done to a stored value before the model sees it: ``value * scale + offset``, in float32.

    Attributes:
        scale: factor, finite and not 0. 1/255 turns uint8 pixels into 0..1.
        offset: added after scaling, in the model's own unit.
        whole: the model takes whole numbers (tokens) here: int32, as they are.
    """

    scale: float = 1.0
    offset: float = 0.0
    whole: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Stored values of any shape -> model inputs of the same shape, float32 or int32; never the same memory."""
        if self.whole:
            return values.astype(np.int32)
        inputs = values.astype(np.float32)
        if self.scale != 1.0:
            inputs *= np.float32(self.scale)
        if self.offset != 0.0:
            inputs += np.float32(self.offset)
        return inputs

    def as_dict(self) -> dict[str, Any]:
        """The two numbers, for report.json."""
        return {"scale": self.scale, "offset": self.offset}


class ScaleOptions(Strict):
    """``model input = stored value * scale + offset``; what is not set changes nothing."""

    scale: float | None = Field(
        default=None, description="factor on every stored value, not 0; null: 1, the value as it is stored"
    )
    offset: float | None = Field(default=None, description="added after scaling, in the model's unit; null: 0")

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, scale: float | None) -> float | None:
        if scale == 0:
            raise ValueError(
                "a scale of 0 makes every input the same; leave it out (null) for values as they are stored"
            )
        return scale


class PreprocessOptions(ScaleOptions):
    """The same for every input of the model, or for each of several its own."""

    inputs: dict[str, ScaleOptions] = Field(
        default_factory=dict, description="several inputs: name -> scale and offset of those that have their own"
    )

    def resolved(self, name: str = "") -> Preprocess:
        """The numbers that are used for an input.

        Unset is the identity: edgeprune never guesses a scale from the values it sees.
        """
        own = self.inputs.get(name, self)
        return Preprocess(1.0 if own.scale is None else own.scale, 0.0 if own.offset is None else own.offset)


class DataOptions(Strict):
    """How samples are read, split and preprocessed."""

    task: Task | None = Field(
        default=None, description="what y is; null: classification for integer, text or one-hot y, else regression"
    )
    tasks: dict[str, Task] = Field(
        default_factory=dict, description="several outputs: name -> what its y is; those left out go by task"
    )
    validation: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="share of the training samples that is only watched and selected by, 0..0.5",
    )
    test: float = Field(
        default=0.2,
        gt=0,
        le=0.5,
        description="share of all samples kept for the final metric when the source has no test split, 0..0.5",
    )
    calibration: int = Field(default=256, ge=1, le=1_000_000, description="training samples that set the int8 ranges")
    preprocess: PreprocessOptions = Field(
        default_factory=PreprocessOptions, description="model input = value * scale + offset"
    )
    shuffle: bool = Field(
        default=True, description="split at random and evenly over the classes; false: in order, the test split last"
    )
    limit: int | None = Field(
        default=None,
        ge=2,
        description="use at most this many samples for training, and as many for the test; null: all",
    )
    keys: dict[Role, str] = Field(
        default_factory=dict, description="what your .npz or dict calls x_train, y_train, x_val ... labels"
    )
    image_size: Annotated[tuple[int, int], Field(strict=False)] | None = Field(
        default=None,
        description="image folders: [height, width] in pixels that every image is resized to; null: all have one size",
    )
    channels: Literal[1, 3] = Field(default=3, description="image folders: 1 for grey, 3 for RGB")
    memory_gib: float = Field(default=4.0, gt=0, description="largest tf.data set that is read into memory, GiB")

    @field_validator("image_size")
    @classmethod
    def _some_pixels(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and min(size) < 1:
            raise ValueError("image_size is [height, width], both at least 1 pixel")
        return size
