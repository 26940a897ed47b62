"""Samples for a build: read once, split once, and never mixed up again.

``load`` takes any source and gives a `Data`: four splits over arrays that are not copied. Test samples are never
trained, selected or calibrated on; validation and calibration come out of the training samples; the same seed gives
the same splits. ``check_fits`` says whether a model can take them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune import data_sources
from edgeprune.data_arrays import Arrays, Part, checked, chunks
from edgeprune.data_options import DataOptions, Preprocess, Task
from edgeprune.errors import DataError

if TYPE_CHECKING:
    from edgeprune.progress import Progress

__all__ = ["Data", "DataOptions", "Preprocess", "Split", "check_fits", "load", "stratified"]

Shape = Sequence[int | None]


@dataclass(frozen=True)
class Split:
    """Some rows of an array: an index, not a copy.

    Attributes:
        base: (n_all, ...) stored values, in memory or mapped from a file; splits of one source share it.
        index: (n,) int64 rows of ``base``, ascending.
        y: (n,) int64 class numbers or (n, ...) float32 values, in the order of ``index``.
        preprocess: stored value -> model input.
        origin: what the source calls ``base``: ``x_train``, ``x`` ...
    """

    base: np.ndarray
    index: np.ndarray
    y: np.ndarray
    preprocess: Preprocess
    origin: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def x(self) -> np.ndarray:
        """(n, ...) stored values: a copy of this split's rows."""
        return self.base[self.index]

    def take(self, positions: np.ndarray | Sequence[int] | slice) -> np.ndarray:
        """Stored values of the samples at these positions of the split, 0..n-1."""
        return self.base[self.index[positions]]

    def inputs(self, positions: np.ndarray | Sequence[int] | slice = slice(None)) -> np.ndarray:
        """float32 model inputs of the samples at these positions of the split; all by default."""
        return self.preprocess(self.take(positions))

    def labels(self) -> np.ndarray:
        """``y``: (n,) class numbers, or (n, ...) values."""
        return self.y

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(float32 model inputs, y) in order, ``size`` samples at a time; the last batch may be shorter."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.inputs(rows), self.y[rows]

    def select(self, positions: np.ndarray) -> Split:
        """A split of some of these samples, in the order of the base."""
        kept = np.sort(np.asarray(positions, dtype=np.int64))
        return replace(self, index=self.index[kept], y=self.y[kept])

    def digest(self) -> str:
        """sha256 of which rows of which array these are: equal exactly when the samples are the same ones."""
        digest = hashlib.sha256(f"{self.origin} {len(self)} ".encode())
        digest.update(np.sort(self.index).astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Data:
    """Everything a build knows about its samples.

    Attributes:
        source: the user's word for it.
        classes: number of classes; None for regression.
        labels: what the classes are called; empty for regression.
        train: samples that weights are trained on.
        calibration: some of ``train``, evenly over the classes, that set the int8 ranges.
        validation: samples that are only watched and selected by; empty when switched off.
        test: samples that give the final metric and nothing else.
        fingerprint: sha256 of contents, splits and preprocessing; equal means that a build would see the same data.
        provenance: plain data: the ``data`` block of report.json.
    """

    source: str
    task: Task
    classes: int | None
    labels: tuple[str, ...]
    train: Split
    calibration: Split
    validation: Split
    test: Split
    preprocess: Preprocess
    fingerprint: str
    provenance: Mapping[str, Any]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, without the batch axis."""
        return self.train.base.shape[1:]

    @property
    def splits(self) -> dict[str, Split]:
        """The four splits by name."""
        return {"train": self.train, "calibration": self.calibration, "validation": self.validation, "test": self.test}


def load(source: Any, options: DataOptions | None = None, seed: int = 0, progress: Progress | None = None) -> Data:
    """Read a source, check it, and split it.

    Args:
        source: a path, ``kind:name``, ``module:function``, or live arrays or tf.data (``docs/data.md``).
        options: the recipe's ``data`` block.
        seed: >= 0; decides every random choice. Test, validation and calibration have a random stream each, so that
            changing ``validation`` or ``calibration`` never moves a test sample.
        progress: told about decoded images.

    Raises:
        DataError: missing, corrupt or empty data; what was found and what was expected.
        NameUnknown: no data set, module or function of that name.
        MissingDependency: the source needs a package that is not installed.
    """
    options = options or DataOptions()
    arrays = checked(data_sources.read(source, options, progress), options.task)
    splits = _split(arrays, options, seed)
    return _data(data_sources.described(source), arrays, splits, options, seed)


def stratified(strata: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Pick ``count`` samples so that every class keeps its share, to within one sample.

    Sample r (in random order) of the n_c in class c gets the place (r + 1/2) / n_c; the ``count`` lowest places are
    taken.

    Args:
        strata: (n,) class of each sample; all equal for a plain random choice.
        count: 0..n.

    Returns:
        (count,) int64 positions, ascending.
    """
    order = random.permutation(len(strata))
    _, classes, sizes = np.unique(strata[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(classes, kind="stable")
    first = np.cumsum(sizes) - sizes
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_class] = np.arange(len(order)) - first[classes[by_class]]
    place = (rank + 0.5) / sizes[classes]
    return np.sort(order[np.argsort(place, kind="stable")[:count]])


def check_fits(data: Data, input_shape: Shape, output_shape: Shape) -> Data:
    """Whether a model can take these samples and tell these labels.

    Args:
        input_shape: of one sample, such as (32, 32, 3); None where the model takes any size.
        output_shape: of one sample's output, such as (10,).

    Returns:
        The data, with a channel axis of 1 added where that is all that was missing (said in the provenance's notes).

    Raises:
        DataError: both shapes or ranges, and what to change.
    """
    data = _check_input(data, tuple(input_shape))
    if data.task == "regression":
        return _check_values(data, tuple(output_shape))
    return _check_classes(data, tuple(output_shape))


def _split(arrays: Arrays, options: DataOptions, seed: int) -> dict[str, Split]:
    """Test first, then the limit, then validation, then calibration: each is taken out of what is left."""
    streams = [np.random.Generator(np.random.PCG64(part)) for part in np.random.SeedSequence(seed).spawn(4)]
    preprocess = options.preprocess.resolved()
    whole = {name: _whole(part, preprocess) for name, part in arrays.parts.items()}
    train = whole["all"] if "all" in whole else whole["train"]
    if "test" in whole:
        test = whole["test"]
    else:
        train, test = _taken(train, math.ceil(options.test * len(train)), arrays.task, options.shuffle, streams[0])
    if options.limit is not None:
        train, test = (_limited(split, options, arrays.task, streams[1]) for split in (train, test))
    if "val" in whole:
        validation = whole["val"]
    else:
        train, validation = _taken(
            train, math.ceil(options.validation * len(train)), arrays.task, options.shuffle, streams[2]
        )
    if len(train) == 0 or len(test) == 0:
        raise DataError(
            f"The source holds {sum(len(split) for split in whole.values())} samples, which leave {len(train)} to "
            f"train and {len(test)} to test. Expected at least one of each: give more samples, or lower data.test and "
            "data.validation."
        )
    calibration = train.select(
        stratified(_strata(train, arrays.task), min(options.calibration, len(train)), streams[3])
    )
    return {"train": train, "calibration": calibration, "validation": validation, "test": test}


def _whole(part: Part, preprocess: Preprocess) -> Split:
    return Split(part.x, np.arange(len(part.x), dtype=np.int64), part.y, preprocess, part.name)


def _strata(split: Split, task: Task) -> np.ndarray:
    """What a random choice keeps the shares of: the classes."""
    return split.y if task == "classification" else np.zeros(len(split), dtype=np.int64)


def _taken(split: Split, count: int, task: Task, shuffle: bool, random: np.random.Generator) -> tuple[Split, Split]:
    """The split without ``count`` samples, and those; in order, the last ones are taken."""
    everything = np.arange(len(split))
    chosen = stratified(_strata(split, task), count, random) if shuffle else everything[len(split) - count :]
    return split.select(np.setdiff1d(everything, chosen)), split.select(chosen)


def _limited(split: Split, options: DataOptions, task: Task, random: np.random.Generator) -> Split:
    count = min(options.limit or len(split), len(split))
    return split.select(stratified(_strata(split, task), count, random) if options.shuffle else np.arange(count))


def _data(source: str, arrays: Arrays, splits: Mapping[str, Split], options: DataOptions, seed: int) -> Data:
    _check_disjoint(splits)
    hashes = {part.name: _row_hashes(part.x) for part in arrays.parts.values()}
    preprocess = options.preprocess.resolved()
    notes = [*arrays.notes, *_notes(arrays, splits, options, hashes)]
    return Data(
        source=source,
        task=arrays.task,
        classes=len(arrays.labels) or None,
        labels=arrays.labels,
        **splits,
        preprocess=preprocess,
        fingerprint=_fingerprint(arrays, splits, preprocess, hashes),
        provenance=_provenance(source, arrays, splits, seed, preprocess, notes),
    )


def _check_disjoint(splits: Mapping[str, Split]) -> None:
    """Proof, not hope: no row is in two of train, validation and test, and calibration is part of train."""
    apart = combinations((splits["train"], splits["validation"], splits["test"]), 2)
    calibration, train = splits["calibration"], splits["train"]
    inside = calibration.origin == train.origin and np.isin(calibration.index, train.index).all()
    if not inside or any(one.origin == two.origin and np.isin(one.index, two.index).any() for one, two in apart):
        raise AssertionError("edgeprune split the data so that two splits share samples; please report this")


def _row_hashes(x: np.ndarray) -> np.ndarray:
    """(n,) 16-byte hashes, one per sample: contents for the fingerprint, and the means to find a sample twice."""
    hashes = bytearray()
    for chunk in chunks(x):
        content = memoryview(chunk.tobytes())
        size = len(content) // len(chunk)
        for start in range(0, len(content), size):
            hashes += hashlib.blake2b(content[start : start + size], digest_size=16).digest()
    return np.frombuffer(bytes(hashes), dtype="S16")


def _fingerprint(
    arrays: Arrays, splits: Mapping[str, Split], preprocess: Preprocess, hashes: Mapping[str, np.ndarray]
) -> str:
    """Everything that training, calibration or evaluation can see; not where it lies: a moved file stays the same."""
    facts = {
        "task": arrays.task,
        "labels": arrays.labels,
        "preprocess": preprocess.as_dict(),
        "splits": {name: split.digest() for name, split in splits.items()},
        "arrays": {
            part.name: [part.x.shape, part.x.dtype.str, part.y.shape, part.y.dtype.str]
            for part in arrays.parts.values()
        },
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in arrays.parts.values():
        digest.update(hashes[part.name].tobytes())
        digest.update(np.ascontiguousarray(part.y).tobytes())
    return digest.hexdigest()


def _notes(
    arrays: Arrays, splits: Mapping[str, Split], options: DataOptions, hashes: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """What a careful reader would want to be told."""
    train, test = splits["train"], splits["test"]
    known = np.concatenate([hashes[split.origin][split.index] for split in (train, splits["validation"])])
    if twice := int(np.isin(hashes[test.origin][test.index], known).sum()):
        yield f"{twice} of {len(test)} test samples equal a training or validation sample exactly: the metric flatters"
    if options.limit is not None:
        yield f"data.limit: at most {options.limit} samples were used for training, and as many for the test"
    if len(splits["calibration"]) < options.calibration:
        yield f"calibration uses all {len(train)} training samples; {options.calibration} were asked for"
    if "val" not in arrays.parts and options.validation == 0:
        yield "no validation samples (data.validation is 0)"
    if arrays.task == "classification":
        for name in ("train", "test"):
            missing = np.setdiff1d(np.arange(len(arrays.labels)), splits[name].y)
            if len(missing):
                more = " ..." if len(missing) > 10 else ""
                yield f"no {name} sample of class {', '.join(arrays.labels[number] for number in missing[:10])}{more}"


def _provenance(
    source: str, arrays: Arrays, splits: Mapping[str, Split], seed: int, preprocess: Preprocess, notes: list[str]
) -> dict[str, Any]:
    used_for = {"train": ["training"], "calibration": ["int8 ranges"], "validation": ["monitoring"], "test": ["metric"]}
    blocks: dict[str, dict[str, Any]] = {
        name: {"samples": len(split), "from": split.origin, "sha256": split.digest(), "used_for": used_for[name]}
        for name, split in splits.items()
    }
    blocks["calibration"]["part_of"] = "train"
    first = splits["train"]
    return {
        "source": source,
        "task": arrays.task,
        "classes": len(arrays.labels) or None,
        "seed": seed,
        "sample": {
            "shape": list(first.base.shape[1:]),
            "dtype": str(first.base.dtype),
            "range": list(arrays.value_range),
        },
        "preprocess": preprocess.as_dict(),
        "splits": blocks,
        "disjoint": True,
        "notes": notes,
    }


def _matches(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(shape, wanted, strict=True)
    )


def _noted(data: Data, note: str) -> Data:
    return replace(data, provenance={**data.provenance, "notes": [*data.provenance["notes"], note]})


def _check_input(data: Data, wanted: tuple[int | None, ...]) -> Data:
    shape = data.sample_shape
    if _matches(shape, wanted):
        return data
    if _matches((*shape, 1), wanted):
        splits = {name: replace(split, base=split.base[..., np.newaxis]) for name, split in data.splits.items()}
        sample = {**data.provenance["sample"], "shape": [*shape, 1]}
        widened = replace(data, **splits, provenance={**data.provenance, "sample": sample})  # type: ignore[arg-type]
        return _noted(widened, f"a channel axis was added to every sample: {shape} became {(*shape, 1)}")
    raise DataError(
        f"The samples of {data.source} have the shape {shape}, the model's input is {_shown(wanted)}. "
        f"{_input_advice(shape, wanted)}"
    )


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


def _check_values(data: Data, wanted: tuple[int | None, ...]) -> Data:
    """Regression: one output for each value of y; (n,) and (n, 1) are the same."""
    shape = data.train.y.shape[1:]
    if _matches(shape or (1,), wanted):
        return data
    hint = "give y with as many values per sample as the model has outputs"
    if shape in ((), (1,)) and len(wanted) == 1:
        hint = "if y holds class numbers, set data.task: classification; else " + hint
    raise DataError(
        f"y of {data.source} has the shape {shape} per sample (regression), the model's output is {_shown(wanted)}. "
        f"Expected equal shapes: {hint}."
    )


def _check_classes(data: Data, wanted: tuple[int | None, ...]) -> Data:
    """Classification: an output for each label that occurs; a single output tells two classes apart."""
    if len(wanted) != 1 or wanted[0] is None:
        raise DataError(
            f"y of {data.source} holds class numbers, the model's output is {_shown(wanted)}. Expected (classes,), or "
            "(1,) for two classes: for other outputs set data.task: regression and give y in the output's shape."
        )
    outputs = wanted[0]
    told = 2 if outputs == 1 else outputs
    used = [split.y for split in data.splits.values() if len(split)]
    low, high = min(int(y.min()) for y in used), max(int(y.max()) for y in used)
    if high >= told:
        one_off = " The labels seem to count from 1: subtract 1." if low >= 1 and high == told else ""
        raise DataError(
            f"The labels of {data.source} are {low}..{high}, but the model's output {_shown(wanted)} tells {told} "
            f"classes, 0..{told - 1}.{one_off} Give the data that this model was made for, or a model with {high + 1} "
            "outputs."
        )
    if (data.classes or 0) < told:
        return _noted(data, f"the model tells {told} classes, the data holds {data.classes}")
    return data
