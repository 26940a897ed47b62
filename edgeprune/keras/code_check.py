"""What a model's configuration may name: Keras' own layers and their parts, and nothing that runs code of its author's.

Keras finds a class by the names in the configuration: it imports the module that stands there, and its public names
include functions that fetch files. So there is a list of what is allowed, made from the classes that Keras has, and
not one of what is forbidden.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import FunctionType
from typing import Any

from edgeprune.errors import UntrustedModel
from edgeprune.keras import keras, layers, program

KERAS = ("keras", "tf_keras")
# Layers of Keras that load something else from a path or a pickle, or call what their configuration names.
REFUSED = frozenset(
    (
        "Lambda",
        "TFSMLayer",
        "TorchModuleWrapper",
        "JaxLayer",
        "FlaxLayer",
        "ClassMethod",
        "TensorFlowOpLayer",
        "InstanceMethod",
        "InstanceProperty",
        "StringLookup",
        "IntegerLookup",
        "TextVectorization",
    )
)
OPERATORS = frozenset(("TFOpLambda", "SlicingOpLambda"))  # judged by the function that they call
MODELS = frozenset(("Functional", "Sequential", "Model"))
VALUES = frozenset(
    (
        "__keras_tensor__",
        "__tensor__",
        "__numpy__",
        "__bytes__",
        "__ellipsis__",
        "__slice__",
        "__tuple__",
        "TensorShape",
        "TypeSpec",
    )
)
# Activations that Keras 3 has and Keras 2 has not.
_NEWER = frozenset(
    (
        "celu",
        "glu",
        "hard_shrink",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "leaky_relu",
        "log_sigmoid",
        "log_softmax",
        "relu6",
        "silu",
        "soft_shrink",
        "sparse_plus",
        "sparse_sigmoid",
        "sparsemax",
        "squareplus",
        "tanh_shrink",
        "threshold",
    )
)
# Layers that a network of keras.applications brings along.
_OF_CONVNEXT = frozenset(("LayerScale", "StochasticDepth"))
OWN = "edgeprune>"  # layers of ours, which check what they are given
_PARTS = ("initializers", "regularizers", "constraints", "optimizers", "losses", "metrics", "quantizers")


def check_config(config: Any, where: str) -> None:
    """Refuse a configuration that would make loading run code.

    Args:
        config: a model's, as plain JSON, of Keras 2 or 3.
        where: the file, for the message.

    Raises:
        UntrustedModel: it holds a Lambda layer, a pickled function, or a class or function that is not one of Keras'
            layers, initializers, regularizers, constraints, activations or dtype policies.
    """
    if isinstance(config, dict):  # it is never compiled
        config = {key: value for key, value in config.items() if key not in ("compile_config", "training_config")}
    for entry in _dicts(config):
        code = _code(entry)
        if code:
            raise UntrustedModel(
                f"{where} {code}. If you know where the file comes from, load it with --trust; better, replace it by a "
                "layer. A model with layers of your own is given as module:function that returns the loaded model."
            )


def _code(entry: dict[str, Any]) -> str | None:
    """What of its author's choosing an entry of a configuration would run, in words; None: nothing."""
    if entry.get("function_type") == "lambda":
        return "has a Lambda layer: Python code inside the file that runs when it is loaded"
    if "class_name" not in entry and "registered_name" not in entry:
        return None
    kind, config, module = _last(entry.get("class_name")), entry.get("config"), entry.get("module")
    within = config if isinstance(config, dict) else {}
    named = f" ({within['name']!r})" if "name" in within else ""
    if kind in ("Lambda", "__lambda__"):
        return f"has a Lambda layer{named}: Python code inside the file that runs when it is loaded"
    if kind == "function":
        names = {_last(config), _last(entry.get("registered_name") or config)}
        return None if names <= _activations() and _is_known(module) else f"calls the Python function {config!r}"
    if kind in OPERATORS:
        function = str(within.get("function"))
        known = layers.FUNCTIONS.fullmatch(function)
        return (
            None
            if known
            else f"calls TensorFlow's {function!r}{named} when it is loaded, which may do more than compute"
        )
    if kind in REFUSED:
        return f"has a {kind} layer{named}, which loads or calls whatever it names"
    return _class(kind, entry)


