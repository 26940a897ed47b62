"""Whether a model can take the samples and tell the labels: by name and shape, before anything is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from edgeprune import columns
from edgeprune.columns import LONE
from edgeprune.data import Data
from edgeprune.data_arrays import Target
from edgeprune.errors import DataError

Shape = Sequence[int | None]


class Port(NamedTuple):
    """An input or output of a model.

    Attributes:
        name: the model's own.
        shape: of one sample, such as (32, 32, 3); None where the model takes any size.
        dtype: of the numbers it takes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"


def check_fits(data: Data, inputs: Sequence[Port], outputs: Sequence[Port]) -> Data:
    """Whether a model can take these samples and tell these labels.

    Args:
        data: a lone x fits a model with one input; several x go by name, or by place where they came as a tuple.
        inputs, outputs: of the model, in its order.

    Returns:
        The data, with several inputs and outputs in the model's order and under its names, and with a channel axis of 1
        added where that is all that was missing (said in the provenance's notes).

    Raises:
        DataError: names, shapes or ranges, and what to change.
    """
    x_names = _paired("x", data, columns.named(data.train.base), inputs)
    y_names = _paired("y", data, data.targets, outputs)
    data = _renamed(data, x_names, y_names)
    for port, name in zip(inputs, x_names.values(), strict=True):
        data = _check_input(data, name, port)
    for port, name in zip(outputs, y_names.values(), strict=True):
        check = _check_values if data.targets[name].task == "regression" else _check_classes
        data = check(data, name, tuple(port.shape))
    return data


def _paired(letter: str, data: Data, have: Mapping[str, Any], ports: Sequence[Port]) -> dict[str, str]:
    """What the data calls an array -> what it shall be called, in the model's order; a lone one stays without a name.

    Raises:
        DataError: the data has others than the model.
    """
    word = "input" if letter == "x" else "output"
    if LONE in have and len(ports) == 1:
        return {LONE: LONE}
    names = [port.name for port in ports]
    if set(have) == set(names):
        return {name: name for name in names} if len(ports) > 1 else {names[0]: LONE}
    if list(have) == [str(place) for place in range(len(ports))]:
        return dict(zip(have, names, strict=True))
    given = ", ".join(map(repr, have)) if LONE not in have else "one array without a name"
    keys = ", ".join(f"{letter}_{name}" for name in names)
    example = ", ".join(f'"{name}": ...' for name in names)
    how = (
        f"In an .npz call them {keys} (with splits {letter}_train_{names[0]} ...), in Python give {{{example}}}"
        if len(names) > 1
        else f"Give {letter} as one array"
    )
    listed = f"{len(names)} {word}{'s' * (len(names) != 1)} ({', '.join(map(repr, names))})"
    raise DataError(f"The model has {listed}; {letter} of {data.source} holds {given}. {how}.")


def _renamed(data: Data, x_names: Mapping[str, str], y_names: Mapping[str, str]) -> Data:
    """The data under the names, and in the order, of the model."""
    if x_names == {LONE: LONE} and y_names == {LONE: LONE}:
        return data

    def ordered(values: Any, names: Mapping[str, str]) -> Any:
        given = columns.named(values)
        return columns.unnamed({new: given[old] for old, new in names.items()})

    splits: dict[str, Any] = {
        name: replace(
            split,
            base=ordered(split.base, x_names),
            preprocess=ordered(split.preprocess, x_names),
            y=ordered(split.y, y_names),
        )
        for name, split in data.splits.items()
    }
    told = {**data.provenance}
    for key, names in (("sample", x_names), ("preprocess", x_names)):
        told[key] = ordered(told[key] if LONE not in names else {LONE: told[key]}, names)
    targets = {new: data.targets[old] for old, new in y_names.items()}
    told |= {"task": next(iter(targets.values())).task, "classes": next(iter(targets.values())).classes}
    if LONE not in targets:
        told["outputs"] = {name: {"task": target.task, "classes": target.classes} for name, target in targets.items()}
    return replace(data, targets=targets, preprocess=ordered(data.preprocess, x_names), provenance=told, **splits)


def _check_input(data: Data, name: str, port: Port) -> Data:
    """One input: its shape, and whether it takes whole numbers."""
    data = _check_shape(data, name, port)
    if not port.dtype.startswith(("int", "uint")):
        return data
    base, preprocess = columns.named(data.train.base)[name], columns.named(data.preprocess)[name]
    if base.dtype.kind not in "iu" or (preprocess.scale, preprocess.offset) != (1.0, 0.0):
        raise DataError(
            f"The model's input '{port.name}' takes whole numbers ({port.dtype}); {_x(name)} of {data.source} is {base.dtype} with "
            f"scale {preprocess.scale:g} and offset {preprocess.offset:g}. Expected integers without preprocessing."
        )
    return _with_preprocess(data, name, replace(preprocess, whole=True))


def _with_preprocess(data: Data, name: str, preprocess: Any) -> Data:
    def changed(given: Any) -> Any:
        return columns.unnamed({**columns.named(given), name: preprocess})

    splits: dict[str, Any] = {
        key: replace(split, preprocess=changed(split.preprocess)) for key, split in data.splits.items()
    }
    return replace(data, preprocess=changed(data.preprocess), **splits)


