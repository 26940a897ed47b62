"""The networks of the published latencies, as .tflite files: the published shapes, seeded random weights.

How long a network takes depends on its shapes alone, so nothing is trained. The files have what the published ones have:
convolutions with their BatchNormalization folded in and their activation fused, padding inside the convolution, average
pooling over the last map, 1001 classes, a softmax. They are converted by edgeprune's own converter, int8 after training
(PTQ) and float32, and kept in a folder outside the repository, so that a second run makes only what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PRECISIONS = {"int8": "int8", "fp32": "float32"}  # word of the file's name -> type of its inputs and outputs
CLASSES = 1001
SAMPLES = 4  # that set the int8 ranges; no figure depends on them

V1_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
# expansion, channels, repeats, stride
V2_BLOCKS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
# kernel, expanded channels, channels, squeeze and excite, hard-swish, stride
V3_LARGE_BLOCKS = [
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
]
V3_SMALL_BLOCKS = [
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
]


class Network(NamedTuple):
    """One network at one width and one resolution.

    Attributes:
        family: ``mobilenet-v1``, ``mobilenet-v2``, ``mobilenet-v3-large`` or ``mobilenet-v3-small``.
        width: factor of the channels.
        side: of the square input, pixels.
    """

    family: str
    width: float
    side: int

    @property
    def name(self) -> str:
        """Such as ``mobilenet-v1-0.25-128``, as the published rows spell it."""
        return f"{self.family}-{self.width}-{self.side}"


def parse(name: str) -> Network:
    """The network that a name such as ``mobilenet-v2-0.35-96`` stands for.

    Raises:
        ValueError: it is no such name.
    """
    match = re.fullmatch(r"(mobilenet-v(?:1|2|3-large|3-small))-([\d.]+)-(\d+)", name)
    if match is None or match[1] not in BUILDERS:
        raise ValueError(f"{name!r} names no network; expected FAMILY-WIDTH-SIDE, FAMILY one of {', '.join(BUILDERS)}")
    return Network(match[1], float(match[2]), int(match[3]))


def files(networks: list[str], folder: Path, precisions: tuple[str, ...] = tuple(PRECISIONS)) -> dict[str, Path]:
    """Make what is missing of ``FOLDER/NETWORK-PRECISION.tflite`` and return all of them by ``NETWORK-PRECISION``."""
    wanted = {
        f"{name}-{precision}": folder / f"{name}-{precision}.tflite" for name in networks for precision in precisions
    }
    for name in networks:
        missing = [precision for precision in precisions if not wanted[f"{name}-{precision}"].exists()]
        if missing:
            network = parse(name)
            convert(BUILDERS[network.family](network.width, network.side), {p: wanted[f"{name}-{p}"] for p in missing})
            print(f"made {name}: {', '.join(missing)}", flush=True)
    return wanted


def convert(model: Any, outputs: dict[str, Path]) -> None:
    """Convert a tf_keras model to a .tflite file of each precision; random weights of even gain, so that int8 has ranges."""
    import tempfile

    from edgeprune.keras import conversion, export

    random = np.random.default_rng(0)
    model.set_weights([_weights(random, weight.shape) for weight in model.get_weights()])
    samples = random.uniform(-1, 1, (SAMPLES, *model.input_shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        saved = export.save(model, Path(scratch) / "saved")
        for precision, path in outputs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            conversion.convert(
                saved,
                path,
                representative=samples if precision == "int8" else None,
                io=PRECISIONS[precision],  # type: ignore[arg-type]
            )


def _weights(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """He-normal for a kernel, small values for a bias."""
    fan_in = np.prod(shape[:2]) * (1 if len(shape) == 4 and shape[-1] == 1 else shape[-2]) if len(shape) > 1 else 1e4
    return random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)


def _divisible(channels: float) -> int:
    """The nearest multiple of 8, not less than nine tenths of what was asked for."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _convolution(x: Any, channels: int, kernel: int, stride: int, activation: str | None) -> Any:
    from edgeprune.keras import keras

    x = keras.layers.Conv2D(channels, kernel, stride, padding="same")(x)
    return _activation(x, activation)


def _depthwise(x: Any, kernel: int, stride: int, activation: str | None) -> Any:
    from edgeprune.keras import keras

    x = keras.layers.DepthwiseConv2D(kernel, stride, padding="same")(x)
    return _activation(x, activation)


