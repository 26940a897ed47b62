"""Keras ``fit`` that can be killed and resumed, and gives the same weights as if it had not been.

After every epoch all variables (weights, masks, quantizer ranges, optimizer slots, the step counter) and the history are
written in one atomic file. What an epoch computes depends only on that file, the seed and the epoch's number: the order
of the samples, dropout and every other random op are seeded per epoch, and TensorFlow's ops are made deterministic.
"""

from __future__ import annotations

import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import columns, files
from edgeprune.data import Split
from edgeprune.data_options import Task
from edgeprune.errors import DataError, RunFolderError
from edgeprune.keras import constraints, distillation, feeding, keras, onednn, penalised, replicas, stepping, tf
from edgeprune.pipeline import State
from edgeprune.recipe import FitOptions

CHECKPOINT = "checkpoint.npz"
# Steps that run inside one call of the compiled training function, at most: on small models Python's share of a step, a
# third of the time of a ResNet-8 step on two cores, all but vanishes. But nobody can interrupt a call.
STEPS_PER_CALL = 16
CALL_S = 0.5

Epoch = dict[str, float]


class Objective(NamedTuple):
    """What training minimizes and what is shown while it does.

    Attributes:
        loss: of the output; of several, one each, whose sum is minimized.
        metric: ``accuracy`` or ``mae``; of several outputs, one each.
    """

    loss: Any
    metric: Any


def objective(model: Any, task: Task | Mapping[str, Task]) -> Objective:
    """The loss that fits the task and the activation before each of the model's outputs.

    Classification with k scores: cross-entropy, from logits unless the outputs are a softmax; with one output: binary
    cross-entropy, from a logit unless it is a sigmoid. Where every pixel or step has a class, the mean over them.
    Regression: mean squared error. Several outputs: the sum of their losses.

    Args:
        model: functional.
        task: of the output; of several outputs (``Data.tasks``) each, in the model's order.
    """
    tasks = [task] * len(model.outputs) if isinstance(task, str) else list(task.values())
    each = [_objective(output, kind) for output, kind in zip(model.outputs, tasks, strict=True)]
    if len(each) == 1:
        return each[0]
    return Objective([goal.loss for goal in each], [goal.metric for goal in each])


def _objective(output: Any, task: Task) -> Objective:
    if task == "regression":
        return Objective(keras.losses.MeanSquaredError(), "mae")
    last = _last_activation(output)
    if output.shape[-1] == 1:
        return Objective(keras.losses.BinaryCrossentropy(from_logits=last != "sigmoid"), "accuracy")
    return Objective(keras.losses.SparseCategoricalCrossentropy(from_logits=last != "softmax"), "accuracy")


def _last_activation(output: Any) -> str:
    """The activation before an output; a Reshape after it changes no number."""
    layer = output._keras_history.layer
    while isinstance(layer, (keras.layers.Reshape, keras.layers.Flatten)):
        layer = layer.inbound_nodes[0].parent_nodes[0].layer
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    inner = getattr(layer, "layer", layer)  # of TimeDistributed
    return str(keras.activations.serialize(inner.activation)) if hasattr(inner, "activation") else "linear"


def start(seed: int) -> None:
    """Seed everything and make every op deterministic; call before a stage builds its model."""
    tf.config.experimental.enable_op_determinism()
    keras.backend.experimental.enable_tf_random_generator()  # dropout: a state that can be set, not a hidden counter
    keras.utils.set_random_seed(seed)


def steps_per_epoch(split: Split, options: FitOptions) -> int:
    """Batches in an epoch; the last one may be smaller."""
    return math.ceil(len(split) / options.batch_size)


