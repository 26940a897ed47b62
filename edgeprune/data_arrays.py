"""What a data source holds, made of one kind and checked: lengths, shapes, finite values, labels from 0 upward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgeprune.data_options import Task
from edgeprune.errors import DataError

CHUNK_BYTES = 16 * 2**20  # read at a time by scans, so that a file larger than memory can be checked


@dataclass(frozen=True)
class Source:
    """What a source gave, unchecked.

    Attributes:
        parts: ``all`` (one set, not split), or ``train`` with ``val`` and ``test`` where the source has them; x and y
            of each.
        labels: what the classes are called, in the order of their numbers; empty when the source does not say.
        notes: what the user should know about how it was read.
    """

    parts: Mapping[str, tuple[Any, Any]]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Part(NamedTuple):
    """One checked set of samples.

    Attributes:
        name: what x is called in messages and in the report: ``x_train``, ``x`` ...
        x: (n, ...) numbers; float64 has become float32, bool uint8.
        y: (n,) int64 labels, or (n, ...) float32 values.
    """

    name: str
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """A checked source.

    Attributes:
        parts: as in `Source`.
        labels: one per class; empty for regression.
        value_range: smallest and largest stored value over all parts.
    """

    parts: Mapping[str, Part]
    task: Task
    labels: tuple[str, ...]
    value_range: tuple[float, float]
    notes: tuple[str, ...] = ()


def checked(source: Source, task: Task | None) -> Arrays:
    """Check and normalize what a source gave.

    Args:
        source: x and y of every part, as anything that NumPy can read.
        task: the user's word on y; None to go by its type.

    Raises:
        DataError: an empty part, unequal lengths or shapes, values that are no finite numbers, labels that are none.
    """
    xs = {part: _samples(_name("x", part), x) for part, (x, _) in source.parts.items()}
    ys = {part: _array(_name("y", part), y) for part, (_, y) in source.parts.items()}
    for part in xs:
        _check_lengths(part, xs[part], ys[part])
    _check_alike("x", xs)
    _check_alike("y", ys)
    ranges = [_finite_range(_name("x", part), x) for part, x in xs.items()]
    task = task or _task_of(next(iter(ys.values())))
    numbers, labels = _targets(ys, task, source.labels)
    return Arrays(
        parts={part: Part(_name("x", part), xs[part], numbers[part]) for part in xs},
        task=task,
        labels=labels,
        value_range=(min(low for low, _ in ranges), max(high for _, high in ranges)),
        notes=source.notes,
    )


def chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows, about `CHUNK_BYTES` at a time."""
    rows = max(1, CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def _name(letter: str, part: str) -> str:
    return letter if part == "all" else f"{letter}_{part}"


def _array(name: str, values: Any) -> np.ndarray:
    """Anything array-like -> numbers or text, in native byte order; float64 becomes float32, as models compute."""
    try:
        array = np.asanyarray(values)  # keeps a memory map as it is
    except ValueError as error:
        raise DataError(
            f"{name}: its samples do not form one array ({error}). Give samples that all have one shape; resize or pad "
            "them first."
        ) from error
    if array.dtype.kind not in "biufUS":
        raise DataError(
            f"{name} has the dtype {array.dtype}. Expected numbers, or text labels for y: Python objects and pickles "
            "are not read, and samples of unequal shape cannot be stacked; resize or pad them first."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        with np.errstate(over="ignore"):  # becomes infinite, which the scan reports
            return array.astype(np.float32)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _samples(name: str, values: Any) -> np.ndarray:
    """x as numbers, one row per sample; bool becomes uint8."""
    array = _array(name, values)
    if array.dtype.kind in "US":
        raise DataError(f"{name} holds text ({array.dtype}). Expected numbers: turn the text into numbers first.")
    if array.ndim == 0:
        raise DataError(f"{name} is the single number {array}. Expected an array with one row per sample.")
    return array.view(np.uint8) if array.dtype.kind == "b" else array


def _check_lengths(part: str, x: np.ndarray, y: np.ndarray) -> None:
    x_name, y_name = _name("x", part), _name("y", part)
    if y.ndim == 0 or len(x) != len(y):
        raise DataError(
            f"{x_name} {x.shape} and {y_name} {y.shape} do not belong together: expected one row of y for each row of "
            "x."
        )
    if len(x) == 0:
        raise DataError(
            f"{x_name} {x.shape} is empty: expected at least one sample. Leave {x_name} and {y_name} out, or fill them."
        )


def _check_alike(letter: str, parts: Mapping[str, np.ndarray]) -> None:
    """All parts must hold samples of one shape and one kind: nobody would later see that some pixels are 0..1."""
    (first, reference), *others = parts.items()
    for part, array in others:
        if array.shape[1:] != reference.shape[1:]:
            raise DataError(
                f"{_name(letter, first)} {reference.shape} and {_name(letter, part)} {array.shape} have samples of "
                f"different shapes, {reference.shape[1:]} and {array.shape[1:]}. Bring both to one shape."
            )
        if not _same_kind(array.dtype, reference.dtype, exact=letter == "x"):
            raise DataError(
                f"{_name(letter, first)} is {reference.dtype} and {_name(letter, part)} is {array.dtype}, so their "
                "values may differ in range. Store both in the same type and range."
            )


def _same_kind(one: np.dtype[Any], other: np.dtype[Any], exact: bool) -> bool:
    """Pixels must match in type; of labels any two integer types, and any two text types, are alike."""
    group = {"b": "i", "u": "i", "i": "i", "S": "U", "U": "U", "f": "f"}
    return group[one.kind] == group[other.kind] and (one == other or not exact or one.kind == "f")


def _finite_range(name: str, values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest value; a NaN or an infinity anywhere shows in one of them."""
    if values.size == 0:
        raise DataError(f"{name} {values.shape} has samples without any value: expected at least one number in each.")
    low, high = np.inf, -np.inf
    start = 0
    for chunk in chunks(values):
        smallest, largest = float(chunk.min()), float(chunk.max())
        if not (np.isfinite(smallest) and np.isfinite(largest)):
            _raise_not_finite(name, values, start, chunk)
        low, high, start = min(low, smallest), max(high, largest), start + len(chunk)
    return low, high


def _raise_not_finite(name: str, values: np.ndarray, start: int, chunk: np.ndarray) -> None:
    bad = ~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1)
    first = start + int(np.argmax(bad))
    kind = "NaN" if np.isnan(values[first]).any() else "an infinite value"
    raise DataError(
        f"{name}[{first}] holds {kind} (shape {values.shape}, {values.dtype}). Expected finite float32 numbers: drop "
        "that sample or fill the gap, then look for others like it."
    )


def _task_of(y: np.ndarray) -> Task:
    """Integers, text and one-hot rows are classes; other floats are values."""
    return "regression" if y.dtype.kind == "f" and not _is_one_hot(y) else "classification"


def _is_one_hot(y: np.ndarray) -> bool:
    return y.ndim == 2 and y.shape[1] > 1 and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1))


def _targets(
    ys: Mapping[str, np.ndarray], task: Task, labels: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """y of every part as class numbers or as float32 values, and what the classes are called."""
    for part, y in ys.items():
        if y.dtype.kind == "f":
            _finite_range(_name("y", part), y)
    if task == "regression":
        return {part: _values(_name("y", part), y) for part, y in ys.items()}, ()
    if any(y.dtype.kind in "US" for y in ys.values()):
        numbers, labels = _numbered(ys, labels)
    else:
        numbers, labels = _counted(ys, labels)
    if len(labels) < 2:
        raise DataError(
            "Every sample in y has the same label. Expected at least two classes; for values that are no classes set "
            "data.task: regression."
        )
    return numbers, labels


def _counted(ys: Mapping[str, np.ndarray], labels: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Class numbers or one-hot rows -> numbers; classes that nobody named are called by their number."""
    numbers = {part: _classes(_name("y", part), y) for part, y in ys.items()}
    one_hot = max((y.shape[1] for y in ys.values() if y.ndim == 2), default=0)
    count = len(labels) or max(one_hot, *(int(y.max()) + 1 for y in numbers.values()), 0)
    for part, y in numbers.items():
        _check_label_range(_name("y", part), y, count, bool(labels))
    return numbers, labels or tuple(str(number) for number in range(count))


def _values(name: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind in "US":
        raise DataError(f"{name} holds text ({y.dtype}), but data.task is regression. Expected numbers.")
    return y.astype(np.float32, copy=False)


def _numbered(ys: Mapping[str, np.ndarray], labels: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Text labels -> numbers in the order of ``labels``, or in alphabetical order."""
    texts = {part: _column(_name("y", part), y).astype(str) for part, y in ys.items()}
    found = np.unique(np.concatenate(list(texts.values())))
    if labels and (strange := sorted(set(found.tolist()) - set(labels))):
        raise DataError(
            f"y holds the label '{strange[0]}', which is not among the given labels: {', '.join(labels)}. Add it, or "
            "correct y."
        )
    names = np.array(labels) if labels else found
    order = np.argsort(names)
    numbers = {part: order[np.searchsorted(names, text, sorter=order)].astype(np.int64) for part, text in texts.items()}
    return numbers, tuple(names.tolist())


def _column(name: str, y: np.ndarray) -> np.ndarray:
    """(n,) or (n, 1) -> (n,)."""
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    if y.ndim == 1:
        return y
    raise DataError(
        f"{name} {y.shape} is no list of classes: expected (n,) or (n, 1) class numbers, or (n, classes) one-hot rows "
        "with a single 1. For several values per sample set data.task: regression."
    )


def _classes(name: str, y: np.ndarray) -> np.ndarray:
    """Labels in any accepted form -> (n,) int64."""
    if _is_one_hot(y):
        return np.argmax(y, axis=1).astype(np.int64)
    column = _column(name, y)
    if column.dtype.kind == "f" and not np.array_equal(column, np.rint(column)):
        first = int(np.argmax(column != np.rint(column)))
        raise DataError(
            f"{name}[{first}] is {column[first]:g}, but data.task is classification: expected whole class numbers 0, "
            "1, ...; for measured values set data.task: regression."
        )
    return column.astype(np.int64)


def _check_label_range(name: str, y: np.ndarray, classes: int, named: bool) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        known = f"the {classes} named classes are 0..{classes - 1}" if named else "classes are numbered 0, 1, ..."
        raise DataError(
            f"{name} holds labels {low}..{high}, but {known}. Renumber the labels, or set data.task: regression for "
            "other values."
        )
