"""Bytes of a ``.tflite`` file -> plain, checked, frozen objects.

A file may come from anywhere and be damaged, so nothing in it is believed: every index is checked, arrays are views
into the file's own bytes, and what is read in all is bounded by the file's size. A file is either read or refused with
an ArtefactError.

Source: TensorFlow Lite's ``schema.fbs``, through the accessors generated from it (``ai_edge_litert``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeprune.errors import ArtefactError, MissingDependency
from edgeprune.tflite_layers import layers
from edgeprune.tflite_macs import ROLES, macs
from edgeprune.tflite_objects import Array, Op, Tensor, TFLiteFile, constants_at, stored_constants

T = TypeVar("T")

_IDENTIFIER = b"TFL3"
_PLACEHOLDER = 1  # a buffer's offset up to this value means that its data is inside the flatbuffer
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
_REALS = ("float16", "float32", "float64", "complex64", "complex128")
_PLAIN = {name: np.dtype(name).newbyteorder("<") for name in (*_INTEGERS, *_REALS)}
_BITS = {name: 8 * kind.itemsize for name, kind in _PLAIN.items()} | {"bfloat16": 16, "int4": 4, "int2": 2}

# Our word for an option -> the accessors that hold it, in the order depth, height, width.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "stride": ("StrideD", "StrideH", "StrideW"),
    "dilation": ("DilationDFactor", "DilationHFactor", "DilationWFactor"),
    "filter": ("FilterHeight", "FilterWidth"),
    "padding": ("Padding",),
    "fused_activation": ("FusedActivationFunction",),
    "depth_multiplier": ("DepthMultiplier",),
    "keep_num_dims": ("KeepNumDims",),
    "axis": ("Axis",),
    "adj_x": ("AdjX",),
    "adj_y": ("AdjY",),
    "time_major": ("TimeMajor",),
    "ellipsis_mask": ("EllipsisMask",),
    "new_axis_mask": ("NewAxisMask",),
}
_OPTION_ENUMS = {"padding": "Padding", "fused_activation": "ActivationFunctionType"}


def read(source: str | Path | bytes) -> TFLiteFile:
    """Read a ``.tflite`` file, without TensorFlow.

    Args:
        source: Path of the file, or its bytes.

    Raises:
        ArtefactError: The file is missing, empty, damaged, or not a ``.tflite``.
        MissingDependency: ai-edge-litert, which holds the format's schema, is not installed.
    """
    path = None if isinstance(source, bytes) else Path(source)
    name = "The model given as bytes" if path is None else str(path)
    content = source if isinstance(source, bytes) else _load(Path(source))
    if content[4:8] != _IDENTIFIER:
        what = f"is not a .tflite file: its bytes 4 to 8 are {content[4:8]!r}, not {_IDENTIFIER!r}"
        raise ArtefactError(
            f"{name} {what if content else 'is empty'}. Give a file that the TensorFlow Lite converter wrote."
        )
    try:
        return _Reader(_schema(), content).file(path)
    except _UNREADABLE as error:
        found = str(error) if isinstance(error, _DamageError) else "it points outside itself, as if cut off"
        raise ArtefactError(
            f"{name} is a damaged .tflite file ({len(content)} bytes): {found}. Copy or convert it again."
        ) from error


class _DamageError(Exception):
    """Something in the file that contradicts the rest of it."""


# What struct, numpy and flatbuffers raise when an offset or a length is wrong.
_UNREADABLE = (_DamageError, struct.error, ValueError, IndexError, TypeError, OverflowError)


def _load(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}. Give the path of a .tflite file.") from error


@cache
def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise MissingDependency(
            f"Reading a .tflite file needs the schema that comes with ai-edge-litert, which cannot be imported here "
            f"({error}). Install it with: python -m pip install ai-edge-litert"
        ) from error
    return schema_py_generated


@cache
def _words(enum: str) -> dict[int, str]:
    """Return value -> word for one of the schema's enumerations."""
    return {value: word for word, value in vars(getattr(_schema(), enum)).items() if isinstance(value, int)}