def fit(
    model: Any,
    state: State,
    options: FitOptions,
    goal: Objective,
    callbacks: Sequence[Any] = (),
    sparsity: Callable[[float], float] | None = None,
    room: Callable[[int], int] | None = None,
    behind: float = 0.0,
) -> list[Epoch]:
    """Train in place, from the workspace's checkpoint if there is one.

    Args:
        model: uncompiled; compiled here.
        state: gives the data, the seed, the progress to report to, and the workspace for the checkpoint.
        options: epochs, batch size, optimizer and learning rate, penalty and teacher.
        goal: loss and metric.
        callbacks: further Keras callbacks (TFMOT's pruning step).
        sparsity: progress 0..1 -> scheduled sparsity, for the history and the live line.
        room: steps that are done -> steps that may run in one call then, >= 1, since a callback has work after them.
        behind: share of a cosine decay that counts as past already, 0..1 (1 excluded), as after rewinding.

    Returns:
        One record per epoch: loss, metric, val_ of both, learning_rate, sparsity, seconds.

    Raises:
        DataError: the loss became NaN or infinite.
        ModelError: as ``onednn.check``.
    """
    if options.epochs == 0:
        return []
    onednn.check(model)
    data, steps = state.run.data, steps_per_epoch(state.run.data.train, options)
    optimizer = _optimizer(options, steps, behind)
    if options.distill:
        model = distillation.taught(model, state, options.distill, goal.loss)
    names, model.output_names = model.output_names, _names(model, data.train)  # which compile hands to Keras' metrics
    model.compile(optimizer, goal.loss, metrics=_metrics(goal.metric), steps_per_execution=min(STEPS_PER_CALL, steps))
    optimizer.build(model.trainable_variables)
    _create_metrics(model, data.train)
    stepping.trace_once(model)
    with constraints.restored(model.trainable_variables):
        penalty = _penalised(model, optimizer, state, options, steps)
        history = _restore(model, state.workspace / CHECKPOINT, penalty)
        if len(history) < options.epochs:
            seed = state.run.seed + 1_000_003 * sum(state.label.encode())  # stages do not repeat each other's order
            model.fit(
                feeding.training(data.train, options.batch_size, seed, len(history), options.epochs, replicas.count()),
                validation_data=feeding.ordered(data.validation) if len(data.validation) else None,
                initial_epoch=len(history),
                epochs=options.epochs,
                steps_per_epoch=steps,
                verbose=0,
                callbacks=[*callbacks, _Epochs(state, options, steps, history, sparsity, seed, penalty, room)],
            )
    model.output_names = names
    return history


def _penalised(model: Any, optimizer: Any, state: State, options: FitOptions, steps: int) -> penalised.Penalised | None:
    """The stage's penalty at work on the model, if it has one."""
    if options.penalty is None:
        return None
    where = f"stages.{state.label}.penalty"
    return penalised.attach(model, optimizer, options.penalty, options.epochs * steps, where)


def _create_metrics(model: Any, split: Split) -> None:
    """Have loss and metrics make their variables now.

    They would at their first use, inside the compiled training function, and TensorFlow traces a function again that made
    variables: seconds for a small network, a minute for a large one.
    """
    x, y = next(iter(feeding.ordered(split.select(np.zeros(1, np.int64)))))
    nothing = tf.nest.map_structure(
        lambda output: tf.zeros((1, *output.shape[1:]), output.dtype), model._nested_outputs
    )

    def first() -> None:
        model.compute_loss(x, y, nothing)
        model.compute_metrics(x, y, nothing, None)

    tf.distribute.get_strategy().run(first)  # metrics take values in a replica only
    model.reset_metrics()


def _names(model: Any, split: Split) -> list[str]:
    """What the history calls the outputs: of several as y does, since a wrapper or a quantizer renames the layers."""
    return list(columns.named(split.y)) if len(model.outputs) > 1 else list(model.output_names)


def _metrics(words: Any) -> list[Any]:
    """What Keras is told to show: one list for one output, a list of lists for several."""
    if isinstance(words, list):
        return [_metrics(word) for word in words]
    return ["accuracy" if words == "accuracy" else keras.metrics.MeanAbsoluteError(name=words)]


def outputs(model: Any, split: Split, batch_size: int = 256) -> Any:
    """The model's outputs for a split, (n, ...) float32, in order; of several outputs by the names that y has."""
    predict = tf.function(lambda x: tf.nest.flatten(model(x, training=False)), reduce_retracing=True)
    parts = [[part.numpy() for part in predict(x)] for x, _ in feeding.ordered(split, batch_size)]
    whole = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return columns.unnamed(dict(zip(columns.named(split.y), whole, strict=True)))


