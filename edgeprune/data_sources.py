"""Where samples come from: a file, a folder, ``kind:name``, ``module:function``, or live Python objects.

``kind:name`` and ``module:function`` look alike; the kinds in `SOURCES` win.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edgeprune import columns, data_images, registry
from edgeprune.data_arrays import Source, is_several
from edgeprune.data_options import DataOptions, Role
from edgeprune.errors import DataError, EdgepruneError, MissingDependency, NameUnknown

if TYPE_CHECKING:
    from edgeprune.progress import Progress

KEYS = "x_train, y_train, x_test, y_test (x_val, y_val, labels where you have them), or x and y alone"
ACCEPTED = (
    "an .npz file, an image folder, keras:NAME, sklearn:NAME, tfds:NAME, module:function, a dict with the keys of an "
    ".npz, (x, y), ((x_train, y_train), (x_test, y_test)), or a tf.data.Dataset of (x, y); for several inputs or outputs "
    "x or y is a dict of arrays by their names"
)
_ROLES: tuple[Role, ...] = get_args(Role)
_INFINITE = -1  # tf.data.INFINITE_CARDINALITY
_BATCH = 256  # samples read at a time from a dataset that is not batched
_MODULE_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def read(source: Any, options: DataOptions, progress: Progress | None = None) -> Source:
    """The arrays that a source holds, whatever kind of source it is.

    Raises:
        DataError: missing, corrupt, or not in a form that is known.
        NameUnknown: no data set, module or function of that name.
        MissingDependency: the kind of source needs a package that is not installed.
    """
    if not isinstance(source, (str, os.PathLike)):
        return from_object(source, options)
    word = str(os.fspath(source))
    path = Path(word).expanduser()
    with _readable(path):
        if path.is_dir():
            return data_images.read(path, options, progress)
        if path.is_file():
            return from_npz(path, options)
    kind, colon, name = word.partition(":")
    if colon and kind in SOURCES:
        return SOURCES[kind](name, options)
    if _MODULE_FUNCTION.fullmatch(word):
        return from_function(word, options)
    raise _not_found(path)


def described(source: Any) -> str:
    """What reports call a source: the user's own word, or the type of a live object."""
    if isinstance(source, (str, os.PathLike)):
        return str(os.fspath(source))
    return "tf.data in memory" if _holds_dataset(source) else "arrays in memory"


def from_npz(path: Path, options: DataOptions) -> Source:
    """An .npz file with the keys that ``docs/data.md`` lists; objects and pickles are never read."""
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path} is no data that edgeprune reads. Expected {ACCEPTED}.")
    with _readable(path):
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(
                f"{path} is a single array, not an .npz archive. Save x and y together: numpy.savez(path, x=..., "
                "y=...)."
            )
        with archive:
            return _from_keys(str(path), archive.files, archive.__getitem__, options)


def from_function(path: str, options: DataOptions) -> Source:
    """What ``module:function`` returns when it is called without arguments: any of the live objects."""
    function = registry.attribute(path)
    if not callable(function):
        raise DataError(
            f"'{path}' is a {type(function).__name__}. Expected a function without arguments that returns {ACCEPTED}."
        )
    with _foreign(f"'{path}'"):
        value = function()
    return from_object(value, options)


def from_object(value: Any, options: DataOptions) -> Source:
    """Live Python objects: dicts, tuples, arrays and tf.data datasets."""
    if isinstance(value, Mapping):
        return _from_mapping(value, options)
    if _is_dataset(value):
        return Source({"all": _materialized(value, options)})
    if isinstance(value, (tuple, list)) and len(value) in (2, 3):
        if all(_is_dataset(item) or _is_pair(item) for item in value):
            names = ("train", "test") if len(value) == 2 else ("train", "val", "test")
            return Source({name: _pair(item, options) for name, item in zip(names, value, strict=True)})
        if len(value) == 2 and not any(map(_is_dataset, value)):
            return Source({"all": _pair(value, options)})
    length = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    raise DataError(
        f"The data is a {type(value).__name__}{length}, which is no form that edgeprune reads. Expected {ACCEPTED}."
    )


