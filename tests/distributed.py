"""Whoever compiles and fits our models themselves, under ``tf.distribute``: a process of its own, since devices are global.

    python distributed.py mirrored [NAME...]        two virtual CPU devices in this process, beside one device
    python distributed.py worker INDEX PORT PORT [NAME...]   one of two workers; TF_CONFIG is set here
    python distributed.py half [NAME...]            one device, weights in float32, arithmetic in float16
    python distributed.py build FOLDER              a build's trainings on two devices (``distribute: mirrored``), beside those on one

Prints one line of JSON: name of the ingredient -> what came of it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import api, registry, training_options
from edgeprune.keras import (
    constraints,
    distillation,
    gate_costs,
    gated,
    keras,
    penalised,
    pruning,
    pruning_wrappers,
    quantization,
    sparse_training,
    tf,
    tfmot,
)

EPOCHS, STEPS, BATCH = 3, 4, 16
OVER = EPOCHS * STEPS
LAYERS = keras.layers


class Given:
    """What an ingredient gives the user: a model to compile, what else goes into fit, and what must hold of it afterwards."""

    def __init__(
        self, model: Any, callbacks: tuple[Any, ...] = (), zeros: Any = lambda: {}, attach: Any = None
    ) -> None:
        self.model, self.callbacks, self.zeros, self.attach = model, callbacks, zeros, attach


def network() -> Any:
    """Two hidden layers, of which one is a convolution: 8x8 images to four classes."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 2), name="image")
    x = LAYERS.ReLU(name="relu")(LAYERS.Conv2D(8, 3, name="conv")(x))
    x = LAYERS.GlobalAveragePooling2D(name="pool")(x)
    x = LAYERS.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(inputs, LAYERS.Dense(4, dtype="float32", name="scores")(x), name="tiny")


def samples() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = random.integers(0, 4, BATCH * STEPS)
    x = random.normal(size=(len(y), 8, 8, 2)).astype(np.float32)
    x[np.arange(len(y)), :, :, 0] += y[:, None, None]
    return x, y


def _plans(model: Any) -> list[Any]:
    return pruning.plan(model, pruning.Pattern("weight"), "conv|hidden")


def masked() -> Given:
    """Weights that live on behind masks, which a callback decides anew in the middle, and a proximal step before the masks."""
    made = sparse_training.Sparse(network(), _plans(network()), "dense")

    def decide(_count: int, _optimizer: Any) -> None:
        weights = made.weights()
        made.put({name: np.abs(values) >= np.median(np.abs(values)) for name, values in weights.items()})

    return Given(
        made.model,
        (sparse_training.Updates([0, 5, 9], decide),),
        lambda: {name: (one.variable, one.mask.numpy() > 0) for name, one in made.kernels.items()},
        lambda optimizer: penalised.attach(
            made.model, optimizer, training_options.Penalty(kind="l1", strength=0.02), OVER
        ),
    )


def taught() -> Given:
    """A teacher's answers in the loss, and a proximal step that moves several variables together; zeros held from the start."""
    teacher, student = network(), network()
    teacher.get_layer("hidden").kernel.assign(teacher.get_layer("hidden").kernel * 1.5)
    held = student.get_layer("scores").kernel
    mask = np.random.default_rng(2).random(held.shape) < 0.5
    constraints.hold(held, mask)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = training_options.Penalty(kind="group_lasso", strength=0.05)
    return Given(
        distillation.distilled(student, teacher, loss, 0.5, 4.0),
        zeros=lambda: {"scores": (held, mask)},
        attach=lambda optimizer: penalised.attach(student, optimizer, options, OVER),
    )


def hard_concrete() -> Given:
    """Random gates on every weight."""
    model = network()
    sizes = gate_costs.multiplied(model, ["conv", "hidden"])
    course = gated.Course(OVER, 0.5, seed=3)
    made = gated.on_weights(
        model, _plans(model), registry.module("gates", "hard-concrete"), course, gate_costs.weights(sizes)
    )
    return Given(made.model, (gated.Watch(made.controller),))


def wrapped() -> Given:
    """TFMOT's pruning wrappers, with our own inside."""
    model = network()
    pattern = pruning.Pattern("weight")
    ramp = pruning.Ramp("polynomial", 0.0, 0.5, 0.0, 0.6, 3.0, 2)
    made = pruning_wrappers.wrap(model, _plans(model), pattern, ramp, OVER)
    return Given(
        made,
        (tfmot.sparsity.keras.UpdatePruningStep(),),
        lambda: {
            name: (made.get_layer(f"kernels_pruned_{name}").layer.kernel, mask)
            for name, mask in pruning_wrappers.masks(made).items()
        },
    )


def quantized() -> Given:
    """Fake quantizers that keep zeros."""
    model = network()
    for kernel in (model.get_layer(name).kernel for name in ("conv", "hidden")):
        kernel.assign(kernel * (np.random.default_rng(2).random(kernel.shape) < 0.5))
    made = quantization.quantize(model, True)
    quantization.calibrate(made, [samples()[0]])
    return Given(made)


INGREDIENTS = {made.__name__: made for made in (masked, taught, hard_concrete, wrapped, quantized)}