class _Later(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule from one of its later steps on; the optimizer still counts from 0, as its averages do."""

    def __init__(self, schedule: Any, first: int) -> None:
        self.schedule, self.first = schedule, first

    def __call__(self, step: Any) -> Any:
        return self.schedule(step + self.first)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "first": self.first}


def _optimizer(options: FitOptions, steps: int, behind: float = 0.0) -> Any:
    rate: Any = options.learning_rate
    if options.decay == "cosine":
        count = max(options.epochs * steps, 1)
        past = round(count * behind / (1.0 - behind))
        rate = keras.optimizers.schedules.CosineDecay(options.learning_rate, count + past)
        rate = _Later(rate, past) if past else rate
    if options.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    return keras.optimizers.Adam(rate)


def _variables(model: Any, penalty: penalised.Penalised | None) -> list[Any]:
    return [*model.variables, *model.optimizer.variables, *(penalty.variables if penalty else [])]


def _restore(model: Any, path: Path, penalty: penalised.Penalised | None = None) -> list[Epoch]:
    """Set every variable from the checkpoint; the history in it tells how many epochs are done."""
    if not path.exists():
        return []
    try:
        with np.load(path, allow_pickle=False) as saved:
            history: list[Epoch] = json.loads(str(saved["history"]))
            values = [saved[f"v{number}"] for number in range(len(saved.files) - 1)]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunFolderError(
            f"The checkpoint {path} is damaged: {error}. Delete it to repeat this stage, or build with --force."
        ) from error
    variables = _variables(model, penalty)
    if [value.shape for value in values] != [tuple(variable.shape) for variable in variables]:
        raise RunFolderError(
            f"The checkpoint {path} is of another model. Delete it to repeat this stage, or build with --force."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return history


def _save(model: Any, path: Path, history: list[Epoch], penalty: penalised.Penalised | None = None) -> None:
    buffer = io.BytesIO()
    arrays = {f"v{number}": variable.numpy() for number, variable in enumerate(_variables(model, penalty))}
    np.savez(buffer, history=np.array(json.dumps(history)), **arrays)
    files.write_bytes_atomic(path, buffer.getvalue())


class _Epochs(keras.callbacks.Callback):
    """Seeds every epoch, keeps the history and the checkpoint, and tells the person who waits."""

    EVERY_S = 0.25

    def __init__(
        self,
        state: State,
        options: FitOptions,
        steps: int,
        history: list[Epoch],
        sparsity: Callable[[float], float] | None,
        seed: int,
        penalty: penalised.Penalised | None = None,
        room: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__()
        self._supports_tf_logs = True  # or Keras would wait for the loss after every call
        self.state, self.options, self.steps, self.history = state, options, steps, history
        self.sparsity, self.seed, self.penalty, self.room = sparsity, seed, penalty, room
        self.epoch, self.started, self.shown, self.called, self.per_step = len(history), 0.0, 0.0, 0.0, CALL_S
        self.generators: list[Any] = []
        self.first = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.model._steps_per_execution.assign(1)
        layers = self.model._flatten_layers(include_self=False)
        randoms = [getattr(getattr(layer, "_random_generator", None), "_generator", None) for layer in layers]
        self.generators = [generator for generator in randoms if generator is not None]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch, self.started = epoch, time.monotonic()
        self._allow(epoch * self.steps)
        for number, generator in enumerate(self.generators):
            generator.reset_from_seed((self.seed + 7919 * epoch + 104_729 * number) % 2**31)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.called = time.monotonic()
        self.first = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.monotonic()
        self.per_step = (now - self.called) / (batch + 1 - self.first)  # the first call is slow: it compiles
        self._allow(self.epoch * self.steps + batch + 1)
        if now - self.shown >= self.EVERY_S:
            self.shown = now
            self._show(
                self.epoch + (batch + 1) / self.steps, {key: float(value) for key, value in (logs or {}).items()}
            )

    def _allow(self, done: int) -> None:
        """Say how many steps the next call runs, after so many are done."""
        most = self.room(done) if self.room else self.steps
        self.model._steps_per_execution.assign(
            max(1, min(STEPS_PER_CALL, self.steps, most, int(CALL_S / self.per_step)))
        )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        record = {key: float(value) for key, value in (logs or {}).items()}
        if not math.isfinite(record["loss"]):
            raise DataError(
                f"The loss became {record['loss']} in epoch {epoch + 1} of '{self.state.label}': training diverged. Lower "
                f"stages.{self.state.label}.learning_rate (it is {self.options.learning_rate:g}), or check the scale of the inputs."
            )
        record["learning_rate"] = float(keras.backend.get_value(self.model.optimizer.learning_rate))
        self._show(epoch + 1, record)
        if self.sparsity:
            record["sparsity"] = self.sparsity((epoch + 1) / self.options.epochs)
        if self.penalty:
            record["zeros"] = round(float(self.penalty.zeros()), 6)
            record["strength"] = float(f"{float(self.penalty.strength()):.6g}")
        self.history.append({"epoch": epoch + 1, **record, "seconds": round(time.monotonic() - self.started, 3)})
        _save(self.model, self.state.workspace / CHECKPOINT, self.history, self.penalty)

    def _show(self, epochs: float, values: Epoch) -> None:
        shown = {key: value for key, value in values.items() if key != "learning_rate"}
        if self.sparsity:
            shown["sparsity"] = self.sparsity(epochs / self.options.epochs)
        self.state.run.progress.step(epochs, self.options.epochs, "epochs", **shown)
