"""Knowledge distillation: a model trained on another one's outputs besides the labels.

For class scores z of the student and t of the teacher, softened by a temperature T,

    loss = (1 - weight) * task loss + weight * T^2 * KL(softmax(t / T) || softmax(z / T))

where T^2 keeps the gradients' size the same for every temperature; a single score counts as (z, 0). For regression the
second term is the mean squared error to the teacher's output, without T. (Hinton, Vinyals and Dean 2015, "Distilling the
knowledge in a neural network".)

Besides, the student may learn where the teacher looks: of the outputs A of chosen layers, (H, W, channels), the maps

    Q = sum over channels of A^2, divided by the root of the sum over the places of its squares

shall be the teacher's: + attention weight * sum over layers of mean (Q_student - Q_teacher)^2. Numbers of channels may
differ. (Zagoruyko and Komodakis 2017, "Paying more attention to attention: improving the performance of convolutional neural
networks via attention transfer".)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import registry
from edgeprune.errors import RecipeError
from edgeprune.keras import intake, keras, tf
from edgeprune.pipeline import State
from edgeprune.training_options import Attention, Distillation

LEAST = 1e-7  # of a probability, before its logarithm is taken
Distance = Callable[[Any, Any], Any]  # the teacher's output, the student's -> scalar


def taught(student: Any, state: State, options: Distillation, loss: Any) -> Any:
    """What a stage trains in the student's place: `distilled` with the teacher that its options name.

    Args:
        student: functional.
        state: of the stage, which names the models that are there.
        options: which teacher, and how much it counts.
        loss: as for ``distilled``.

    Raises:
        RecipeError: the teacher knows nothing, or does not fit the student.
        ModelError, UntrustedModel: its file cannot be taken.
    """
    where = f"stages.{state.label}.distill"
    teacher = _teacher(state, options.teacher, where)
    _check_fits(student, teacher, where)
    pairs = _pairs(student, teacher, options.attention, f"{where}.attention") if options.attention else []
    weight = options.attention.weight if options.attention else 0.0
    return distilled(student, teacher, loss, options.weight, options.temperature, pairs, weight)


def distilled(
    student: Any,
    teacher: Any,
    loss: Any,
    weight: float,
    temperature: float,
    pairs: Sequence[tuple[str, str]] = (),
    attention: float = 0.0,
) -> Any:
    """A model to be trained in the student's place: the same layers and variables, another loss.

    Args:
        student: functional; training the result trains it.
        teacher: functional, with the same inputs and outputs; it runs as at inference and does not change.
        loss: the task's Keras loss (`training.Objective`), which says what the outputs are; of several outputs, one each.
        weight: share of the teacher's part of the loss, 0..1.
        temperature: > 0; higher tells more of the classes that are not the answer.
        pairs: the student's layers and the teacher's whose attention maps are to be alike.
        attention: what the distance of these maps is multiplied by, >= 0.

    Returns:
        An uncompiled functional model. Its ``fit`` reports the task's loss alone, so that it can be compared.
    """
    distances = [distance(each, temperature) for each in tf.nest.flatten(loss)]
    outputs = student.outputs if len(student.outputs) > 1 else student.outputs[0]
    model = _Distilled(student.inputs, outputs, name=student.name)
    model.weight = weight
    if not pairs:
        model.apart = lambda x, given: _sum_apart(distances, teacher(x, training=False), given)
        return model
    looking = _with_layers(student, [ours for ours, _ in pairs])
    shown = _with_layers(teacher, [theirs for _, theirs in pairs])

    def extended(x: Any) -> tuple[list[Any], Callable[[Any], Any], Any]:
        answers, features = _split(looking(x, training=True), len(student.outputs))
        wanted, maps = _split(shown(x, training=False), len(teacher.outputs))
        apart = tf.add_n([attention_distance(theirs, ours) for theirs, ours in zip(maps, features, strict=True)])
        return answers, lambda given: _sum_apart(distances, wanted, given), attention * apart

    model.extended = extended
    return model


def _sum_apart(distances: Sequence[Distance], wanted: Any, given: Any) -> Any:
    pairs = zip(distances, tf.nest.flatten(wanted), tf.nest.flatten(given), strict=True)
    return tf.add_n([far(teacher, student) for far, teacher, student in pairs])


def attention_distance(teacher: Any, student: Any) -> Any:
    """The mean squared difference of two attention maps.

    Args:
        teacher, student: (batch, places ..., channels), of the same places.

    Returns:
        A scalar, >= 0.
    """
    return tf.reduce_mean(tf.square(_map(student) - _map(teacher)))


def _map(activations: Any) -> Any:
    """(batch, places): where a layer looks, of length 1."""
    energy = tf.reduce_sum(tf.square(activations), axis=-1)
    return tf.math.l2_normalize(tf.reshape(energy, [tf.shape(energy)[0], -1]), axis=1)


def _with_layers(model: Any, names: Sequence[str]) -> Any:
    """A model that also gives the outputs of layers."""
    return keras.Model(model.inputs, [*model.outputs, *(_named(model)[name].output for name in names)])


def _split(found: Sequence[Any], count: int) -> tuple[list[Any], list[Any]]:
    return list(found[:count]), list(found[count:])


def _named(model: Any) -> dict[str, Any]:
    """Layer by its own name, also of what a wrapper holds, whose outputs are the wrapper's."""
    return {getattr(layer, "layer", layer).name: layer for layer in model.layers}


# Which teacher, and which of its layers


