"""Which weights of a layer are pruned, and along which of their axes its inputs lie.

A layer that is not in `KERNELS` has none: depthwise kernels see one channel each, normalizations have vectors only, and the
kernels of an einsum have no axis that is the inputs for every equation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from edgeprune.keras import keras

_layers = keras.layers


class Kernel(NamedTuple):
    """One weight of a layer.

    Attributes:
        name: ``""`` for the layer's main kernel, else what tells it from that one.
        path: from the layer to the weight: ``kernel``, ``cell.kernel``.
        outputs_first: the last two axes are (out, in), as in transposed convolutions, not (in, out).
        table: a table of rows, which no input channels are multiplied with.
    """

    name: str = ""
    path: str = "kernel"
    outputs_first: bool = False
    table: bool = False

    def of(self, layer: Any) -> Any:
        """The variable of a built layer."""
        for step in self.path.split("."):
            layer = getattr(layer, step)
        return layer

    def sides(self, layer: Any) -> tuple[int, int]:
        """(input channels, output channels) of a built layer's kernel."""
        inputs, outputs = self.of(layer).shape[-2:]
        return (outputs, inputs) if self.outputs_first else (inputs, outputs)


_PLAIN = (Kernel(),)
_TRANSPOSED = (Kernel(outputs_first=True),)
_POINTWISE = (Kernel(path="pointwise_kernel"),)
_RECURRENT = (Kernel(path="cell.kernel"), Kernel("recurrent_kernel", "cell.recurrent_kernel"))

KERNELS: dict[type, tuple[Kernel, ...]] = {
    _layers.Conv1D: _PLAIN,
    _layers.Conv2D: _PLAIN,
    _layers.Dense: _PLAIN,
    _layers.Conv1DTranspose: _TRANSPOSED,
    _layers.Conv2DTranspose: _TRANSPOSED,
    _layers.SeparableConv1D: _POINTWISE,
    _layers.SeparableConv2D: _POINTWISE,
    _layers.LSTM: _RECURRENT,
    _layers.GRU: _RECURRENT,
    _layers.SimpleRNN: _RECURRENT,
    _layers.Embedding: (Kernel(path="embeddings", table=True),),
}


def of(layer: Any) -> tuple[Kernel, ...]:
    """The kernels of a layer, the main one first; those of the layers that a wrapper of Keras' holds; () for none."""
    if type(layer) is _layers.TimeDistributed:
        return tuple(kernel._replace(path=f"layer.{kernel.path}") for kernel in of(layer.layer))
    if type(layer) is _layers.Bidirectional:
        return (*_side(layer, "forward"), *_side(layer, "backward"))
    return KERNELS.get(type(layer), ())


def _side(layer: Any, side: str) -> tuple[Kernel, ...]:
    inner = getattr(layer, f"{side}_layer")
    return tuple(
        kernel._replace(name=f"{side}_{kernel.name or 'kernel'}", path=f"{side}_layer.{kernel.path}")
        for kernel in of(inner)
    )


def key(layer: str, kernel: Kernel) -> str:
    """What masks call a kernel: the layer's name, and behind a colon (which no layer's name holds) the kernel's."""
    return f"{layer}:{kernel.name}" if kernel.name else layer


def find(model: Any, name: str) -> Any:
    """The variable that ``key`` has named, in a model of plain layers."""
    layer_name, _, kernel_name = name.partition(":")
    layer = model.get_layer(layer_name)
    return next(kernel for kernel in of(layer) if kernel.name == kernel_name).of(layer)
