"""Reading .tflite files: crafted ones that hold exactly one thing, and real conversions."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest

from edgeprune import tflite, tflite_reader
from edgeprune.errors import ArtefactError, MissingDependency
from edgeprune.tflite import inventory, kernel_for, n_of_m, read, zeros

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


@pytest.fixture
def conv_file():
    return build(*conv(), inputs=[0], outputs=[3])


# --- what is read


def test_a_convolution_in_plain_objects(conv_file):
    file = read(conv_file)
    assert (file.path, file.version, file.description) == (None, 3, "made for a test")
    assert (file.inputs, file.outputs, file.notes) == ((0,), (3,), ())
    (op,) = file.ops
    assert (op.op, op.custom, op.inputs, op.outputs) == ("CONV_2D", False, (0, 1, 2), (3,))
    assert op.options == {
        "stride": (2, 1),
        "dilation": (1, 1),
        "padding": "VALID",
        "fused_activation": "RELU",
    }
    assert (op.macs, op.dtype, op.layer) == (32, "int8", "conv")
    kernel = file.tensors[1]
    assert (kernel.shape, kernel.dtype, kernel.elements, kernel.is_constant) == ((2, 1, 1, 4), "int8", 8, True)
    assert kernel.scales.tolist() == pytest.approx([0.1, 0.2])
    np.testing.assert_array_equal(kernel.data, KERNEL)
    assert file.tensors[0].data is None


def test_constants_cannot_be_written_to(conv_file):
    with pytest.raises(ValueError, match="read-only"):
        read(conv_file).tensors[1].data[0] = 1


def test_a_file_on_disk_knows_its_path_and_sizes(conv_file, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_file)
    file = read(str(path))
    assert (file.path, file.size_bytes) == (path, len(conv_file))
    assert file.size_gzip_bytes == len(gzip.compress(conv_file, 9, mtime=0))


def test_inventory_is_what_inspect_prints(conv_file):
    assert json.loads(json.dumps(inventory(read(conv_file)))) == {
        "ops": [{"index": 0, "op": "CONV_2D", "macs": 32, "dtype": "int8", "layer": "conv"}],
        "float_ops": [],
        "border_ops": [],
        "int8_share": 1.0,
        "int8_violations": [],
        "tensors": [
            {
                "index": 1,
                "name": "model/conv/Conv2D",
                "shape": [2, 1, 1, 4],
                "dtype": "int8",
                "layer": "conv",
                "kernel_of": [0],
                "sparsity": 3 / 8,
                "n_of_m": {"n": 2, "m": 4, "share": 0.5},
                "sparse_encoded": False,
            },
            {
                "index": 2,
                "name": "arith.constant",
                "shape": [2],
                "dtype": "int32",
                "layer": None,
                "kernel_of": [],
                "sparsity": 0.0,
                "n_of_m": None,
                "sparse_encoded": False,
            },
        ],
        "inputs": [
            {
                "name": "serving_default_image:0",
                "shape": [1, 2, 2, 4],
                "dtype": "int8",
                "scale": 0.5,
                "zero_point": -128,
            }
        ],
        "outputs": [
            {
                "name": "model/re_lu/Relu;model/conv/Conv2D1",
                "shape": [1, 2, 2, 2],
                "dtype": "int8",
                "scale": 0.25,
                "zero_point": 3,
            }
        ],
        "params": 10,
        "macs": 32,
        "sparsity": 3 / 8,
        "size_bytes": len(conv_file),
        "size_gzip_bytes": read(conv_file).size_gzip_bytes,
        "notes": [],
    }


def test_an_old_file_has_only_the_deprecated_operator_code():
    assert read(build(*conv(), old=True)).ops[0].op == "CONV_2D"


def test_an_operator_code_beyond_127_is_in_the_new_field():
    tensors = [tensor("a", (1, 2)), tensor("b", (1, 2))]
    assert read(build(tensors, [operator("GELU", [0], [1])])).ops[0].op == "GELU"


def test_a_custom_op_goes_by_its_own_name():
    tensors = [tensor("a", (1, 2)), tensor("b", (1, 2))]
    (op,) = read(build(tensors, [operator("edgetpu-custom-op", [0], [1])])).ops
    assert (op.op, op.custom, op.macs, op.options) == ("edgetpu-custom-op", True, 0, {})


def test_only_the_main_subgraph_is_reported_and_it_is_said(conv_file):
    file = read(build(*conv(), subgraphs=3))
    assert len(file.ops) == 1
    assert "3 subgraphs" in file.notes[0]
    assert inventory(file)["notes"] == list(file.notes)


def test_an_input_that_is_left_out_is_minus_one():
    tensors, (only,) = conv()
    only[1].inputs = [0, 1, -1]
    file = read(build(tensors, [only]))
    assert file.ops[0].inputs == (0, 1, -1)
    assert tflite.params(file) == 8


def test_an_axis_of_unknown_length_counts_as_one():
    assert read(build([tensor("a", (-1, 4))])).tensors[0].shape == (1, 4)


def test_two_tensors_may_share_a_buffer():
    data = np.array([0, 1, 2, 3], np.int8)
    file = read(build([tensor("a", (4,), data=data), tensor("b", (2, 2), buffer=1)]))
    np.testing.assert_array_equal(file.tensors[1].data, [[0, 1], [2, 3]])


def test_data_behind_the_flatbuffer_is_found_by_offset():
    """As in models beyond 2 GB: the buffer holds an offset from the file's start, beyond the flatbuffer's end."""

    def with_offset(offset):
        model = S.ModelT.InitFromObj(S.Model.GetRootAs(build([tensor("a", (4,), data=b"1234")]), 0))
        model.buffers[1].data, model.buffers[1].offset, model.buffers[1].size = None, offset, 4
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    length = len(with_offset(9999))
    content = with_offset(length) + bytes([0, 5, 0, 6])
    np.testing.assert_array_equal(read(content).tensors[0].data, [0, 5, 0, 6])
    with pytest.raises(ArtefactError, match="buffer 1 ends at byte"):
        read(content[:-1])


@pytest.mark.parametrize(
    ("dtype", "data", "expected"),
    [
        ("INT4", [0x21, 0xF8, 0x07], [1, 2, -8, -1, 7]),  # the low half first, two's complement
        ("INT2", [0b11_10_01_00, 0b01], [0, 1, -2, -1, 1]),
        ("BFLOAT16", [0x80, 0x3F, 0x00, 0xC0], [1.0, -2.0]),
        ("FLOAT16", np.array([1.5, -2], np.float16), [1.5, -2.0]),
        ("BOOL", [1, 0], [True, False]),
    ],
)
def test_packed_and_short_constants(dtype, data, expected):
    np.testing.assert_array_equal(read(build([tensor("a", (len(expected),), dtype, data)])).tensors[0].data, expected)


def test_a_string_constant_has_no_numbers():
    (only,) = read(build([tensor("labels", (1,), "STRING", b"\x01\x00\x00\x00")])).tensors
    assert (only.dtype, only.data, only.is_constant) == ("string", None, True)


# --- zeros and n:m


def test_zero_is_the_zero_point_not_the_number():
    (only,) = read(build([tensor("a", (4,), "UINT8", [128, 0, 128, 5], scale=[0.1], zero=[128])])).tensors
    np.testing.assert_array_equal(zeros(only), [True, False, True, False])
    assert tflite.tensor_sparsity(only) == 0.5


def test_zero_points_may_differ_along_an_axis():
    data = np.array([[1, 2], [1, 2]], np.int8)
    (only,) = read(build([tensor("a", (2, 2), data=data, scale=[0.1, 0.1], zero=[1, 2], axis=1)])).tensors
    assert zeros(only).all()
    (other,) = read(build([tensor("a", (2, 2), data=data, scale=[0.1, 0.1], zero=[1, 2], axis=0)])).tensors
    np.testing.assert_array_equal(zeros(other), [[True, False], [False, True]])


def test_the_zeros_of_an_activation_are_an_error(conv_file):
    with pytest.raises(ArtefactError, match="not a numeric constant"):
        zeros(read(conv_file).tensors[0])


def test_a_sparse_encoded_tensor_is_flagged_and_its_zeros_are_not_guessed():
    tensors, operators = conv()
    tensors[1] = tensor("model/conv/Conv2D", (2, 1, 1, 4), data=[1, 2], sparse=True)
    file = read(build(tensors, operators))
    assert (file.tensors[1].sparse_encoded, file.tensors[1].data) == (True, None)
    assert tflite.sparsity(file) is None
    assert tflite.params(file) == 10
    assert "stored sparse" in file.notes[0]
    with pytest.raises(ArtefactError, match="stored sparse"):
        zeros(file.tensors[1])


@pytest.mark.parametrize(
    ("rows", "n", "m", "share"),
    [
        ([[1, 1, 0, 0, 0, 1, 0, 1]], 2, 4, 1.0),
        ([[1, 1, 1, 0, 0, 1, 0, 1]], 2, 4, 0.5),
        ([[0, 0, 1, 1, 1, 1, 0, 0]], 2, 4, 1.0),  # four in a row, but in two aligned blocks
        ([[0, 1, 1, 1, 1, 0, 0, 0]], 2, 4, 0.5),  # 3 + 1: blocks are aligned, they do not slide
        ([[1, 1, 1, 0, 0, 1, 0, 1]], 3, 4, 1.0),
        ([[1, 1, 1, 1]], 4, 4, 1.0),
        ([[0, 0, 0, 0]], 0, 4, 1.0),
        ([[1, 0], [1, 0]], 1, 2, 1.0),
        ([[1, 1], [0, 0]], 2, 4, None),  # a block would span two rows
        ([[1, 1, 1, 0, 0, 0]], 2, 4, None),
        (np.zeros((0, 4)), 2, 4, None),
        (np.zeros((3, 0)), 2, 4, None),
        (np.float32(1), 2, 4, None),
    ],
)
def test_n_of_m_by_hand(rows, n, m, share):
    assert n_of_m(np.asarray(rows), n, m) == share


@pytest.mark.parametrize(("n", "m"), [(5, 4), (-1, 4), (0, 0)])
def test_an_impossible_pattern_is_refused(n, m):
    with pytest.raises(ValueError, match="no pattern"):
        n_of_m(np.zeros(4), n, m)


def test_n_of_m_runs_over_input_channels_of_every_position():
    """(2, 1, 2, 4): the last axis is the input channel; along any other axis these blocks would fail."""
    kernel = np.zeros((2, 1, 2, 4), np.int8)
    kernel[..., :2] = 1
    assert n_of_m(kernel, 2, 4) == 1.0
    assert n_of_m(np.moveaxis(kernel, -1, 0).reshape(4, 4), 2, 4) == 0.5


def test_a_depthwise_kernel_has_no_n_of_m_as_its_last_axis_is_no_input():
    tensors, _ = conv()
    tensors[1] = tensor("model/dw/depthwise", (1, 1, 1, 4), data=[0, 0, 1, 1])
    file = read(build(tensors, [operator("DEPTHWISE_CONV_2D", [0, 1, 2], [3], "DepthwiseConv2DOptions")]))
    weights = inventory(file)["tensors"]
    assert (weights[0]["sparsity"], weights[0]["n_of_m"]) == (0.5, None)


# --- which ops are float


def chain(*kinds):
    """Ops one after the other: the dtype of the input, then each op with the dtype of its output."""
    first, *ops = kinds
    words = [first, *(text.split()[1] for text in ops)]
    tensors = [tensor(f"t{i}", (1, 4), word) for i, word in enumerate(words)]
    operators = [operator(text.split()[0], [i], [i + 1]) for i, text in enumerate(ops)]
    return read(build(tensors, operators, inputs=[0], outputs=[len(ops)]))


@pytest.mark.parametrize(
    ("kinds", "floats", "border", "share"),
    [
        (["INT8", "RELU INT8", "SOFTMAX INT8"], (), (), 1.0),
        (["FLOAT32", "QUANTIZE INT8", "RELU INT8", "DEQUANTIZE FLOAT32"], (), (0, 2), 1.0),
        (["INT8", "DEQUANTIZE FLOAT32", "TANH FLOAT32", "QUANTIZE INT8", "RELU INT8"], (0, 1, 2), (), 0.25),
        (["FLOAT32", "RELU FLOAT32", "QUANTIZE INT8", "RELU INT8"], (0, 1), (), 1 / 3),
        (["FLOAT16", "RELU FLOAT16"], (0,), (), 0.0),
        (["FLOAT32", "SHAPE INT32"], (0,), (), 0.0),  # a float input that is no constant
        (["UINT8", "QUANTIZE INT8", "QUANTIZE UINT8"], (), (), 1.0),  # integers on both sides
        (["FLOAT32", "QUANTIZE INT8"], (), (0,), None),
    ],
)
def test_float_ops_and_the_border(kinds, floats, border, share):
    file = chain(*kinds)
    assert tflite.float_ops(file) == floats
    assert tflite.border_ops(file) == border
    assert tflite.int8_share(file) == (share if share is None else pytest.approx(share))


def test_a_float_constant_does_not_make_an_op_float():
    tensors = [tensor("a", (2,)), tensor("c", (2,), "FLOAT32", np.ones(2, np.float32)), tensor("b", (2,))]
    assert tflite.float_ops(read(build(tensors, [operator("my-op", [0, 1], [2])]))) == ()


def test_weights_without_integer_activations_are_float():
    """Dynamic-range quantization: int8 kernels, float arithmetic around them."""
    tensors = [
        tensor("x", (1, 4), "FLOAT32"),
        tensor("model/dense/MatMul", (2, 4), data=np.ones(8, np.int8), scale=[0.1], zero=[0]),
        tensor("y", (1, 2), "FLOAT32"),
    ]
    file = read(build(tensors, [operator("FULLY_CONNECTED", [0, 1, -1], [2])]))
    assert (tflite.float_ops(file), tflite.int8_share(file), tflite.macs(file)) == ((0,), 0.0, 8)


# --- kernels and layers


def dense_file(*names, kernels=None, between=None):
    """Dense layers 4 -> 4 in a row, one per name of a kernel; kernels[i] says which kernel the i-th op uses."""
    used = list(range(len(names))) if kernels is None else kernels
    weights = [
        tensor(name, (4, 4), "FLOAT16" if between else "INT8", np.full(32 if between else 16, i, np.uint8))
        for i, name in enumerate(names)
    ]
    unpacked = [tensor(f"unpacked{i}", (4, 4), "FLOAT32") for i in range(len(names))] if between else []
    activations = [tensor(f"t{i}", (1, 4)) for i in range(len(used) + 1)]
    first = len(weights) + len(unpacked)
    offset = len(weights) if between else 0
    ops = [operator(between, [i], [offset + i]) for i in range(len(unpacked))]
    ops += [operator("FULLY_CONNECTED", [first + i, offset + k, -1], [first + i + 1]) for i, k in enumerate(used)]
    return read(build([*weights, *unpacked, *activations], ops))


def test_weights_by_layer_tells_layers_and_nested_models_apart():
    file = dense_file("model/fc/MatMul", "model/fc_1/MatMul", "model/block/fc/MatMul")
    found = {layer: [t.index for t in tensors] for layer, tensors in tflite.weights_by_layer(file).items()}
    assert found == {"fc": [0], "fc_1": [1], "block/fc": [2]}
    assert [kernel_for(file, layer).index for layer in ("fc", "fc_1", "block/fc")] == [0, 1, 2]


def test_a_nested_layer_is_found_by_its_own_name_when_that_is_enough():
    file = dense_file("model/fc/MatMul", "model/block/inner/MatMul")
    assert kernel_for(file, "inner").index == 1


def test_two_nested_layers_of_one_name_are_an_error_that_names_both():
    file = dense_file("model/a/fc/MatMul", "model/b/fc/MatMul", "model/c/MatMul")
    with pytest.raises(ArtefactError, match=r"2 kernels.*model/a/fc.*model/b/fc"):
        kernel_for(file, "fc")


def test_quant_is_understood_on_either_side():
    wrapped = dense_file("model/quant_fc/MatMul;model/quant_fc/LastValueQuant/FakeQuantWithMinMaxVars")
    assert kernel_for(wrapped, "fc") is kernel_for(wrapped, "quant_fc") is wrapped.tensors[0]
    plain = dense_file("model/quant_fc/MatMul", "model/fc/MatMul")
    assert [kernel_for(plain, name).index for name in ("quant_fc", "fc")] == [0, 1]


def test_the_shape_chooses_where_names_do_not_and_contradicts_where_they_do():
    file = dense_file("arith.constant", "model/fc/MatMul")
    assert kernel_for(file, "lost", (4, 4)).index == 0  # the only kernel that bears no name
    assert kernel_for(file, "lost") is None
    assert kernel_for(file, "fc", (4, 8)) is None
    assert kernel_for(dense_file("arith.constant", "arith.constant1"), "lost", (4, 4)) is None


def test_a_layer_called_twice_has_one_kernel_and_counts_its_parameters_once():
    file = dense_file("model/fc/MatMul", kernels=[0, 0])
    assert [kernel.op.index for kernel in tflite.kernels(file)] == [0, 1]
    assert (tflite.params(file), tflite.macs(file)) == (16, 32)
    assert len(tflite.weights_by_layer(file)["fc"]) == 1


def test_biases_merged_by_the_converter_count_for_each_layer():
    tensors, (first,) = conv()
    tensors += [tensor("model/conv_1/Conv2D", (2, 1, 1, 4), data=KERNEL + 1), tensor("t", (1, 2, 2, 2))]
    fields = {"strideH": 1, "strideW": 1}
    again = operator("CONV_2D", [0, 1, 2], [5], "Conv2DOptions", **fields)
    other = operator("CONV_2D", [0, 4, 2], [5], "Conv2DOptions", **fields)
    assert tflite.params(read(build(tensors, [first, again]))) == 8 + 2
    assert tflite.params(read(build(tensors, [first, other]))) == 8 + 2 + 8 + 2


@pytest.mark.parametrize("between", ["DEQUANTIZE", "DENSIFY"])
def test_a_kernel_is_found_behind_the_op_that_unpacks_it(between):
    file = dense_file("model/fc/MatMul", between=between)
    assert kernel_for(file, "fc").index == 0
    assert tflite.params(file) == 16


# --- damage


def test_what_is_not_a_tflite_file_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ArtefactError, match=r"no\.tflite cannot be read: No such file"):
        read(tmp_path / "no.tflite")
    with pytest.raises(ArtefactError, match="cannot be read: Is a directory"):
        read(tmp_path)
    with pytest.raises(ArtefactError, match="is empty"):
        read(b"")
    with pytest.raises(ArtefactError, match=r"is not a \.tflite file.*TFL3"):
        read(b"\x89HDF\r\n\x1a\n" + bytes(100))


@pytest.mark.parametrize(
    ("tensors", "operators", "reason"),
    [
        ([tensor("a", (4,), data=b"123")], [], r"int8 of shape \[4\], has 3 bytes"),
        ([tensor("a", (2,), "FLOAT32", data=b"12345")], [], r"float32 of shape \[2\], has 5 bytes"),
        ([tensor("a", (1 << 30, 1 << 30), data=b"1")], [], "has 1 bytes"),
        ([tensor("a", (-7, 4))], [], r"has the shape \[-7, 4\]"),
        ([tensor("a", (2,), buffer=9)], [], "buffer 9 of 1 does not exist"),
        ([tensor("a", (2,))], [operator("RELU", [0], [1])], "outside its 1"),
        ([tensor("a", (2,))], [operator("RELU", [-2], [0])], "outside its 1"),
        ([tensor("a", (2,), data=b"12", scale=[1, 1, 1], zero=[0, 0, 0])], [], "3 scales along axis 0"),
        ([tensor("a", (2,), data=b"12", scale=[1, 1], zero=[0, 0], axis=5)], [], "along axis 5"),
        ([tensor("a", (2,), data=b"12", scale=[1, 1], zero=[0, 0, 0])], [], "2 scales but 3 zero points"),
        ([tensor("a", (2,))], [operator("CONV_2D", [0], [0])], "CONV_2D, lacks inputs"),
        ([tensor("a", (2,))], [operator("CONV_2D", [0, -1], [0])], "CONV_2D, lacks inputs"),
        ([tensor("a", (2,))], [operator("CONV_2D", [0, 0], [])], "CONV_2D, lacks inputs"),
        ([tensor("a", (2,))], [operator("DEPTHWISE_CONV_2D", [0, 0], [0])], "lacks inputs or axes"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_reason(tensors, operators, reason):
    with pytest.raises(ArtefactError, match=reason):
        read(build(tensors, operators))


def test_a_file_without_subgraphs_is_refused():
    with pytest.raises(ArtefactError, match="subgraph 0 of 0"):
        read(build([], subgraphs=0))


def damaged(content, seed):
    """Cut the file somewhere, or overwrite up to 20 of its bytes."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    if seed % 4 == 0:
        return content[: chance.randrange(len(content))]
    spoiled = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 20])):
        spoiled[chance.randrange(8, len(spoiled))] = chance.choice([0, 1, 127, 128, 255])
    return bytes(spoiled)


