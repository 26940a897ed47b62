"""Layers that a taken-in or prepared model may hold beside Keras' own: what Keras 2 has no layer for.

Each is plain TensorFlow arithmetic without weights. They are registered, so that a model that holds them is saved and
loaded like any other, and closed: `Operation` calls the functions of `FUNCTIONS` and no other, since its configuration
may come from a stranger's file.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from edgeprune.errors import UntrustedModel
from edgeprune.keras import keras, tf

register = keras.utils.register_keras_serializable(package="edgeprune")

# TensorFlow's functions include io.gfile.rmtree and load_op_library. These take tensors and give tensors.
FUNCTIONS = re.compile(
    r"(__operators__|bitwise|image|linalg|math|nn|signal)\.\w+|(compat\.v1\.)?(batch_to_space|broadcast_to|cast|"
    "clip_by_value|concat|convert_to_tensor|cumsum|depth_to_space|expand_dims|eye|fill|gather|gather_nd|identity|one_hot|"
    "ones|ones_like|pad|range|repeat|reshape|reverse|roll|scatter_nd|shape|size|slice|space_to_batch|space_to_depth|"
    "split|squeeze|stack|stop_gradient|strided_slice|tile|transpose|unstack|where|zeros|zeros_like)"
)


@register
class HardSigmoid(keras.layers.Layer):
    """relu6(x + 3) / 6, the hard sigmoid of Keras 3 and of MobileNetV3; that of Keras 2 is clip(0.2 x + 0.5, 0, 1)."""

    def call(self, inputs: Any) -> Any:
        return tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@register
class HardSwish(keras.layers.Layer):
    """x * relu6(x + 3) / 6 (Howard et al. 2019, Searching for MobileNetV3)."""

    def call(self, inputs: Any) -> Any:
        return inputs * tf.nn.relu6(inputs + 3.0) * (1.0 / 6.0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@register
def hard_sigmoid(x: Any) -> Any:
    """The hard sigmoid of Keras 3 as a function, for what takes no layer: the gates of an LSTM or GRU."""
    return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


@register
def hard_swish(x: Any) -> Any:
    """x * relu6(x + 3) / 6 as a function, for what takes no layer: an LSTM or GRU."""
    return x * hard_sigmoid(x)


@register
class LayerScale(keras.layers.Layer):
    """x * gamma, one factor per channel (Touvron et al. 2021, Going deeper with image transformers).

    Keras has this layer in its ConvNeXt only, and does not register it: a model that holds it cannot be loaded.
    """

    def __init__(self, projection_dim: int, init_values: float = 1e-6, **options: Any) -> None:
        """Args:
        projection_dim: number of channels.
        init_values: what every factor starts from.
        """
        super().__init__(**options)
        self.projection_dim, self.init_values = int(projection_dim), float(init_values)

    def build(self, input_shape: Any) -> None:
        initial = keras.initializers.Constant(self.init_values)
        self.gamma = self.add_weight(name="gamma", shape=(self.projection_dim,), initializer=initial)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return inputs * self.gamma

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        given = {"projection_dim": self.projection_dim, "init_values": self.init_values}
        return {**super().get_config(), **given}


@register
class Operation(keras.layers.Layer):
    """One TensorFlow function of tensors and constants, where no layer of Keras does the same.

    >>> half = Operation("math.multiply", [{"tensor": 0}, 0.5])  # called on x: tf.math.multiply(x, 0.5)
    """

    def __init__(
        self, function: str, arguments: list[Any], keywords: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Args:
            function: TensorFlow's name without ``tf.``: ``math.add``, ``concat``, ``__operators__.getitem``.
            arguments, keywords: as JSON: ``{"tensor": i}`` stands for the i-th input, ``{"slice": [start, stop, step]}``,
                ``{"ellipsis": true}``, ``{"dtype": "float32"}`` and ``{"array": [...], "dtype": "float32"}`` for what JSON
                lacks; lists, numbers, strings, booleans and null stand for themselves.

        Raises:
            UntrustedModel: the function is not one that takes tensors and gives tensors.
        """
        super().__init__(**options)
        if not FUNCTIONS.fullmatch(function):
            raise UntrustedModel(
                f"The layer '{self.name}' calls TensorFlow's {function!r}, which may do more than compute. Replace it by a layer."
            )
        self.function = function
        self._given = json.dumps([arguments, keywords or {}])  # as text: Keras wraps lists that a layer holds

    def call(self, inputs: Any) -> Any:
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        stored_arguments, stored_keywords = json.loads(self._given)
        arguments = [decoded(argument, given) for argument in stored_arguments]
        keywords = {name: decoded(value, given) for name, value in stored_keywords.items()}
        if self.function == "__operators__.getitem":
            key = arguments[1]
            return arguments[0][tuple(key) if isinstance(key, list) else key]
        return function_named(self.function)(*arguments, **keywords)

    def get_config(self) -> dict[str, Any]:
        arguments, keywords = json.loads(self._given)
        return {**super().get_config(), "function": self.function, "arguments": arguments, "keywords": keywords}


def function_named(name: str) -> Any:
    """TensorFlow's function of that name; Keras' own words for operators are ``__operators__.add`` and so on."""
    if name.startswith("__operators__."):
        name = {"getitem": "strided_slice"}.get(name.rpartition(".")[2], "math." + name.rpartition(".")[2])
    found: Any = tf
    for part in name.split("."):
        found = getattr(found, part)
    return found


def encoded(value: Any, tensors: list[Any]) -> Any:
    """An argument as `Operation` takes it; symbolic tensors are appended to ``tensors`` and become their place there.

    Raises:
        TypeError: it is of a kind that cannot be written as JSON.
    """
    if hasattr(value, "_keras_history"):  # keras.backend.is_keras_tensor refuses whatever is no tensor at all
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, slice):
        return {"slice": [encoded(side, tensors) for side in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, tf.DType):
        return {"dtype": value.name}
    if isinstance(value, (np.ndarray, tf.Tensor, tf.Variable)):
        array = np.asarray(value)
        return {"array": array.tolist(), "dtype": array.dtype.name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [encoded(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} {value!r} cannot be an argument of an operation")


def decoded(value: Any, tensors: list[Any]) -> Any:
    """The argument that ``encoded`` wrote, with tensors in their places."""
    if isinstance(value, (list, tuple)):
        return [decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "slice" in value:
        return slice(*(decoded(side, tensors) for side in value["slice"]))
    if "ellipsis" in value:
        return Ellipsis
    if "array" in value:
        return tf.constant(value["array"], value["dtype"])
    return tf.as_dtype(value["dtype"])
