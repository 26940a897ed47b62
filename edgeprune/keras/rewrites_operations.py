"""TensorFlow functions in a model's graph -> layers: Keras' own where one does the same, else an `Operation`.

Keras 2 wraps a function that is called on a model's tensors into a ``TFOpLambda``, whose arguments are part of the call
and not of the layer: TFMOT loses them (TFMOT #867, #980). An `Operation` holds its arguments itself, and a layer of
Keras is also known to the quantization schemes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from edgeprune.keras import graph, keras
from edgeprune.keras import layers as own
from edgeprune.keras.workshop import Rewritten, Workshop

Tensor = Any
WRAPPERS = ("TFOpLambda", "SlicingOpLambda")


class Plan(NamedTuple):
    """The layer to call in a function's place, and what on; no kind: the function is the identity."""

    kind: type | None
    config: dict[str, Any]
    inputs: Any


Arguments = Mapping[str, Any]  # a function's arguments by their names, in its own order
Builder = Callable[[Arguments], Plan | None]


def functions(model: Any) -> Rewritten:
    """Every ``TFOpLambda`` and ``SlicingOpLambda``, and every `Operation` that a layer of Keras can stand for, replaced.

    What no layer can hold (arguments that are no JSON, functions that do more than compute) stays as it is.
    """
    found = [node for node in graph.nodes(model) if plan(node.layer, node.call_args, node.call_kwargs) is not None]
    if not found:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        planned = plan(call.layer, call.args, call.kwargs)
        if planned is None:
            return None
        if planned.kind is None:
            return planned.inputs
        return shop.make(planned.kind, call.layer.name, **planned.config)(planned.inputs)

    return shop.rebuild(rewrite), graph.names_of(found)


def plan(layer: Any, args: Any, kwargs: Mapping[str, Any]) -> Plan | None:
    """What to call in the place of this call; None: it stays."""
    called = function_of(layer, args, kwargs)
    if called is None:
        return None
    name, given, keywords = called
    builder = LAYERS.get(name.removeprefix("compat.v1."))
    planned = builder(by_name(name, given, keywords)) if builder else None
    if planned is not None or isinstance(layer, own.Operation):
        return planned
    return _operation(name, given, keywords)


def function_of(layer: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]] | None:
    """The function that a layer calls (``math.add``), with its arguments; None: the layer is not of that kind."""
    if isinstance(layer, own.Operation):
        config = layer.get_config()
        tensors = list(args[0]) if isinstance(args[0], (list, tuple)) else [args[0]]
        given = [own.decoded(argument, tensors) for argument in config["arguments"]]
        return _plain(layer.function), given, {n: own.decoded(v, tensors) for n, v in config["keywords"].items()}
    if type(layer).__name__ in WRAPPERS and layer.symbol:
        keywords = {name: value for name, value in kwargs.items() if name != "name"}
        return _plain(layer.symbol), [_sliced(value) for value in args], keywords
    return None


def _sliced(value: Any) -> Any:
    """Keras writes the slices of x[...] as mappings."""
    if isinstance(value, (list, tuple)):
        return [_sliced(item) for item in value]
    if isinstance(value, Mapping) and {"start", "stop", "step"} == set(value):
        return slice(value["start"], value["stop"], value["step"])
    return value


OPERATORS = {"__operators__.add": "math.add", "__operators__.eq": "math.equal", "__operators__.ne": "math.not_equal"}


def _plain(name: str) -> str:
    """A function's name, an operator's (``x + y``) under the name of the function that it calls."""
    return OPERATORS.get(name, name)


def _operation(name: str, given: list[Any], keywords: Mapping[str, Any]) -> Plan | None:
    if not own.FUNCTIONS.fullmatch(name):
        return None  # a live model of the user's may call what no file may ask for
    tensors: list[Tensor] = []
    try:
        arguments = [own.encoded(value, tensors) for value in given]
        named = {key: own.encoded(value, tensors) for key, value in keywords.items()}
    except TypeError:
        return None
    if not tensors:
        return None
    config = {"function": name, "arguments": arguments, "keywords": named}
    return Plan(own.Operation, config, tensors if len(tensors) > 1 else tensors[0])


