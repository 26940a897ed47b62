"""What a data source holds, made of one kind and checked: lengths, shapes, finite values, labels from 0 upward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgeprune import columns
from edgeprune.columns import LONE, Columns
from edgeprune.data_options import Task
from edgeprune.errors import DataError

CHUNK_BYTES = 16 * 2**20  # read at a time by scans, so that a file larger than memory can be checked


@dataclass(frozen=True)
class Source:
    """What a source gave, unchecked.

    Attributes:
        parts: ``all`` (one set, not split), or ``train`` with ``val`` and ``test`` where the source has them; x and y
            of each. Several inputs or outputs are a mapping from their names, or a tuple of arrays in the model's order.
        labels: what the classes are called, in the order of their numbers; empty when the source does not say; of
            several outputs by their names.
        notes: what the user should know about how it was read.
    """

    parts: Mapping[str, tuple[Any, Any]]
    labels: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    notes: tuple[str, ...] = ()


class Part(NamedTuple):
    """One checked set of samples.

    Attributes:
        name: what x is called in messages and in the report: ``x_train``, ``x`` ...
        x: (n, ...) numbers; float64 has become float32, bool uint8.
        y: (n,) int64 labels, (n, ...) int32 labels of every place (pixel, step), or (n, ...) float32 values.
    """

    name: str
    x: Columns
    y: Columns


class Target(NamedTuple):
    """What one y is: class numbers or values, and what the classes are called (nothing for regression)."""

    task: Task
    labels: tuple[str, ...]

    @property
    def classes(self) -> int | None:
        """Number of classes; None for regression."""
        return len(self.labels) or None


@dataclass(frozen=True)
class Arrays:
    """A checked source.

    Attributes:
        parts: as in `Source`.
        targets: for every y what it is; a lone one has the name ``""``.
        ranges: for every x the smallest and largest stored value over all parts.
    """

    parts: Mapping[str, Part]
    targets: Mapping[str, Target]
    ranges: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...] = ()


def checked(source: Source, task: Task | None, tasks: Mapping[str, Task] | None = None) -> Arrays:
    """Check and normalize what a source gave.

    Args:
        source: x and y of every part, as anything that NumPy can read.
        task: the user's word on y; None to go by its type.
        tasks: the user's word on some of several y.

    Raises:
        DataError: an empty part, unequal lengths or shapes, values that are no finite numbers, labels that are none.
    """
    xs = {part: _columns("x", part, x, _samples) for part, (x, _) in source.parts.items()}
    ys = {part: _columns("y", part, y, _array) for part, (_, y) in source.parts.items()}
    for part in xs:
        _check_lengths(part, xs[part], ys[part])
    _check_same_names("x", xs)
    _check_same_names("y", ys)
    ranges = {name: _range(name, {part: xs[part][name] for part in xs}) for name in next(iter(xs.values()))}
    answers = {name: {part: ys[part][name] for part in ys} for name in next(iter(ys.values()))}
    if strange := sorted(set(tasks or {}) - set(answers)):
        raise DataError(
            f"data.tasks names '{strange[0]}', but y holds {_named(answers)}. Name the outputs as the data does."
        )
    checked_answers = {
        name: _answers(name, found, source.labels, (tasks or {}).get(name, task)) for name, found in answers.items()
    }
    numbers = {part: {name: found[0][part] for name, found in checked_answers.items()} for part in xs}
    return Arrays(
        parts={part: Part(_name("x", part), columns.unnamed(xs[part]), columns.unnamed(numbers[part])) for part in xs},
        targets={name: target for name, (_, target) in checked_answers.items()},
        ranges=ranges,
        notes=source.notes,
    )


def _columns(letter: str, part: str, values: Any, read: Any) -> dict[str, np.ndarray]:
    """The arrays of one part's x or y by name: one called `LONE`, those of a mapping, or those of a tuple by place."""
    given = {str(number): array for number, array in enumerate(values)} if is_several(values) else values
    found = {str(name): array for name, array in columns.named(given).items()}
    if not found:
        raise DataError(
            f"{_name(letter, part)} is an empty mapping. Expected arrays by the names of the model's inputs."
        )
    return {name: read(_name(letter, part, name), array) for name, array in found.items()}


def is_several(values: Any) -> bool:
    """Whether a value is a tuple of arrays, one for each input; a list is one array, as it is for NumPy."""
    return isinstance(values, tuple) and len(values) > 1 and all(getattr(item, "ndim", 0) > 0 for item in values)


