"""LeNet-5 for 28x28 grey images: the network of LeCun et al. (1998), with ReLU and max pooling as it is trained today.

61,706 parameters, 416,520 MACs. Inputs are raw 0..255 values: the first layer scales them.
"""

from __future__ import annotations

from typing import Any

DATA = "keras:mnist"


def build(input_shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10) -> Any:
    """An untrained tf_keras model.

    Args:
        input_shape: (height, width, channels); height and width at least 16.
        classes: softmax outputs.
    """
    from edgeprune.keras import keras

    layers = keras.layers
    inputs = keras.Input(input_shape, name="image")
    x = layers.Rescaling(1 / 255, name="scale")(inputs)
    x = layers.Conv2D(6, 5, padding="same", activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.Conv2D(16, 5, activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(120, activation="relu", name="dense1")(x)
    x = layers.Dense(84, activation="relu", name="dense2")(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax", name="classes")(x), name="lenet5")