def from_keras(name: str, options: DataOptions) -> Source:
    """``keras:NAME``: ``tf_keras.datasets.NAME.load_data()``, downloaded by Keras unless it already was."""
    try:
        importlib.import_module("edgeprune.keras")  # decides which Keras, which must happen before TensorFlow starts
        datasets = importlib.import_module("tf_keras").datasets
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"'keras:{name}' needs the Python package '{error.name}', which is not installed. Install it: pip install "
            "'edgeprune[host]'"
        ) from error
    known = [word for word, module in vars(datasets).items() if hasattr(module, "load_data")]
    if name not in known:
        raise registry.unknown("keras data set", name, known)
    with _foreign(
        f"'keras:{name}'", "Keras downloads it once: check the network, or save the arrays as .npz and give that file."
    ):
        return from_object(getattr(datasets, name).load_data(), options)


def from_sklearn(name: str, options: DataOptions) -> Source:
    """``sklearn:NAME``: ``sklearn.datasets.load_NAME()``, values as stored, images with a channel axis."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"'sklearn:{name}' needs scikit-learn, which is not installed. Install it: pip install scikit-learn"
        ) from error
    known = [word.removeprefix("load_") for word in dir(datasets) if word.startswith("load_")]
    if name not in known:
        raise registry.unknown("sklearn data set", name, known)
    with _foreign(f"'sklearn:{name}'", "Only the data sets that load without arguments can be used."):
        bunch = getattr(datasets, f"load_{name}")()
    if not isinstance(bunch, Mapping) or "target" not in bunch or "data" not in bunch:
        raise DataError(f"'sklearn:{name}' holds no samples with targets. Choose one such as sklearn:digits.")
    x = np.asarray(bunch["images"])[..., np.newaxis] if "images" in bunch else np.asarray(bunch["data"])
    y = np.asarray(bunch["target"])
    labels = tuple(str(label) for label in bunch.get("target_names", ())) if y.dtype.kind in "iu" else ()
    return Source({"all": (_small_integers(x), y)}, labels)


def from_tfds(name: str, options: DataOptions) -> Source:
    """``tfds:NAME``: TensorFlow Datasets' (input, target) pairs in its own splits; also ``NAME/CONFIG:VERSION``."""
    try:
        importlib.import_module("edgeprune.keras")
        tfds = importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"'tfds:{name}' needs the Python package '{error.name}', which is not installed. Install it: pip install "
            "'edgeprune[tfds]'"
        ) from error
    with _foreign(f"'tfds:{name}'", "Check the name and the network, or save the arrays as .npz and give that file."):
        known = tfds.list_builders(with_community_datasets=False)
        if ":" not in name and name.partition("/")[0] not in known:
            raise NameUnknown(f"There is no tfds data set '{name}'.{registry.suggestion(name, known)}")
        builder = tfds.builder(name)
        builder.download_and_prepare()
        splits, pair = builder.info.splits, builder.info.supervised_keys
        if "train" not in splits or len(pair or ()) != 2:
            raise DataError(
                f"'tfds:{name}' has the splits {_listed(splits)} and the supervised keys {pair}: expected a train "
                "split of (input, target) pairs. Give it as module:function that makes them."
            )
        parts = {
            part: _materialized(builder.as_dataset(split=split, as_supervised=True), options)
            for split, part in {"train": "train", "validation": "val", "test": "test"}.items()
            if split in splits
        }
        labels = getattr(builder.info.features[pair[1]], "names", None) or ()
    return Source(parts, tuple(labels))


SOURCES: dict[str, Callable[[str, DataOptions], Source]] = {
    "keras": from_keras,
    "sklearn": from_sklearn,
    "tfds": from_tfds,
}


def _not_found(path: Path) -> DataError:
    near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    kinds = [f"{kind}:" for kind in SOURCES]
    hint = registry.suggestion(path.name, near) or registry.suggestion(f"{str(path).partition(':')[0]}:", kinds)
    return DataError(f"There is no data '{path}'.{hint} Expected {ACCEPTED}.")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the system, NumPy and zipfile raise on a path into one paragraph."""
    try:
        yield
    except EdgepruneError:
        raise
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}). Check that it is whole and yours to read."
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, MemoryError) as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path} holds Python objects (a pickle), which can run code when read and are refused. Expected "
                "arrays of numbers: save them with numpy.savez after giving all samples one shape."
            ) from error
        raise DataError(
            f"{path} cannot be read ({error or type(error).__name__}): it is damaged or no .npz archive. Save or copy "
            "it again."
        ) from error


@contextlib.contextmanager
def _foreign(what: str, advice: str = "Mend it, or give the arrays as .npz.") -> Iterator[None]:
    """Run others' code: what it prints goes to stderr (stdout may carry our JSON), what it raises names its line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except EdgepruneError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"{what} raised {type(error).__name__}: {text} ({last.filename}:{last.lineno}). {advice}"
        ) from error