class _Reader:
    """One walk through one file."""

    def __init__(self, schema: Any, content: bytes) -> None:
        self.schema = schema
        self.content = content
        self.model = schema.Model.GetRootAs(content, 0)
        # A sound file names each of its bytes about once; a damaged length may claim gigabytes, or one byte often.
        self.budget = 16 * len(content) + (1 << 20)

    def file(self, path: Path | None) -> TFLiteFile:
        """Read the main subgraph."""
        graph = self.item(self.model.Subgraphs, self.model.SubgraphsLength(), 0, "subgraph")
        tensors = tuple(
            self.tensor(i, self.item(graph.Tensors, graph.TensorsLength(), i, "tensor"))
            for i in range(self.spend(graph.TensorsLength()))
        )
        bare = [
            self.op(i, self.item(graph.Operators, graph.OperatorsLength(), i, "operator"), len(tensors))
            for i in range(self.spend(graph.OperatorsLength()))
        ]
        return TFLiteFile(
            path=path,
            content=self.content,
            version=self.model.Version(),
            description=self.text(self.model.Description()),
            tensors=tensors,
            ops=_completed(bare, tensors),
            inputs=self.indices(graph.InputsAsNumpy(), len(tensors)),
            outputs=self.indices(graph.OutputsAsNumpy(), len(tensors)),
            notes=self.notes(tensors),
        )

    def notes(self, tensors: tuple[Tensor, ...]) -> tuple[str, ...]:
        graphs = self.model.SubgraphsLength()
        sparse = sum(tensor.sparse_encoded for tensor in tensors)
        found = {
            f"The file holds {graphs} subgraphs; only the first, the main one, is reported. What runs inside WHILE, IF "
            f"and CALL_ONCE is not counted.": graphs > 1,
            f"{sparse} of its tensors are stored sparse; their zeros are not counted.": sparse > 0,
        }
        return tuple(note for note, holds in found.items() if holds)

    def spend(self, count: int, each: int = 4) -> int:
        """Take ``count`` entries of ``each`` bytes from what may still be read, and return ``count``."""
        self.budget -= count * each
        if self.budget < 0:
            raise _DamageError("it claims more entries than it has room for")
        return count

    def item(self, get: Callable[[int], T | None], count: int, index: int, what: str) -> T:
        found = get(index) if 0 <= index < count else None
        if found is None:
            raise _DamageError(f"{what} {index} of {count} does not exist")
        return found

    def text(self, raw: bytes | None) -> str:
        self.spend(len(raw or b""), 1)
        return (raw or b"").decode("utf-8", errors="replace")

    def array(self, raw: Any, dtype: str) -> Array:
        """Return a vector as an array; the generated accessors give 0 for one that is not in the file."""
        return np.zeros(0, dtype) if isinstance(raw, int) else np.asarray(raw, dtype)

    def numbers(self, raw: Any) -> tuple[int, ...]:
        values = self.array(raw, "int64")
        self.spend(values.size)
        return tuple(values.tolist())

    def indices(self, raw: Any, count: int) -> tuple[int, ...]:
        """Return tensor indices, -1 for an optional one that is left out."""
        found = self.numbers(raw)
        if any(not -1 <= index < count for index in found):
            raise _DamageError(f"it refers to a tensor outside its {count}")
        return found

    def tensor(self, index: int, table: Any) -> Tensor:
        dtype = _words("TensorType").get(table.Type(), f"type{table.Type()}").lower()
        stored = self.numbers(table.ShapeAsNumpy())
        shape = tuple(1 if length == -1 else length for length in stored)
        if any(length < 0 for length in shape):
            raise _DamageError(f"tensor {index} has the shape {list(shape)}")
        scales, zero_points, axis = self.quantization(table.Quantization())
        raw = self.buffer(table.Buffer())
        sparse = table.Sparsity() is not None
        data = None if raw is None or sparse else self.values(raw, dtype, shape, index)
        if data is not None and scales.size > 1 and not (0 <= axis < len(shape) and shape[axis] == scales.size):
            raise _DamageError(f"tensor {index} of shape {list(shape)} has {scales.size} scales along axis {axis}")
        return Tensor(
            index=index,
            name=self.text(table.Name()),
            shape=shape,
            dtype=dtype,
            scales=scales,
            zero_points=zero_points,
            axis=axis,
            data=data,
            sparse_encoded=sparse,
            is_constant=raw is not None,
            is_variable=bool(table.IsVariable()),
            is_dynamic=-1 in stored or -1 in self.numbers(table.ShapeSignatureAsNumpy()),
        )

    def quantization(self, table: Any) -> tuple[Array, Array, int]:
        if table is None:
            return self.array(0, "float32"), self.array(0, "int64"), 0
        scales = self.array(table.ScaleAsNumpy(), "float32")
        zero_points = self.array(table.ZeroPointAsNumpy(), "int64")
        if zero_points.size not in (0, 1, scales.size):
            raise _DamageError(f"a tensor has {scales.size} scales but {zero_points.size} zero points")
        return scales, zero_points, table.QuantizedDimension()

    def buffer(self, index: int) -> Array | None:
        """Return a buffer's bytes, uint8, without copying; None for the empty buffer of an activation.

        A model beyond 2 GB keeps its data behind the flatbuffer, at an offset from the start of the file.
        """
        table = self.item(self.model.Buffers, self.model.BuffersLength(), index, "buffer")
        offset, size = table.Offset(), table.Size()
        if offset > _PLACEHOLDER and offset + size > len(self.content):
            raise _DamageError(f"buffer {index} ends at byte {offset + size}")
        behind = np.frombuffer(self.content, np.uint8, size, offset) if offset > _PLACEHOLDER else None
        raw = self.array(table.DataAsNumpy(), "uint8") if behind is None else behind
        return raw if raw.size else None

    def values(self, raw: Array, dtype: str, shape: tuple[int, ...], index: int) -> Array | None:
        """Return a constant's values in its shape, as views where its dtype is one of numpy's; None for other kinds."""
        if dtype not in _BITS:
            return None
        if raw.size != -(-prod(shape) * _BITS[dtype] // 8):
            raise _DamageError(f"tensor {index}, {dtype} of shape {list(shape)}, has {raw.size} bytes of data")
        if dtype in _PLAIN:
            values = raw.view(_PLAIN[dtype])
        else:
            self.spend(raw.size, 4)
            values = _widened(raw) if dtype == "bfloat16" else _unpacked(raw, _BITS[dtype], prod(shape))
        values = values.reshape(shape)
        values.flags.writeable = False
        return values

    def op(self, index: int, table: Any, tensors: int) -> Op:
        code = self.item(
            self.model.OperatorCodes, self.model.OperatorCodesLength(), table.OpcodeIndex(), "operator code"
        )
        # Files older than schema 3a have the deprecated field alone; newer ones put the larger number in the new one.
        builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        word = _words("BuiltinOperator").get(builtin, f"BUILTIN_{builtin}")
        custom = word == "CUSTOM"
        return Op(
            index=index,
            op=(self.text(code.CustomCode()) or word) if custom else word,
            custom=custom,
            inputs=self.indices(table.InputsAsNumpy(), tensors),
            outputs=self.indices(table.OutputsAsNumpy(), tensors),
            options=self.options(table),
        )

    def options(self, table: Any) -> dict[str, Any]:
        """Return the options we have a word for, by whichever of the schema's option tables the op uses."""
        union = table.BuiltinOptions()
        kind = getattr(self.schema, _words("BuiltinOptions").get(table.BuiltinOptionsType(), ""), None)
        if union is None or kind is None:
            return {}
        options = kind()
        options.Init(union.Bytes, union.Pos)
        found = {
            word: tuple(getattr(options, name)() for name in names if hasattr(options, name))
            for word, names in _OPTIONS.items()
        }
        return {word: _worded(word, values) for word, values in found.items() if values}


def _widened(raw: Array) -> Array:
    """Turn bfloat16, the upper half of a float32, into float32."""
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _unpacked(raw: Array, bits: int, count: int) -> Array:
    """Spread packed two's-complement integers, the lowest bits first, over int8."""
    left = 8 - bits * (1 + np.arange(8 // bits, dtype=np.uint8))
    shifted = np.left_shift(raw[:, None], left.astype(np.uint8)).view(np.int8)
    return np.right_shift(shifted, np.int8(8 - bits)).reshape(-1)[:count]


def _worded(word: str, values: tuple[Any, ...]) -> Any:
    if word in _OPTION_ENUMS:
        return _words(_OPTION_ENUMS[word]).get(values[0], str(values[0]))
    return values if word in ("stride", "dilation", "filter") else values[0]


def _completed(bare: list[Op], tensors: tuple[Tensor, ...]) -> tuple[Op, ...]:
    """Add what needs the tensors: MACs, dtype and layer."""
    stored = stored_constants(bare, tensors)
    guesses = layers([(op.op, _telling_names(op, tensors, stored)) for op in bare])
    return tuple(
        replace(
            op,
            macs=_macs(op, tensors),
            dtype=next((tensors[i].dtype for i in (*op.outputs, *op.inputs) if i >= 0), "none"),
            layer=layer,
        )
        for op, layer in zip(bare, guesses, strict=True)
    )


def _telling_names(op: Op, tensors: tuple[Tensor, ...], stored: Mapping[int, Tensor]) -> list[str]:
    """Return the names of the op's constant kernels, then of its first output."""
    kernels = constants_at(op, ROLES[op.op].kernels, stored) if op.op in ROLES else ()
    return [tensor.name for tensor in (*kernels, *(tensors[index] for index in op.outputs[:1] if index >= 0))]


def _macs(op: Op, tensors: tuple[Tensor, ...]) -> int:
    if op.op not in ROLES:
        return 0
    inputs = [tensors[index].shape if index >= 0 else None for index in op.inputs]
    try:
        return macs(op.op, inputs, tensors[op.outputs[0]].shape, op.options)
    except (IndexError, TypeError) as error:
        raise _DamageError(f"operator {op.index}, {op.op}, lacks inputs or axes that it must have") from error
