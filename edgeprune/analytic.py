"""Cycles of a network from its shapes alone: no emulator, no file; made for thousands of candidates.

Every op costs what its kernel does, each part at its own price in cycles of one thread::

    cycles = call + macs·m + positions·n + patches·p + odd·q + weights·w + inputs·i + outputs·o

Positions are those of the output, whatever its channels: each is begun anew, which is most of what a layer of few channels costs.
Patches are what a convolution reads: an element for every output position, tap and input channel (depthwise and pooling: for
every position and tap); odd are the channels beyond the last full vector, for every position and tap. The parts are counted
as the kernels count them: a matrix product runs in tiles, so positions, output channels and input channels are rounded up to
the tile's `Lanes`, and a channel that fills no tile costs as much as a full one. Prices and lanes are data, fitted by
``benchmarks/analytic_fit.py`` on what the emulator counted for single layers; kinds of ops that were not counted are priced by
their elements alone (``other``). ``edgeprune.prediction`` makes milliseconds of the cycles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from edgeprune import yaml_files
from edgeprune.errors import TargetError
from edgeprune.tflite import TFLiteFile
from edgeprune.tflite_macs import ROLES
from edgeprune.tflite_objects import Op
from edgeprune.validation import Strict, validate

PARTS = ("call", "macs", "positions", "patches", "odd", "weights", "inputs", "outputs")
OTHER = "other"
BYTES = {"int8": 1, "fp32": 4}  # of one element
CONVOLUTIONS = ("CONV_2D", "TRANSPOSE_CONV")
PAIRWISE = ("ADD", "SUB", "MUL")
VECTOR = {
    "int8": 8,
    "fp32": 16,
}  # channels that a depthwise kernel takes at once; those beyond the last whole lot are slower
NARROW = 8  # channels that the float depthwise kernels have a way of their own for
Precision = Literal["int8", "fp32"]
Price = Annotated[float, Field(ge=0)]


class Layer(NamedTuple):
    """An op's shapes, from a file or from a model that is not yet one.

    Attributes:
        op: TFLite's word, such as ``CONV_2D``.
        precision: ``int8`` (any integers) or ``fp32`` (any floats).
        inputs, outputs: elements of the activations it reads and writes.
        positions: output positions of a convolution, rows of a fully connected layer; 1 elsewhere.
        kernel: (out, height, width, in) of a kernel, (channels, height, width, 1) of a depthwise one and of a pool's window;
            () elsewhere.
        stride: the larger of both; 1 elsewhere.
        kept: of a mean: whether it keeps the axes that it is taken over.
    """

    op: str
    precision: Precision
    inputs: int
    outputs: int
    positions: int = 1
    kernel: tuple[int, ...] = ()
    stride: int = 1
    kept: bool = False

    @property
    def weights(self) -> int:
        """Elements of the kernel."""
        return 0 if not self.kernel or self.op.endswith("_POOL_2D") else prod(self.kernel)

    @property
    def bytes(self) -> int:
        """Of its weights and of all that it reads and writes."""
        return BYTES[self.precision] * (self.weights + self.inputs + self.outputs)

    @property
    def kind(self) -> str:
        """What is priced alike: ``CONV_2D 1x1``, ``DEPTHWISE_CONV_2D 3x3 stride 2``, ``ADD``.

        A product for one position is that of a matrix and a vector, whatever op it stands in: nothing is packed for it. One for
        many is that of two matrices. An int8 depthwise 3x3 has a kernel of its own in every runtime, but with channels that fill
        no vector some do without; in float every size has the same, and few channels another. A sum or product of unlike shapes
        takes another way than one of like ones, and so does a mean that keeps its axes.
        """
        if self.op in PAIRWISE and self.inputs != 2 * self.outputs:
            return f"{self.op} broadcast"
        if self.op == "MEAN" and self.kept:
            return f"{self.op} kept"
        shape = self.kernel[1:3]
        if self.op in (*CONVOLUTIONS, "FULLY_CONNECTED"):
            if shape != (1, 1) or self.stride != 1:
                return "CONV_2D"
            return "FULLY_CONNECTED" if self.positions == 1 else "CONV_2D 1x1"
        if self.op == "DEPTHWISE_CONV_2D" and self.precision == "fp32":
            return f"{self.op} {NARROW} channels" if self.kernel[0] == NARROW else f"{self.op} {OTHER}"
        if self.op == "DEPTHWISE_CONV_2D":
            own = shape == (3, 3) and self.kernel[0] % VECTOR[self.precision] == 0
            return f"{self.op} 3x3 stride {self.stride}" if own else f"{self.op} {OTHER}"
        return self.op


class Lanes(Strict):
    """The tile that a kernel computes at once; what does not fill it is computed all the same."""

    positions: int = Field(1, ge=1, description="output positions")
    out: int = Field(1, ge=1, description="output channels")
    in_: int = Field(
        1, ge=1, alias="in", description="input channels, over all taps of the kernel at once or of each tap"
    )
    each_tap: bool = Field(False, description="whether input channels are rounded for each tap of the kernel")


class Prices(Strict):
    """What one kind of op costs."""

    lanes: Lanes = Field(description="the tile of its kernel")
    cycles: dict[Literal["call", "macs", "positions", "patches", "odd", "weights", "inputs", "outputs"], Price] = Field(
        description="price of each part in cycles of one thread; what is not named costs nothing"
    )
    layers: int = Field(ge=1, description="how many counted layers it was fitted on")
    error_pct: float = Field(
        ge=0, description="mean error, percent, of the layers of each chain as priced by the layers of all others"
    )

    def __call__(self, layer: Layer) -> float:
        """Cycles of one thread."""
        parts = units(layer, self.lanes)
        known = dict(zip(PARTS, parts, strict=True))
        return sum(price * known[name] for name, price in self.cycles.items())


class Analytic(Strict):
    """The prices on one core, for all kernels and precisions that were counted."""

    core: str = Field(description="as in targets")
    written_by: str = Field(description="the command that fits them")
    prices: dict[str, dict[Precision, dict[str, Prices]]] = Field(
        description="kernels -> precision -> kind of op -> its prices; 'other' is any kind that is not named"
    )

    def known(self, kernels: str, precision: Precision) -> bool:
        """Whether these kernels were counted."""
        return precision in self.prices.get(kernels, {})


def load(path: Path) -> Analytic:
    """Read the prices.

    Raises:
        TargetError: the file is unreadable or does not validate.
    """
    return validate(Analytic, yaml_files.read(path, TargetError), str(path), TargetError)


def units(layer: Layer, lanes: Lanes) -> tuple[float, ...]:
    """How much of each of `PARTS` an op does: 1 call; MACs in whole tiles; elements of all else."""
    elements = float(layer.weights), float(layer.inputs), float(layer.outputs)
    if not layer.kernel:
        return 1.0, 0.0, 0.0, 0.0, 0.0, *elements
    out, height, width, depth = layer.kernel
    taps = height * width
    if layer.weights == 0 or layer.op == "DEPTHWISE_CONV_2D":  # one value per tap and output: no product of matrices
        positions = layer.outputs // max(out, 1)
        patches = positions * taps
        return (
            1.0,
            float(patches * _up(out, lanes.out)),
            float(positions),
            float(patches),
            float(patches * (out % VECTOR[layer.precision])),
            *elements,
        )
    summed = taps * _up(depth, lanes.in_) if lanes.each_tap else _up(taps * depth, lanes.in_)
    macs = _up(layer.positions, lanes.positions) * _up(out, lanes.out) * summed
    patches = layer.positions * taps * depth
    return 1.0, float(macs), float(layer.positions), float(patches), 0.0, *elements


def macs(layer: Layer) -> int:
    """Multiply-accumulates of an op, without what no channel needs."""
    if layer.op == "DEPTHWISE_CONV_2D":
        return layer.outputs * prod(layer.kernel[1:3])
    return layer.positions * layer.weights


def cycles(layers: Sequence[Layer], prices: Mapping[str, Prices]) -> list[float]:
    """Cycles of one thread for each layer; a kind without a price takes the op's ``other`` or its own, else that of all ops."""
    return [_price(layer, prices)(layer) for layer in layers]


