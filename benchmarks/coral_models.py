"""Make the networks that the published Coral latencies were taken on, as int8 files, for ``coral_fit.py``.

    python benchmarks/coral_models.py FOLDER
    python benchmarks/coral_models.py FOLDER --models inception_v1_224 vgg16_224

Latency and memory on an Edge TPU follow from shapes alone, so the weights are random and the ranges are those of noise.
Four networks come from `keras.applications`; those that Keras does not have are written down here after their papers:
GoogLeNet as TF-Slim has it (Szegedy et al., https://arxiv.org/abs/1409.4842; its 5x5 branch is a 3x3 there),
EfficientNet-EdgeTPU-M (Gupta and Akin, https://arxiv.org/abs/2003.02838), and DeepLab V3 on MobileNetV2 with output stride
16 (Sandler et al., https://arxiv.org/abs/1801.04381). A file that is there is not made again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import files
from edgeprune.keras import keras, tf

CLASSES = 1001  # of the published classifiers: 1,000 and the background

# Width of the 1x1 branch, of the two branches with a 3x3 (reduced, full), and of the 1x1 after the pooling.
INCEPTION = {
    "3": [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    "4": [
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ],
    "5": [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
}
# Blocks, kernel, stride, expansion, channels, and whether the expansion is the k x k convolution (fused).
EFFICIENTNET_EDGETPU = [
    (1, 3, 1, 4, 24, True),
    (2, 3, 2, 8, 32, True),
    (4, 3, 2, 8, 48, True),
    (5, 5, 2, 8, 96, False),
    (4, 5, 1, 8, 144, False),
    (2, 5, 2, 8, 192, False),
]
EFFICIENTNET_M_DEPTH = 1.1
# Blocks, stride, expansion, channels, dilation.
MOBILENET_V2_STRIDE_16 = [
    (1, 1, 1, 16, 1),
    (2, 2, 6, 24, 1),
    (3, 2, 6, 32, 1),
    (4, 2, 6, 64, 1),
    (3, 1, 6, 96, 1),
    (3, 1, 6, 160, 2),
    (1, 1, 6, 320, 2),
]


def inception_v1() -> Any:
    """GoogLeNet, 224 x 224, without its training heads."""
    inputs = keras.Input((224, 224, 3))
    x = _conv(inputs, 64, 7, 2)
    x = _conv(_conv(_pool(x), 64, 1), 192, 3)
    for stage in INCEPTION.values():
        x = _pool(x)
        for ones, reduced, threes, reduced_small, small, pooled in stage:
            branches = [
                _conv(x, ones, 1),
                _conv(_conv(x, reduced, 1), threes, 3),
                _conv(_conv(x, reduced_small, 1), small, 3),
                _conv(keras.layers.MaxPooling2D(3, 1, "same")(x), pooled, 1),
            ]
            x = keras.layers.Concatenate()(branches)
    return _classifier(inputs, x)


def efficientnet_edgetpu_m() -> Any:
    """EfficientNet-EdgeTPU-M, 240 x 240."""
    inputs = keras.Input((240, 240, 3))
    x = _conv(inputs, 32, 3, 2)
    for blocks, kernel, stride, expansion, channels, fused in EFFICIENTNET_EDGETPU:
        for block in range(math.ceil(blocks * EFFICIENTNET_M_DEPTH)):
            x = _inverted(x, kernel, stride if block == 0 else 1, expansion, channels, fused)
    return _classifier(inputs, _conv(x, 1280, 1))


def deeplab_v3() -> Any:
    """DeepLab V3 on MobileNetV2, 513 x 513, 21 classes, with the resizing to 513 x 513 and the argmax in the file."""
    inputs = keras.Input((513, 513, 3))
    x = _conv(inputs, 32, 3, 2)
    for blocks, stride, expansion, channels, dilation in MOBILENET_V2_STRIDE_16:
        for block in range(blocks):
            x = _bottleneck(x, stride if block == 0 else 1, expansion, channels, dilation)
    pooled = _conv(keras.layers.AveragePooling2D(33)(x), 256, 1)
    pooled = keras.layers.Lambda(lambda one: tf.image.resize(one, (33, 33)))(pooled)
    x = _conv(keras.layers.Concatenate()([pooled, _conv(x, 256, 1)]), 256, 1)
    x = keras.layers.Conv2D(21, 1)(x)
    x = keras.layers.Lambda(lambda one: tf.argmax(tf.image.resize(one, (513, 513)), -1))(x)
    return keras.Model(inputs, x)


def _bottleneck(x: Any, stride: int, expansion: int, channels: int, dilation: int) -> Any:
    y = _conv(x, expansion * x.shape[-1], 1) if expansion > 1 else x
    y = keras.layers.DepthwiseConv2D(3, stride, "same", dilation_rate=dilation, activation="relu")(y)
    y = keras.layers.Conv2D(channels, 1)(y)
    return keras.layers.Add()([x, y]) if stride == 1 and x.shape[-1] == channels else y


def _inverted(x: Any, kernel: int, stride: int, expansion: int, channels: int, fused: bool) -> Any:
    wide = expansion * x.shape[-1]
    if fused:
        y = _conv(x, wide, kernel, stride)
    else:
        y = _conv(x, wide, 1)
        y = keras.layers.DepthwiseConv2D(kernel, stride, "same", activation="relu")(y)
    y = keras.layers.Conv2D(channels, 1)(y)
    skips = stride == 1 and x.shape[-1] == channels and expansion > 4  # the first stage has no shortcuts
    return keras.layers.Add()([x, y]) if skips else y


def _conv(x: Any, channels: int, kernel: int, stride: int = 1) -> Any:
    return keras.layers.Conv2D(channels, kernel, stride, "same", activation="relu")(x)


def _pool(x: Any) -> Any:
    return keras.layers.MaxPooling2D(3, 2, "same")(x)


def _classifier(inputs: Any, x: Any) -> Any:
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x))


def _application(name: str, side: int, classes: int = 1000) -> Callable[[], Any]:
    def build() -> Any:
        return getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classes=classes)

    return build


MODELS: dict[str, Callable[[], Any]] = {
    "mobilenet_v1_1.0_224": _application("MobileNet", 224, CLASSES),
    "inception_v1_224": inception_v1,
    "resnet_50_v1_299": _application("ResNet50", 299),
    "vgg16_224": _application("VGG16", 224),
    "inception_resnet_v2_299": _application("InceptionResNetV2", 299),
    "efficientnet_edgetpu_m_240": efficientnet_edgetpu_m,
    "deeplab_v3_513": deeplab_v3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        path = arguments.folder / f"{name}.tflite"
        if not path.exists():
            keras.utils.set_random_seed(0)
            files.write_bytes_atomic(path, _int8(MODELS[name]()))
        print(f"{path}  {path.stat().st_size:,} bytes", flush=True)


def _int8(model: Any) -> bytes:
    """The model with int8 weights, activations, input and output; its ranges are those of one image of noise."""
    noise = np.random.Generator(np.random.PCG64(0)).random((1, *model.input_shape[1:]), np.float32)
    inputs = keras.Input(batch_size=1, shape=model.input_shape[1:])  # a free batch size leaves shapes to compute
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(inputs, model(inputs)))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: iter([[noise]])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    content: bytes = converter.convert()
    return content


if __name__ == "__main__":
    main()
