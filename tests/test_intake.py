"""Model files are untrusted: each bad one is a named error, and no code of its author's has run by then."""

from __future__ import annotations

import json
import os
import sys
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, layers, shaken, weights

from edgeprune.errors import ModelError, NameUnknown, UntrustedModel
from edgeprune.keras import graph, intake, keras, tf


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """A file that hostile code in these tests would create."""
    monkeypatch.setenv("EDGEPRUNE_WITNESS", str(tmp_path / "code-has-run"))
    return tmp_path / "code-has-run"


@pytest.fixture
def saved(tmp_path):
    """``saved(model, name)`` writes a model file."""

    def save(model, name):
        path = tmp_path / name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras advises against .h5
            model.save(path, save_format="keras" if path.suffix == ".keras" else "h5")
        return path

    return save


def edit(path, change):
    """Change the configuration inside a model file; the rest stays as it was."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        content["config.json"] = change(content["config.json"].decode()).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["model_config"] = change(file.attrs["model_config"])
    return path


def edit_layer(path, name, **changes):
    def change(text):
        config = json.loads(text)
        layer = next(entry for entry in config["config"]["layers"] if entry["config"]["name"] == name)
        layer.update({**changes, "config": {**layer["config"], **changes.get("config", {})}})
        return json.dumps(config)

    return edit(path, change)


# what is taken


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net.hdf5"])
def test_a_file_gives_the_model_uncompiled(saved, name):
    model = shaken(cnn())
    model.compile("adam", "mse")
    path = saved(model, name)
    before = path.read_bytes()
    loaded = intake.load(path)
    assert graph.largest_difference(model, loaded) == 0.0
    assert loaded.optimizer is None
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    assert path.read_bytes() == before


def test_a_sequential_file_becomes_functional(saved):
    model = keras.Sequential([layers.Dense(2, input_shape=(3,), name="d")], name="chain")
    assert type(intake.load(saved(model, "net.h5"))) is not keras.Sequential


def test_a_live_model_is_copied():
    model = cnn()
    before = weights(model)
    taken = intake.take(model)
    taken.set_weights([np.zeros_like(w) for w in taken.get_weights()])
    assert_identical(weights(model), before)


def test_our_own_files_come_back_bit_for_bit(tmp_path):
    model = shaken(cnn())
    loaded = intake.load_own(intake.save(model, tmp_path / "model.keras"))
    assert_identical(weights(loaded), weights(model))


# what is not


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Change one byte of the weights inside an archive; its checksum tells."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("model.weights.h5")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 200] ^= 0xFF
    path.write_bytes(bytes(content))


def without_config(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")


def noise(path):
    path.write_bytes(np.random.Generator(np.random.PCG64(0)).bytes(4096))


def only_weights(path):
    dense(2).save_weights(path)


DAMAGED = [
    ("absent.h5", lambda path: path.unlink(), r"no model file '.*absent\.h5'"),
    ("empty.h5", lambda path: path.write_bytes(b""), r"empty\.h5 is empty"),
    ("empty.keras", lambda path: path.write_bytes(b""), r"empty\.keras is empty"),
    ("cut.h5", cut, r"cut\.h5 is damaged or not a Keras model: .*truncated"),
    ("cut.keras", cut, r"cut\.keras is damaged or not a Keras model"),
    ("flipped.keras", flip, r"'model\.weights\.h5' inside it fails its checksum"),
    ("noise.h5", noise, r"noise\.h5 is damaged or not a Keras model"),
    ("noise.keras", noise, r"noise\.keras is damaged or not a Keras model"),
    ("text.h5", lambda path: path.write_text("not a model\n"), r"text\.h5 is damaged or not a Keras model"),
    ("text.keras", lambda path: path.write_text("not a model\n"), r"text\.keras is damaged or not a Keras model"),
    ("weights.h5", only_weights, r"no model configuration.*'d1'.*save_weights.*model\.save"),
    ("hollow.keras", without_config, r"hollow\.keras is damaged or not a Keras model.*config\.json"),
    (
        "list.keras",
        lambda path: edit(path, lambda text: "[]"),
        r"list\.keras looks like a Keras model but cannot be loaded",
    ),
    ("words.h5", lambda path: edit(path, lambda text: "words"), r"words\.h5 is damaged or not a Keras model"),
    ("net.pt", lambda path: None, r"net\.pt does not end in \.keras, \.h5, \.hdf5"),
    (
        "other.h5",
        lambda path: edit(path, lambda text: text.replace('"Dense"', '"Own"')),
        r"class 'Own', which is none of Keras'.*module:function",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGED, ids=[name for name, *_ in DAMAGED])
def test_a_damaged_file_is_a_named_error(saved, name, damage, message):
    path = saved(dense(2), name if name != "net.pt" else "net.h5")
    path = path.rename(path.with_name(name))
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        intake.load(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_a_named_error(tmp_path):
    with pytest.raises(ModelError, match=r"is a folder without a saved_model\.pb.*\.keras or \.h5"):
        intake.load(tmp_path)


@pytest.mark.parametrize("name", ["deep.keras", "deep.h5"])
def test_a_configuration_nested_beyond_reason_is_a_named_error(saved, name):
    path = edit(saved(dense(2), name), lambda text: "[" * 20_000 + "]" * 20_000)
    with pytest.raises(ModelError, match="damaged or not a Keras model"):
        intake.load(path)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        pass

    with pytest.raises(ModelError, match="subclass"):
        intake.take(Own())


@pytest.mark.parametrize("thing", [None, 3, "net.h5", np.zeros(3)])
def test_what_is_no_model_is_refused(thing):
    with pytest.raises(ModelError, match=r"Expected the model to be a functional .* of keras or tf_keras, got "):
        intake.take(thing)


# code inside the file


def touching(x):
    """A Lambda that leaves a trace."""
    return [x * 2.0, __import__("pathlib").Path(__import__("os").environ["EDGEPRUNE_WITNESS"]).touch()][0]


def with_lambda():
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Lambda(lambda x: touching(x), name="twice")(inputs))  # a lambda is marshalled


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_lambda_is_refused_and_does_not_run_unless_trusted(saved, witness, monkeypatch, name):
    path = saved(with_lambda(), name)
    witness.unlink()  # building the model ran it
    with pytest.raises(UntrustedModel, match=r"Lambda layer \('twice'\).*--trust"):
        intake.load(path)
    assert not witness.exists()
    monkeypatch.setitem(layers.Lambda.__init__.__globals__, "touching", touching)  # what the marshalled code calls
    assert intake.load(path, trust=True)(tf.constant([[1.0, 2.0, 3.0]])).numpy().tolist() == [[2.0, 4.0, 6.0]]
    assert witness.exists()


@pytest.mark.parametrize("depth", [1, 200])
def test_a_hidden_lambda_is_found(depth):
    config = {"class_name": "Lambda", "config": {}}
    for _ in range(depth):
        config = {"class_name": "TimeDistributed", "config": {"layer": [config]}}
    with pytest.raises(UntrustedModel, match="Lambda"):
        intake.check_config(config, "net.h5")


FOREIGN = """
import os, pathlib
pathlib.Path(os.environ["EDGEPRUNE_WITNESS"]).touch()
import tf_keras
class Own(tf_keras.Model):
    pass