def _check_same_names(letter: str, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    (first, reference), *others = parts.items()
    for part, arrays in others:
        if set(arrays) != set(reference):
            raise DataError(
                f"{_name(letter, first)} holds {_named(reference)} and {_name(letter, part)} holds {_named(arrays)}. Give "
                "every part the same arrays."
            )


def _named(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names if name != LONE) or "one array without a name"


def _range(column: str, parts: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Smallest and largest value of one input over all parts, which must be alike."""
    _check_alike("x", column, parts)
    found = [_finite_range(_name("x", part, column), x) for part, x in parts.items()]
    return min(low for low, _ in found), max(high for _, high in found)


def _answers(
    column: str, parts: Mapping[str, np.ndarray], labels: Any, task: Task | None
) -> tuple[dict[str, np.ndarray], Target]:
    """One y of every part as numbers, and what it is."""
    _check_alike("y", column, parts)
    names = labels.get(column, ()) if isinstance(labels, Mapping) else labels if column == LONE else ()
    kind = task or _task_of(next(iter(parts.values())))
    numbers, called = _targets({part: (_name("y", part, column), y) for part, y in parts.items()}, kind, tuple(names))
    return numbers, Target(kind, called)


def chunks(values: np.ndarray) -> Iterator[np.ndarray]:
    """Consecutive rows, about `CHUNK_BYTES` at a time."""
    rows = max(1, CHUNK_BYTES // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def _name(letter: str, part: str, column: str = LONE) -> str:
    """What messages call an array: ``x``, ``x_train``, ``x_train_left``."""
    return "_".join(filter(None, (letter, "" if part == "all" else part, column)))


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


def _check_lengths(part: str, xs: Mapping[str, np.ndarray], ys: Mapping[str, np.ndarray]) -> None:
    (first, x), *_ = xs.items()
    others = [(_name("x", part, name), array) for name, array in xs.items()][1:]
    for name, array in [*others, *((_name("y", part, name), array) for name, array in ys.items())]:
        if array.ndim == 0 or len(x) != len(array):
            letter = name[0]
            raise DataError(
                f"{_name('x', part, first)} {x.shape} and {name} {array.shape} do not belong together: expected one row of "
                f"{letter if letter == 'y' else name} for each row of x."
            )
    if len(x) == 0:
        x_name, y_name = _name("x", part, first), _name("y", part, next(iter(ys)))
        raise DataError(
            f"{x_name} {x.shape} is empty: expected at least one sample. Leave {x_name} and {y_name} out, or fill them."
        )


def _check_alike(letter: str, column: str, parts: Mapping[str, np.ndarray]) -> None:
    """All parts must hold samples of one shape and one kind: nobody would later see that some pixels are 0..1."""
    (first, reference), *others = parts.items()
    for part, array in others:
        if array.shape[1:] != reference.shape[1:]:
            raise DataError(
                f"{_name(letter, first, column)} {reference.shape} and {_name(letter, part, column)} {array.shape} have samples of "
                f"different shapes, {reference.shape[1:]} and {array.shape[1:]}. Bring both to one shape."
            )
        if not _same_kind(array.dtype, reference.dtype, exact=letter == "x"):
            raise DataError(
                f"{_name(letter, first, column)} is {reference.dtype} and {_name(letter, part, column)} is {array.dtype}, so their "
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
    """(n, classes), or (n, height, width, classes) and the like, with a single 1 in every last axis."""
    if y.ndim < 2 or y.shape[-1] < 2 or y.dtype.kind in "US":
        return False
    return all(np.all((part == 0) | (part == 1)) and np.all(part.sum(axis=-1) == 1) for part in chunks(y))


Named = Mapping[str, tuple[str, np.ndarray]]  # part -> what messages call the array, the array


def _targets(ys: Named, task: Task, labels: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """y of every part as class numbers or as float32 values, and what the classes are called."""
    for name, y in ys.values():
        if y.dtype.kind == "f":
            _finite_range(name, y)
    if task == "regression":
        return {part: _values(*named) for part, named in ys.items()}, ()
    if any(y.dtype.kind in "US" for _, y in ys.values()):
        numbers, labels = _numbered(ys, labels)
    else:
        numbers, labels = _counted(ys, labels)
    if len(labels) < 2:
        raise DataError(
            "Every sample in y has the same label. Expected at least two classes; for values that are no classes set "
            "data.task: regression."
        )
    return numbers, labels


def _counted(ys: Named, labels: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Class numbers or one-hot rows -> numbers; classes that nobody named are called by their number."""
    numbers = {part: _classes(*named) for part, named in ys.items()}
    one_hot = max((y.shape[-1] for _, y in ys.values() if _is_one_hot(y)), default=0)
    count = len(labels) or max(one_hot, *(int(y.max()) + 1 for y in numbers.values()), 0)
    for part, y in numbers.items():
        _check_label_range(ys[part][0], y, count, bool(labels))
    return numbers, labels or tuple(str(number) for number in range(count))


def _values(name: str, y: np.ndarray) -> np.ndarray:
    if y.dtype.kind in "US":
        raise DataError(f"{name} holds text ({y.dtype}), but data.task is regression. Expected numbers.")
    return y.astype(np.float32, copy=False)


def _numbered(ys: Named, labels: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Text labels -> numbers in the order of ``labels``, or in alphabetical order."""
    texts = {part: _column(*named).astype(str) for part, named in ys.items()}
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
    """(n,) or (n, 1) -> (n,); classes of every pixel or step: (n, ..., 1) -> (n, ...)."""
    if y.ndim > 2:
        return y[..., 0] if y.shape[-1] == 1 else y
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    if y.ndim == 1:
        return y
    raise DataError(
        f"{name} {y.shape} is no list of classes: expected (n,) or (n, 1) class numbers, (n, classes) one-hot rows "
        "with a single 1, or (n, ..., 1) class numbers of every pixel or step. For several values per sample set "
        "data.task: regression."
    )


def _classes(name: str, y: np.ndarray) -> np.ndarray:
    """Labels in any accepted form -> (n,) int64; those of every pixel or step, (n, ...), stay small as int32."""
    column = np.argmax(y, axis=-1) if _is_one_hot(y) else _column(name, y)
    if column.dtype.kind == "f" and not np.array_equal(column, np.rint(column)):
        first = int(np.argmax((column != np.rint(column)).reshape(len(column), -1).any(axis=1)))
        value = column[first].ravel()
        raise DataError(
            f"{name}[{first}] is {value[value != np.rint(value)][0]:g}, but data.task is classification: expected whole class "
            "numbers 0, 1, ...; for measured values set data.task: regression."
        )
    return column.astype(np.int64 if column.ndim == 1 else np.int32)


def _check_label_range(name: str, y: np.ndarray, classes: int, named: bool) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        known = f"the {classes} named classes are 0..{classes - 1}" if named else "classes are numbered 0, 1, ..."
        raise DataError(
            f"{name} holds labels {low}..{high}, but {known}. Renumber the labels, or set data.task: regression for "
            "other values."
        )
