"""Take the user's model: check the file before anything of it is loaded, and never touch the original.

A model file is untrusted input. Keras rebuilds layers from the configuration inside it, a ``Lambda`` layer there is
compiled Python that runs on loading, and what a configuration asks to be imported runs too. So the configuration is
read as plain JSON first (`code_check`), what it declares is held against what the file stores (`guard`), and whatever
comes out, of Keras 2 or 3, is one flat functional tf_keras model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import files, registry
from edgeprune.errors import EdgepruneError, ModelError, RunFolderError
from edgeprune.keras import graph, guard, keras
from edgeprune.keras.code_check import check_config

__all__ = ["check_config", "from_python", "load", "load_own", "named", "save", "take"]

Tell = Callable[[str], None]
SUFFIXES = (".keras", ".h5", ".hdf5")


def named(word: str, trust: bool = False, tell: Tell | None = None) -> tuple[Any, bool]:
    """The model that a word of the user's names, and whether its weights are trained.

    Args:
        word: a ``.keras`` or ``.h5`` file or a SavedModel folder (trained), ``module:function``, or a name of
            ``edgeprune list models`` or the dotted path of such a module (untrained).
        trust, tell: as for ``load``.

    Raises:
        ModelError: missing, corrupt, or of a kind that cannot be taken.
        UntrustedModel: loading would run code, and ``trust`` is False.
        NameUnknown: no such module or function.
    """
    path, known = Path(word), registry.names("models")
    if path.exists() or path.suffix in SUFFIXES:
        return load(path, trust, tell), True
    if ":" in word:
        return from_python(word, tell), False
    if word in known or ("." in word and "/" not in word):
        return take(registry.module("models", word).build(), word, tell), False
    raise ModelError(
        f"There is no model file '{word}', and no built-in model of that name.{registry.suggestion(word, known)} Built in: "
        f"{', '.join(known)}. Give the path of a .keras or .h5 file or of a SavedModel folder, or module:function."
    )


def load(path: Path, trust: bool = False, tell: Tell | None = None) -> Any:
    """The model in a ``.keras`` or ``.h5`` file of Keras 2 or 3, or in a SavedModel folder: flat, functional, uncompiled.

    Args:
        path: the file or folder.
        trust: load it even though that runs code of its author's.
        tell: is called with what the user should know of what was taken, in one sentence each.

    Raises:
        ModelError: missing, empty, truncated, not a Keras model, or holding layers that cannot be taken.
        UntrustedModel: loading would run code, and ``trust`` is False.
    """
    if path.is_dir():
        from edgeprune.keras import saved_model

        return _flat(saved_model.load(path, trust), path)
    _check_file(path)
    stored = _stored(path)
    if not trust:
        check_config(stored.config, str(path))
    guard.check_config_sizes(stored.config, path)
    if stored.version.startswith("3."):
        return _from_keras3(_loaded3(path, trust, stored), path, tell)
    safe = {"safe_mode": not trust} if path.suffix == ".keras" else {}
    with _bounded(path, stored, keras.layers.Layer):
        model = keras.models.load_model(path, compile=False, **safe)
    return _flat(model, path)


def _loaded3(path: Path, trust: bool, stored: _Stored) -> Any:
    """A Keras 3 model from a file that was checked."""
    from edgeprune.keras import keras3

    with _bounded(path, stored, keras3.keras3().layers.Layer):
        return keras3.load(path, trust)


@contextmanager
def _bounded(path: Path, stored: _Stored, base: type) -> Iterator[None]:
    """Let Keras load a model from a file that was checked: whatever it raises gets a name, whatever it takes an end."""
    with guard.named(path), guard.deadline(stored.size, path), guard.weights(stored.weights, path, base):
        yield


def _from_keras3(model: Any, source: Path | str, tell: Tell | None) -> Any:
    """The tf_keras model that computes the same; the original stays as it is."""
    from edgeprune.keras import keras3

    with guard.named(source):
        guard.check_activations(model, source)
        taken = keras3.convert(model)
        dropped = ", ".join(keras3.left_out(model))
    if dropped and tell is not None:
        tell(
            f"Left out of the model, since they do nothing at inference: {dropped}. Where training needs such augmentation, "
            "augment the data."
        )
    return taken


def _flat(model: Any, source: Path | str) -> Any:
    """A copy of a tf_keras model in which every call is a layer's, and no layer a model."""
    from edgeprune.keras import preparation

    with guard.named(source):
        model = graph.functional(model)
        guard.check_activations(model, source)
        return preparation.operations(graph.rebuild(model))


