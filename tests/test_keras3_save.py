"""The way back: what is written for Keras 3 has the names and outputs of the tf_keras model, or is refused by name."""

from __future__ import annotations

import pytest

pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")

from keras_models import cnn, shaken

from edgeprune.errors import ModelError
from edgeprune.keras import keras, keras3, keras3_proof, keras3_save, layers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, over Keras 3 itself


def own():
    """Layers of edgeprune's own behind one of Keras."""
    x = inputs = keras.Input((6, 6, 4))
    x = layers.HardSwish(name="swish")(keras.layers.Conv2D(3, 1, name="conv")(x))
    x = layers.HardSigmoid(name="sigmoid")(layers.LayerScale(3, 0.5, name="scale")(x))
    x = layers.Operation("math.reduce_mean", [{"tensor": 0}], {"axis": [1, 2]}, name="mean")(x)
    return keras.Model(inputs, keras.layers.Activation("hard_sigmoid", name="of_keras_2")(x))


@pytest.mark.parametrize("make", [lambda: shaken(cnn()), own])
def test_a_file_has_the_same_names_and_outputs(make, tmp_path):
    model = make()
    loaded = keras3.load(keras3_save.save(model, tmp_path / "model.keras"))
    assert {layer.name for layer in model.layers} <= {operation.name for operation in loaded._operations}
    inputs = keras3_proof.inputs(loaded, seed=7)
    assert keras3.agree(keras3_proof.run(loaded, inputs), lambda: keras3_proof.run(model, inputs), model)


def test_the_same_model_gives_the_same_bytes(tmp_path):
    """Shared layers and seeds are what differs from process to process."""
    shared, inputs = keras.layers.Dense(4, name="shared"), keras.Input((4,), name="x")
    model = shaken(keras.Model(inputs, shared(keras.layers.Dropout(0.2, name="drop")(shared(inputs)))))
    written = [keras3_save.save(model, tmp_path / f"{number}.keras").read_bytes() for number in range(2)]
    assert written[0] == written[1]


def test_what_keras_3_lacks_is_refused_by_name(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Operation("math.bessel_i0", [{"tensor": 0}], name="bad")(inputs))
    with pytest.raises(ModelError, match=r"'bad'.*bessel_i0"):
        keras3_save.save(model, tmp_path / "model.keras")
    assert not (tmp_path / "model.keras").exists()


def test_a_wrong_translation_is_caught_behind_a_saturated_softmax(monkeypatch, tmp_path):
    model = shaken(cnn())
    model.get_layer("classes").kernel.assign(model.get_layer("classes").kernel * 1e5)
    monkeypatch.setitem(keras3_save.SPECIAL, "BatchNormalization", lambda layer: {"axis": -1, "epsilon": 0.5})
    with pytest.raises(ModelError, match=r"'stem_bn' \(BatchNormalization\) gives other outputs"):
        keras3_save.save(model, tmp_path / "model.keras")
