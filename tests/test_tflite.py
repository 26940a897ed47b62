"""Reading .tflite files: crafted ones that hold exactly one thing."""

from __future__ import annotations

import gzip
import json

import flatbuffers
import numpy as np
import pytest
from tflite_files import KERNEL, S, build, conv, operator, tensor

from edgeprune import tflite
from edgeprune.errors import ArtefactError
from edgeprune.tflite import inventory, kernel_for, n_of_m, read, zeros


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
