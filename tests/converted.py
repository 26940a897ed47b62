"""Tiny models, exported and converted once per test process, and ways to damage a .tflite file on purpose."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgeprune import tflite

SHAPE = (8, 8, 4)
CLASSES = 4
PRUNED = ("first", "second", "hidden")  # layers that carry 2:4


class Artefacts(NamedTuple):
    """What one small residual network gave."""

    folder: Path  # float/ and quantized/ (SavedModels), float.keras, masks.npz, and the three files below
    final: Path
    dense_int8: Path
    float32: Path


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="edgeprune-test-")  # goes with the process


def samples(count: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), dtype=np.float32)


def network(seed: int = 0):
    """A convolution with BatchNorm and ReLU, a residual sum, a Dense with a ReLU layer, softmax inside the last."""
    from edgeprune.keras import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    x = inputs = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.BatchNormalization(name="normal")(x)
    x = short = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(8, 3, padding="same", name="second", bias_initializer="random_normal")(x)
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, short]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(8, name="hidden", bias_initializer="random_normal")(x)
    x = layers.ReLU(name="hidden_relu")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="scores", bias_initializer="random_normal")(x)
    return keras.Model(inputs, x, name="tiny")


def pruned(model):
    """Lay 2:4 along the input channels of every layer in PRUNED, in place; layer name -> what is kept."""
    masks = {}
    for name in PRUNED:
        layer = model.get_layer(name)
        kernel, *rest = layer.get_weights()
        blocks = np.moveaxis(kernel, -2, -1).reshape(-1, 4)
        keep = np.zeros(blocks.shape, bool)
        np.put_along_axis(keep, np.argsort(-np.abs(blocks), axis=1)[:, :2], True, axis=1)
        masks[name] = np.moveaxis(keep.reshape(np.moveaxis(kernel, -2, -1).shape), -1, -2)
        layer.set_weights([kernel * masks[name], *rest])
    return masks


def quantized(model, inputs: np.ndarray):
    """With fake quantizers and calibrated, as the quantize stage does it, but not trained."""
    from edgeprune.keras import folding, quantization

    made = quantization.quantize(folding.fold(model, "dense")[0], preserve=True)
    quantization.calibrate(made, [inputs])
    return made


@functools.cache
def artefacts() -> Artefacts:
    from edgeprune.keras import conversion, export

    folder = Path(_root().name)
    with conversion.Converter(folder / "converter.log", timeout_s=300) as converter:
        model = network()
        model.save(folder / "float.keras", save_format="keras")
        export.save(model, folder / "float")
        masks = pruned(model)
        np.savez(folder / "masks.npz", **masks)
        export.save(quantized(model, samples()), folder / "quantized")
        return Artefacts(
            folder=folder,
            final=converter.convert(folder / "quantized", folder / "model.tflite"),
            dense_int8=converter.convert(
                folder / "float", folder / "dense_int8.tflite", representative=samples(), per_channel_dense=True
            ),
            float32=converter.convert(folder / "float", folder / "float.tflite", io="float32"),
        )


def tampered(path: Path, tensor: int, change) -> bytes:
    """The file with one constant's values changed in place."""
    file = tflite.read(path)
    data = file.tensors[tensor].data
    start = data.ctypes.data - np.frombuffer(file.content, np.uint8).ctypes.data
    new = np.asarray(change(data.copy()), data.dtype).tobytes()
    return file.content[:start] + new + file.content[start + len(new) :]


def constant_of(path: Path, layer: str, place: int) -> int:
    """The tensor at a place among the inputs of a layer's op: 1 the kernel, 2 the bias."""
    return next(op.inputs[place] for op in tflite.read(path).ops if op.layer == layer and len(op.inputs) > place)
