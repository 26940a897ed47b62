"""What the Edge TPU takes and why not the rest: every limit kept and broken, what depends on what, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune import accelerator, checking, target, yaml_files
from edgeprune.devices import _edgetpu_facts as edgetpu_facts
from edgeprune.devices import _edgetpu_limits as limits
from edgeprune.devices import _edgetpu_mapping as mapping
from edgeprune.errors import ArtefactError, TargetError

pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert holds the schema of .tflite")

from edgetpu_files import FACTS, act, chain, const, convolution, kernel, load, one, path_without_compiler, read, verdict
from tflite_files import S, operator


@pytest.fixture(autouse=True)
def no_real_compiler(monkeypatch):
    """One that is installed is not run unawares."""
    monkeypatch.setenv("PATH", path_without_compiler())


# --- the facts


def test_every_limit_is_a_function_and_every_op_the_schemas():
    words = vars(S.BuiltinOperator)
    for op, known in FACTS.ops.items():
        assert op in words
        assert all(callable(getattr(limits, name)) for name in known.limits)


def test_advice_is_for_ops_that_are_not_taken_or_take_other_types():
    assert not set(FACTS.instead) & set(FACTS.ops) - {"PACK"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["sources"].pop("array"), ["array.tiles = 16", "no source"]),
        (lambda data: data["sources"].update(arrays="x"), ["'arrays'", "Did you mean 'array'"]),
        (lambda data: data["memory"].update(kib=1), ["unknown key 'memory.kib'"]),
        (lambda data: data["array"].update(tiles=0), ["array.tiles", "greater than 0"]),
    ],
)
def test_wrong_facts_are_told_what_is_wrong(change, words):
    data = yaml_files.read(edgetpu_facts.FILE)
    change(data)
    with pytest.raises(TargetError) as caught:
        edgetpu_facts.parse(data, "edgetpu.yaml")
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_module_is_an_accelerator_and_a_backend():
    unit = accelerator.of(load("coral-usb"))
    for protocol in (accelerator.Accelerator, target.Backend):
        assert all(callable(getattr(unit, name)) for name in vars(protocol) if not name.startswith("_"))
    assert accelerator.of(load("rpi4")) is None


# --- mapping: each limit, kept and broken

CONSTANT_FOUR = const("four", [4])
STEPS = [const("begin", [0, 0, 0, 0]), const("end", [1, 4, 4, 8]), const("steps", [1, 1, 1, 1])]
POOL = {"options": "Pool2DOptions", "strideH": 1, "strideW": 1, "filterHeight": 2, "filterWidth": 2}

KEPT = {
    "pooling": lambda: one("AVERAGE_POOL_2D", (1, 4, 4, 8), (1, 3, 3, 8), **POOL),
    "uint8": lambda: one("LOGISTIC", (1, 4), (1, 4), dtype="UINT8"),
    "quantize of integers": lambda: one("QUANTIZE", (1, 4), (1, 4), dtype="UINT8", made_dtype="INT8"),
    "convolution": lambda: convolution(),
    "one dilation": lambda: convolution(dilationHFactor=2, dilationWFactor=2),
    "mean over the image": lambda: one("MEAN", (1, 4, 4, 6), (1, 6), [const("axes", [1, 2])]),
    "mean over depth in fours": lambda: one("MEAN", (1, 4, 4, 8), (1, 4, 4), [const("axes", [3])]),
    "mean over depth, counted from behind": lambda: one("MEAN", (1, 4, 4, 8), (1, 4, 4), [const("axes", [-1])]),
    "padding": lambda: one("PAD", (1, 4, 4, 8), (1, 6, 6, 8), [const("p", [[0, 0], [1, 1], [1, 1], [0, 0]])]),
    "softmax": lambda: one("SOFTMAX", (1, 16000), (1, 16000)),
    "squeeze": lambda: one("SQUEEZE", (1, 1, 5, 10), (1, 5, 10)),
    "slice": lambda: one("STRIDED_SLICE", (1, 8, 8, 8), (1, 4, 4, 8), STEPS, options="StridedSliceOptions"),
    "enlarging": lambda: one("RESIZE_BILINEAR", (1, 4, 4, 8), (1, 8, 8, 8), [const("size", [8, 8])]),
    "slopes per channel": lambda: one("PRELU", (1, 4, 4, 8), (1, 4, 4, 8), [const("a", [[[1] * 8]], "INT8")]),
    "padding by joining zeros": lambda: one(
        "CONCATENATION", (1, 4, 4, 8), (1, 4, 4, 9), [const("z", np.zeros((1, 4, 4, 1)), "INT8")]
    ),
    "tile": lambda: one("TILE", (1, 4), (1, 8), [const("m", [1, 2])]),
}

BROKEN = {
    "carries the fused activation RELU6": lambda: one(
        "MAX_POOL_2D", (1, 4, 4, 8), (1, 3, 3, 8), fusedActivationFunction=3, **POOL
    ),
    "joins a constant": lambda: one("CONCATENATION", (1, 4), (1, 8), [const("c", [[1, 2, 3, 4]], "INT8")]),
    "dilations differ (1 and 2)": lambda: convolution(dilationWFactor=2),
    "computes 4 vectors": lambda: one("FULLY_CONNECTED", (4, 8), (4, 2), [kernel((2, 8)), const("b", [0, 0])]),
    "reduces over the batch": lambda: one("SUM", (1, 4, 4, 8), (4, 4, 8), [const("axes", [0])]),
    "averages over 6 channels": lambda: one("MEAN", (1, 4, 4, 6), (1, 4, 4), [const("axes", [3])]),
    "stacks along the batch": lambda: one("PACK", (4, 4, 8), (1, 4, 4, 8), options="PackOptions", axis=0),
    "pads the batch": lambda: one("PAD", (1, 1, 1, 1), (1, 1, 1, 1), [const("p", [[0, 1], [0, 0], [0, 0], [0, 0]])]),
    "slopes differ": lambda: one("PRELU", (1, 2, 2, 8), (1, 2, 2, 8), [const("a", np.ones((2, 2, 8)), "INT8")]),
    "enlarges 1 pixel to 33x33": lambda: one(
        "RESIZE_BILINEAR", (1, 1, 1, 8), (1, 33, 33, 8), [const("size", [33, 33])]
    ),
    "its output takes 8.0 MiB": lambda: one(
        "RESIZE_NEAREST_NEIGHBOR", (1, 256, 256, 32), (1, 512, 512, 32), [const("size", [512, 512])]
    ),
    "16,001 elements": lambda: one("SOFTMAX", (1, 16001), (1, 16001)),
    "works on 3 vectors": lambda: one("SOFTMAX", (1, 3, 4), (1, 3, 4)),
    "removes an axis behind a longer one": lambda: one("SQUEEZE", (1, 5, 1, 10), (1, 5, 10)),
    "its strides are [1, 2, 2, 1]": lambda: one(
        "STRIDED_SLICE", (1, 8, 8, 8), (1, 4, 4, 8), [*STEPS[:2], const("steps", [1, 2, 2, 1])]
    ),
    "makes a new axis": lambda: one(
        "STRIDED_SLICE", (1, 4, 4, 8), (1, 4, 4, 8), STEPS, options="StridedSliceOptions", newAxisMask=1
    ),
    "an op that the Edge TPU does not have": lambda: one("HARD_SWISH", (1, 4), (1, 4)),
    "a custom op": lambda: one("MyOwnOp", (1, 4), (1, 4)),
    "longer than 1 beyond the innermost 3 axes": lambda: one("RELU", (2, 4, 4, 8), (2, 4, 4, 8)),
    "gives int32": lambda: one("QUANTIZE", (1, 4), (1, 4), made_dtype="INT32"),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_the_limits_is_mapped(name):
    found = verdict(KEPT[name]())
    assert (found.mapped, found.reason, found.advice) == (True, None, None)


@pytest.mark.parametrize("words", BROKEN)
def test_what_breaks_one_is_not_and_says_why_and_what_to_change(words):
    file = BROKEN[words]()
    found = mapping._verdict(file, file.ops[0], mapping._own(file, file.ops[0], FACTS), None)
    assert not found.mapped
    assert words in found.reason
    assert len(found.advice.split()) > 2
    assert found.status in mapping.STATUSES[1:]


def test_a_split_of_the_batch():
    tensors = [const("axis", 0), act("given", (2, 1, 1, 4)), act("a", (1, 1, 1, 4)), act("b", (1, 1, 1, 4))]
    file = read([operator("SPLIT", [0, 1], [2, 3])], tensors, [1], [2, 3])
    assert "splits the batch" in limits.no_split_of_batch(file, file.ops[0], FACTS).reason


def test_weights_that_are_computed():
    tensors = [act("x", (1, 8)), act("w", (4, 8)), const("b", [0] * 4), act("y", (1, 4))]
    file = read([operator("FULLY_CONNECTED", [0, 1, 2], [3])], tensors, [0, 1], [3])
    assert "computed by the model" in verdict(file).reason


def test_weights_of_another_type():
    tensors = [act("x", (1, 8)), const("w", np.ones((4, 8)), "INT16"), const("b", [0] * 4), act("y", (1, 4))]
    file = read([operator("FULLY_CONNECTED", [0, 1, 2], [3])], tensors, [0], [3])
    assert "its weights are int16" in verdict(file).reason


def test_dependency_order_counts_not_the_files():
    found = mapping.verdicts(chain(), FACTS)
    assert [one.mapped for one in found] == [False, True, False, False, True, False, False]
    assert [one.after for one in found] == [None, None, None, 2, None, 2, None]
    assert found[0].status == mapping.TYPE and "nothing is lost" in found[0].advice
    assert found[2].status == mapping.UNSUPPORTED and "ReLU" in found[2].advice
    assert found[3].status == mapping.LATER and "op 2, HARD_SWISH" in found[3].reason
    assert found[6].status == mapping.TYPE and "NumPy" in found[6].advice


def test_the_first_op_that_sends_the_rest_to_the_cpu_and_what_mending_it_frees():
    file = chain()
    (culprit,) = mapping.culprits(file, mapping.verdicts(file, FACTS), FACTS)
    assert (culprit["index"], culprit["op"], culprit["keeps_off"], culprit["frees"]) == (2, "HARD_SWISH", 2, 3)
    assert "sends 2 ops after it to the CPU" in checking.culprit_words(culprit)


def test_a_quantize_in_the_middle_is_not_exempt():
    tensors = [act("x", (1, 4)), act("f", (1, 4), "FLOAT32"), act("q", (1, 4)), act("y", (1, 4))]
    operators = [operator("DEQUANTIZE", [0], [1]), operator("QUANTIZE", [1], [2]), operator("RELU", [2], [3])]
    assert [one.mapped for one in mapping.verdicts(read(operators, tensors, [0], [3]), FACTS)] == [False] * 3


def test_the_state_of_an_lstm_may_be_of_16_bits():
    state = act("state", (1, 4), "INT16")
    state[0].isVariable = True
    file = read(
        [operator("UNIDIRECTIONAL_SEQUENCE_LSTM", [0, 1], [2])],
        [act("x", (1, 5, 4)), state, act("y", (1, 5, 4))],
        [0],
        [2],
    )
    assert verdict(file).mapped


def test_a_shape_that_is_computed_is_told_from_data_of_a_wrong_type():
    tensors = [act("x", (1, 4, 4, 8)), act("shape", (2,), "INT32"), act("y", (1, 128))]
    file = read([operator("SHAPE", [0], [1]), operator("RESHAPE", [0, 1], [2])], tensors, [0], [2])
    found = verdict(file)
    assert found.reason == "it reads int32" and "batch_size=1" in found.advice


# --- what is refused


def test_a_float_model():
    tensors = [act("x", (1, 4), "FLOAT32"), act("y", (1, 4), "FLOAT32")]
    with pytest.raises(ArtefactError, match="is a float model: none of its 1 ops"):
        mapping.verdicts(read([operator("RELU", [0], [1])], tensors, [0], [1]), FACTS)


def test_a_model_that_is_compiled_already():
    with pytest.raises(ArtefactError, match="already compiled"):
        mapping.verdicts(one(mapping.COMPILED, (1, 4), (1, 4)), FACTS)


def test_an_op_that_comes_before_what_it_reads():
    tensors = [act("x", (1, 4)), act("a", (1, 4)), act("y", (1, 4))]
    with pytest.raises(ArtefactError, match="comes no earlier"):
        mapping.verdicts(read([operator("RELU", [1], [2]), operator("RELU", [0], [1])], tensors, [0], [2]), FACTS)


@pytest.mark.parametrize("board", ["coral-usb", "rpi4"])
def test_an_op_that_the_schema_does_not_know(tmp_path, board):
    model = S.ModelT.InitFromObj(S.Model.GetRootAs(convolution().content))
    model.operatorCodes[0].builtinCode = 9999
    model.operatorCodes[0].deprecatedBuiltinCode = 127
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "m.tflite").write_bytes(bytes(builder.Output()))
    with pytest.raises(ArtefactError, match=r"numbers 9999.*first is op 0"):
        checking.check(tmp_path / "m.tflite", load(board))
