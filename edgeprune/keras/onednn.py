"""TensorFlow's oneDNN kernels, which cut networks must not be trained with on a processor.

TensorFlow 2.21 has them on by default on processors with AVX-512 VNNI, elsewhere where ``TF_ENABLE_ONEDNN_OPTS=1`` says so. The
gradient of the kernel of a 1x1 convolution with a stride then writes past the end of its memory where the input has few channels:
on AVX2 fewer than 8, a vector of float32. The process ends somewhere later, with signal 6 or 11, or goes on with other numbers.
Downsampling shortcuts of residual networks are such layers, and cutting channels makes their inputs narrow.
"""

from __future__ import annotations

from typing import Any

from edgeprune.errors import ModelError
from edgeprune.keras import keras, tf

VECTOR = 16  # float32 in a register of AVX-512, the widest, where nobody has tried which channels are few


def enabled() -> bool:
    """Whether TensorFlow was loaded with these kernels; it looks at the environment once."""
    try:
        from tensorflow.python.util import _pywrap_util_port

        return bool(_pywrap_util_port.IsMklEnabled())
    except (ImportError, AttributeError):  # it is no public name
        return False


def check(model: Any) -> None:
    """Refuse to train a model that these kernels cannot be trusted with.

    Args:
        model: wrapped or not.

    Raises:
        ModelError: they are on, there is no GPU, and a layer is of the kind that corrupts memory.
    """
    if not enabled() or tf.config.list_logical_devices("GPU"):
        return
    layers = [getattr(layer, "layer", layer) for layer in model.layers]
    for layer in layers:
        if not isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D)) or not layer.built:
            continue
        inputs = int(layer.kernel.shape[-2])
        if inputs < VECTOR and max(layer.kernel_size) == 1 and max(layer.strides) > 1:
            raise ModelError(
                f"TensorFlow's oneDNN kernels are on, and can corrupt memory when they train the layer '{layer.name}' (1x1, stride "
                f"{max(layer.strides)}, {inputs} input channels). Set TF_ENABLE_ONEDNN_OPTS=0 in the environment, before TensorFlow is "
                "imported."
            )