"""


def test_a_foreign_module_is_refused_without_being_imported(saved, witness, tmp_path, monkeypatch):
    (tmp_path / "own_foreign.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"module": "own_foreign", "class_name": "Own", "registered_name": "Own"}
    path = edit(saved(dense(2), "net.keras"), lambda text: json.dumps({**json.loads(text), **own}))
    with pytest.raises(UntrustedModel, match=r"'own_foreign'.*'Own'.*--trust"):
        intake.load(path)
    assert not witness.exists() and "own_foreign" not in sys.modules
    assert intake.load(path, trust=True).output_shape == (None, 2)
    assert witness.exists()
    del sys.modules["own_foreign"]


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "__lambda__", "config": {"value": "4wAAAAA="}},
        {"class_name": "layers.Lambda", "module": "keras", "config": {"name": "op"}},
        {"class_name": "function", "module": "builtins", "config": "eval"},
        {"class_name": "Dense", "module": "os.path", "config": {}},
        {"class_name": "Dense", "module": "keras_evil", "config": {}},
        {
            "class_name": "Dense",
            "config": {"kernel_initializer": {"module": "subprocess", "class_name": "Popen", "config": {}}},
        },
        {"class_name": "TFOpLambda", "config": {"name": "op", "function": "io.gfile.rmtree"}},
        {"class_name": "TFOpLambda", "config": {"name": "op", "function": "load_op_library"}},
        {"class_name": "TFOpLambda", "config": {"name": "op"}},
        {"class_name": "ClassMethod", "config": {"name": "op", "cls_symbol": "data.Dataset", "method_name": "load"}},
        {"class_name": "TensorFlowOpLayer", "config": {"name": "op", "node_def": "WriteFile"}},
    ],
)
def test_whatever_would_run_is_refused(entry):
    with pytest.raises(UntrustedModel, match=r"^net\.h5 .*--trust"):
        intake.check_config({"class_name": "Functional", "config": {"layers": [entry]}}, "net.h5")


def test_operators_are_no_code(saved):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, tf.nn.relu6(tf.reshape(inputs, (-1, 2, 2))[:, :, 0] * 2.0 + 1.0))
    loaded = intake.load(saved(model, "net.h5"))
    assert loaded(tf.constant([[1.0, 9.0, 5.0, 9.0]])).numpy().tolist() == [[3.0, 6.0]]


def test_a_call_of_tensorflow_that_touches_files_never_happens(saved, tmp_path):
    """Keras calls what a TFOpLambda names, with the file's own arguments, while it loads."""
    inputs = keras.Input((2,), name="x")
    path = saved(keras.Model(inputs, tf.math.multiply(inputs, 2.0)), "net.h5")
    name = next(entry["name"] for entry in config_of(path)["config"]["layers"] if entry["class_name"] == "TFOpLambda")
    call = ["_CONSTANT_VALUE", -1, str(tmp_path / "made"), {"unused": ["x", 0, 0]}]
    edit_layer(path, name, config={"function": "io.gfile.makedirs"}, inbound_nodes=[call])
    with pytest.raises(UntrustedModel, match=r"'io\.gfile\.makedirs'"):
        intake.load(path)
    assert not (tmp_path / "made").exists()


