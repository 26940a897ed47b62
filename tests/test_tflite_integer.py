"""What a true int8 file may hold, and that everything else is named."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_files import S, build, conv, operator, tensor

from edgeprune.tflite import allowed_bytes, int8_violations, inventory, read

QUANTIZED = {"scale": [0.5], "zero": [-128]}


def kinds(content, io=None):
    return [violation.kind for violation in int8_violations(read(content), io)]


def unary(kind, given="INT8", made="INT8", **fields):
    """A file of one op on one activation."""
    tensors = [tensor("given", (1, 4), given, **QUANTIZED), tensor("made", (1, 4), made, **QUANTIZED)]
    return build(tensors, [operator(kind, [0], [1], **fields)], inputs=[0], outputs=[1])


def with_places(kind, places, given=(1, 4), made=(1, 4), made_type="INT8", kind_of_places="INT32"):
    """A file of one op that reads an activation and a constant of places."""
    data = np.array(places, kind_of_places.lower())
    tensors = [
        tensor("given", given, **QUANTIZED),
        tensor("places", data.shape, kind_of_places, data=data),
        tensor("made", made, made_type, **(QUANTIZED if made_type == "INT8" else {})),
    ]
    return build(tensors, [operator(kind, [0, 1], [2])], inputs=[0], outputs=[2])


@pytest.fixture
def conv_file():
    return build(*conv(), inputs=[0], outputs=[3])


# What is allowed


def test_a_convolution_with_an_int32_bias_is_allowed(conv_file):
    assert kinds(conv_file) == []


@pytest.mark.parametrize(
    ("kind", "places", "made"),
    [
        ("RESHAPE", [2, 2], (2, 2)),
        ("TRANSPOSE", [1, 0], (4, 1)),
        ("PAD", [[0, 0], [1, 1]], (1, 6)),
        ("MEAN", [1], (1,)),
    ],
)
def test_shapes_axes_and_paddings_are_allowed(kind, places, made):
    assert kinds(with_places(kind, places, made=made)) == []


def test_a_class_index_may_be_an_output():
    assert kinds(with_places("ARG_MAX", [1], made=(1,), made_type="INT32")) == []


def embedding(*between, made="INT8"):
    """Indices -> ops that keep them -> rows of a table."""
    tensors = [tensor("table", (9, 4), data=np.ones((9, 4), np.int8), **QUANTIZED), tensor("indices", (1, 3), "INT32")]
    operators = []
    for kind in between:
        tensors.append(tensor(kind, (1, 3), "INT32"))
        operators.append(operator(kind, [len(tensors) - 2], [len(tensors) - 1]))
    tensors.append(tensor("rows", (1, 3, 4), made, **QUANTIZED))
    operators.append(operator("GATHER", [0, len(tensors) - 2], [len(tensors) - 1]))
    return build(tensors, operators, inputs=[1], outputs=[len(tensors) - 1])


def test_an_input_that_is_an_index_may_be_an_integer():
    assert kinds(embedding()) == []
    assert kinds(embedding("ABS")) == []
    assert kinds(embedding(made="UINT8"), "uint8") == []


def test_a_comparison_gives_bool():
    tensors = [
        *(tensor(name, (1, 4), **QUANTIZED) for name in ("one", "other")),
        tensor("larger", (1, 4), "BOOL"),
        tensor("made", (1, 4), **QUANTIZED),
    ]
    operators = [operator("GREATER", [0, 1], [2]), operator("SELECT_V2", [2, 0, 1], [3])]
    assert kinds(build(tensors, operators, inputs=[0, 1], outputs=[3])) == []


def test_an_lstm_has_a_short_cell_state():
    tensors = [
        tensor("given", (1, 3, 4), **QUANTIZED),
        tensor("state", (1, 4), "INT16"),
        tensor("made", (1, 3, 4), **QUANTIZED),
    ]
    inputs = [0, *[-1] * 18, 1]
    file = build(tensors, [operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [2])], inputs=[0], outputs=[2])
    assert [each.kind for each in int8_violations(read(file)) if each.kind != "size"] == []


def test_uint8_is_allowed_outside_where_it_is_asked_for():
    tensors = [
        tensor(name, (1, 4), dtype, **QUANTIZED) for name, dtype in (("a", "UINT8"), ("b", "INT8"), ("c", "UINT8"))
    ]
    operators = [operator("QUANTIZE", [0], [1]), operator("QUANTIZE", [1], [2])]
    file = build(tensors, operators, inputs=[0], outputs=[2])
    assert kinds(file) == kinds(file, "uint8") == []
    assert kinds(file, "int8") == ["port", "port"]


# What is not


def test_a_float_op_is_named_with_its_advice():
    tensors = [
        tensor("given", (1, 4), **QUANTIZED),
        tensor("real", (1, 4), "FLOAT32"),
        tensor("model/elu_1/Elu", (1, 4), "FLOAT32"),
        tensor("made", (1, 4), **QUANTIZED),
    ]
    operators = [operator("DEQUANTIZE", [0], [1]), operator("ELU", [1], [2]), operator("QUANTIZE", [2], [3])]
    found = int8_violations(read(build(tensors, operators, inputs=[0], outputs=[3])))
    assert [(each.kind, each.op) for each in found] == [("float_op", 0), ("float_op", 1), ("float_op", 2)]
    assert found[1].message.startswith("Op 1, ELU of the layer 'model/elu_1', computes in float. Use relu")


def test_float_ends_are_ports_and_borders():
    tensors = [tensor("given", (1, 4), "FLOAT32"), tensor("made", (1, 4), **QUANTIZED)]
    file = build(tensors, [operator("QUANTIZE", [0], [1])], inputs=[0], outputs=[1])
    assert kinds(file) == ["port", "border"]


@pytest.mark.parametrize("dtype", ["INT16", "INT32", "UINT8"])
def test_another_integer_between_two_ops_is_named(dtype):
    tensors = [tensor("given", (1, 4), **QUANTIZED), tensor("odd", (1, 4), dtype), tensor("made", (1, 4), **QUANTIZED)]
    file = build(tensors, [operator("ABS", [0], [1]), operator("ABS", [1], [2])], inputs=[0], outputs=[2])
    (found,) = int8_violations(read(file))
    assert (found.kind, found.tensor) == ("type", 1)
    assert f"is a result of {dtype.lower()}" in found.message


def test_an_integer_that_an_op_computes_with_is_no_place():
    assert kinds(with_places("ADD", [[1, 2, 3, 4]])) == ["type"]


def test_a_float_constant_is_named_even_where_nothing_uses_it(conv_file):
    tensors, operators = conv()
    tensors.append(tensor("left over", (2,), "FLOAT32", data=np.ones(2, np.float32)))
    assert kinds(build(tensors, operators, inputs=[0], outputs=[3])) == ["float_constant"]


def test_an_open_axis_is_said_once_for_the_whole_file():
    tensors, operators = conv()
    tensors[0][0].shapeSignature = [-1, 2, 2, 4]
    tensors[3][0].shapeSignature = [-1, 2, 2, 2]
    (found,) = int8_violations(read(build(tensors, operators, inputs=[0], outputs=[3])))
    assert found.kind == "dynamic"
    assert "2 tensors, the first 'serving_default_image:0'" in found.message


def test_custom_ops_control_flow_and_sparse_storage_are_named():
    assert kinds(unary("FlexErf")) == ["custom"]
    assert kinds(unary("WHILE")) == ["control_flow"]
    tensors, operators = conv()
    tensors[1][0].sparsity = S.SparsityParametersT()
    assert kinds(build(tensors, operators, inputs=[0], outputs=[3])) == ["sparse"]


def test_strings_are_named():
    tensors = [
        tensor("given", (1, 4), **QUANTIZED),
        tensor("words", (1,), "STRING"),
        tensor("made", (1, 4), **QUANTIZED),
    ]
    assert kinds(build(tensors, [operator("ABS", [0, 1], [2])], inputs=[0], outputs=[2])) == ["type"]


def test_the_size_is_bounded_by_weights_biases_and_ops(conv_file):
    file = read(conv_file)
    assert allowed_bytes(file) == int(1.1 * (8 + 2 * 4 + 20 * 1024 + 1 * 1024))
    assert kinds(conv_file + bytes(allowed_bytes(file) - len(conv_file))) == []
    (found,) = int8_violations(read(conv_file + bytes(allowed_bytes(file) - len(conv_file) + 1)))
    assert found.kind == "size"
    assert "23.1 KiB at most" in found.message


def test_weights_that_are_stored_twice_count_once():
    tensors, operators = conv()
    again = tensor("model/conv/Conv2D2", (2, 1, 1, 4), data=np.asarray(tensors[1][1]).view(np.int8))
    once = allowed_bytes(read(build(tensors, operators, inputs=[0], outputs=[3])))
    assert allowed_bytes(read(build([*tensors, again], operators, inputs=[0], outputs=[3]))) == once


def test_the_inventory_lists_them():
    (found,) = inventory(read(unary("FlexErf")))["int8_violations"]
    assert found["kind"] == "custom"
    assert set(found) == {"kind", "message", "op", "tensor", "layer"}