class Counted(keras.metrics.Metric):
    """A metric of the user's own."""

    def __init__(self) -> None:
        super().__init__(name="counted")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.total.assign_add(tf.cast(tf.size(y_true), tf.float32))

    def result(self) -> Any:
        return self.total

    def reset_state(self) -> None:
        self.total.assign(0.0)


class Seen(keras.callbacks.Callback):
    """A callback of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = self.epochs = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1


def tried(name: str, strategy: Any) -> dict[str, Any]:
    """`fitted`, or what went wrong."""
    try:
        return fitted(name, strategy)
    except Exception:
        return {"error": traceback.format_exc()}


def fitted(name: str, strategy: Any) -> dict[str, Any]:
    """Train one ingredient as a user would, with a loss, metric, optimizer and callbacks of their own."""
    with strategy.scope():
        given = INGREDIENTS[name]()
        crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

        def loss(y_true: Any, y_pred: Any) -> Any:
            return crossentropy(y_true, y_pred)

        optimizer = keras.optimizers.SGD(0.05, momentum=0.9) if name != "quantized" else keras.optimizers.Adam(0.002)
        given.model.compile(optimizer, loss, metrics=["accuracy", Counted()])
        if given.attach:
            optimizer.build(given.model.trainable_variables)
            given.attach(optimizer)
    x, y = samples()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).with_options(options)
    seen = Seen()
    stop = keras.callbacks.EarlyStopping("loss", patience=EPOCHS)
    history = given.model.fit(data, epochs=EPOCHS, verbose=0, callbacks=[*given.callbacks, seen, stop]).history
    return {
        "loss": history["loss"],
        "counted": history["counted"],
        "batches": seen.batches,
        "epochs": seen.epochs,
        "apart": _apart(given.model, strategy),
        "broken": {key: int(np.count_nonzero(kernel.numpy()[~mask])) for key, (kernel, mask) in given.zeros().items()},
        "zeros": {key: float(1 - mask.mean()) for key, (_, mask) in given.zeros().items()},
        "none": int(sum(np.count_nonzero(weight.numpy() == 0) for weight in given.model.trainable_variables)),
        "weights": [
            float(np.abs(weight.numpy().astype(np.float64)).sum()) for weight in given.model.trainable_variables
        ],
    }


def _apart(model: Any, strategy: Any) -> float:
    """The largest difference of a trained variable between two replicas."""
    found = [0.0]
    for variable in model.trainable_variables:
        first, *others = [each.numpy() for each in strategy.experimental_local_results(variable)]
        found += [float(np.abs(first - other).max()) for other in others]
    return max(found)


def built(folder: Path, distribute: str | None) -> dict[str, Any]:
    """Train a network in every stage that spreads; what they told."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 1, "batch_size": BATCH}
    stages = {
        "train": {**sgd, "when": "always", "keep": 0.9},
        "shrink": {**sgd, "macs": 0.7, "criterion": "l2", "multiples": 1},
        "prune": {**sgd, "final": 0.5},
        "quantize": {**sgd, "learning_rate": 0.005},
    }
    recipe = {"name": "spread", "distribute": distribute, "stages": stages}
    x, y = samples()
    api.build(network(), (np.tile(x, (3, 1, 1, 1)), np.tile(y, 3)), recipe=recipe, out=folder)
    facts = json.loads((folder / "stages" / "4-quantize" / "state.json").read_text(encoding="utf-8"))["facts"]
    return {
        "losses": {name: [epoch["loss"] for epoch in told["epochs"]] for name, told in facts["history"].items()},
        "units": {group["name"]: group["units_after"] for group in facts["shrink"]["shrink"]["groups"]},
        "zeros": {name: layer["sparsity_keras"] for name, layer in facts["pruning"]["layers"].items()},
        "notes": facts["notes"],
    }


def _two_devices() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def _strategy(words: list[str]) -> tuple[Any, list[str]]:
    """The strategy that the words name, and the words that are left."""
    kind, *rest = words
    if kind == "mirrored":
        _two_devices()
        return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), rest
    if kind == "worker":
        index, *ports = rest[:3]
        workers = [f"127.0.0.1:{port}" for port in ports]
        task = {"type": "worker", "index": int(index)}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
        return tf.distribute.MultiWorkerMirroredStrategy(), rest[3:]
    if kind == "half":
        keras.mixed_precision.set_global_policy("mixed_float16")
    return tf.distribute.get_strategy(), rest


def main() -> None:
    if sys.argv[1] == "build":
        _two_devices()
        folder = Path(sys.argv[2])
        print(json.dumps({"alone": built(folder / "alone", None), "found": built(folder / "spread", "mirrored")}))
        return
    strategy, names = _strategy(sys.argv[1:])
    alone = {}
    if sys.argv[1] == "mirrored":
        alone = {name: tried(name, tf.distribute.get_strategy()) for name in names or INGREDIENTS}
    found = {name: tried(name, strategy) for name in names or INGREDIENTS}
    print(json.dumps({"replicas": strategy.num_replicas_in_sync, "alone": alone, "found": found}))


if __name__ == "__main__":
    main()
