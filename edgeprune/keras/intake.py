"""Take the user's model: check the file before anything of it is loaded, and never touch the original.

A model file is untrusted input. Keras rebuilds layers from the configuration inside it, and a ``Lambda`` layer there is
compiled Python that runs on loading; so is whatever a configuration asks to be imported. The configuration is read as
plain JSON first, and refused when it asks for either.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprune import files, registry
from edgeprune.errors import EdgepruneError, ModelError, RunFolderError, UntrustedModel
from edgeprune.keras import graph, keras

SUFFIXES = (".keras", ".h5", ".hdf5")
# What a configuration may name as home of its classes; everything else would be imported, which is running code.
KNOWN_MODULES = ("keras", "tf_keras", "builtins")
# Keras calls what an operator's layer names while it loads, with the file's own arguments, and TensorFlow's functions
# include io.gfile.rmtree and load_op_library. These take tensors and give tensors.
TENSOR_FUNCTIONS = re.compile(
    r"(__operators__|bitwise|image|linalg|math|nn|signal)\.\w+|(compat\.v1\.)?(batch_to_space|broadcast_to|cast|"
    "clip_by_value|concat|convert_to_tensor|cumsum|depth_to_space|expand_dims|eye|fill|gather|gather_nd|identity|one_hot|"
    "ones|ones_like|pad|range|repeat|reshape|reverse|roll|scatter_nd|shape|size|slice|space_to_batch|space_to_depth|"
    "split|squeeze|stack|stop_gradient|strided_slice|tile|transpose|unstack|where|zeros|zeros_like)"
)


def named(word: str, trust: bool = False) -> tuple[Any, bool]:
    """The model that a word of the user's names, and whether its weights are trained.

    Args:
        word: a ``.keras`` or ``.h5`` file (trained), ``module:function``, or a name of ``edgeprune list models`` or the
            dotted path of such a module (untrained).
        trust: as for ``load``.

    Raises:
        ModelError: missing, corrupt, or of a kind that cannot be taken.
        UntrustedModel: loading would run code, and ``trust`` is False.
        NameUnknown: no such module or function.
    """
    path, known = Path(word), registry.names("models")
    if path.exists() or path.suffix in SUFFIXES:
        return load(path, trust), True
    if ":" in word:
        return from_python(word), False
    if word in known or ("." in word and "/" not in word):
        return take(registry.module("models", word).build(), word), False
    raise ModelError(
        f"There is no model file '{word}', and no built-in model of that name.{registry.suggestion(word, known)} Built in: "
        f"{', '.join(known)}. Give the path of a .keras or .h5 file, or module:function."
    )


def load(path: Path, trust: bool = False) -> Any:
    """The model in a ``.keras`` or ``.h5`` file of Keras 2, uncompiled.

    Args:
        path: the file.
        trust: load it even though that runs code of its author's.

    Raises:
        ModelError: missing, empty, truncated, not a Keras model, or of Keras 3.
        UntrustedModel: loading would run code, and ``trust`` is False.
    """
    _check_file(path)
    config, version = _config(path)
    if version.startswith("3."):
        raise ModelError(
            f"{path} was saved by Keras {version}; this version takes Keras 2 models. Rebuild it with tf_keras layers, copy the weights "
            "(new_model.set_weights(old_model.get_weights())) and save that as .h5."
        )
    if not trust:
        check_config(config, str(path))
    try:
        model = keras.models.load_model(
            path, compile=False, **({"safe_mode": not trust} if path.suffix == ".keras" else {})
        )
    except Exception as error:  # Keras raises whatever it met inside: KeyError, OSError, TypeError, ValueError ...
        raise ModelError(
            f"{path} looks like a Keras model but cannot be loaded: {_first_line(error)} If it uses layers of your own, give it as "
            "module:function that returns the loaded model."
        ) from error
    return graph.rebuild(model)


def from_python(source: str) -> Any:
    """What ``module:function`` returns: a tf_keras model.

    Raises:
        NameUnknown: no such module or function.
        ModelError: the function fails, or returns something else.
    """
    function = registry.attribute(source)
    try:
        model = function() if callable(function) and not isinstance(function, keras.Model) else function
    except EdgepruneError:
        raise
    except Exception as error:
        raise ModelError(f"{source} failed: {type(error).__name__}: {_first_line(error)}") from error
    return take(model, source)


def take(model: Any, source: str = "the model") -> Any:
    """A copy of a live model that shares nothing with it.

    Raises:
        ModelError: not a tf_keras functional or built Sequential model.
    """
    if isinstance(model, keras.Model):
        return graph.rebuild(model)
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    hint = (
        "Build it with tf_keras instead of keras (Keras 3), or save it as .h5 from Keras 2."
        if kind.startswith("keras.")
        else ""
    )
    raise ModelError(f"Expected {source} to be a tf_keras functional or Sequential model, got {kind}. {hint}".strip())


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
        raise RunFolderError(f"{path} is gone or damaged: {_first_line(error)} Build again with --force.") from error


def check_config(config: Any, where: str) -> None:
    """Refuse a configuration that would make loading run code.

    Raises:
        UntrustedModel: it holds a Lambda layer, a pickled function, or a class that would have to be imported.
    """
    for entry in _dicts(config):
        code = _code(entry)
        if code:
            raise UntrustedModel(
                f"{where} {code}. If you know where the file comes from, load it with --trust; better, replace it by a layer."
            )


def _code(entry: dict[str, Any]) -> str | None:
    """What of its author's choosing an entry of a configuration would run, in words; None: nothing."""
    kind = str(entry.get("class_name", "")).rsplit(".", 1)[-1]
    config = entry.get("config")
    within = config if isinstance(config, dict) else {}
    named = f" ({within['name']!r})" if "name" in within else ""
    if kind in ("Lambda", "__lambda__") or entry.get("function_type") == "lambda":
        return f"has a Lambda layer{named}: Python code inside the file that runs when it is loaded"
    if kind == "function":
        return f"calls the Python function {config!r}"
    if kind in ("ClassMethod", "TensorFlowOpLayer"):
        return f"has a {kind} layer{named}, which calls whatever it names in TensorFlow"
    function = str(within.get("function"))
    if kind in ("TFOpLambda", "SlicingOpLambda") and not TENSOR_FUNCTIONS.fullmatch(function):
        return f"calls TensorFlow's {function!r}{named} when it is loaded, which may do more than compute"
    module = entry.get("module")
    if isinstance(module, str) and module.split(".")[0] not in KNOWN_MODULES:
        return f"imports '{module}' for its class '{entry.get('class_name')}', which runs that module's code"
    return None


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside a JSON value, without recursion: a hostile file may nest deeper than Python's stack."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            yield current
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Give a .keras or .h5 file (model.save('model.h5')).")
    if not path.is_file():
        raise ModelError(f"There is no model file '{path}'. Give the path of a .keras or .h5 file, or module:function.")
    if path.suffix not in SUFFIXES:
        raise ModelError(
            f"{path} does not end in {', '.join(SUFFIXES)}. Save the model as .keras or .h5 (model.save('model.h5'))."
        )
    if path.stat().st_size == 0:
        raise ModelError(f"{path} is empty. Save the model again.")


