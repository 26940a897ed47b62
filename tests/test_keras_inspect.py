import json

import pytest

from edgeprune import cli
from edgeprune.errors import ModelError, NameUnknown, UntrustedModel
from edgeprune.keras import inspect, keras


def layer(inventory, name):
    return next(entry for entry in inventory["layers"] if entry["name"] == name)


@pytest.fixture
def saved(tmp_path):
    """Two convolutions of each kind that counts differently, and a Dense that is called twice."""
    layers = keras.layers
    inputs = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(inputs)  # 3×3 positions
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(2, 3, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(4, 2, strides=2, name="transposed")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    shared = layers.Dense(4, activation="relu", name="shared")
    model = keras.Model(inputs, shared(shared(x)), name="net")
    kernel, bias = model.get_layer("conv").get_weights()
    kernel[..., ::2, :] = 0
    model.get_layer("conv").set_weights([kernel, bias])
    model.save(tmp_path / "net.keras")
    return str(tmp_path / "net.keras")


def test_macs_are_positions_times_kernel(saved):
    found = inspect.inventory(saved)
    assert {entry["name"]: entry["macs"] for entry in found["layers"] if entry["macs"]} == {
        "conv": 9 * 3 * 3 * 4 * 8,
        "depthwise": 9 * 3 * 3 * 8,
        "separable": 9 * (3 * 3 * 8 + 8 * 2),
        "transposed": 9 * 2 * 2 * 2 * 4,  # each of the 3×3 inputs meets the whole kernel
        "shared": 2 * 4 * 4,
    }
    assert found["macs"] == sum(entry["macs"] for entry in found["layers"])


def test_totals_and_layers(saved):
    found = inspect.inventory(saved)
    assert json.loads(json.dumps(found)) == found
    assert found["inputs"] == [{"name": "image", "shape": [6, 6, 4]}]
    assert found["params"] == sum(entry["params"] for entry in found["layers"])
    assert layer(found, "image")["output_shape"] == [6, 6, 4]
    conv = layer(found, "conv")
    assert (conv["class"], conv["output_shape"], conv["sparsity"]) == ("Conv2D", [3, 3, 8], 0.5)
    assert layer(found, "shared")["activation"] == "relu"
    assert layer(found, "pool")["sparsity"] is None
    assert 0 < found["sparsity"] < 0.5


def test_layers_say_what_they_can_carry(saved):
    found = inspect.inventory(saved)
    assert layer(found, "conv")["pruning"] == {"weight": None, "2:4": None}
    assert "depthwise" in layer(found, "depthwise")["pruning"]["2:4"]
    assert layer(found, "pool")["pruning"] is None


@pytest.mark.parametrize(("name", "params", "macs"), [("resnet8", 78_666, 12_501_632)])
def test_a_built_in_model_by_name(name, params, macs):
    found = inspect.inventory(name)
    assert (found["params"], found["macs"]) == (params, macs)


def test_a_model_from_a_function():
    assert inspect.inventory("edgeprune.models.digits_resnet:build")["name"] == "digits_resnet"


def test_what_is_no_model_is_a_named_error(tmp_path):
    (tmp_path / "torn.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ModelError, match=r"torn\.h5"):
        inspect.inventory(str(tmp_path / "torn.h5"))
    with pytest.raises(ModelError, match="absent"):
        inspect.inventory("absent")
    with pytest.raises(NameUnknown, match="nowhere"):
        inspect.inventory("nowhere:build")


def test_a_lambda_wants_trust(tmp_path):
    path = str(tmp_path / "lambda.keras")
    keras.Sequential([keras.layers.Lambda(lambda x: x * 2.0, input_shape=(2,), name="twice")]).save(path)
    with pytest.raises(UntrustedModel, match="twice"):
        inspect.inventory(path)
    assert layer(inspect.inventory(path, trust=True), "twice")["params"] == 0


def test_the_command(saved, capsys):
    assert cli.run(["inspect", saved]) == 0
    shown = capsys.readouterr().out
    assert "conv" in shown and "weight, 2:4" in shown
    assert cli.run(["inspect", saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "net"
