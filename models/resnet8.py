"""ResNet-8 for 32x32 colour images: the image classification network of MLPerf Tiny (Banbury et al., 2021).

78,666 parameters, 12.5 M MACs. Inputs are raw 0..255 values, as in the benchmark's trained model.
"""

from __future__ import annotations

from typing import Any

DATA = "keras:cifar10"


def build(input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10, width: int = 16) -> Any:
    """An untrained tf_keras model.

    Args:
        input_shape: (height, width, channels); height and width divisible by 4.
        classes: softmax outputs.
        width: channels of the first of three stages; each further stage has twice as many.
    """
    from edgeprune.keras import keras

    layers, l2 = keras.layers, keras.regularizers.l2(1e-4)
    inputs = keras.Input(input_shape, name="image")

    def conv(x: Any, filters: int, kernel: int, strides: int = 1) -> Any:
        return layers.Conv2D(
            filters, kernel, strides, padding="same", kernel_initializer="he_normal", kernel_regularizer=l2
        )(x)

    x = layers.ReLU()(layers.BatchNormalization()(conv(inputs, width, 3)))
    for stage in range(3):
        filters, strides = width * 2**stage, 1 if stage == 0 else 2
        y = layers.ReLU()(layers.BatchNormalization()(conv(x, filters, 3, strides)))
        y = layers.BatchNormalization()(conv(y, filters, 3))
        x = layers.ReLU()(layers.Add()([x if stage == 0 else conv(x, filters, 1, strides), y]))
    x = layers.Flatten()(layers.AveragePooling2D(input_shape[0] // 4)(x))
    return keras.Model(
        inputs, layers.Dense(classes, activation="softmax", kernel_initializer="he_normal")(x), name="resnet8"
    )