def _activation(x: Any, activation: str | None) -> Any:
    from edgeprune.keras import keras

    if activation is None:
        return x
    if activation == "hard-swish":
        return keras.layers.Multiply()([x, _hard_sigmoid(x)])
    return keras.layers.ReLU(6.0 if activation == "relu6" else None)(x)


def _hard_sigmoid(x: Any) -> Any:
    from edgeprune.keras import keras

    return keras.layers.Rescaling(1 / 6)(keras.layers.ReLU(6.0)(keras.layers.Rescaling(1.0, 3.0)(x)))


def _classifier(inputs: Any, x: Any) -> Any:
    """Average over the map, a 1x1 convolution to the classes, softmax."""
    from edgeprune.keras import keras

    x = keras.layers.AveragePooling2D(x.shape[1])(x) if x.shape[1] > 1 else x
    x = keras.layers.Flatten()(_convolution(x, CLASSES, 1, 1, None))
    return keras.Model(inputs, keras.layers.Softmax()(x))


def _input(side: int) -> Any:
    from edgeprune.keras import keras

    return keras.Input((side, side, 3), batch_size=None)


def mobilenet_v1(width: float, side: int) -> Any:
    """Howard et al. 2017: depthwise and pointwise convolutions in turn."""
    inputs = _input(side)
    x = _convolution(inputs, max(8, int(32 * width)), 3, 2, "relu6")
    for channels, stride in V1_BLOCKS:
        x = _depthwise(x, 3, stride, "relu6")
        x = _convolution(x, max(8, int(channels * width)), 1, 1, "relu6")
    return _classifier(inputs, x)


def mobilenet_v2(width: float, side: int) -> Any:
    """Sandler et al. 2018: inverted residuals; the last convolution is not narrowed."""
    from edgeprune.keras import keras

    inputs = _input(side)
    x = _convolution(inputs, _divisible(32 * width), 3, 2, "relu6")
    for expansion, channels, repeats, first_stride in V2_BLOCKS:
        for stride in [first_stride, *[1] * (repeats - 1)]:
            before, inner, out = x, x.shape[-1] * expansion, _divisible(channels * width)
            x = _convolution(x, inner, 1, 1, "relu6") if expansion > 1 else x
            x = _convolution(_depthwise(x, 3, stride, "relu6"), out, 1, 1, None)
            x = keras.layers.Add()([before, x]) if stride == 1 and before.shape[-1] == out else x
    x = _convolution(x, _divisible(1280 * max(width, 1.0)), 1, 1, "relu6")
    return _classifier(inputs, x)


def mobilenet_v3(
    blocks: list[tuple[int, int, int, bool, bool, int]], last: int, wide: int
) -> Callable[[float, int], Any]:
    """Howard et al. 2019: inverted residuals with squeeze and excite and hard-swish, as tabled in ``blocks``."""

    def build(width: float, side: int) -> Any:
        from edgeprune.keras import keras

        inputs = _input(side)
        x = _convolution(inputs, _divisible(16 * width), 3, 2, "hard-swish")
        for kernel, expanded, channels, squeezes, swishes, stride in blocks:
            before, inner, out = x, _divisible(expanded * width), _divisible(channels * width)
            activation = "hard-swish" if swishes else "relu"
            x = _convolution(x, inner, 1, 1, activation) if inner != x.shape[-1] else x
            x = _depthwise(x, kernel, stride, activation)
            x = _squeeze_and_excite(x) if squeezes else x
            x = _convolution(x, out, 1, 1, None)
            x = keras.layers.Add()([before, x]) if stride == 1 and before.shape[-1] == out else x
        x = _convolution(x, _divisible(last * width), 1, 1, "hard-swish")
        x = keras.layers.AveragePooling2D(x.shape[1])(x)
        x = _convolution(x, _divisible(wide * max(width, 1.0)), 1, 1, "hard-swish")
        return _classifier(inputs, x)

    return build


def _squeeze_and_excite(x: Any) -> Any:
    from edgeprune.keras import keras

    gate = keras.layers.AveragePooling2D(x.shape[1])(x)
    gate = _convolution(gate, _divisible(x.shape[-1] / 4), 1, 1, "relu")
    gate = _hard_sigmoid(_convolution(gate, x.shape[-1], 1, 1, None))
    return keras.layers.Multiply()([x, gate])


BUILDERS: dict[str, Callable[[float, int], Any]] = {
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v2": mobilenet_v2,
    "mobilenet-v3-large": mobilenet_v3(V3_LARGE_BLOCKS, 960, 1280),
    "mobilenet-v3-small": mobilenet_v3(V3_SMALL_BLOCKS, 576, 1024),
}
