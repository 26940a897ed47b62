"""SavedModel folders: with their layers where Keras left word of them, else as one program that only PTQ can make int8."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
from keras_models import dense, layers, shaken, state

import edgeprune
from edgeprune import inference, registry
from edgeprune.errors import ModelError, UntrustedModel
from edgeprune.keras import export, graph, intake, keras, program, tf

X = np.linspace(-1, 1, 2 * 3).reshape(2, 3).astype("float32")


class Net(tf.Module):
    """relu(x w), with w too large to stay a constant of the graph."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(np.linspace(-1, 1, 3 * 200).reshape(3, 200).astype("float32"))

    def compute(self, x):
        return {"scores": tf.nn.relu(x @ self.w)}


def saved(folder, net, function=None, batch=None):
    spec = tf.TensorSpec([batch, 3], tf.float32, name="x")
    signature = tf.function(function or net.compute, autograph=False).get_concrete_function(spec)
    tf.saved_model.save(net, str(folder), signatures=signature)
    return folder


def keras_saved(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(folder, save_format="tf")
    return folder


def why(model):
    return [layer.why for layer in model.layers if isinstance(layer, program.Program)]


def test_the_layers_come_back(tmp_path):
    x = keras.Input((8, 8, 3), name="image")
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(x))
    model = shaken(keras.Model(x, layers.Dense(2, name="classes")(layers.Flatten(name="flat")(y))))
    loaded = intake.load(keras_saved(model, tmp_path / "net"))
    assert graph.largest_difference(model, loaded) == 0.0
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


def test_a_word_names_a_folder(tmp_path):
    model, trained = intake.named(str(keras_saved(dense(2), tmp_path / "net")))
    assert (model.output_shape, trained) == ((None, 2), True)


@pytest.mark.parametrize("batch", [None, 1])
def test_a_program_is_a_model_of_one_layer(tmp_path, batch):
    net = Net()
    loaded = intake.load(saved(tmp_path / "net", net, batch=batch))
    assert why(loaded) == ["it was saved without Keras' layers, as tf.saved_model.save and model.export do"]
    np.testing.assert_allclose(loaded(X).numpy(), net.compute(X)["scores"].numpy(), atol=1e-6)
    assert [weight.shape for weight in loaded.get_weights()] == [(3, 200)] and not loaded.trainable_weights


def test_a_program_is_saved_loaded_and_exported_like_any_model(tmp_path):
    loaded = intake.load(saved(tmp_path / "net", Net(), batch=1))
    own = intake.load_own(intake.save(loaded, tmp_path / "net.keras"))
    assert graph.largest_difference(loaded, own) == 0.0
    again = intake.load(tmp_path / "net.keras")  # a stranger's file could hold one: it is checked like any other
    assert why(again) == why(loaded)
    exported = export.Exported(export.save(own, tmp_path / "exported"))
    np.testing.assert_allclose(
        exported.outputs({exported.input_names[0]: X})[exported.output_names[0]], loaded(X).numpy(), atol=1e-6
    )


def test_the_layers_of_a_subclassed_model_stay_hidden(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    expected = model(X).numpy()
    loaded = intake.load(keras_saved(model, tmp_path / "net"))
    assert "'Own' is a subclass of Model" in why(loaded)[0]
    np.testing.assert_allclose(loaded(X).numpy(), expected, atol=1e-6)


def test_a_lambda_is_not_run_but_its_program_is_taken(tmp_path):
    x = keras.Input((3,))
    model = keras.Model(x, layers.Lambda(lambda x: x * 2.0, name="twice")(x))
    loaded = intake.load(keras_saved(model, tmp_path / "net"))
    assert "Lambda layer ('twice')" in why(loaded)[0]
    np.testing.assert_allclose(loaded(X).numpy(), 2 * X)


HOSTILE = {
    "ReadFile": lambda x: {"scores": x + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)},
    "WriteFile": lambda x: {"scores": _writing(x)},
    "EagerPyFunc": lambda x: {"scores": tf.py_function(lambda v: v, [x], tf.float32)},
    "SaveV2": lambda x: {"scores": _saving(x)},
    "PrintV2": lambda x: {"scores": _printing(x)},
}


def _writing(x):
    with tf.control_dependencies([tf.io.write_file("written", "x")]):
        return x + 1.0


