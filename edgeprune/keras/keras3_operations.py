"""The table's second half: how each operation of ``keras.ops`` in a Keras 3 graph is written in tf_keras.

A real layer where one does the same (``x + y`` is Add), else ``layers.Operation`` with TensorFlow's function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from edgeprune.errors import ModelError
from edgeprune.keras import keras, layers, tf
from edgeprune.keras.keras3_layers import ACTIVATIONS

Tensor = Any


class Applied(NamedTuple):
    """One operation of the Keras 3 graph, about to be written in tf_keras.

    Attributes:
        operation: the Keras 3 operation.
        args, kwargs: its call's arguments, with tf_keras tensors.
        result: element type of its output.
        name: a free layer name.
        unique: from a name to a free one.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: str
    name: str
    unique: Callable[[str], str]

    def values(self) -> list[Any]:
        """All arguments, those by keyword last."""
        return [*self.args, *self.kwargs.values()]

    def attributes(self, names: Mapping[str, str]) -> dict[str, Any]:
        """TensorFlow's keyword -> the value of the operation's attribute."""
        return {keyword: getattr(self.operation, attribute) for keyword, attribute in names.items()}

    def call(self, function: str, arguments: list[Any], keywords: dict[str, Any] | None = None, name: str = "") -> Any:
        """The output of a ``layers.Operation``."""
        tensors: list[Any] = []
        written = layers.encoded(arguments, tensors)
        options = {key: layers.encoded(value, tensors) for key, value in (keywords or {}).items()}
        layer = layers.Operation(function, written, options, name=name or self.name)
        return layer(tensors if len(tensors) > 1 else tensors[0])

    def cast(self, value: Any, dtype: str = "") -> Any:
        """An argument in the result's element type (or the one given), as Keras 3 promotes it; numbers stay numbers."""
        dtype = dtype or self.result
        if is_tensor(value):
            to = tf.as_dtype(dtype)
            named = self.unique(f"{self.name}_cast") if value.dtype != to else ""
            return self.call("cast", [value, to], name=named) if named else value
        if isinstance(value, (np.ndarray, tf.Tensor, tf.Variable)) or hasattr(value, "__array__"):
            return np.asarray(value).astype(dtype)
        return float(value) if "float" in dtype and isinstance(value, int) else value


class Function(NamedTuple):
    """A TensorFlow function that does the same.

    Attributes:
        name: of ``layers.FUNCTIONS``.
        keywords: its keyword -> the operation's attribute.
        cast: the arguments are brought to the result's element type first.
    """

    name: str
    keywords: Mapping[str, str] = MappingProxyType({})
    cast: bool = True


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of the graph that is being built."""
    return hasattr(value, "_keras_history")


def _merged(layer: str, function: str) -> Callable[[Applied], Any]:
    """A merging layer of two tensors of one rank; TensorFlow's function where one is a constant."""

    def make(applied: Applied) -> Any:
        values = [applied.cast(value) for value in applied.values()]
        same = all(is_tensor(value) for value in values) and len({len(value.shape) for value in values}) == 1
        if same and applied.result == "float32":
            return getattr(keras.layers, layer)(name=applied.name)(values)
        return applied.call(function, values)

    return make


def _activated(activation: str) -> Callable[[Applied], Any]:
    def make(applied: Applied) -> Any:
        to = ACTIVATIONS[activation]
        layer = to(applied.name) if callable(to) else keras.layers.Activation(to, name=applied.name)
        return layer(applied.cast(applied.args[0]))

    return make


def _layer(kind: str, **attributes: str) -> Callable[[Applied], Any]:
    """A layer whose arguments are attributes of the operation."""

    def make(applied: Applied) -> Any:
        made = getattr(keras.layers, kind)(name=applied.name, **applied.attributes(attributes))
        return made(applied.cast(applied.args[0]))

    return make


def _concatenate(applied: Applied) -> Any:
    values, axis = [applied.cast(value) for value in applied.args[0]], applied.operation.axis
    if all(is_tensor(value) for value in values) and axis % len(values[0].shape):
        return keras.layers.Concatenate(axis, name=applied.name)(values)
    return applied.call("concat", [values, axis])