def _config(path: Path) -> tuple[Any, str]:
    """The model's configuration as plain JSON, and the Keras version that wrote it ("" when it does not say)."""
    try:
        # As Keras decides it, by suffix first: one file can be a .h5 and a zip archive at once.
        zipped = path.suffix == ".keras" and zipfile.is_zipfile(path)
        return _config_of_zip(path) if zipped else _config_of_h5(path)
    except ModelError:
        raise
    except Exception as error:  # h5py and zipfile raise OSError, KeyError, ValueError, BadZipFile, RuntimeError ...
        raise ModelError(
            f"{path} is damaged or not a Keras model: {_first_line(error)} Save it again, or copy it again."
        ) from error


def _config_of_zip(path: Path) -> tuple[Any, str]:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ModelError(f"{path} is damaged: '{archive.testzip()}' inside it fails its checksum. Copy it again.")
        metadata = json.loads(archive.read("metadata.json"))
        return json.loads(archive.read("config.json")), str(metadata.get("keras_version", ""))


def _config_of_h5(path: Path) -> tuple[Any, str]:
    import h5py

    with h5py.File(path, "r") as file:
        if "model_config" not in file.attrs:
            raise ModelError(
                f"{path} holds no model configuration, only {', '.join(map(repr, file)) or 'nothing'}: perhaps it was written by "
                "save_weights. Save the whole model: model.save('model.h5')."
            )
        config, version = file.attrs["model_config"], file.attrs.get("keras_version", "")
    text = config.decode("utf-8") if isinstance(config, bytes) else str(config)
    return json.loads(text), version.decode() if isinstance(version, bytes) else str(version)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = text[0].strip() if text else type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."