def _matches(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(shape, wanted, strict=True)
    )


def _noted(data: Data, note: str) -> Data:
    return replace(data, provenance={**data.provenance, "notes": [*data.provenance["notes"], note]})


def _check_shape(data: Data, name: str, port: Port) -> Data:
    shape, wanted = columns.named(data.train.base)[name].shape[1:], tuple(port.shape)
    if _matches(shape, wanted):
        return data
    if _matches((*shape, 1), wanted):
        note = f"a channel axis was added to every sample{_of(name)}: {shape} became {(*shape, 1)}"
        return _noted(_widened(data, name, (*shape, 1)), note)
    which = f"{_x(name)} of {data.source}" if name else f"The samples of {data.source}"
    have = "has samples of the shape" if name else "have the shape"
    raise DataError(
        f"{which} {have} {shape}, the model's input{_of(name)} is {_shown(wanted)}. {_input_advice(shape, wanted)}"
    )


def _widened(data: Data, name: str, shape: tuple[int, ...]) -> Data:
    """The data with one more axis at the end of an input's samples."""

    def widened(base: Any) -> Any:
        arrays = columns.named(base)
        return columns.unnamed({**arrays, name: arrays[name][..., np.newaxis]})

    splits: dict[str, Any] = {key: replace(split, base=widened(split.base)) for key, split in data.splits.items()}
    sample = data.provenance["sample"]
    told = (
        {**sample, "shape": list(shape)} if name == LONE else {**sample, name: {**sample[name], "shape": list(shape)}}
    )
    return replace(data, **splits, provenance={**data.provenance, "sample": told})


def _x(name: str) -> str:
    return f"x_{name}" if name else "x"


def _of(name: str) -> str:
    return f" '{name}'" if name else ""


def _y(name: str) -> str:
    return f"y_{name}" if name else "y"


def _input_advice(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    if len(shape) == len(wanted) == 3:
        if _matches((*shape[1:], shape[0]), wanted):
            return "The samples have their channels first: numpy.moveaxis(x, 1, -1) puts them last."
        if shape[:2] == wanted[:2]:
            return "Only the channels differ: for an image folder set data.channels; else convert the colours before."
        if shape[2] == wanted[2]:
            size = f"[{wanted[0]}, {wanted[1]}]"
            return f"Only the size differs: for an image folder set data.image_size: {size}; else resize before."
    sides = [side for side in wanted if side is not None]
    if len(sides) == len(wanted) and math.prod(shape) == math.prod(sides):
        reshape = f"x.reshape(len(x), {', '.join(map(str, sides))})"
        return f"Both hold {math.prod(shape)} values: {reshape} makes them fit if their order is the same."
    return "Expected equal shapes: give the data that this model was made for, or resize the samples before."


def _shown(shape: Shape) -> str:
    """A shape as Keras prints it."""
    return str(tuple(shape))


def _check_values(data: Data, name: str, wanted: tuple[int | None, ...]) -> Data:
    """Regression: one output for each value of y; (n,) and (n, 1) are the same."""
    shape = columns.named(data.train.y)[name].shape[1:]
    if _matches(shape or (1,), wanted) or _matches((*shape, 1), wanted):
        return data
    hint = "give y with as many values per sample as the model has outputs"
    if shape in ((), (1,)) and len(wanted) == 1:
        hint = "if y holds class numbers, set data.task: classification; else " + hint
    raise DataError(
        f"{_y(name)} of {data.source} has the shape {shape} per sample (regression), the model's output{_of(name)} is {_shown(wanted)}. "
        f"Expected equal shapes: {hint}."
    )


def _check_classes(data: Data, name: str, wanted: tuple[int | None, ...]) -> Data:
    """Classification: an output for each label that occurs; a single output tells two classes apart.

    Labels of every pixel or step, (height, width), take outputs of the same places: (height, width, classes).
    """
    labels = [columns.named(split.y)[name] for split in data.splits.values() if len(split)]
    places = labels[0].shape[1:]
    if not wanted or wanted[-1] is None or not _matches(places, wanted[:-1]):
        want = (*places, "classes")
        raise DataError(
            f"{_y(name)} of {data.source} holds class numbers{f' of the shape {places} per sample' if places else ''}, the model's "
            f"output{_of(name)} is {_shown(wanted)}. Expected ({', '.join(map(str, want))}{',' * (not places)}), or 1 output in place of "
            "the classes to tell two apart: for other outputs set data.task: regression and give y in the output's shape."
        )
    outputs = wanted[-1]
    told = 2 if outputs == 1 else outputs
    low, high = min(int(y.min()) for y in labels), max(int(y.max()) for y in labels)
    if high >= told:
        one_off = " The labels seem to count from 1: subtract 1." if low >= 1 and high == told else ""
        raise DataError(
            f"The labels of {data.source}{_of(name)} are {low}..{high}, but the model's output {_shown(wanted)} tells {told} "
            f"classes, 0..{told - 1}.{one_off} Give the data that this model was made for, or a model with {high + 1} "
            "outputs."
        )
    target: Target = data.targets[name]
    if (target.classes or 0) < told:
        return _noted(data, f"the model tells {told} classes{_of(name)}, the data holds {target.classes}")
    return data