def test_a_file_of_two_formats_is_read_as_keras_reads_it(saved, witness):
    path = saved(with_lambda(), "net.h5")
    with zipfile.ZipFile(path, "a") as archive:  # HDF5 in front, a harmless .keras archive behind it
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
    with pytest.raises(UntrustedModel, match="Lambda"):
        intake.load(path)


def config_of(path):
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


# module:function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """``module(source)`` makes the module ``own_models``."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(source):
        (tmp_path / "own_models.py").write_text("import tf_keras as keras\n" + source)
        return "own_models:build"

    yield make
    sys.modules.pop("own_models", None)


ONE_LAYER = "keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])"


@pytest.mark.parametrize("source", [f"def build(): return {ONE_LAYER}", f"build = {ONE_LAYER}"])
def test_a_function_or_a_model_of_a_module(module, source):
    assert intake.from_python(module(source)).output_shape == (None, 2)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("def build(): return 3", ModelError, r"Expected own_models:build to be a functional .* got builtins\.int"),
        ("def build(): return 1 / 0", ModelError, r"own_models:build failed: ZeroDivisionError: division by zero"),
        ("def build(size): return size", ModelError, r"own_models:build failed: TypeError: .*'size'"),
        ("def bulid(): pass", NameUnknown, r"Did you mean 'bulid'\?"),
    ],
)
def test_what_a_function_does_wrong_is_said(module, source, error, message):
    with pytest.raises(error, match=message):
        intake.from_python(module(source))


def test_a_refusal_writes_nothing(saved, tmp_path):
    path = saved(dense(2), "net.h5")
    cut(path)
    before = sorted(Path(tmp_path).rglob("*")), sorted(os.environ)
    with pytest.raises(ModelError):
        intake.load(path)
    assert (sorted(Path(tmp_path).rglob("*")), sorted(os.environ)) == before
