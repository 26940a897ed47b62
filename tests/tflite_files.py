"""Crafted .tflite files that hold exactly one thing."""

from __future__ import annotations

import flatbuffers
import numpy as np
import pytest

S = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert holds the schema of .tflite")


def tensor(name, shape, dtype="INT8", data=None, scale=(), zero=(), axis=0, buffer=None, sparse=False):
    """A tensor; data is an array, or bytes as they are to lie in the file; buffer names one that is shared."""
    made = S.TensorT()
    made.name, made.shape, made.type = name, list(shape), getattr(S.TensorType, dtype)
    if len(scale):
        made.quantization = S.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = list(scale), list(zero)
        made.quantization.quantizedDimension = axis
    if sparse:
        made.sparsity = S.SparsityParametersT()
    return made, data if data is None else np.frombuffer(bytes(data), np.uint8), buffer


def operator(kind, inputs, outputs, options=None, **fields):
    made = S.OperatorT()
    made.inputs, made.outputs = list(inputs), list(outputs)
    if options:
        made.builtinOptionsType = getattr(S.BuiltinOptions, options)
        made.builtinOptions = getattr(S, options + "T")()
        for name, value in fields.items():
            setattr(made.builtinOptions, name, value)
    return kind, made


def build(tensors, operators=(), inputs=(), outputs=(), subgraphs=1, old=False):
    """Assemble a file; a kind that the schema does not know becomes a custom op of that name."""
    model = S.ModelT()
    model.version, model.description = 3, "made for a test"
    model.buffers, model.operatorCodes = [S.BufferT()], []
    graph = S.SubGraphT()
    graph.tensors, graph.operators = [], []
    graph.inputs, graph.outputs = list(inputs), list(outputs)
    for made, data, shared in tensors:
        if data is not None:
            model.buffers.append(S.BufferT())
            model.buffers[-1].data = data
        made.buffer = shared or (0 if data is None else len(model.buffers) - 1)
        graph.tensors.append(made)
    for kind, made in operators:
        code = S.OperatorCodeT()
        number = getattr(S.BuiltinOperator, kind, S.BuiltinOperator.CUSTOM)
        code.deprecatedBuiltinCode = min(number, 127)
        code.builtinCode = 0 if old else number
        code.customCode = kind if number == S.BuiltinOperator.CUSTOM else None
        made.opcodeIndex = len(model.operatorCodes)
        model.operatorCodes.append(code)
        graph.operators.append(made)
    model.subgraphs = [graph] * subgraphs
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


KERNEL = np.array([[[[0, 3, 0, 4]]], [[[1, 2, 3, 0]]]], np.int8)  # 2 filters, 1×1, 4 channels: 3 of 8 are zero


def conv(**options):
    """int8: a 1×1 convolution of 2×2×4 to 2×2×2, with bias and Relu."""
    tensors = [
        tensor("serving_default_image:0", (1, 2, 2, 4), scale=[0.5], zero=[-128]),
        tensor("model/conv/Conv2D", (2, 1, 1, 4), data=KERNEL, scale=[0.1, 0.2], zero=[0, 0]),
        tensor("arith.constant", (2,), "INT32", data=np.array([1, -1], np.int32), scale=[0.05, 0.1], zero=[0, 0]),
        tensor("model/re_lu/Relu;model/conv/Conv2D1", (1, 2, 2, 2), scale=[0.25], zero=[3]),
    ]
    fields = {"strideH": 2, "strideW": 1, "padding": S.Padding.VALID, "fusedActivationFunction": 1} | options
    return tensors, [operator("CONV_2D", [0, 1, 2], [3], "Conv2DOptions", **fields)]
