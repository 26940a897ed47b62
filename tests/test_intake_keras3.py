"""Models of Keras 3 are taken from files, from live objects and from functions; what would run code is refused first."""

from __future__ import annotations

import json
import sys
import zipfile

import h5py
import numpy as np
import pytest

from edgeprune.errors import ModelError, UntrustedModel
from edgeprune.keras import intake, keras
from edgeprune.keras.code_check import check_config

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")  # NumPy's, over Keras 3 itself

pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")

X = np.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3).astype("float32")


@pytest.fixture(scope="module")
def keras3():
    from edgeprune.keras.keras3 import keras3

    return keras3()


@pytest.fixture(scope="module")
def network(keras3):
    """Layers of every kind whose configuration differs from Keras 2's: operators, activations, a dtype policy, a loss."""
    layers, ops = keras3.layers, keras3.ops
    keras3.utils.set_random_seed(0)
    x = inputs = keras3.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, activation="hard_swish", kernel_regularizer="l2", name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = ops.relu6(x * 2.0 + 1.0)[:, 1:]
    inner = keras3.Sequential([keras3.Input((5, 6, 4)), layers.Flatten(), layers.Dense(4)], name="inner")
    model = keras3.Model(inputs, layers.Dense(2, name="classes")(inner(x)), name="net")
    model.compile("adam", "mse", metrics=["mae"])
    return model


def test_a_file_gives_a_flat_model_of_keras_2(network, tmp_path):
    network.save(tmp_path / "net.keras")
    loaded = intake.load(tmp_path / "net.keras")
    assert isinstance(loaded, keras.Model) and not any(isinstance(layer, keras.Model) for layer in loaded.layers)
    np.testing.assert_allclose(loaded(X).numpy(), network(X).numpy(), atol=1e-5)