def _price(layer: Layer, prices: Mapping[str, Prices]) -> Prices:
    words = (layer.kind, f"{layer.op} {OTHER}", layer.op, OTHER)
    return next(prices[word] for word in words if word in prices)


def layers(file: TFLiteFile) -> list[Layer]:
    """The ops of a .tflite file, in its order."""
    return [_layer(file, op) for op in file.ops]


def _layer(file: TFLiteFile, op: Op) -> Layer:
    tensors = [file.tensors[index] for index in op.inputs if index >= 0]
    inputs = sum(tensor.elements for tensor in tensors if not tensor.is_constant)
    written = [file.tensors[index] for index in op.outputs]
    outputs = sum(tensor.elements for tensor in written)
    is_float = any(tensor.is_float for tensor in [*written, *(t for t in tensors if not t.is_constant)])
    kernel = _kernel(file, op)
    positions = outputs // kernel[0] if kernel and kernel[0] and op.op in (*CONVOLUTIONS, "FULLY_CONNECTED") else 1
    if op.op == "TRANSPOSE_CONV":  # computed at every position of the input
        positions = inputs // kernel[3] if kernel and kernel[3] else 1
    stride = max(op.options.get("stride") or (1,))
    kept = op.op == "MEAN" and len(written[0].shape) == len(file.tensors[op.inputs[0]].shape)
    return Layer(op.op, "fp32" if is_float else "int8", inputs, outputs, positions, kernel, stride, kept)


def _kernel(file: TFLiteFile, op: Op) -> tuple[int, ...]:
    """The kernel's shape as `Layer` has it."""
    if op.op.endswith("_POOL_2D"):
        height, width = op.options.get("filter") or (1, 1)
        return file.tensors[op.outputs[0]].shape[-1], height, width, 1
    if op.op not in ("FULLY_CONNECTED", "DEPTHWISE_CONV_2D", *CONVOLUTIONS):
        return ()
    shape = file.tensors[op.inputs[ROLES[op.op].kernels[0]]].shape
    if op.op == "FULLY_CONNECTED":
        return shape[0], 1, 1, shape[-1]
    return (shape[3], shape[1], shape[2], 1) if op.op == "DEPTHWISE_CONV_2D" else shape


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