def readable(content):
    """Whether the file is read and inventoried; the only other way out is an ArtefactError."""
    try:
        file = read(content)
        json.dumps(inventory(file))
        tflite.weights_by_layer(file)
    except ArtefactError:
        return False
    return True


def test_random_damage_is_either_read_or_refused(conv_file):
    outcomes = {readable(damaged(conv_file, seed)) for seed in range(2000)}
    assert outcomes == {True, False}


def test_without_the_schema_the_missing_package_is_named(conv_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.schema_py_generated", None)
    tflite_reader._schema.cache_clear()
    with pytest.raises(MissingDependency, match="pip install ai-edge-litert"):
        read(conv_file)
    tflite_reader._schema.cache_clear()


def test_tensorflow_is_not_imported(conv_file, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_file)
    script = (
        "import sys; from edgeprune.tflite import inventory, read; inventory(read(sys.argv[1])); "
        "print([name for name in sys.modules if name.startswith(('tensorflow', 'tf_keras', 'keras'))])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- real conversions

CONVERT = """
import sys
import numpy as np, tensorflow as tf, tf_keras
L = tf_keras.layers
inner = tf_keras.Sequential([L.Conv2D(8, 1, name="conv", input_shape=(6, 6, 8)), L.ReLU()], name="block")
image = tf_keras.Input((8, 8, 3))
x = L.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
x = L.ReLU()(L.BatchNormalization()(x))
x = L.DepthwiseConv2D(3, name="depthwise")(x)
x = L.ReLU(6.0)(L.BatchNormalization()(x))
x = inner(x)
x = L.Conv2D(8, 1, name="conv_1")(x)
x = L.GlobalAveragePooling2D()(x)
model = tf_keras.Model(image, L.Softmax()(L.Dense(4, name="head")(x)))
kernel = np.array(model.get_layer("block").get_layer("conv").get_weights()[0])
kernel[:, :, 2:4], kernel[:, :, 6:8] = 0, 0
model.get_layer("block").get_layer("conv").set_weights([kernel, np.zeros(8)])
call = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((1, 8, 8, 3)))
for kind in ("float", "int8"):
    converter = tf.lite.TFLiteConverter.from_concrete_functions([call], model)
    if kind == "int8":
        images = np.random.RandomState(0).rand(8, 1, 8, 8, 3).astype("float32")
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with open(f"{sys.argv[1]}/{kind}.tflite", "wb") as file:
        file.write(converter.convert())
"""


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A folder with float.tflite and int8.tflite of one small network, whose nested layer "block/conv" is 2:4."""
    if not all(importlib.util.find_spec(name) for name in ("tensorflow", "tf_keras")):
        pytest.skip("TensorFlow and tf_keras are not installed, so nothing can be converted")
    folder = tmp_path_factory.mktemp("converted")
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_conversion_has_the_macs_parameters_and_layers_of_its_network(converted, kind):
    file = read(converted / f"{kind}.tflite")
    assert [(op.op, op.layer, op.macs) for op in file.ops if op.macs] == [
        ("CONV_2D", "conv", 64 * 8 * 27),
        ("DEPTHWISE_CONV_2D", "depthwise", 36 * 8 * 9),
        ("CONV_2D", "block/conv", 36 * 8 * 8),
        ("CONV_2D", "conv_1", 36 * 8 * 8),
        ("FULLY_CONNECTED", "head", 32),
    ]
    # Kernels and biases; the float file holds one tensor for all four biases, and none has the head's, which is zero.
    assert tflite.params(file) == (216 + 8) + (72 + 8) + (64 + 8) + (64 + 8) + 32
    assert tflite.int8_share(file) == float(kind == "int8")
    assert set(tflite.weights_by_layer(file)) == {"conv", "depthwise", "block/conv", "conv_1", "head"}
    assert kernel_for(file, "conv", (8, 3, 3, 3)) is not kernel_for(file, "conv", (8, 1, 1, 8))


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_the_zeros_of_a_conversion_are_those_of_the_network(converted, kind):
    file = read(converted / f"{kind}.tflite")
    kernel = kernel_for(file, "block/conv")
    np.testing.assert_array_equal(zeros(kernel).reshape(8, 8)[:, [2, 3, 6, 7]], np.ones((8, 4), bool))
    shares = {weight["layer"]: weight["n_of_m"] for weight in inventory(file)["tensors"] if weight["kernel_of"]}
    assert shares["block/conv"] == {"n": 2, "m": 4, "share": 1.0}
    assert shares["conv_1"]["share"] < 0.5
    assert shares["conv"] is None  # 3 input channels
    assert shares["depthwise"] is None


def test_a_damaged_conversion_is_either_read_or_refused(converted):
    content = (converted / "int8.tflite").read_bytes()
    assert {readable(damaged(content, seed)) for seed in range(400)} == {True, False}


# --- published networks, where they are at hand

SHARED = Path(os.environ.get("EDGEPRUNE_SHARED", "/nonexistent"))


@pytest.mark.parametrize(
    ("path", "millions"),
    [
        ("data/mlperf_tiny/models/pretrainedResnet_quant.tflite", 12.5),
        ("data/mlperf_tiny/models/vww_96_int8.tflite", 7.49),
        ("reference/edgetpu_models/mobilenet_v2_1.0_224_quant.tflite", 300.8),
    ],
)
def test_macs_of_published_networks(path, millions):
    if not (SHARED / path).exists():
        pytest.skip("EDGEPRUNE_SHARED does not name a folder with the published networks")
    file = read(SHARED / path)
    assert tflite.macs(file) / 1e6 == pytest.approx(millions, rel=0.001)
    assert tflite.int8_share(file) == 1.0
    assert all(kernel.op.layer for kernel in tflite.kernels(file))
