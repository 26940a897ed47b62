"""Layers of every kind and many shapes, a dozen or two to a .tflite file: what the analytic latency model is fitted on.

The emulator counts every op of a file apart, so one chain of layers gives as many examples. Sides, channels (also such as no
kernel likes: 13, 27, 44), kernels, strides and kinds are drawn with a seed; weights are random. A layer that would take more
than `MOST_MACS` is narrowed: what matters is where the model bends, and counting a layer takes as long as running it.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from latency_networks import PRECISIONS, convert

MOST_MACS = 12e6
CHANNELS = (
    8,
    11,
    12,
    16,
    20,
    24,
    27,
    32,
    36,
    40,
    44,
    48,
    56,
    64,
    72,
    88,
    96,
    100,
    112,
    128,
    144,
    160,
    192,
    240,
    256,
    320,
    384,
    512,
)
STARTS = (
    (112, 3),
    (56, 24),
    (48, 16),
    (40, 32),
    (32, 3),
    (28, 64),
    (24, 40),
    (16, 64),
    (14, 192),
    (10, 160),
    (7, 320),
    (5, 96),
)
KINDS = {
    "pointwise": 6,
    "convolution": 4,
    "depthwise": 6,
    "add": 2,
    "multiply": 1,
    "hard-swish": 1,
    "average": 1,
    "maximum": 1,
    "concatenation": 1,
    "pad": 1,
    "relu": 1,
    "logistic": 1,
}
LENGTH = 20
PYRAMIDS = (
    (96, (16, 48, 96, 160, 320)),
    (80, (8, 64, 128, 240, 512)),
)  # side and channels; the rarest kind, depthwise stride 2
NARROW_CHANNELS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)  # as cuts leave them: fewer than a kernel's tile is wide
NARROW_STARTS = ((32, 3), (28, 1), (32, 2), (16, 4), (24, 5), (20, 6), (12, 1), (40, 3))
NARROW_KINDS = {"convolution": 6, "pointwise": 3, "maximum": 3, "scale": 2, "depthwise": 2, "add": 2, "average": 1}
SQUEEZES = ((64, (8, 24, 40, 88, 160)), (28, (16, 96, 240, 576, 960)))  # side and channels; means that keep their axes


def files(folder: Path) -> dict[str, Path]:
    """Make what is missing of ``FOLDER/layers-N-PRECISION.tflite`` and return all of them by name."""
    seeds = range(len(STARTS) + len(PYRAMIDS) + len(SQUEEZES) + len(NARROW_STARTS))
    wanted = [f"layers-{seed:02}-{precision}" for seed in seeds for precision in PRECISIONS]
    paths = {name: folder / f"{name}.tflite" for name in wanted}
    for seed in seeds:
        own = {precision: paths[f"layers-{seed:02}-{precision}"] for precision in PRECISIONS}
        missing = {precision: path for precision, path in own.items() if not path.exists()}
        if missing:
            convert(chain(seed), missing)
            print(f"made layers-{seed:02}: {', '.join(missing)}", flush=True)
    return paths


def chain(seed: int) -> Any:
    """The tf_keras model of a seed: a row of layers of all kinds, of what is rare among them, or of few channels."""
    from edgeprune.keras import keras

    random, place = np.random.default_rng(seed), seed
    if place < len(STARTS):
        side, channels = STARTS[place]
        inputs = keras.Input((side, side, channels))
        x = keras.layers.Conv2D(_channels(random, inputs, 1), 1, padding="same")(inputs)
        return _classified(inputs, _row(x, random, KINDS), random, 600)
    place -= len(STARTS)
    if place < len(PYRAMIDS):
        return _pyramid(*PYRAMIDS[place])
    place -= len(PYRAMIDS)
    if place < len(SQUEEZES):
        return _squeezes(*SQUEEZES[place])
    side, channels = NARROW_STARTS[place - len(SQUEEZES)]
    inputs = keras.Input((side, side, channels))
    x = keras.layers.DepthwiseConv2D(1)(inputs)  # what a Rescaling becomes
    return _classified(inputs, _row(x, random, NARROW_KINDS, NARROW_CHANNELS), random, 60)


def _row(x: Any, random: np.random.Generator, kinds: dict[str, int], among: tuple[int, ...] = CHANNELS) -> Any:
    """`LENGTH` layers, their kinds drawn by weight."""
    for kind in random.choice(list(kinds), LENGTH, p=np.array(list(kinds.values())) / sum(kinds.values())):
        x = _layer(str(kind), x, random, among)
    return x


def _classified(inputs: Any, x: Any, random: np.random.Generator, widest: int) -> Any:
    """The mean over the map, two dense layers and a softmax."""
    from edgeprune.keras import keras

    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(int(random.integers(10, widest)), activation="relu")(x)
    x = keras.layers.Dense(int(random.choice([2, 10, 12, 100, 1000])))(x)
    return keras.Model(inputs, keras.layers.Softmax()(x))


def _pyramid(side: int, channels: tuple[int, ...]) -> Any:
    """Pointwise convolutions and depthwise ones of stride 2 in turn."""
    from edgeprune.keras import keras

    inputs = x = keras.Input((side, side, 3))
    for count in channels:
        x = keras.layers.ReLU(6.0)(keras.layers.Conv2D(count, 1)(x))
        x = keras.layers.ReLU(6.0)(keras.layers.DepthwiseConv2D(3, 2, padding="same")(x))
    return keras.Model(inputs, keras.layers.Softmax()(keras.layers.Flatten()(x)))


def _squeezes(side: int, channels: tuple[int, ...]) -> Any:
    """Squeeze-and-excite: a mean, two products of a matrix and a vector, and a product of unlike shapes; then half the side."""
    from edgeprune.keras import keras

    layers = keras.layers
    inputs = x = keras.Input((side, side, 3))
    for count in channels:
        x = layers.ReLU(6.0)(layers.Conv2D(count, 1)(x))
        gate = layers.Conv2D(max(8, count // 4), 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
        x = layers.Multiply()([x, layers.Conv2D(count, 1, activation="sigmoid")(gate)])
        x = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, 2, padding="same")(x))
    x = layers.Conv2D(1001, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(inputs, layers.Softmax()(layers.Flatten()(x)))


def _layer(kind: str, x: Any, random: np.random.Generator, among: tuple[int, ...] = CHANNELS) -> Any:
    """One layer of a kind; its shape is drawn."""
    from edgeprune.keras import keras

    layers = keras.layers
    stride = int(random.choice([1, 1, 1, 2])) if x.shape[1] > 6 else 1
    if kind == "pointwise":
        return layers.ReLU(6.0)(layers.Conv2D(_channels(random, x, 1, among=among), 1, padding="same")(x))
    if kind == "convolution":
        kernel = int(random.choice([3, 3, 3, 5, 7] if x.shape[1] > 7 else [3]))
        return layers.ReLU()(
            layers.Conv2D(_channels(random, x, kernel, stride, among), kernel, stride, padding="same")(x)
        )
    if kind in ("depthwise", "scale"):
        kernel = 1 if kind == "scale" else int(random.choice([3, 3, 3, 5] if x.shape[1] > 5 else [3]))
        return layers.ReLU(6.0)(layers.DepthwiseConv2D(kernel, stride, padding="same")(x))
    if kind == "add":
        return layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    if kind == "multiply":
        gate = layers.DepthwiseConv2D(3, padding="same")(x)
        return layers.Multiply()([x, gate])
    if kind == "hard-swish":
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        gate = layers.Rescaling(1 / 6)(layers.ReLU(6.0)(layers.Rescaling(1.0, 3.0)(x)))
        return layers.Multiply()([x, gate])
    if kind in ("average", "maximum"):
        pool = layers.AveragePooling2D if kind == "average" else layers.MaxPooling2D
        return pool(int(random.choice([2, 3])), stride, padding="same")(x)
    if kind == "concatenation":
        return layers.Concatenate()([x, layers.Conv2D(_channels(random, x, 1, among=among), 1)(x)])
    if kind == "pad":
        return layers.Conv2D(_channels(random, x, 3, among=among), 3)(layers.ZeroPadding2D(((0, 1), (0, 2)))(x))
    return layers.Activation("relu" if kind == "relu" else "sigmoid")(layers.DepthwiseConv2D(3, padding="same")(x))


def _channels(
    random: np.random.Generator, x: Any, kernel: int, stride: int = 1, among: tuple[int, ...] = CHANNELS
) -> int:
    """Output channels, drawn among those that keep the layer below `MOST_MACS`."""
    each = ceil(x.shape[1] / stride) * ceil(x.shape[2] / stride) * x.shape[-1] * kernel * kernel
    return int(random.choice([channels for channels in among if channels * each <= MOST_MACS] or [8]))
