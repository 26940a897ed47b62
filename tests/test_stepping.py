"""Several steps in one call, traced once: the weights, the losses and the metrics of Keras' own loop."""

from __future__ import annotations

import pytest

tf = pytest.importorskip("tensorflow")

from keras_models import assert_identical, samples, small, weights  # noqa: E402

from edgeprune.keras import keras, stepping  # noqa: E402

PER_CALL = 3  # of five steps in an epoch: the second call runs two


def compiled(traced):
    """A model that notes how often its steps are traced, ready to ``fit``."""

    class Noting(keras.Model):
        def train_step(self, data):
            traced.append("train")
            return super().train_step(data)

        def test_step(self, data):
            traced.append("test")
            return super().test_step(data)

    plain = small()
    model = Noting(plain.inputs, plain.outputs)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], steps_per_execution=PER_CALL)
    model.optimizer.build(model.trainable_variables)
    x, y = samples()
    model.evaluate(x[:8], y[:8], verbose=0)  # makes the metrics' variables
    model.test_function = None
    traced.clear()
    return model


def fitted(model):
    x, y = samples()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    keras.utils.set_random_seed(1)
    return model.fit(data, validation_data=data, epochs=2, verbose=0).history


def test_it_is_keras_own_loop_but_for_the_second_tracing():
    twice, once = [], []
    theirs, ours = compiled(twice), compiled(once)
    stepping.trace_once(ours)
    expected, found = fitted(theirs), fitted(ours)
    assert found == expected
    assert_identical(weights(ours), weights(theirs))
    assert once == ["train", "test"]
    assert twice == ["train", "train", "test", "test"]
    assert int(ours._train_counter) == int(theirs._train_counter) == 10
