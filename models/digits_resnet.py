"""A residual CNN for 8x8 grey images, small enough to train in a minute: the demo's model.

Six convolutions with BatchNormalization, two residual blocks, 19,994 parameters. Every layer but the one-channel
stem can carry 2:4.
"""

from __future__ import annotations

from typing import Any

DATA = "sklearn:digits"


def build(input_shape: tuple[int, int, int] = (8, 8, 1), classes: int = 10, width: int = 16) -> Any:
    """An untrained tf_keras model.

    Args:
        input_shape: (height, width, channels); the demo's data has values 0..16.
        classes: softmax outputs.
        width: channels of the first stage, a multiple of 8; the second has twice as many.
    """
    from edgeprune.keras import keras

    layers = keras.layers
    inputs = keras.Input(input_shape, name="image")
    x = _conv(layers, inputs, width, 3, "stem")
    x = _residual(layers, x, width, 1, "block1")
    x = _residual(layers, x, 2 * width, 2, "block2")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="classes")(x), name="digits_resnet")


def _conv(layers: Any, x: Any, filters: int, kernel: int, name: str, strides: int = 1, relu: bool = True) -> Any:
    x = layers.Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _residual(layers: Any, x: Any, filters: int, strides: int, name: str) -> Any:
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes (He et al., 2016)."""
    y = _conv(layers, x, filters, 3, f"{name}_a", strides)
    y = _conv(layers, y, filters, 3, f"{name}_b", relu=False)
    if strides != 1 or x.shape[-1] != filters:
        x = _conv(layers, x, filters, 1, f"{name}_shortcut", strides, relu=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))