def _from_mapping(value: Mapping[str, Any], options: DataOptions) -> Source:
    """A dict with the keys of an .npz, or with ``train``, ``val`` and ``test`` that each hold (x, y) or a dataset."""
    if "train" in value and "x_train" not in value:
        if strange := [str(key) for key in value if key not in ("train", "val", "test", "labels")]:
            raise DataError(
                f"The data has the unknown key '{strange[0]}'. Expected train, val, test and labels, or {KEYS}."
            )
        parts = {part: _pair(value[part], options) for part in ("train", "val", "test") if part in value}
        return Source(parts, columns.each(_words, value.get("labels", ())))
    return _from_keys("The data", [str(key) for key in value], value.__getitem__, options)


def _from_keys(what: str, known: Collection[str], get: Callable[[str], Any], options: DataOptions) -> Source:
    """Arrays by role, each read once. ``options.keys`` renames. Several inputs or outputs: ``x_train_NAME``."""
    for role, key in options.keys.items():
        if key not in known and not _columns_of(key, known, {}):
            raise DataError(
                f"{what} has no '{key}', which data.keys names for {role}.{registry.suggestion(key, known)} It holds "
                f"{_listed(known)}."
            )
    keys: dict[str, str] = {role: options.keys.get(role, role) for role in _ROLES}
    found = {role: _columns_of(key, known, keys) for role, key in keys.items()}
    present = {role for role, names in found.items() if names}
    parts = _roles_of_parts(what, present, known)

    def read(role: str) -> Any:
        return columns.unnamed({name: get(key) for name, key in found[role].items()})

    labels = columns.each(_words, read("labels")) if "labels" in present else ()
    used = {
        key for role in ("labels", *(role for part in parts.values() for role in part)) for key in found[role].values()
    }
    unused = sorted(set(known) - used)
    notes = (f"not used of the data: {', '.join(unused)}",) if unused else ()
    return Source({part: (read(x), read(y)) for part, (x, y) in parts.items()}, labels, notes)


def _words(labels: Any) -> tuple[str, ...]:
    return tuple(str(label) for label in np.asarray(labels).ravel())


def _columns_of(key: str, known: Collection[str], keys: Mapping[str, str]) -> dict[str, str]:
    """Name of an input or output -> its key: the bare ``x_train``, or two and more of ``x_train_NAME``.

    What another role's key begins is that role's: ``x_train_left`` is no input ``train_left`` of ``x``.
    """
    if key in known:
        return {columns.LONE: key}
    longer = [other for other in keys.values() if other.startswith(f"{key}_")]
    own = [name for name in known if name.startswith(f"{key}_") and not any(_begins(other, name) for other in longer)]
    labels = key == keys.get("labels")
    return {name[len(key) + 1 :]: name for name in own} if len(own) > 1 or labels else {}


def _begins(key: str, name: str) -> bool:
    return name == key or name.startswith(f"{key}_")


def _roles_of_parts(what: str, present: set[str], known: Collection[str]) -> dict[str, tuple[str, str]]:
    """Which roles make up which part; every x needs its y."""
    if "x_train" not in present and "y_train" not in present and {"x", "y"} & present:
        wanted = {"all": ("x", "y")}
    else:
        wanted = {
            part: (f"x_{part}", f"y_{part}")
            for part in ("train", "val", "test")
            if part == "train" or {f"x_{part}", f"y_{part}"} & present
        }
    strange = [key for key in known if key not in _ROLES]
    for pair in wanted.values():
        for role in pair:
            if role not in present:
                raise DataError(
                    f"{what} has no '{role}'.{registry.suggestion(role, strange)} It holds {_listed(known)}; expected "
                    f"{KEYS}. If yours are called otherwise, say so: data.keys: {{{role}: NAME}}."
                )
    return wanted


def _listed(keys: Sequence[str] | Collection[str]) -> str:
    return ", ".join(sorted(keys)) or "nothing"


def _small_integers(x: np.ndarray) -> np.ndarray:
    """Floats that are all whole numbers 0..255 -> uint8: the same values in an eighth of the memory."""
    fits = x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 255 and np.array_equal(x, np.rint(x))
    return x.astype(np.uint8) if fits else x


