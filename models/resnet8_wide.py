"""ResNet-8 with twice the channels, 32-64-128: a network with something to lose, to measure what removing channels costs.

309,898 parameters, 49.1 M MACs. Inputs are raw 0..255 values, as in ``resnet8``.
"""

from __future__ import annotations

from typing import Any

from edgeprune.models import resnet8

DATA = resnet8.DATA
WIDTH = 32


def build(input_shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10) -> Any:
    """An untrained tf_keras model.

    Args:
        input_shape: (height, width, channels); height and width divisible by 4.
        classes: softmax outputs.
    """
    return resnet8.build(input_shape, classes, width=WIDTH)