def _reshape(applied: Applied) -> Any:
    value, shape = applied.args[0], [-1 if size is None else int(size) for size in applied.operation.newshape]
    given, kept = value.shape[1:], bool(shape) and shape[0] in (-1, value.shape[0])
    if kept and -1 not in shape[1:] and None not in given and math.prod(given) == math.prod(shape[1:]):
        return keras.layers.Reshape(shape[1:], name=applied.name)(value)  # the batch stays as it is
    return applied.call("reshape", [value, shape])


def _transpose(applied: Applied) -> Any:
    value = applied.args[0]
    return _permuted(applied, value, applied.operation.axes or list(range(len(value.shape)))[::-1])


def _swapaxes(applied: Applied) -> Any:
    value = applied.args[0]
    order = list(range(len(value.shape)))
    one, other = applied.operation.axis1, applied.operation.axis2
    order[one], order[other] = order[other], order[one]
    return _permuted(applied, value, order)


def _moveaxis(applied: Applied) -> Any:
    value = applied.args[0]
    order = np.moveaxis(np.empty(range(len(value.shape))), applied.operation.source, applied.operation.destination)
    return _permuted(applied, value, list(order.shape))


def _permuted(applied: Applied, value: Tensor, order: Any) -> Any:
    order = [int(axis) % len(value.shape) for axis in order]
    if order[0] == 0:
        return keras.layers.Permute(order[1:], name=applied.name)(value)
    return applied.call("transpose", [value, order])


def _matmul(applied: Applied) -> Any:
    one, other = (applied.cast(value) for value in applied.values())
    if min(len(np.shape(one)), len(np.shape(other))) < 2:
        raise _refused(applied, "of a vector")
    return applied.call("linalg.matmul", [one, other])


def _einsum(applied: Applied) -> Any:
    return applied.call(
        "linalg.einsum", [applied.operation.subscripts, *(applied.cast(value) for value in applied.args)]
    )


def _getitem(applied: Applied) -> Any:
    key = applied.values()[1]
    if isinstance(key, list) and any(isinstance(part, slice) or part is Ellipsis for part in key):
        key = tuple(key)  # a file gives lists back
    parts = [part for part in (key if isinstance(key, tuple) else (key,)) if is_tensor(part) or np.ndim(part)]
    if any(not isinstance(part, slice) for part in parts):
        raise _refused(applied, "with an array as index; use keras.ops.take")
    key = list(key) if isinstance(key, tuple) else [key]
    return applied.call("__operators__.getitem", [applied.args[0], key])


def _clip(applied: Applied) -> Any:
    low, high = applied.operation.x_min, applied.operation.x_max
    return applied.call("clip_by_value", [applied.cast(value) for value in (applied.args[0], low, high)])


def _split(applied: Applied) -> Any:
    value, parts, axis = applied.args[0], applied.operation.indices_or_sections, applied.operation.axis
    if not isinstance(parts, int):
        parts = np.diff([0, *parts, value.shape[axis]]).tolist()
    return applied.call("split", [value, parts, axis])


def _pad(applied: Applied) -> Any:
    mode, constant = applied.operation.mode, dict(enumerate(applied.values())).get(1)
    widths = [[int(side) for side in pair] for pair in applied.operation.pad_width]
    return applied.call("pad", [applied.args[0], widths, mode.upper()], {"constant_values": constant or 0})


def _repeat(applied: Applied) -> Any:
    return applied.call(
        "repeat", [applied.args[0], _number(applied.operation.repeats)], {"axis": applied.operation.axis}
    )


def _flip(applied: Applied) -> Any:
    axis, rank = applied.operation.axis, len(applied.args[0].shape)
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    return applied.call("reverse", [applied.args[0], [int(one) for one in axes]])


def _take(applied: Applied) -> Any:
    value, indices = applied.values()[:2]
    if applied.operation.axis is None:
        raise _refused(applied, "without an axis")
    return applied.call("gather", [value, _number(indices)], {"axis": applied.operation.axis})


def _cast(applied: Applied) -> Any:
    value = applied.args[0]
    if value.dtype == tf.as_dtype(applied.result):
        return keras.layers.Identity(name=applied.name)(value)
    return applied.call("cast", [value, tf.as_dtype(applied.result)])


def _place(function: str) -> Callable[[Applied], Any]:
    """The place of the largest or smallest."""

    def make(applied: Applied) -> Any:
        if applied.operation.axis is None or applied.operation.keepdims:
            raise _refused(applied, "without an axis, or with keepdims")
        return applied.call(
            function, [applied.args[0]], {"axis": applied.operation.axis, "output_type": tf.as_dtype(applied.result)}
        )

    return make