def from_python(source: str, tell: Tell | None = None) -> Any:
    """What ``module:function`` returns: a model of Keras 2 or 3; ``tell`` as for ``load``.

    Raises:
        NameUnknown: no such module or function.
        ModelError: the function fails, or returns something else.
    """
    function = registry.attribute(source)
    try:
        model = function() if callable(function) and not _is_model(function) else function
    except EdgepruneError:
        raise
    except Exception as error:
        raise ModelError(f"{source} failed: {type(error).__name__}: {guard.first_line(error)}") from error
    return take(model, source, tell)


def take(model: Any, source: str = "the model", tell: Tell | None = None) -> Any:
    """A copy of a live model of Keras 2 or 3 that shares nothing with it; ``tell`` as for ``load``.

    Raises:
        ModelError: neither a functional nor a built Sequential model of either.
    """
    if isinstance(model, keras.Model):
        return _flat(model, source)
    if _is_model(model):
        return _from_keras3(model, source, tell)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise ModelError(
        f"Expected {source} to be a functional or Sequential model of keras or tf_keras, got {kind}. Give the model itself, the "
        "path of its file, or module:function."
    )


def _is_model(thing: Any) -> bool:
    """Whether something is a model of Keras 2 or 3; both can be called, like a function that makes one."""
    from edgeprune.keras import keras3

    return isinstance(thing, keras.Model) or keras3.is_model(thing)


def save(model: Any, path: Path) -> Path:
    """An uncompiled float model as one ``.keras`` file (tf_keras format)."""
    with files.writing(path):
        model.save(path, save_format="keras")
    return path


def load_own(path: Path) -> Any:
    """A model that ``save`` wrote into a run folder.

    It may hold a Lambda: it was checked, or vouched for, or made by the user's own code, when it was taken.

    Raises:
        RunFolderError: it is gone or damaged.
    """
    try:
        return keras.models.load_model(path, compile=False, safe_mode=False)
    except Exception as error:  # whatever Keras meets inside
        raise RunFolderError(
            f"{path} is gone or damaged: {guard.first_line(error)} Build again with --force."
        ) from error


class _Stored(NamedTuple):
    """What a model file says of itself.

    Attributes:
        config: the model's configuration, plain JSON.
        version: of the Keras that wrote it, "" where it does not say.
        weights: bytes of weights in it.
        size: bytes of the configuration.
    """

    config: Any
    version: str
    weights: int
    size: int


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"There is no model file '{path}'. Give the path of a .keras or .h5 file or of a SavedModel folder, or module:function."
        )
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path} does not end in {', '.join(SUFFIXES)}. Save the model as .keras or .h5 (model.save('model.keras'))."
        )
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty. Save the model again.")


def _stored(path: Path) -> _Stored:
    """What is in a file, with all that it declares held against all that it stores."""
    try:
        # As Keras decides it, by suffix first: one file can be a .h5 and a zip archive at once.
        zipped = path.suffix == ".keras" and zipfile.is_zipfile(path)
        return _in_zip(path) if zipped else _in_h5(path)
    except ModelError:
        raise
    except Exception as error:  # h5py and zipfile raise OSError, KeyError, ValueError, BadZipFile, RuntimeError ...
        raise ModelError(
            f"{path} is damaged or not a Keras model: {guard.first_line(error)} Save it again, or copy it again."
        ) from error


def _in_zip(path: Path) -> _Stored:
    with zipfile.ZipFile(path) as archive:
        guard.check_zip(archive, path)
        damaged = archive.testzip()
        if damaged is not None:
            raise ModelError(f"{path} is damaged: '{damaged}' inside it fails its checksum. Copy it again.")
        metadata = guard.parsed(archive.read("metadata.json"), str(path))
        text = archive.read("config.json")
        weights = guard.archive_weights(archive, path)
    return _Stored(guard.parsed(text, str(path)), str(metadata.get("keras_version", "")), weights, len(text))


def _in_h5(path: Path) -> _Stored:
    import h5py

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ModelError(
                f"{path} holds no model configuration, only {', '.join(map(repr, file)) or 'nothing'}: perhaps it was written by "
                "save_weights. Save the whole model: model.save('model.keras')."
            )
        weights = guard.check_h5(file, path)
        config, version = (_text(file.attrs.get(name, "")) for name in ("model_config", "keras_version"))
    return _Stored(guard.parsed(config, str(path)), version, weights, len(config))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
