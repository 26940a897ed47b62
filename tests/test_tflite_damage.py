"""Reading .tflite files that are damaged, that the converter made, and that others published."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tflite_files import build, conv, operator, tensor

from edgeprune import tflite, tflite_reader
from edgeprune.errors import ArtefactError, MissingDependency
from edgeprune.tflite import inventory, kernel_for, read, zeros


@pytest.fixture
def conv_file():
    return build(*conv(), inputs=[0], outputs=[3])


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
