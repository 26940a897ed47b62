"""Layer names out of tensor names. The names are those of real conversions (TF 2.3 to 2.21, tf_keras, TFMOT)."""

from __future__ import annotations

import pytest

from edgeprune.tflite_layers import layers, without_prefix

ANCHOR = ("CONV_2D", ["model/stem/Conv2D", "model/stem/Conv2D1"])  # so that "model" is everybody's scope


def layer(kind, *names):
    return layers([ANCHOR, (kind, names)])[1]


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("CONV_2D", ["model/conv2d/Conv2D", "model/re_lu/Relu;model/conv2d/Conv2D"], "conv2d"),
        ("CONV_2D", ["model/conv2d_3/Relu;model/conv2d_3/Conv2D"], "conv2d_3"),
        ("CONV_2D", ["model/dil/Conv2D", "model/dil/Conv2D/SpaceToBatchND"], "dil"),
        ("CONV_2D", ["model/conv1d/Relu;model/conv1d/Conv1D/Squeeze;model/conv1d/Conv1D"], "conv1d"),
        ("CONV_2D", ["model/conv2d_1/convolution1"], "conv2d_1"),
        ("DEPTHWISE_CONV_2D", ["model/sep/separable_conv2d/depthwise", "model/x/Relu"], "sep"),
        ("CONV_2D", ["model/sep/separable_conv2d", "model/sep/separable_conv2d1"], "sep"),
        ("CONV_2D", ["model/separable_conv2d/separable_conv2d1"], "separable_conv2d"),
        ("TRANSPOSE_CONV", ["model/conv2d_transpose/conv2d_transpose1"], "conv2d_transpose"),
        ("FULLY_CONNECTED", ["model/dense/MatMul;model/dense/BiasAdd/ReadVariableOp/resource"], "dense"),
        ("FULLY_CONNECTED", ["model/d3/Tensordot/MatMul", "model/d3/Tensordot"], "d3"),
        ("FULLY_CONNECTED", ["arith.constant3", "model/twice/Tensordot_1"], "twice"),
        ("FULLY_CONNECTED", ["model/mha/query/einsum/Einsum;model/mha/Mul;model/mha/Mul/y"], "mha/query"),
        ("CONV_3D", ["model/conv3d/Conv3D/ReadVariableOp", "model/conv3d/Conv3D"], "conv3d"),
        ("CONV_2D", ["StatefulPartitionedCall/StatefulPartitionedCall/model/conv/Conv2D"], "conv"),
        ("CONV_2D", ["model/Conv2D/Conv2D"], "Conv2D"),  # a layer that bears the name of an op
        ("MEAN", ["model/global_average_pooling2d/Mean"], "global_average_pooling2d"),
        ("ADD", ["model/re_lu_2/Relu;model/add/add"], "add"),
        ("RELU", ["model/re_lu_2/Relu"], "re_lu_2"),
        ("SOFTMAX", ["StatefulPartitionedCall:0"], None),
        ("FULLY_CONNECTED", ["arith.constant12", "tfl.fully_connected"], None),
        ("CONV_2D", ["Conv2D", "Conv2D1"], None),
        ("CONV_2D", ["", ";"], None),
        ("WHILE", [], None),
    ],
)  # fmt: skip
def test_names_of_real_files(kind, names, expected):
    assert layer(kind, *names) == expected


def test_a_folded_batchnorm_leaves_the_dense_only_in_the_output_name():
    kernel = "model/activation/Relu;model/batch_normalization_3/batchnorm/mul_1"
    assert layer("FULLY_CONNECTED", kernel, f"model/dense/MatMul;{kernel}") == "dense"


def test_foreign_parts_of_equal_constants_are_outvoted():
    shared = "model/depthwise_conv2d_2/depthwise;model/depthwise_conv2d_2/BiasAdd;model/depthwise_conv2d_3/depthwise"
    assert layer("DEPTHWISE_CONV_2D", f"model/batch_normalization_5/FusedBatchNormV3;{shared}") == "depthwise_conv2d_2"
    polluted = (
        "model/activation/Relu;model/batch_normalization/FusedBatchNormV3;model/conv2d_2/Conv2D;model/conv2d/Conv2D1"
    )
    assert layer("CONV_2D", "arith.constant", polluted) == "conv2d"


def test_nested_models_keep_their_path_and_numbers_tell_layers_apart():
    names = ["model/conv/Conv2D", "model/block/conv/Conv2D", "model/conv_1/Conv2D", "model/a/b/Conv2D"]
    assert layers([("CONV_2D", [name]) for name in names]) == ["conv", "block/conv", "conv_1", "a/b"]


def test_without_a_common_scope_nothing_is_cut():
    names = ["backbone/conv/Conv2D", "head/dense/MatMul", "stem/Conv2D"]
    assert layers([("CONV_2D", [name]) for name in names]) == ["backbone/conv", "head/dense", "stem"]


def test_the_quantizers_prefix_goes_only_where_there_are_quantizers():
    plain = ("FULLY_CONNECTED", ["model/quant_head/MatMul"])
    wrapped = (
        "CONV_2D",
        ["model/quant_conv2d/Conv2D;model/quant_conv2d/LastValueQuant/FakeQuantWithMinMaxVarsPerChannel"],
    )
    assert layers([plain]) == ["quant_head"]
    assert layers([wrapped, plain]) == ["conv2d", "head"]


def test_the_prefix_is_taken_once_and_off_the_last_step():
    assert without_prefix("block/quant_quant_conv") == "block/quant_conv"
    assert without_prefix("quant_block/conv") == "quant_block/conv"
