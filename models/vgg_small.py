"""A VGG-style network for 32x32 colour images: pairs of 3x3 convolutions with BatchNormalization, then one Dense.

Six convolutions in three stages (Simonyan & Zisserman, 2015, made small); 83,002 parameters, 9,889,792 MACs at the default
width. Inputs are raw 0..255 values: the first layer scales them.
"""

from __future__ import annotations

from typing import Any

DATA = "keras:cifar10"


def build(input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 16) -> Any:
    """An untrained tf_keras model.

    Args:
        input_shape: (height, width, channels); height and width divisible by 8.
        classes: softmax outputs.
        width: channels of the first of three stages; each further stage has twice as many.
    """
    from edgeprune.keras import keras

    layers = keras.layers
    inputs = keras.Input(input_shape, name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    for stage in (1, 2, 3):
        for place in ("a", "b"):
            name = f"stage{stage}{place}"
            x = layers.Conv2D(width * 2 ** (stage - 1), 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
            x = layers.BatchNormalization(name=f"{name}_bn")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.MaxPooling2D(2, name=f"stage{stage}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="classes")(x), name="vgg_small")