def _class(kind: str, entry: dict[str, Any]) -> str | None:
    """Why a class may not be loaded, in words; None: it may."""
    module, registered = entry.get("module"), entry.get("registered_name")
    if kind in VALUES and not registered:
        return None
    for name in (entry.get("class_name"), registered):
        if isinstance(name, str) and name.startswith(OWN):
            return None if _is_ours(name, module) else f"names {name!r}, which this version of edgeprune does not have"
    if not _is_known(module):
        return f"imports {module!r} for its class {entry.get('class_name')!r}, which runs that module's code"
    if kind in _OF_CONVNEXT and str(module).endswith(".applications.convnext"):
        return None
    for name in {kind, _last(registered or kind)}:
        if name not in _classes() and name not in _classes3(module):
            return f"has a class {name!r}, which is none of Keras' layers, initializers, regularizers or constraints"
    return None


def _is_known(module: Any) -> bool:
    return module is None or (isinstance(module, str) and module.split(".")[0] in (*KERAS, "builtins"))


def _is_ours(name: str, module: Any) -> bool:
    """Whether a registered name is a layer of ours: the module that stands beside it is then not imported."""
    found = keras.utils.get_custom_objects().get(name)
    home = getattr(found, "__module__", "")
    return isinstance(found, type) and home in (layers.__name__, program.__name__) and module in (None, home)


def _last(name: Any) -> str:
    """``Dense`` of ``keras.layers.Dense``, ``layers.Dense`` and ``package>Dense``."""
    return str(name).rsplit(".", 1)[-1].rsplit(">", 1)[-1]


@cache
def _activations() -> frozenset[str]:
    """Names of the activation functions of Keras 2 and 3."""
    found = {name for name, value in vars(keras.activations).items() if isinstance(value, FunctionType)}
    return frozenset(found) - {"deserialize", "serialize", "get"} | _NEWER


@cache
def _classes() -> frozenset[str]:
    """Names of the classes of Keras 2 that a configuration may hold, with those by which older versions knew them."""
    from tf_keras.src import initializers
    from tf_keras.src.layers import serialization
    from tf_keras.src.metrics import base_metric

    serialization.populate_deserializable_objects()
    initializers.populate_deserializable_objects()
    found = {**serialization.LOCAL.ALL_OBJECTS, **initializers.LOCAL.ALL_OBJECTS}
    for part in _PARTS:
        found.update(vars(getattr(keras, part, keras.layers)))
    found |= {**vars(keras.mixed_precision), **vars(base_metric)}
    names = {name for name, value in found.items() if isinstance(value, type)}
    return frozenset(names | MODELS) - REFUSED


def _classes3(module: Any) -> frozenset[str]:
    """The same of Keras 3, which is imported only for a configuration in its own words."""
    return _of_keras3() if isinstance(module, str) and module.split(".")[0] == "keras" else frozenset()


@cache
def _of_keras3() -> frozenset[str]:
    from edgeprune.keras import keras3

    package = keras3.keras3()
    found: dict[str, Any] = {}
    for part in ("layers", *_PARTS):
        found.update(vars(getattr(package, part, package.layers)))
    operation = package.Operation
    for info in pkgutil.iter_modules(importlib.import_module("keras.src.ops").__path__, "keras.src.ops."):
        operations = vars(importlib.import_module(info.name)) if not info.name.endswith("_test") else {}
        found.update({n: v for n, v in operations.items() if isinstance(v, type) and issubclass(v, operation)})
    names = {name for name, value in found.items() if isinstance(value, type)}
    return frozenset(names | MODELS | {"DTypePolicy", "FloatDTypePolicy", "QuantizedDTypePolicy", "Variable"}) - REFUSED


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