def _saving(x):
    with tf.control_dependencies(
        [tf.raw_ops.SaveV2(prefix="written", tensor_names=["x"], shape_and_slices=[""], tensors=[x])]
    ):
        return x + 1.0


def _printing(x):
    with tf.control_dependencies([tf.print("here", output_stream="file://written")]):
        return x + 1.0


@pytest.mark.parametrize("op", HOSTILE)
def test_a_program_that_does_more_than_compute_is_refused_before_it_is_loaded(tmp_path, monkeypatch, op):
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "net", Net(), HOSTILE[op])
    monkeypatch.setattr(tf.saved_model, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(UntrustedModel, match=rf"the op (StringLength|StringFormat|{op}) .*--trust"):
        intake.load(folder)
    assert not (tmp_path / "written").exists()


def test_a_trusted_program_still_has_to_be_one_that_int8_can_compute(tmp_path):
    with pytest.raises(ModelError, match="As int8 it cannot be run either way"):
        intake.load(saved(tmp_path / "net", Net(), HOSTILE["EagerPyFunc"]), trust=True)


def test_what_saves_may_not_be_called_by_what_computes(tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    path = saved(tmp_path / "net", Net()) / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    library = proto.meta_graphs[0].graph_def.library.function
    names = [function.signature.name for function in library]
    saving = next(name for name in names if "traced_save" in name)
    target = next(function for function in library if "signature_wrapper" in function.signature.name)
    next(node for node in target.node_def if "Call" in node.op).attr["f"].func.name = saving
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UntrustedModel, match="saves or restores files by itself"):
        intake.load(tmp_path / "net")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "saved_model.pb").unlink(), r"is a folder without a saved_model\.pb"),
        (lambda folder: cut(folder / "saved_model.pb"), r"saved_model\.pb is damaged"),
        (lambda folder: (folder / "saved_model.pb").write_bytes(b""), r"holds no program"),
        (lambda folder: cut(folder / "variables" / "variables.index"), r"net"),
        (lambda folder: cut(folder / "variables" / "variables.data-00000-of-00001"), r"net"),
        (lambda folder: shutil.rmtree(folder / "variables"), r"net"),
    ],
)
@pytest.mark.parametrize("kind", ["layers", "program"])
def test_a_damaged_folder_is_a_named_error(tmp_path, damage, message, kind):
    folder = tmp_path / "net"
    keras_saved(dense(2), folder) if kind == "layers" else saved(folder, Net())
    damage(folder)
    with pytest.raises(ModelError, match=message):
        intake.load(folder)


@pytest.mark.parametrize("name", ["train", "prune"])
def test_a_stage_that_needs_layers_says_why_it_does_nothing(tmp_path, name):
    loaded = intake.load(saved(tmp_path / "net", Net()))
    intake.save(loaded, tmp_path / "model.keras")
    stage = registry.module("stages", name)
    before = state(tmp_path, label=name).add(files={"model": tmp_path / "model.keras"})
    after = stage.run(before, stage.Options(epochs=1))
    assert "The model is one program, not layers: it was saved without" in after.facts["notes"][-1]
    assert graph.largest_difference(loaded, intake.load_own(after.path("model"))) == 0.0


@pytest.mark.slow
def test_a_program_becomes_int8_from_end_to_end(tmp_path):
    folder = saved(tmp_path / "net", Net())
    x = np.random.Generator(np.random.PCG64(0)).normal(size=(80, 3)).astype("float32")
    y = np.argmax(Net().compute(x)["scores"].numpy(), axis=1)
    result = edgeprune.build(
        folder, (x, y), recipe="nm24", out=tmp_path / "run", overrides={"stages.profile.count": False}
    )
    assert result.report["verify"]["float_ops"] == []
    assert any("becomes int8 after training only" in note for note in result.report["notes"])
    expected = Net().compute(x)["scores"].numpy()
    assert np.abs(inference.Runner(result.tflite).run(x)[0] - expected).max() < 0.03 * np.ptp(expected)


def test_a_shape_that_cannot_be_taken(tmp_path):
    net = Net()
    signature = tf.function(net.compute, autograph=False).get_concrete_function(tf.TensorSpec([4, 3], name="x"))
    tf.saved_model.save(net, str(tmp_path / "net"), signatures=signature)
    with pytest.raises(ModelError, match=r"shape \(4, 3\)\. Expected a batch of any size or 1"):
        intake.load(tmp_path / "net")