def _is_dataset(value: Any) -> bool:
    """tf.data.Dataset, recognized without importing TensorFlow."""
    return hasattr(value, "element_spec") and hasattr(value, "as_numpy_iterator")


def _holds_dataset(value: Any) -> bool:
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else [value]
    return any(_is_dataset(item) for item in items)


def _is_pair(value: Any) -> bool:
    """Whether a value is (x, y), where either may be several arrays."""
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_samples, value))


def _is_samples(value: Any) -> bool:
    return hasattr(value, "__array__") or isinstance(value, Mapping) or is_several(value)


def _pair(value: Any, options: DataOptions) -> tuple[Any, Any]:
    if _is_dataset(value):
        return _materialized(value, options)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return value[0], value[1]
    raise DataError(f"A split is a {type(value).__name__}. Expected (x, y) or a tf.data.Dataset of (x, y).")


def _materialized(dataset: Any, options: DataOptions) -> tuple[Any, Any]:
    """All elements of a tf.data.Dataset of (x, y) as arrays; several inputs or outputs are dicts or tuples of them.

    Splits must be fixed and known sample by sample, and every stage reads them in an order of its own: that takes
    arrays.
    """
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or not all(map(_is_known, _leaves(spec))):
        raise DataError(
            f"The tf.data.Dataset gives {spec}. Expected pairs (x, y) of tensors of known rank: map it to that first."
        )
    if int(dataset.cardinality()) == _INFINITE:
        raise DataError(
            "The tf.data.Dataset is endless. Expected one pass over the samples: take .repeat() out, or add .take(n)."
        )
    batches = dataset if _is_batched(_leaves(spec)) else dataset.batch(_BATCH)
    read: list[list[np.ndarray]] = [[] for _ in _leaves(spec)]
    size, limit = 0, options.memory_gib * 2**30
    with _foreign("The tf.data.Dataset", "Mend its map functions, and give all samples one shape."):
        for batch in batches.as_numpy_iterator():
            for arrays, values in zip(read, _leaves(batch), strict=True):
                arrays.append(np.asarray(values))
                size += arrays[-1].nbytes
            if size > limit:
                raise DataError(
                    f"The tf.data.Dataset holds more than {options.memory_gib:g} GiB. It is read into memory once, so "
                    "that the splits are fixed: keep images as uint8 and scale them with data.preprocess, raise "
                    "data.memory_gib, or give an image folder."
                )
        if not read[0]:
            raise DataError("The tf.data.Dataset is empty. Expected at least one (x, y).")
        whole = iter([_joined(arrays) for arrays in read])
        return _filled(spec[0], whole), _filled(spec[1], whole)


def _leaves(value: tuple[Any, Any]) -> list[Any]:
    """The tensors of x, then those of y, whether they are one, a dict or a tuple."""
    return [leaf for side in value for leaf in _side(side)]


def _side(side: Any) -> list[Any]:
    if isinstance(side, Mapping):
        return list(side.values())
    return list(side) if isinstance(side, tuple) else [side]


def _filled(spec: Any, arrays: Iterator[np.ndarray]) -> Any:
    """Arrays in the form of a dataset's x or y."""
    if isinstance(spec, Mapping):
        return {name: next(arrays) for name in spec}
    return tuple(next(arrays) for _ in spec) if isinstance(spec, tuple) else next(arrays)


def _is_known(spec: Any) -> bool:
    return getattr(getattr(spec, "shape", None), "rank", None) is not None


def _is_batched(specs: list[Any]) -> bool:
    """Whether x and y share a first axis: unknown in all, or (with ``drop_remainder``) equal."""
    shapes = [tuple(spec.shape) for spec in specs]
    return len(shapes[0]) > 1 and all(len(shape) > 0 and shape[0] == shapes[0][0] for shape in shapes)


def _joined(batches: list[np.ndarray]) -> np.ndarray:
    """The batches in one array. Each is let go once copied, so that the peak stays near one copy, not two."""
    whole = np.empty((sum(len(batch) for batch in batches), *batches[0].shape[1:]), dtype=batches[0].dtype)
    batches.reverse()
    at = 0
    while batches:
        batch = batches.pop()
        whole[at : at + len(batch)] = batch
        at += len(batch)
    return whole
