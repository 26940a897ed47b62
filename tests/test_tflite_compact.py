"""Equal vectors stored once: the same model, whoever reads it."""

import converted
import flatbuffers
import numpy as np
import pytest

from edgeprune import inference, tflite, tflite_compact
from edgeprune.errors import ArtefactError

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
CHANNELS, SIDE = 64, 5


def file(share):
    """Two 1x1 convolutions of 64 channels one after the other, as the converter stores them: nothing shared."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, graph.name = 3, [graph], "main"
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version, model.operatorCodes, model.buffers = 3, [code], [schema.BufferT()]
    graph.tensors, graph.operators = [], []

    def tensor(name, shape, kind, scales, data=None):
        made, quantization, buffer = schema.TensorT(), schema.QuantizationParametersT(), schema.BufferT()
        made.name, made.shape, made.type, made.buffer = name, np.array(shape, np.int32), kind, 0
        quantization.scale = np.array(scales, np.float32)
        quantization.zeroPoint = np.zeros(len(scales), np.int64)
        made.quantization = quantization
        if data is not None:
            buffer.data = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    int8, int32 = schema.TensorType.INT8, schema.TensorType.INT32
    random = np.random.default_rng(0)
    scales = np.full(CHANNELS, 0.01)
    last = tensor("input", (1, SIDE, SIDE, CHANNELS), int8, [0.1])
    graph.inputs = np.array([last], np.int32)
    for number in (1, 2):
        weights = random.integers(-127, 128, (CHANNELS, 1, 1, CHANNELS), dtype=np.int8)
        kernel = tensor(f"kernel{number}", weights.shape, int8, scales, weights)
        bias = tensor(f"bias{number}", (CHANNELS,), int32, scales * 0.1, np.arange(CHANNELS, dtype=np.int32))
        output = tensor(f"output{number}", (1, SIDE, SIDE, CHANNELS), int8, [0.1])
        op, options = schema.OperatorT(), schema.Conv2DOptionsT()
        options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
        op.opcodeIndex, op.builtinOptionsType, op.builtinOptions = 0, schema.BuiltinOptions.Conv2DOptions, options
        op.inputs, op.outputs = np.array([last, kernel, bias], np.int32), np.array([output], np.int32)
        graph.operators.append(op)
        last = output
    graph.outputs = np.array([last], np.int32)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), tflite_compact.IDENTIFIER)
    content = bytes(builder.Output())
    return tflite_compact.compact(content) if share else content


def test_zero_points_and_scales_are_stored_once():
    """64 channels have 8 bytes of zero point each, in two kernels and two biases, and 4 bytes of scale."""
    saved = len(file(share=False)) - len(file(share=True))
    assert saved >= 3 * 64 * 8 + 2 * 64 * 4 + 64 * 4  # zero points, scales of kernel and bias, the equal second bias


def test_every_table_and_value_is_the_same():
    whole, small = tflite.read(file(share=False)), tflite.read(file(share=True))
    assert [(op.op, op.inputs, op.outputs, op.macs) for op in whole.ops] == [
        (op.op, op.inputs, op.outputs, op.macs) for op in small.ops
    ]
    for one, other in zip(whole.tensors, small.tensors, strict=True):
        assert (one.name, one.shape, one.dtype, one.axis) == (other.name, other.shape, other.dtype, other.axis)
        np.testing.assert_array_equal(one.scales, other.scales)
        np.testing.assert_array_equal(one.zero_points, other.zero_points)
        assert (one.data is None) == (other.data is None)
        if one.data is not None:
            np.testing.assert_array_equal(one.data, other.data)


def test_weights_stay_where_vector_loads_want_them():
    places = _places(file(share=True))
    assert len(places) == 3  # two kernels; the two biases are equal
    assert [place % tflite_compact.ALIGNMENT for place in places] == [0, 0, 0]


def _places(content):
    """Where the data of every buffer that is not empty begins in the file, each place once."""
    model = schema.Model.GetRootAs(content)
    found = set()
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.DataLength():
            table = buffer._tab
            found.add(table.Vector(table.Offset(4)))
    return sorted(found)


def test_a_converted_model_computes_the_same_and_is_never_larger():
    made, samples = converted.artefacts(), converted.samples(8)
    for path in (made.final, made.dense_int8, made.float32):
        content = path.read_bytes()
        small = tflite_compact.compact(content)
        assert len(small) <= len(content)
        np.testing.assert_array_equal(
            inference.Runner(small).run(samples)[0], inference.Runner(content).run(samples)[0]
        )


def test_twice_is_no_better_than_once():
    once = file(share=True)
    assert tflite_compact.compact(once) == once


def test_a_damaged_file_is_a_named_error():
    with pytest.raises(ArtefactError, match="cannot be read"):
        tflite_compact.compact(file(share=False)[:40])