def _teacher(state: State, word: str, where: str) -> Any:
    """The model that a recipe calls the teacher.

    A file of the user's is copied into the workspace first, so that a resumed stage learns from the same one.
    """
    if word == "given":
        return intake.load_own(state.path("model"))
    if word == "float":
        return intake.load_own(state.path("float"))
    copy = state.workspace / "teacher.keras"
    if not copy.exists():
        intake.save(intake.load(Path(word), state.run.trust), copy)
    return intake.load_own(copy)


def _check_fits(student: Any, teacher: Any, where: str) -> None:
    """Refuse a teacher of another task.

    Raises:
        RecipeError: its inputs or outputs are others.
    """
    for what, ours, theirs in (
        ("inputs", student.inputs, teacher.inputs),
        ("outputs", student.outputs, teacher.outputs),
    ):
        shapes = [[tuple(tensor.shape[1:]) for tensor in tensors] for tensors in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise RecipeError(
                f"{where}.teacher: its {what} have the shapes {shapes[1]}, those of the model that is trained {shapes[0]}. Give a teacher "
                "of the same task."
            )


def _pairs(student: Any, teacher: Any, options: Attention, where: str) -> list[tuple[str, str]]:
    """The layers whose maps are compared: the student's name, the teacher's.

    Raises:
        RecipeError: there are none, or what is named is not there or not of the same places.
    """
    ours, theirs = _places(student), _places(teacher)
    if isinstance(options.layers, dict):
        pairs = [(_known(name, ours, where), _known(other, theirs, where)) for name, other in options.layers.items()]
    elif options.layers:
        named = [name for name in ours if any(re.fullmatch(word, name) for word in options.layers)]
        if not named:
            _known(options.layers[0], ours, where)
        pairs = [(name, _known(name, theirs, where)) for name in named]
    else:
        last = {places: name for name, places in ours.items() if theirs.get(name) == places}
        pairs = [(name, name) for name in last.values()]
    if not pairs:
        raise RecipeError(
            f"{where}: student and teacher have no layer of one name whose outputs have places (height, width or steps) that are the "
            "same. Name the layers: `layers: {student's: teacher's}`."
        )
    apart = [f"'{one}' {ours[one]} and '{other}' {theirs[other]}" for one, other in pairs if ours[one] != theirs[other]]
    if apart:
        raise RecipeError(f"{where}.layers: {apart[0]} have different places. Choose layers of one resolution.")
    return pairs


def _known(name: str, known: Mapping[str, Any], where: str) -> str:
    if name not in known:
        raise RecipeError(
            f"{where}.layers: there is no layer '{name}' with places.{registry.suggestion(name, known)} Known: {', '.join(known)}."
        )
    return name


def _places(model: Any) -> dict[str, tuple[int | None, ...]]:
    """The places of the outputs of every layer that has more than one, by its name, in the network's order; not of inputs."""
    shapes = {
        name: layer.output.shape
        for name, layer in _named(model).items()
        if not isinstance(layer, keras.layers.InputLayer)
        and len(layer.inbound_nodes) == 1
        and not isinstance(layer.output, (list, tuple, dict))
    }
    return {
        name: tuple(shape[1:-1])
        for name, shape in shapes.items()
        if len(shape) > 2 and np.prod([size or 2 for size in shape[1:-1]]) > 1
    }


def distance(loss: Any, temperature: float) -> Distance:
    """How far an output of the student is from the teacher's, by what the task's loss says that it is.

    Args:
        loss: of the task: mean squared error, binary or sparse categorical cross-entropy.
        temperature: > 0; of no account for regression.
    """
    if isinstance(loss, keras.losses.MeanSquaredError):
        return lambda teacher, student: tf.reduce_mean(tf.square(teacher - student))
    raw = bool(loss.get_config()["from_logits"])
    scores = _pair if isinstance(loss, keras.losses.BinaryCrossentropy) else _scores

    def divergence(teacher: Any, student: Any) -> Any:
        wanted, found = (tf.nn.log_softmax(scores(outputs, raw) / temperature) for outputs in (teacher, student))
        per_answer = tf.reduce_sum(tf.exp(wanted) * (wanted - found), axis=-1)
        return temperature**2 * tf.reduce_mean(per_answer)

    return divergence


def _scores(outputs: Any, raw: bool) -> Any:
    """Class scores; of probabilities their logarithms, which differ from the scores by a constant."""
    return outputs if raw else tf.math.log(tf.maximum(outputs, LEAST))


def _pair(outputs: Any, raw: bool) -> Any:
    """The scores of both answers to a yes-or-no question."""
    if raw:
        return tf.stack([outputs, tf.zeros_like(outputs)], axis=-1)
    return _scores(tf.stack([outputs, 1.0 - outputs], axis=-1), raw)


class _Distilled(keras.Model):
    """The student's layers with a training step of their own; evaluation is Keras' own."""

    weight: float
    apart: Callable[[Any, Any], Any]
    extended: Callable[[Any], tuple[list[Any], Callable[[Any], Any], Any]] | None = None

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        replicas = float(
            tf.distribute.get_strategy().num_replicas_in_sync
        )  # whose gradients are summed; Keras' loss knows
        with tf.GradientTape() as tape:
            if self.extended:
                answers, apart, further = self.extended(x)
                outputs = tf.nest.pack_sequence_as(self._nested_outputs, answers)
                loss = self.compute_loss(x, y, outputs, sample_weight)
                total = (1.0 - self.weight) * loss + (self.weight * apart(outputs) + further) / replicas
            else:
                outputs = self(x, training=True)
                loss = self.compute_loss(x, y, outputs, sample_weight)
                total = (1.0 - self.weight) * loss + self.weight * self.apart(x, outputs) / replicas
        self.optimizer.minimize(total, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)