def test_an_h5_file_of_keras_3_is_taken(keras3, tmp_path):
    """Without operations, which Keras 3 itself cannot read from there."""
    layers = keras3.layers
    chain = [keras3.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu6"), layers.Flatten(), layers.Dense(2)]
    model = keras3.Sequential(chain)
    model.save(tmp_path / "net.h5")
    np.testing.assert_allclose(intake.load(tmp_path / "net.h5")(X).numpy(), model(X).numpy(), atol=1e-5)


def test_a_live_model_is_taken(network):
    np.testing.assert_allclose(intake.take(network)(X).numpy(), network(X).numpy(), atol=1e-5)


def test_augmentation_that_is_left_out_is_told(keras3):
    chain = [keras3.Input((8, 8, 3)), keras3.layers.RandomFlip(name="flip"), keras3.layers.Flatten()]
    notes = []
    taken = intake.take(keras3.Sequential(chain), tell=notes.append)
    assert "flip" not in {layer.name for layer in taken.layers}
    assert len(notes) == 1 and "nothing at inference: flip." in notes[0]


def test_a_build_keeps_what_was_told(keras3, tmp_path, monkeypatch):
    """In the report of a resumed build too: the run folder holds it."""
    import edgeprune
    from edgeprune import progress

    monkeypatch.chdir(tmp_path)
    chain = [keras3.Input((8,)), keras3.layers.GaussianNoise(0.1), keras3.layers.Dense(2, activation="softmax")]
    keras3.Sequential(chain).save("net.keras")
    x = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
    monkeypatch.setattr("edgeprune.keras.keras3.left_out", lambda model: ("noisy",))
    recipe = {"name": "least", "stages": {"report": {}}}
    words = {"recipe": recipe, "out": "run", "progress": progress.Silent()}
    result = edgeprune.build("net.keras", (x, np.arange(60) % 2), **words)
    assert "noisy" in result.report["notes"][0]
    assert "noisy" in json.loads((tmp_path / "run" / "run.json").read_text())["notes"][0]
    assert result.report["quantization"] == {
        **{"trained": False, "mixed": False, "layers": [], "rewrites": []},
        "reason": "no stage of the recipe trains for quantization",
    }


def test_a_model_in_a_module_is_not_called(network, tmp_path, monkeypatch):
    """A model can be called like a function that makes one."""
    monkeypatch.setitem(sys.modules, "own_keras3", type(sys)("own_keras3"))
    sys.modules["own_keras3"].net = network
    assert intake.from_python("own_keras3:net").output_shape == (None, 2)


def test_a_subclassed_model_is_refused(keras3):
    class Own(keras3.Model):
        pass

    with pytest.raises(ModelError, match="subclass"):
        intake.take(Own())


def edited(path, change):
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(content["config.json"])
    change(config)
    content["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"module": "keras.utils", "class_name": "get_file", "config": {"origin": "file:///etc/passwd"}},
        {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "get_file"},
        {"module": "keras.src.utils.file_utils", "class_name": "get_file", "config": {}, "registered_name": None},
        {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"},
        {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "op"}, "registered_name": None},
        {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "keras>Lambda"},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "gAN9cQAu"}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "program"}},
        {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
        {"module": "keras.src.saving.saving_lib", "class_name": "DiskIOStore", "config": {"root_path": "/"}},
        {"module": "keras.saving", "class_name": "load_model", "config": {"filepath": "other.keras"}},
        {"module": ["keras"], "class_name": "Dense", "config": {}},
        {"module": "os", "class_name": "system", "config": {}},
        {"class_name": "__lambda__", "config": {"value": "4wAAAAA="}},
        {"class_name": "__typespec__", "module": "os", "spec_name": "system", "config": [], "registered_name": None},
        {"class_name": "deserialize", "config": {"config": {}}},
        {"class_name": "Dense", "registered_name": "edgeprune>Nothing", "module": "edgeprune.cli", "config": {}},
        {"class_name": "build", "registered_name": "edgeprune>HardSwish", "module": "edgeprune.api", "config": {}},
    ],
    ids=lambda entry: f"{entry.get('module')}.{entry['class_name']}",
)
@pytest.mark.parametrize("key", ["activation", "kernel_initializer", "quantization_config", "anything"])
def test_whatever_key_names_it_code_is_refused(entry, key):
    layer = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 1, key: [{"deep": entry}]}}
    with pytest.raises(UntrustedModel, match=r"^net\.keras .*--trust"):
        check_config({"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}, "net.keras")


def test_a_lambda_is_refused_before_keras_sees_it(keras3, tmp_path, monkeypatch):
    x = keras3.Input((3,))
    path = tmp_path / "net.keras"
    keras3.Model(x, keras3.layers.Lambda(lambda x: x * 2.0, name="twice")(x)).save(path)
    monkeypatch.setattr("edgeprune.keras.keras3.load", lambda *_: pytest.fail("Keras has loaded it"))
    with pytest.raises(UntrustedModel, match=r"Lambda layer \('twice'\)"):
        intake.load(path)


def test_what_a_compiled_model_was_trained_with_does_not_matter(network, tmp_path):
    network.save(tmp_path / "net.keras")
    own = {"module": "own_losses", "class_name": "function", "config": "loss", "registered_name": "loss"}
    path = edited(tmp_path / "net.keras", lambda config: config["compile_config"].update(loss=own))
    assert intake.load(path).output_shape == (None, 2)


def test_more_units_than_the_file_has_weights_for(network, tmp_path):
    network.save(tmp_path / "net.keras")

    def swell(config):
        config["config"]["layers"][1]["config"]["filters"] = 10**12

    with pytest.raises(ModelError, match=r"declares 27000000000000 weights .*'conv'.*holds \d+ bytes"):
        intake.load(edited(tmp_path / "net.keras", swell))


def test_a_link_inside_the_weights_is_refused(network, tmp_path):
    path = tmp_path / "net.h5"
    network.save(path)
    with h5py.File(path, "r+") as file:
        file["model_weights"]["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(ModelError, match=r"link at '/model_weights/elsewhere'"):
        intake.load(path)


def test_layers_that_an_application_brings_along_are_known():
    """ConvNeXt's LayerScale: Keras imports its module by the name that stands in the file, so no other home will do."""
    entry = {"class_name": "LayerScale", "registered_name": "LayerScale", "config": {"name": "scale"}}
    check_config({**entry, "module": "keras.src.applications.convnext"}, "model.keras")
    with pytest.raises(UntrustedModel, match="LayerScale"):
        check_config({**entry, "module": "keras.src.utils"}, "model.keras")
    with pytest.raises(UntrustedModel, match="imports 'evil"):
        check_config({**entry, "module": "evil.applications.convnext"}, "model.keras")
