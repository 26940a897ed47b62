"""A fit that was interrupted and resumed gives the weights of an unbroken one, bit for bit."""

from __future__ import annotations

import functools
import types
from dataclasses import replace

import numpy as np
import pytest
from keras_models import (
    CLASSES,
    SHAPE,
    assert_identical,
    cnn,
    dense,
    keras,
    layers,
    loaded,
    samples,
    shaken,
    small,
    state,
    weights,
)

from edgeprune import data, recipe
from edgeprune.errors import DataError, RunFolderError
from edgeprune.keras import feeding, pruning, pruning_wrappers, quantization, replicas, tf, tfmot, training
from edgeprune.recipe import FitOptions

OPTIONS = FitOptions(epochs=3, batch_size=16, learning_rate=0.01)


# the order of the samples


def numbered(count=23):
    """A split whose labels are its positions, so that batches tell which samples they hold."""
    x = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    index = np.arange(count)
    return data.Split(x, index, index.astype(np.int64), data.Preprocess(), "x")


def order(seed, first=0, epochs=3, count=23):
    """The positions that every epoch from ``first`` on visits, one row per epoch."""
    batches = feeding.training(numbered(count), 8, seed, first, epochs)
    return np.concatenate([y.numpy() for _, y in batches]).reshape(-1, count).tolist()


def test_every_epoch_is_a_permutation_of_its_own():
    epochs = order(seed=5)
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != list(range(23))


def test_the_order_is_a_function_of_seed_and_epoch():
    assert order(seed=5) == order(seed=5)
    assert order(seed=5, first=2) == order(seed=5)[2:]
    assert order(seed=6)[0] != order(seed=5)[0]


def test_the_last_batch_of_an_epoch_is_what_is_left():
    assert [len(y) for _, y in feeding.training(numbered(), 8, 0, 0, 2)] == [8, 8, 7, 8, 8, 7]
    assert training.steps_per_epoch(numbered(), FitOptions(batch_size=8)) == 3


def test_replicas_get_equal_shares_of_every_batch():
    batches = [y.numpy() for _, y in feeding.training(numbered(), 8, 0, 0, 1, replicas=3)]
    assert [len(y) for y in batches] == [9, 9, 9]
    for y, size in zip(batches, (8, 8, 7), strict=True):
        assert np.array_equal(y[size:], y[: 9 - size]) and len(set(y.tolist())) == size
    alone = [y.numpy() for _, y in feeding.training(numbered(), 8, 0, 0, 1)]
    assert all(np.array_equal(y[: len(one)], one) for y, one in zip(batches, alone, strict=True))


def test_where_there_is_one_device_nothing_is_shared_out(tmp_path, monkeypatch):
    notes = []
    here = state(tmp_path)
    chosen = recipe.load({"distribute": "mirrored", "stages": {"train": None}})
    progress = types.SimpleNamespace(note=notes.append)
    here = replace(here, run=replace(here.run, recipe=chosen, progress=progress))
    monkeypatch.setattr(replicas, "devices", lambda: ("CPU:0",))
    model = object()
    with replicas.spread(here, model) as placed:
        assert placed is model and replicas.count() == 1
    assert notes == ["distribute: there is one device here, so training runs as it does without"]