def by_name(name: str, given: list[Any], keywords: Mapping[str, Any]) -> Arguments:
    """Arguments by the names in the function's signature; empty where they do not fit it."""
    try:
        bound = inspect.signature(own.function_named(name)).bind(*given, **keywords)
    except (TypeError, ValueError, AttributeError):
        return {}
    bound.apply_defaults()
    return bound.arguments


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of the graph, not a constant."""
    return hasattr(value, "_keras_history")


def _first(arguments: Arguments) -> Any:
    return next(iter(arguments.values()), None)


def _merge(kind: type) -> Builder:
    def build(arguments: Arguments) -> Plan | None:
        pair = list(arguments.values())[:2]
        if not all(is_tensor(value) for value in pair) or len({len(value.shape) for value in pair}) != 1:
            return None
        return Plan(kind, {}, pair)

    return build


def _activation(kind: type, **config: Any) -> Builder:
    def build(arguments: Arguments) -> Plan | None:
        x = _first(arguments)
        # Options of the function, such as gelu's `approximate` or silu's `beta`, that are not Keras' default.
        plain = arguments.get("beta", 1.0) == 1.0 and not arguments.get("approximate", False)
        return Plan(kind, config, x) if is_tensor(x) and plain else None

    return build


def _leaky_relu(arguments: Arguments) -> Plan | None:
    x = _first(arguments)
    return Plan(keras.layers.LeakyReLU, {"alpha": float(arguments["alpha"])}, x) if is_tensor(x) else None


def _softmax(arguments: Arguments) -> Plan | None:
    x, axis = _first(arguments), arguments.get("axis")
    if not is_tensor(x) or axis not in (None, -1, len(x.shape) - 1):
        return None
    return Plan(keras.layers.Softmax, {}, x)


def _clip(arguments: Arguments) -> Plan | None:
    x, low, high = list(arguments.values())[:3]
    if not is_tensor(x) or is_tensor(low) or is_tensor(high) or np.ndim(low) or np.ndim(high) or low != 0 or high <= 0:
        return None
    return Plan(keras.layers.ReLU, {"max_value": float(high)}, x)


def _concat(arguments: Arguments) -> Plan | None:
    values, axis = arguments.get("values"), arguments.get("axis")
    if not isinstance(values, (list, tuple)) or len(values) < 2 or not all(is_tensor(value) for value in values):
        return None
    axis = int(axis) if isinstance(axis, (int, np.integer)) else 0
    rank = len(values[0].shape)
    return Plan(keras.layers.Concatenate, {"axis": axis}, list(values)) if axis % rank else None


def _reshape(arguments: Arguments) -> Plan | None:
    """A reshape that leaves the batch alone: its first side is -1, or the size that tf.shape gave."""
    x: Any = arguments.get("tensor")
    shape: Any = arguments.get("shape")
    if not is_tensor(x) or is_tensor(shape) or shape is None:
        return None
    first, *sides = shape if isinstance(shape, (list, tuple)) else np.asarray(shape).tolist()
    if not all(isinstance(side, (int, np.integer)) for side in sides):
        return None
    target = [int(side) for side in sides]
    kept = None not in x.shape[1:] and -1 not in target and np.prod(target) == np.prod(x.shape[1:])
    if not (kept or (is_tensor(first) and target.count(-1) <= 1)):
        return None
    return Plan(keras.layers.Reshape, {"target_shape": target}, x)


def _static_reshape(arguments: Arguments, axis: Any, inserted: bool) -> Plan | None:
    """squeeze and expand_dims of one axis, as a Reshape."""
    x = _first(arguments)
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    if not is_tensor(x) or len(axes) != 1 or not isinstance(axes[0], int) or None in x.shape[1:]:
        return None
    sides = list(x.shape)
    place = axes[0] % (len(sides) + inserted)
    if place == 0:
        return None
    if inserted:
        sides.insert(place, 1)
    else:
        del sides[place]
    return Plan(keras.layers.Reshape, {"target_shape": sides[1:]}, x)


def _expand_dims(arguments: Arguments) -> Plan | None:
    return _static_reshape(arguments, arguments.get("axis"), inserted=True)


def _squeeze(arguments: Arguments) -> Plan | None:
    return _static_reshape(arguments, arguments.get("axis"), inserted=False)


def _transpose(arguments: Arguments) -> Plan | None:
    x, order = arguments.get("a"), arguments.get("perm")
    if not is_tensor(x) or order is None or is_tensor(order):
        return None
    order = [int(axis) for axis in np.asarray(order)]
    return Plan(keras.layers.Permute, {"dims": order[1:]}, x) if order[0] == 0 else None


def _pool(images: type, rows: type) -> Builder:
    """A mean or maximum over all positions is a global pooling."""

    def build(arguments: Arguments) -> Plan | None:
        x, axis = _first(arguments), arguments.get("axis")
        if not is_tensor(x) or axis is None or is_tensor(axis):
            return None
        rank = len(x.shape)
        axes = sorted(int(number) % rank for number in np.atleast_1d(np.asarray(axis)))
        kind = {(4, (1, 2)): images, (3, (1,)): rows}.get((rank, tuple(axes)))
        return Plan(kind, {"keepdims": bool(arguments.get("keepdims"))}, x) if kind else None

    return build


def _cast(arguments: Arguments) -> Plan | None:
    x = _first(arguments)
    same = is_tensor(x) and own.tf.as_dtype(arguments["dtype"]) == x.dtype
    return Plan(None, {}, x) if same else None


def _identity(arguments: Arguments) -> Plan | None:
    return Plan(None, {}, _first(arguments)) if is_tensor(_first(arguments)) else None


_layers = keras.layers
LAYERS: dict[str, Builder] = {
    "math.add": _merge(_layers.Add),
    "math.subtract": _merge(_layers.Subtract),
    "math.multiply": _merge(_layers.Multiply),
    "math.maximum": _merge(_layers.Maximum),
    "math.minimum": _merge(_layers.Minimum),
    "nn.relu": _activation(_layers.ReLU),
    "nn.relu6": _activation(_layers.ReLU, max_value=6.0),
    "nn.silu": _activation(_layers.Activation, activation="swish"),
    "nn.swish": _activation(_layers.Activation, activation="swish"),
    "nn.sigmoid": _activation(_layers.Activation, activation="sigmoid"),
    "math.sigmoid": _activation(_layers.Activation, activation="sigmoid"),
    "nn.tanh": _activation(_layers.Activation, activation="tanh"),
    "math.tanh": _activation(_layers.Activation, activation="tanh"),
    "nn.gelu": _activation(_layers.Activation, activation="gelu"),
    "nn.elu": _activation(_layers.Activation, activation="elu"),
    "nn.selu": _activation(_layers.Activation, activation="selu"),
    "nn.softplus": _activation(_layers.Activation, activation="softplus"),
    "math.softplus": _activation(_layers.Activation, activation="softplus"),
    "nn.leaky_relu": _leaky_relu,
    "nn.softmax": _softmax,
    "clip_by_value": _clip,
    "concat": _concat,
    "reshape": _reshape,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "linalg.transpose": _transpose,
    "math.reduce_mean": _pool(_layers.GlobalAveragePooling2D, _layers.GlobalAveragePooling1D),
    "math.reduce_max": _pool(_layers.GlobalMaxPooling2D, _layers.GlobalMaxPooling1D),
    "cast": _cast,
    "identity": _identity,
    "stop_gradient": _identity,
}