def _compared(function: str) -> Callable[[Applied], Any]:
    """A comparison: both sides in the wider of their element types."""

    def make(applied: Applied) -> Any:
        values = applied.values()
        floating = any(np.issubdtype(_dtype(value), np.floating) for value in values)
        shared = "float32" if floating else np.result_type(*(_dtype(v) for v in values if is_tensor(v))).name
        return applied.call(function, [applied.cast(value, shared) for value in values])

    return make


def _where(applied: Applied) -> Any:
    condition, *values = applied.values()
    return applied.call("where", [condition, *(applied.cast(value) for value in values)])


def _one_hot(applied: Applied) -> Any:
    classes, axis = applied.operation.num_classes, applied.operation.axis
    indices = applied.cast(applied.args[0], "int32")
    return applied.call("one_hot", [indices, classes], {"axis": axis, "dtype": tf.as_dtype(applied.result)})


def _extreme(function: str) -> Callable[[Applied], Any]:
    def make(applied: Applied) -> Any:
        if applied.operation.initial is not None:
            raise _refused(applied, "with an initial value")
        return applied.call(function, [applied.args[0]], applied.attributes(REDUCED))

    return make


def _cumulative(function: str) -> Callable[[Applied], Any]:
    """A cumulative sum along one axis."""

    def make(applied: Applied) -> Any:
        if applied.operation.axis is None:
            raise _refused(applied, "without an axis")
        return applied.call(function, [applied.cast(applied.args[0])], {"axis": applied.operation.axis})

    return make


def _space(function: str) -> Callable[[Applied], Any]:
    def make(applied: Applied) -> Any:
        if applied.operation.data_format != "channels_last":
            raise _refused(applied, "with channels_first")
        return applied.call(function, [applied.args[0], applied.operation.block_size])

    return make


def _dtype(value: Any) -> Any:
    return np.dtype(value.dtype.name) if is_tensor(value) else np.asarray(value).dtype


def _number(value: Any) -> Any:
    return value if isinstance(value, int) or is_tensor(value) else np.asarray(value)


def _refused(applied: Applied, how: str = "") -> ModelError:
    operation = applied.operation
    what = f"{type(operation).__name__} {how}".strip()
    return ModelError(
        f"The operation '{operation.name}' ({what}, of keras.ops) has no counterpart in tf_keras here: the model cannot be taken over. "
        "Replace it by a layer of keras.layers or a simpler operation, and save the model again."
    )


REDUCED = {"axis": "axis", "keepdims": "keepdims"}

