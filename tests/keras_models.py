"""Tiny models, samples and states that the TensorFlow tests share: a few hundred weights, 8x8 images, no file."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np

from edgeprune import data, metrics, pipeline, progress, recipe, registry, target
from edgeprune.keras import intake, keras, tf, tfmot

layers = keras.layers
SHAPE, CLASSES = (8, 8, 4), 4
USELESS = 4  # channels of the planted model that nothing depends on


@functools.cache
def samples(count=80, seed=0):
    """(x, y): the class of an image is its brightest channel. Read-only, since it is shared."""
    x = np.random.Generator(np.random.PCG64(seed)).normal(size=(count, *SHAPE)).astype("float32")
    y = np.arange(count) % CLASSES
    x[np.arange(count), :, :, y] += 0.5
    x.setflags(write=False)
    return x, y


def cnn(dropout=0.0, seed=0, activation="softmax"):
    """Every neighbourhood that TFMOT treats in its own way, 500 weights.

    ``stem`` BatchNormalization and ReLU; ``plain`` a separate ReLU layer without BatchNormalization (trap 1); ``depth``
    depthwise; ``hidden`` an Activation("relu") layer; ``classes`` an activation inside.
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, 2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    x = layers.ReLU(name="plain_relu")(layers.Conv2D(8, 1, name="plain")(x))
    x = layers.ReLU(name="depth_relu")(layers.DepthwiseConv2D(3, padding="same", name="depth")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Activation("relu", name="hidden_relu")(layers.Dense(8, name="hidden")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, activation=activation, name="classes")(x), name="cnn")


def small(dropout=0.5, seed=0):
    """The fewest layers that hold everything a resumed fit has to restore: BatchNormalization, dropout, a separate ReLU."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(8, 3, 2, name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.Dropout(dropout, name="dropout")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="small")


def dense(*sizes, inputs=8, seed=0, **keywords):
    """Dense layers ``d1``, ``d2`` ... one after the other, ReLU inside all but the last."""
    keras.utils.set_random_seed(seed)
    given = x = keras.Input((inputs,), name="x")
    for number, size in enumerate(sizes, 1):
        activation = None if number == len(sizes) else "relu"
        x = layers.Dense(size, activation=activation, name=f"d{number}", **keywords)(x)
    return keras.Model(given, x, name="mlp")


def planted():
    """Tells a class by its brightest channel, with four channels more that no output depends on."""
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(CLASSES + USELESS, 1, name="conv")(image)
    x = layers.ReLU(name="relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="planted")
    kernel = np.full((1, 1, SHAPE[-1], CLASSES + USELESS), 0.01)
    kernel[0, 0, :, :CLASSES] = np.eye(CLASSES)
    weights = np.concatenate([10 * np.eye(CLASSES), np.zeros((USELESS, CLASSES))])
    model.set_weights([kernel, np.zeros(CLASSES + USELESS), weights, np.zeros(CLASSES)])
    return model


def planted_files(folder):
    """``planted.keras`` and ``data.npz`` in a folder, which is handed on."""
    intake.save(planted(), folder / "planted.keras")
    x, y = samples(400)
    np.savez(folder / "data.npz", x=x, y=y)
    return folder


def off(shape):
    """The half of a kernel that is pruned in some tests, picked at random."""
    size = int(np.prod(shape))
    return (np.random.Generator(np.random.PCG64(size)).permutation(size) < size // 2).reshape(shape)


def shaken(model, seed=1):
    """The model with every weight moved off its initial value, BatchNormalization statistics included."""
    random = np.random.Generator(np.random.PCG64(seed))
    model.set_weights(
        [random.uniform(0.2, 1.0, w.shape) * random.choice([-1, 1], w.shape) for w in model.get_weights()]
    )
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(random.uniform(0.5, 2.0, layer.moving_variance.shape))
    return model


@functools.cache
def loaded(calibration=32, validation=0.1):
    """The samples, split."""
    options = data.DataOptions(calibration=calibration, validation=validation)
    return data.load(samples(), options)


def run(folder, stages=None, samples=None, seed=0, shown=None, **inputs):
    """A ``pipeline.Run`` in a folder that exists."""
    given = samples or loaded()
    words = {"name": "tiny", "seed": seed, "stages": stages or {"train": {"epochs": 1}}}
    facts = target.load(registry.file("targets", "rpi4"))
    metric = metrics.choose(given.task, None)
    return pipeline.Run(
        Path(folder), recipe.load(words), facts, given, metric, shown or progress.Silent(), {"trained": False, **inputs}
    )


def state(folder, label="train", **keywords):
    """A state whose workspace is the run folder itself."""
    return pipeline.State(run(folder, **keywords), label=label, workspace=Path(folder))


def weights(model):
    """Every variable by place and name, optimizer slots included; without the numbers that Keras counts models with."""
    variables = list(model.variables) + (list(model.optimizer.variables) if getattr(model, "optimizer", None) else [])
    return {
        f"{place} {re.sub('_[0-9]+', '', variable.name)}": variable.numpy() for place, variable in enumerate(variables)
    }


def assert_identical(one, other):
    """Two mappings of arrays that are equal bit for bit."""
    assert list(one) == list(other)
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


def advance(wrapped, steps):
    """Let TFMOT's wrappers do what they do in ``steps`` training steps, without any training: masks follow the schedule."""
    update = tfmot.sparsity.keras.UpdatePruningStep()
    update.set_model(wrapped)
    update.on_train_begin()
    nothing = [tf.zeros((1, *tensor.shape[1:])) for tensor in wrapped.inputs]
    for _ in range(steps):
        wrapped(nothing[0] if len(nothing) == 1 else nothing, training=True)
    update.on_epoch_end(0)


def steps(model, count, learning_rate, seed=0):
    """``count`` steps of Adam towards noise: the hardest pull on weights that must stay where they are."""
    random = np.random.Generator(np.random.PCG64(seed))
    optimizer = keras.optimizers.Adam(learning_rate)
    shape = tuple(model.inputs[0].shape[1:])

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    optimizer.build(model.trainable_variables)
    for _ in range(count):
        x = random.normal(size=(16, *shape)).astype("float32")
        step(tf.constant(x), tf.constant(random.normal(size=(16, *model.outputs[0].shape[1:])).astype("float32")))
