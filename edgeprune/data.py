"""Samples for a build: read once, split once, and never mixed up again.

``load`` takes any source and gives a `Data`: four splits over arrays that are not copied. Test samples are never
trained, selected or calibrated on; validation and calibration come out of the training samples; the same seed gives
the same splits. ``edgeprune.data_fit.check_fits`` says whether a model can take them.

For a model with several inputs or outputs, x or y is a mapping from their names to arrays wherever it else is one array
(`edgeprune.columns`).
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

from edgeprune import columns, data_sources
from edgeprune.columns import Columns
from edgeprune.data_arrays import Arrays, Part, Target, checked, chunks
from edgeprune.data_options import DataOptions, Preprocess, Task
from edgeprune.errors import DataError

if TYPE_CHECKING:
    from edgeprune.progress import Progress

__all__ = ["Data", "DataOptions", "Preprocess", "Split", "Target", "load", "stratified"]


@dataclass(frozen=True)
class Split:
    """Some rows of an array, or of several: an index, not a copy.

    Attributes:
        base: (n_all, ...) stored values, in memory or mapped from a file; splits of one source share it. For a model with
            several inputs: their names, in the model's order, to such arrays.
        index: (n,) int64 rows of ``base``, ascending.
        y: in the order of ``index``: (n,) int64 class numbers, (n, ...) int32 class numbers of every pixel or step, or
            (n, ...) float32 values; for several outputs their names to such arrays.
        preprocess: stored value -> model input; for several inputs by their names.
        origin: what the source calls ``base``: ``x_train``, ``x`` ...
    """

    base: Any  # Columns; but most users know which of the two they have
    index: np.ndarray
    y: Any  # Columns
    preprocess: Any  # Preprocess, or by name
    origin: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def x(self) -> Any:
        """(n, ...) stored values: a copy of this split's rows; for several inputs by their names."""
        return self.take(slice(None))

    def take(self, positions: np.ndarray | Sequence[int] | slice) -> Any:
        """Stored values of the samples at these positions of the split, 0..n-1; for several inputs by their names."""
        return columns.each(lambda base: base[self.index[positions]], self.base)

    def inputs(self, positions: np.ndarray | Sequence[int] | slice = slice(None)) -> Any:
        """Model inputs of the samples at these positions of the split; all by default.

        Returns:
            (n, ...) float32, or int32 for an input that takes whole numbers; for several inputs by their names.
        """
        return columns.each(lambda stored, preprocess: preprocess(stored), self.take(positions), self.preprocess)

    def labels(self) -> Any:
        """``y``: (n,) class numbers, or (n, ...) values; for several outputs by their names."""
        return self.y

    def batches(self, size: int) -> Iterator[tuple[Any, Any]]:
        """(model inputs, y) in order, ``size`` samples at a time; the last batch may be shorter."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.inputs(rows), columns.each(lambda y: y[rows], self.y)  # noqa: B023 - used before the next one

    def select(self, positions: np.ndarray) -> Split:
        """A split of some of these samples, in the order of the base."""
        kept = np.sort(np.asarray(positions, dtype=np.int64))
        return replace(self, index=self.index[kept], y=columns.each(lambda y: y[kept], self.y))

    def evenly(self, count: int) -> Split:
        """A split of so many of these samples, at equal distances, first and last among them; all where there are fewer."""
        if count >= len(self):
            return self
        return self.select(np.linspace(0, len(self) - 1, count).round().astype(int))

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
        targets: what y is; for several outputs by their names, a lone one is called ``""``.
        train: samples that weights are trained on.
        calibration: some of ``train``, evenly over the classes, that set the int8 ranges.
        validation: samples that are only watched and selected by; empty when switched off.
        test: samples that give the final metric and nothing else.
        preprocess: stored value -> model input; for several inputs by their names.
        fingerprint: sha256 of contents, splits and preprocessing; equal means that a build would see the same data.
        provenance: plain data: the ``data`` block of report.json.
    """

    source: str
    targets: Mapping[str, Target]
    train: Split
    calibration: Split
    validation: Split
    test: Split
    preprocess: Any  # Preprocess, or by name
    fingerprint: str
    provenance: Mapping[str, Any]

    @property
    def first(self) -> Target:
        """What the model's first output is."""
        return next(iter(self.targets.values()))

    @property
    def task(self) -> Task:
        """What the first output's y is."""
        return self.first.task

    @property
    def tasks(self) -> dict[str, Task]:
        """What the y of every output is, in the model's order; a lone one is called ``""``."""
        return {name: target.task for name, target in self.targets.items()}

    @property
    def classes(self) -> int | None:
        """Number of the first output's classes; None for regression."""
        return self.first.classes

    @property
    def labels(self) -> tuple[str, ...]:
        """What the first output's classes are called; empty for regression."""
        return self.first.labels

    @property
    def sample_shape(self) -> Any:
        """Shape of one sample, without the batch axis; for several inputs by their names."""
        return columns.each(lambda base: base.shape[1:], self.train.base)

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
    arrays = checked(data_sources.read(source, options, progress), options.task, options.tasks)
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


