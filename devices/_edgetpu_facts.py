"""The facts about the Edge TPU, as ``accelerators/edgetpu.yaml`` has them: parsed once, validated, each with its source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from edgeprune import yaml_files
from edgeprune.errors import TargetError
from edgeprune.registry import suggestion
from edgeprune.validation import Strict, validate

FILE = Path(__file__).parent / "accelerators" / "edgetpu.yaml"

Count = Annotated[int, Field(gt=0)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class Array(Strict):
    """What multiplies."""

    tiles: Count = Field(description="tiles, which work side by side")
    grid: Count = Field(description="tiles along the height, and along the width, of an activation")
    cells: Count = Field(description="cells of a tile")
    macs_per_cell: Count = Field(description="multiply-accumulates of a cell per cycle")


class Memory(Strict):
    """What it holds on the chip."""

    activation_bytes_per_tile: Count = Field(description="memory of a tile for activations, bytes")
    parameter_kib_usual: Count = Field(description="what usual networks find for parameters, KiB")
    parameter_kib_least: Count = Field(description="the least that a log shows, KiB")
    parameter_kib_most: Count = Field(description="the most that a log shows, KiB")


class Parameters(Strict):
    """How the compiler lays parameters out; the formula is in ``_edgetpu_memory.py``."""

    align_bytes: Count = Field(description="every layer is padded to a multiple of so many bytes")
    out_step: Count = Field(description="step of output channels")
    out_until: Count = Field(description="number of output channels up to which that step holds")
    out_step_beyond: Count = Field(description="step of output channels beyond")
    in_step: Count = Field(description="step of input channels")
    overhead_per_tensor: Count = Field(description="bytes per output channel beside the weights, one scale for all")
    overhead_per_channel_conv: Count = Field(description="the same, a scale per channel, convolutions")
    overhead_per_channel_dense: Count = Field(description="the same, a scale per channel, FULLY_CONNECTED")
    depthwise_bytes_per_weight: Count = Field(description="bytes that a weight of a depthwise convolution takes")
    softmax_bytes_per_class: Count = Field(description="table of a softmax, bytes per class")
    softmax_bytes: Count = Field(description="of any softmax, bytes")
    softmax_classes_from: Count = Field(description="number of classes from which on a softmax has a table")


class Supported(Strict):
    """What is known of an op that an Edge TPU takes."""

    runtime: Count | None = Field(None, description="oldest Edge TPU runtime that takes it; null: any")
    limits: Names = Field((), description="functions of _edgetpu_limits.py that it must pass")


class Facts(Strict):
    """One accelerator."""

    name: str = Field(description="the word for it in a target's delegate")
    title: str = Field(description="its full name")
    library: str = Field(description="the delegate's shared library")
    compiler: str = Field(description="the compiler's program")
    array: Array
    memory: Memory
    parameters: Parameters
    data_types: Names = Field(description="types of the activations that it computes on")
    inner_axes: Count = Field(description="innermost axes that may be longer than 1")
    ops: Mapping[str, Supported] = Field(description="the schema's word of every op it takes")
    softmax_elements: Count = Field(description="largest softmax")
    resized_bytes: Count = Field(description="largest output of an op that resizes, bytes")
    instead: Mapping[str, str] = Field(description="op that it does not take -> what to do about it")
    sources: Mapping[str, str] = Field(description="dotted path of a figure, or of the block around it -> its source")

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Facts:
        data = self.model_dump(exclude={"sources", "instead"})
        known = [path for path, _ in _paths(data)]
        for path, value in _paths(data):
            if isinstance(value, int) and not any(_covers(source, path) for source in self.sources):
                raise ValueError(
                    f"the figure {path} = {value} has no source; add '{path}: where it is from' to sources"
                )
        for source in self.sources:
            if source not in known:
                raise ValueError(f"sources names '{source}', which is not in the file.{suggestion(source, known)}")
        return self


@cache
def facts() -> Facts:
    """The facts that come with edgeprune.

    Raises:
        TargetError: the file does not validate.
    """
    return parse(yaml_files.read(FILE, TargetError), str(FILE))


def parse(data: Any, where: str) -> Facts:
    """The facts that plain data describes; ``where`` names its origin in errors."""
    return validate(Facts, data, where, TargetError)


def _covers(source: str, path: str) -> bool:
    return path == source or path.startswith(f"{source}.")


def _paths(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        yield prefix + key, value
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
