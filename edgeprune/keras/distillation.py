"""Knowledge distillation: a model trained on another one's outputs besides the labels.

For class scores z of the student and t of the teacher, softened by a temperature T,

    loss = (1 - weight) * task loss + weight * T^2 * KL(softmax(t / T) || softmax(z / T))

where T^2 keeps the gradients' size the same for every temperature; a single score counts as (z, 0). For regression the
second term is the mean squared error to the teacher's output, without T. (Hinton, Vinyals and Dean 2015, "Distilling the
knowledge in a neural network".)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeprune.keras import keras, tf

LEAST = 1e-7  # of a probability, before its logarithm is taken
Distance = Callable[[Any, Any], Any]  # the teacher's output, the student's -> scalar


def distilled(student: Any, teacher: Any, loss: Any, weight: float, temperature: float) -> Any:
    """A model to be trained in the student's place: the same layers and variables, another loss.

    Args:
        student: functional; training the result trains it.
        teacher: functional, with the same inputs and outputs; it runs as at inference and does not change.
        loss: the task's Keras loss (`training.Objective`), which says what the outputs are; of several outputs, one each.
        weight: share of the teacher's part of the loss, 0..1.
        temperature: > 0; higher tells more of the classes that are not the answer.

    Returns:
        An uncompiled functional model. Its ``fit`` reports the task's loss alone, so that it can be compared.
    """
    distances = [distance(each, temperature) for each in tf.nest.flatten(loss)]
    outputs = student.outputs if len(student.outputs) > 1 else student.outputs[0]
    model = _Distilled(student.inputs, outputs, name=student.name)
    model.weight = weight
    model.apart = lambda x, given: tf.add_n(
        [
            far(wanted, found)
            for far, wanted, found in zip(
                distances, tf.nest.flatten(teacher(x, training=False)), tf.nest.flatten(given), strict=True
            )
        ]
    )
    return model


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

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            loss = self.compute_loss(x, y, outputs, sample_weight)
            total = (1.0 - self.weight) * loss + self.weight * self.apart(x, outputs)
        self.optimizer.minimize(total, self.trainable_variables, tape=tape)
        return self.compute_metrics(x, y, outputs, sample_weight)