def _split(arrays: Arrays, options: DataOptions, seed: int) -> dict[str, Split]:
    """Test first, then the limit, then validation, then calibration: each is taken out of what is left."""
    streams = [np.random.Generator(np.random.PCG64(part)) for part in np.random.SeedSequence(seed).spawn(4)]
    preprocess = _preprocess(arrays, options)
    whole = {name: _whole(part, preprocess) for name, part in arrays.parts.items()}
    train = whole["all"] if "all" in whole else whole["train"]
    if "test" in whole:
        test = whole["test"]
    else:
        train, test = _taken(train, math.ceil(options.test * len(train)), options.shuffle, streams[0])
    if options.limit is not None:
        train, test = (_limited(split, options, streams[1]) for split in (train, test))
    if "val" in whole:
        validation = whole["val"]
    else:
        train, validation = _taken(train, math.ceil(options.validation * len(train)), options.shuffle, streams[2])
    if len(train) == 0 or len(test) == 0:
        raise DataError(
            f"The source holds {sum(len(split) for split in whole.values())} samples, which leave {len(train)} to "
            f"train and {len(test)} to test. Expected at least one of each: give more samples, or lower data.test and "
            "data.validation."
        )
    calibration = train.select(stratified(strata(train), min(options.calibration, len(train)), streams[3]))
    return {"train": train, "calibration": calibration, "validation": validation, "test": test}


def _preprocess(arrays: Arrays, options: DataOptions) -> Any:
    """What is done to x; for several inputs by their names.

    Raises:
        DataError: an input is named that there is not.
    """
    if strange := sorted(set(options.preprocess.inputs) - set(arrays.ranges)):
        raise DataError(
            f"data.preprocess.inputs names '{strange[0]}', but the data holds {', '.join(arrays.ranges) or 'one array'}. "
            "Name the inputs as the data does; a lone one takes data.preprocess itself."
        )
    return columns.unnamed({name: options.preprocess.resolved(name) for name in arrays.ranges})


def _whole(part: Part, preprocess: Any) -> Split:
    return Split(part.x, np.arange(columns.rows(part.x), dtype=np.int64), part.y, preprocess, part.name)


def strata(split: Split) -> np.ndarray:
    """(n,) what a random choice keeps the shares of: the first y that is one class per sample; else all are alike."""
    for y in columns.values(split.y):
        if y.ndim == 1 and y.dtype.kind == "i":
            return np.asarray(y)
    return np.zeros(len(split), dtype=np.int64)


def _taken(split: Split, count: int, shuffle: bool, random: np.random.Generator) -> tuple[Split, Split]:
    """The split without ``count`` samples, and those; in order, the last ones are taken."""
    everything = np.arange(len(split))
    chosen = stratified(strata(split), count, random) if shuffle else everything[len(split) - count :]
    return split.select(np.setdiff1d(everything, chosen)), split.select(chosen)