def test_samples_come_with_their_labels_as_the_model_sees_them():
    stored = np.arange(40, dtype=np.uint8).reshape(10, 4)
    index = np.array([1, 4, 7, 8])
    split = data.Split(stored, index, np.array([10, 40, 70, 80]), data.Preprocess(0.5, -1.0), "x")
    for x, y in [*feeding.training(split, 3, 0, 0, 1), *feeding.ordered(split, 3)]:
        assert x.dtype == tf.float32
        assert np.array_equal(x, stored[y.numpy() // 10] * 0.5 - 1.0)
    assert [y.numpy().tolist() for _, y in feeding.ordered(split, 3)] == [[10, 40, 70], [80]]


def test_the_input_pipeline_is_not_autotuned():
    """tf.data's tuning thread sleeps ever longer, and the end of every fit waits for it."""
    split = numbered()
    assert feeding.training(split, 8, 0, 0, 2).options().autotune.enabled is False
    assert feeding.ordered(split).options().autotune.enabled is False


def test_a_mapped_array_gives_the_same_batches(tmp_path, monkeypatch):
    x, y = samples()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    inside, outside = (data.Split(base, np.arange(5, 60), y[5:60], data.Preprocess(2.0), "x") for base in (x, mapped))
    kept = list(feeding.training(inside, 16, 3, 0, 2))
    monkeypatch.setattr(feeding, "IN_MEMORY_BYTES", 0)
    batches = feeding.training(outside, 16, 3, 0, 2)
    assert batches.element_spec[0].shape.as_list() == [None, *SHAPE]
    for (x1, y1), (x2, y2) in zip(kept, batches, strict=True):
        assert np.array_equal(x1, x2) and np.array_equal(y1, y2)


# the objective


@pytest.mark.parametrize(
    ("units", "activation", "task", "loss", "from_logits"),
    [
        (4, "softmax", "classification", "SparseCategoricalCrossentropy", False),
        (4, "softmax layer", "classification", "SparseCategoricalCrossentropy", False),
        (4, "linear", "classification", "SparseCategoricalCrossentropy", True),
        (1, "sigmoid", "classification", "BinaryCrossentropy", False),
        (1, "linear", "classification", "BinaryCrossentropy", True),
        (2, "linear", "regression", "MeanSquaredError", None),
    ],
)
def test_the_loss_fits_task_and_last_activation(units, activation, task, loss, from_logits):
    x = keras.Input((3,))
    y = layers.Dense(units, activation=None if "layer" in activation else activation)(x)
    goal = training.objective(keras.Model(x, layers.Softmax()(y) if "layer" in activation else y), task)
    assert type(goal.loss).__name__ == loss
    assert goal.loss.get_config().get("from_logits") == from_logits
    assert goal.metric == ("mae" if task == "regression" else "accuracy")


def test_every_output_has_a_loss_of_its_own():
    x = keras.Input((3,))
    outputs = [layers.Dense(1, activation="sigmoid")(x), layers.Dense(2)(x), layers.Dense(4, activation="softmax")(x)]
    tasks = {"yes": "classification", "where": "regression", "which": "classification"}
    goal = training.objective(keras.Model(x, outputs), tasks)
    assert [type(loss).__name__ for loss in goal.loss] == [
        "BinaryCrossentropy",
        "MeanSquaredError",
        "SparseCategoricalCrossentropy",
    ]
    assert goal.metric == ["accuracy", "mae", "accuracy"]


def test_a_reshape_behind_a_softmax_leaves_it_a_softmax():
    x = keras.Input((4, 4, 2))
    pixels = layers.Reshape((16, 3))(layers.Conv2D(3, 1, activation="softmax")(x))
    goal = training.objective(keras.Model(x, pixels), "classification")
    assert goal.loss.get_config()["from_logits"] is False


def test_several_inputs_and_outputs_go_in_the_models_order():
    x = {"b": np.arange(6, dtype=np.uint8).reshape(6, 1), "a": np.arange(6, dtype=np.int64).reshape(6, 1)}
    y = {"d": np.arange(6, dtype=np.float32), "c": np.arange(6)}
    scales = {"b": data.Preprocess(0.5, 1.0), "a": data.Preprocess(whole=True)}
    split = data.Split(x, np.arange(1, 5), {name: array[1:5] for name, array in y.items()}, scales, "x")
    (batch_x, batch_y), *rest = list(feeding.ordered(split))
    assert rest == [] and [tensor.dtype.name for tensor in batch_x] == ["float32", "int32"]
    assert batch_x[0].numpy().ravel().tolist() == [1.5, 2.0, 2.5, 3.0]
    assert [tensor.numpy().ravel().tolist() for tensor in (batch_x[1], *batch_y)] == [[1, 2, 3, 4]] * 3


def test_the_history_names_outputs_as_the_data_does(tmp_path):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, [layers.Dense(2, name="renamed")(x), layers.Dense(1, name="value")(x)])
    given = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    samples = data.load((given, {"which": np.arange(40) % 2, "value": given[:, 0]}))
    here = state(tmp_path, samples=samples)
    (epoch,) = training.fit(model, here, FitOptions(epochs=1), training.objective(model, samples.tasks))
    assert {"which_loss", "which_accuracy", "value_mae", "val_value_loss"} <= set(epoch)
    assert model.output_names == ["renamed", "value"]
    outputs = training.outputs(model, samples.test)
    assert list(outputs) == ["which", "value"] and outputs["which"].shape == (8, 2)


# interrupted and resumed


class Interrupted(Exception):
    """Stands for a kill: nothing but the checkpoint of the last whole epoch survives."""


class InterruptAt(keras.callbacks.Callback):
    """Raise before an epoch, or in its middle."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at, self.batch, self.epoch = epoch, batch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if (epoch, self.batch) == (self.at, None):
            raise Interrupted

    def on_train_batch_end(self, batch, logs=None):
        if self.batch is not None and self.epoch == self.at and batch >= self.batch:
            raise Interrupted


def plain():
    return small(), []


def pruned(pattern, ramp):
    model = small()
    wrapped = pruning_wrappers.wrap(model, pruning.plan(model, pattern), pattern, ramp, steps=15)
    return wrapped, [tfmot.sparsity.keras.UpdatePruningStep()]


def quantized():
    model = small()
    kernel = model.get_layer("classes").kernel
    kernel.assign(np.where(np.arange(32).reshape(kernel.shape) % 3, kernel, 0.0))
    made = quantization.quantize(model, preserve=True)
    quantization.calibrate(made, [samples()[0][:32]])
    return made, []


MAKERS = {
    "plain": plain,
    "polynomial": functools.partial(pruned, pruning.Pattern(), pruning.Ramp("polynomial", 0.0, 0.5, 0.0, 0.9)),
    "2:4": functools.partial(pruned, pruning.Pattern("n:m"), pruning.Ramp("steps", 0.0, 0.5, 0.1, 0.9)),
    "quantized": quantized,
}


def fit(make, folder, *interrupts):
    """Fit with an interruption after the other, each time in a model made anew; the last one is not interrupted."""
    folder.mkdir(exist_ok=True)
    given = loaded(validation=0.1 if make is plain else 0.0)  # tracing the validation takes longer than the fit
    for interrupt in (*interrupts, None):
        training.start(7)
        goal = training.objective(small(), "classification")  # of the plain model: a wrapper hides the softmax
        model, callbacks = make()
        extra = [interrupt] if interrupt else []
        try:
            history = training.fit(model, state(folder, seed=7, samples=given), OPTIONS, goal, [*callbacks, *extra])
        except Interrupted:
            continue
        return model, history
    raise AssertionError("the last fit was interrupted")


def facts(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


LONG = ("2:4", "polynomial", "quantized")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.long if kind in LONG else ()) for kind in MAKERS]
)
def test_resumed_at_a_boundary_and_in_mid_epoch_nothing_differs(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STEPS_PER_CALL", 2)  # so that an epoch of five batches has a middle
    unbroken, expected = fit(MAKERS[kind], tmp_path / "unbroken")
    interrupts = [InterruptAt(1), InterruptAt(2, batch=2)]
    resumed, found = fit(MAKERS[kind], tmp_path / "resumed", *interrupts[kind == "2:4" :])
    assert_identical(weights(resumed), weights(unbroken))
    assert facts(found) == facts(expected) and len(found) == OPTIONS.epochs
    names = " ".join(weights(unbroken))
    assert " m/" in names and " v/" in names and "iteration" in names  # the optimizer is part of what was compared
    assert ("pruning_step" in names) == (kind in ("polynomial", "2:4"))


def test_the_fit_above_learns_and_its_dropout_is_random(tmp_path):
    """Or its equality would say nothing."""
    model, history = fit(plain, tmp_path)
    assert history[-1]["loss"] < history[0]["loss"]
    assert model.get_layer("dropout")._random_generator._generator is not None


def test_a_finished_fit_is_not_repeated(tmp_path):
    first, history = fit(plain, tmp_path)
    again, same = fit(plain, tmp_path)
    assert same == history
    assert_identical(weights(again), weights(first))


# what a checkpoint may be


@pytest.fixture
def checkpoint(tmp_path):
    """A model with its optimizer, and its checkpoint of one epoch."""
    model = dense(3, 2)
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    history = [{"epoch": 1, "loss": 0.5}]
    training._save(shaken(model), tmp_path / training.CHECKPOINT, history)
    return model, tmp_path / training.CHECKPOINT


def test_a_checkpoint_holds_every_variable_and_the_history(checkpoint):
    model, path = checkpoint
    expected = weights(model)
    shaken(model, seed=9)
    assert training._restore(model, path) == [{"epoch": 1, "loss": 0.5}]
    assert_identical(weights(model), expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"PK\x03\x04 but nothing behind it",
        lambda content: content.replace(b"history.npy", b"herstory.np"),
        lambda content: content[:300] + bytes([content[300] ^ 0xFF]) + content[301:],
    ],
    ids=["cut", "empty", "head only", "without history", "one byte"],
)
def test_a_damaged_checkpoint_is_a_named_error(checkpoint, damage):
    model, path = checkpoint
    before = weights(model)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunFolderError, match=r"checkpoint\.npz is damaged.*--force"):
        training._restore(model, path)
    assert_identical(weights(model), before)


def test_a_checkpoint_of_another_model_is_a_named_error(checkpoint):
    other = dense(3, 3)
    other.compile("adam", "mse")
    other.optimizer.build(other.trainable_variables)
    with pytest.raises(RunFolderError, match=r"is of another model.*--force"):
        training._restore(other, checkpoint[1])


# the rest


def test_a_diverging_loss_is_said_with_what_to_do(tmp_path):
    model = dense(4, inputs=4)
    x = np.full((20, 4), 1e30, np.float32)
    given = data.load((x, x), data.DataOptions(validation=0.0))
    options = FitOptions(epochs=1, learning_rate=5.0)
    with pytest.raises(
        DataError, match=r"loss became (nan|inf) in epoch 1 of 'tune'.*stages\.tune\.learning_rate \(it is 5\)"
    ):
        training.fit(model, state(tmp_path, "tune", samples=given), options, training.objective(model, "regression"))
    assert not (tmp_path / training.CHECKPOINT).exists()


def test_no_epochs_change_nothing(tmp_path):
    model = cnn()
    before = weights(model)
    assert training.fit(model, state(tmp_path), FitOptions(epochs=0), training.objective(model, "classification")) == []
    assert_identical(weights(model), before)


def test_progress_and_history_tell_the_epochs(tmp_path):
    told = []
    shown = types.SimpleNamespace(step=lambda done, total, unit, **values: told.append((done, total, unit, values)))
    model = dense(CLASSES, inputs=3)
    x, y = np.eye(3, dtype=np.float32)[np.arange(30) % 3], np.arange(30) % 3
    given = data.load((x, y))
    options = FitOptions(epochs=2, batch_size=8, learning_rate=0.5, optimizer="sgd", decay="constant")
    history = training.fit(
        model,
        state(tmp_path, samples=given, shown=shown),
        options,
        training.objective(model, "classification"),
        sparsity=lambda share: share / 2,
    )
    assert [entry["sparsity"] for entry in history] == [0.25, 0.5]
    assert set(history[0]) == {
        *("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "sparsity", "seconds")
    }
    assert {entry["learning_rate"] for entry in history} == {0.5}
    assert told[-1][:3] == (2, 2, "epochs") and {"loss", "accuracy", "sparsity"} <= set(told[-1][3])
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)


def test_outputs_are_in_the_order_of_the_split():
    model = shaken(cnn())
    split = loaded().test
    assert np.allclose(training.outputs(model, split, batch_size=5), model(split.inputs()).numpy(), atol=1e-6)