OPERATIONS: dict[str, Function | Callable[[Applied], Any]] = {
    # two inputs
    "Add": _merged("Add", "math.add"),
    "Subtract": _merged("Subtract", "math.subtract"),
    "Multiply": _merged("Multiply", "math.multiply"),
    "Maximum": _merged("Maximum", "math.maximum"),
    "Minimum": _merged("Minimum", "math.minimum"),
    "Divide": Function("math.divide"),
    "TrueDivide": Function("math.divide"),
    "FloorDivide": Function("math.floordiv"),
    "Mod": Function("math.floormod"),
    "Power": Function("math.pow"),
    "Matmul": _matmul,
    "Einsum": _einsum,
    "Equal": _compared("math.equal"),
    "NotEqual": _compared("math.not_equal"),
    "Greater": _compared("math.greater"),
    "GreaterEqual": _compared("math.greater_equal"),
    "Less": _compared("math.less"),
    "LessEqual": _compared("math.less_equal"),
    "LogicalAnd": Function("math.logical_and"),
    "LogicalOr": Function("math.logical_or"),
    "LogicalXor": Function("math.logical_xor"),
    "LogicalNot": Function("math.logical_not"),
    "Where": _where,
    # one input, value by value
    "Negative": Function("math.negative"),
    "Absolute": Function("math.abs"),
    "Abs": Function("math.abs"),
    "Sign": Function("math.sign"),
    "Square": Function("math.square"),
    "Sqrt": Function("math.sqrt"),
    "Rsqrt": Function("math.rsqrt"),
    "Reciprocal": Function("math.reciprocal"),
    "Exp": Function("math.exp"),
    "Expm1": Function("math.expm1"),
    "Log": Function("math.log"),
    "Log1p": Function("math.log1p"),
    "Sin": Function("math.sin"),
    "Cos": Function("math.cos"),
    "Tan": Function("math.tan"),
    "Sinh": Function("math.sinh"),
    "Cosh": Function("math.cosh"),
    "Arctan": Function("math.atan"),
    "Erf": Function("math.erf"),
    "Floor": Function("math.floor"),
    "Ceil": Function("math.ceil"),
    "Clip": _clip,
    "Cast": _cast,
    "Copy": Function("identity"),
    "StopGradient": Function("stop_gradient"),
    "ZerosLike": Function("zeros_like"),
    "OnesLike": Function("ones_like"),
    # activations
    "Relu": _activated("relu"),
    "ReLU": _layer("ReLU", max_value="max_value", negative_slope="negative_slope", threshold="threshold"),
    "Relu6": _activated("relu6"),
    "Sigmoid": _activated("sigmoid"),
    "Tanh": _activated("tanh"),
    "Silu": _activated("silu"),
    "Selu": _activated("selu"),
    "Softplus": _activated("softplus"),
    "Softsign": _activated("softsign"),
    "HardSigmoid": _activated("hard_sigmoid"),
    "HardSilu": _activated("hard_silu"),
    "HardTanh": _activated("hard_tanh"),
    "LogSigmoid": _activated("log_sigmoid"),
    "Gelu": lambda applied: _activated("gelu_approximate" if applied.operation.approximate else "gelu")(applied),
    "Elu": _layer("ELU", alpha="alpha"),
    "LeakyRelu": _layer("LeakyReLU", alpha="negative_slope"),
    "Softmax": _layer("Softmax", axis="axis"),
    "LogSoftmax": Function("nn.log_softmax", {"axis": "axis"}),
    # over axes
    "Mean": Function("math.reduce_mean", REDUCED),
    "Sum": Function("math.reduce_sum", REDUCED),
    "Prod": Function("math.reduce_prod", REDUCED),
    "Var": Function("math.reduce_variance", REDUCED),
    "Std": Function("math.reduce_std", REDUCED),
    "Max": _extreme("math.reduce_max"),
    "Min": _extreme("math.reduce_min"),
    "Amax": Function("math.reduce_max", REDUCED),
    "Amin": Function("math.reduce_min", REDUCED),
    "All": Function("math.reduce_all", REDUCED, cast=False),
    "Any": Function("math.reduce_any", REDUCED, cast=False),
    "Logsumexp": Function("math.reduce_logsumexp", REDUCED),
    "Argmax": _place("math.argmax"),
    "Argmin": _place("math.argmin"),
    "Cumsum": _cumulative("cumsum"),
    # shapes and places
    "Concatenate": _concatenate,
    "Stack": Function("stack", {"axis": "axis"}),
    "Split": _split,
    "Unstack": Function("unstack", {"num": "num", "axis": "axis"}),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Swapaxes": _swapaxes,
    "Moveaxis": _moveaxis,
    "ExpandDims": Function("expand_dims", {"axis": "axis"}),
    "Squeeze": Function("squeeze", {"axis": "axis"}),
    "BroadcastTo": Function("broadcast_to", {"shape": "shape"}),
    "GetItem": _getitem,
    "Take": _take,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Repeat": _repeat,
    "Tile": Function("tile", {"multiples": "repeats"}),
    "Flip": _flip,
    "Roll": Function("roll", {"shift": "shift", "axis": "axis"}),
    "DepthToSpace": _space("nn.depth_to_space"),
    "SpaceToDepth": _space("nn.space_to_depth"),
}


def translated(applied: Applied) -> Any:
    """The outputs of an operation in the tf_keras graph.

    Raises:
        ModelError: it is in no line of the table, or has arguments that its line cannot express.
    """
    row = OPERATIONS.get(type(applied.operation).__name__)
    if row is None or not type(applied.operation).__module__.startswith("keras.src."):
        raise _refused(applied)
    if not isinstance(row, Function):
        return row(applied)
    values: list[Any] = [_prepared(applied, value) if row.cast else value for value in applied.values()]
    return applied.call(
        row.name, values, {key: _axes(value) for key, value in applied.attributes(row.keywords).items()}
    )


def _prepared(applied: Applied, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [applied.cast(item) for item in value]
    return applied.cast(value)


def _axes(value: Any) -> Any:
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else value