def _limited(split: Split, options: DataOptions, random: np.random.Generator) -> Split:
    count = min(options.limit or len(split), len(split))
    return split.select(stratified(strata(split), count, random) if options.shuffle else np.arange(count))


def _data(source: str, arrays: Arrays, splits: Mapping[str, Split], options: DataOptions, seed: int) -> Data:
    _check_disjoint(splits)
    hashes = {part.name: _row_hashes(part.x) for part in arrays.parts.values()}
    preprocess = splits["train"].preprocess
    notes = [*arrays.notes, *_notes(arrays, splits, options, hashes)]
    return Data(
        source=source,
        targets=arrays.targets,
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


def _row_hashes(x: Columns) -> np.ndarray:
    """(n,) hashes, one per sample: contents for the fingerprint, and the means to find a sample twice."""
    each = [np.frombuffer(_hashes(array), np.uint8).reshape(len(array), -1) for array in columns.values(x)]
    joined = np.ascontiguousarray(np.concatenate(each, axis=1))
    return joined.view(f"S{joined.shape[1]}").ravel()


def _hashes(x: np.ndarray) -> bytes:
    """16 bytes for each sample."""
    hashes = bytearray()
    for chunk in chunks(x):
        content = memoryview(chunk.tobytes())
        size = len(content) // len(chunk)
        for start in range(0, len(content), size):
            hashes += hashlib.blake2b(content[start : start + size], digest_size=16).digest()
    return bytes(hashes)


def _fingerprint(arrays: Arrays, splits: Mapping[str, Split], preprocess: Any, hashes: Mapping[str, np.ndarray]) -> str:
    """Everything that training, calibration or evaluation can see; not where it lies: a moved file stays the same."""
    facts = {
        "targets": {name: [target.task, target.labels] for name, target in arrays.targets.items()},
        "preprocess": columns.each(Preprocess.as_dict, preprocess),
        "splits": {name: split.digest() for name, split in splits.items()},
        "arrays": {
            part.name: [
                {name: [array.shape, array.dtype.str] for name, array in columns.named(values).items()}
                for values in (part.x, part.y)
            ]
            for part in arrays.parts.values()
        },
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in arrays.parts.values():
        digest.update(hashes[part.name].tobytes())
        for y in columns.values(part.y):
            digest.update(np.ascontiguousarray(y).tobytes())
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
    for output, target in arrays.targets.items():
        for name in ("train", "test"):
            missing = np.setdiff1d(np.arange(len(target.labels)), columns.named(splits[name].y)[output])
            if len(missing):
                more = " ..." if len(missing) > 10 else ""
                of = f" for {output}" if output else ""
                yield f"no {name} sample of class {', '.join(target.labels[number] for number in missing[:10])}{more}{of}"


def _provenance(
    source: str, arrays: Arrays, splits: Mapping[str, Split], seed: int, preprocess: Any, notes: list[str]
) -> dict[str, Any]:
    used_for = {"train": ["training"], "calibration": ["int8 ranges"], "validation": ["monitoring"], "test": ["metric"]}
    blocks: dict[str, dict[str, Any]] = {
        name: {"samples": len(split), "from": split.origin, "sha256": split.digest(), "used_for": used_for[name]}
        for name, split in splits.items()
    }
    blocks["calibration"]["part_of"] = "train"
    stored = columns.named(splits["train"].base)
    samples = {
        name: {"shape": list(base.shape[1:]), "dtype": str(base.dtype), "range": list(arrays.ranges[name])}
        for name, base in stored.items()
    }
    answers = {name: {"task": target.task, "classes": target.classes} for name, target in arrays.targets.items()}
    first = next(iter(answers.values()))
    return {
        "source": source,
        **first,
        **({} if columns.LONE in answers else {"outputs": answers}),
        "seed": seed,
        "sample": columns.unnamed(samples),
        "preprocess": columns.each(Preprocess.as_dict, preprocess),
        "splits": blocks,
        "disjoint": True,
        "notes": notes,
    }
