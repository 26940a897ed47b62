"""The distance to a teacher by hand, and a student that is nothing but itself afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, samples, small, weights

from edgeprune.keras import distillation, tf, training

CLASSES = keras.losses.SparseCategoricalCrossentropy
BINARY = keras.losses.BinaryCrossentropy
TEACHER, STUDENT = np.array([[2.0, 0.0]], "float32"), np.array([[0.0, 0.0]], "float32")


def apart(loss, teacher, student, temperature=2.0):
    return float(distillation.distance(loss, temperature)(tf.constant(teacher), tf.constant(student)))


def softmax(scores):
    return (np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)).astype("float32")


def test_class_scores_by_hand():
    # softened by 2: p = e / (e + 1) = 0.731059, 0.268941 against 0.5, 0.5
    # KL = 0.731059 ln(1.462117) + 0.268941 ln(0.537883) = 0.277743 - 0.166769 = 0.110944; times T^2 = 4
    assert apart(CLASSES(from_logits=True), TEACHER, STUDENT) == pytest.approx(0.443776, abs=1e-5)


def test_probabilities_say_the_same_as_scores():
    scores = apart(CLASSES(from_logits=True), TEACHER, STUDENT)
    assert apart(CLASSES(), softmax(TEACHER), softmax(STUDENT)) == pytest.approx(scores, abs=1e-6)


def test_one_score_is_a_score_against_zero():
    both = apart(CLASSES(from_logits=True), TEACHER, STUDENT)
    assert apart(BINARY(from_logits=True), TEACHER[:, :1], STUDENT[:, :1]) == pytest.approx(both, abs=1e-6)
    sure = 1 / (1 + np.exp(-TEACHER[:, :1]))
    assert apart(BINARY(), sure.astype("float32"), np.array([[0.5]], "float32")) == pytest.approx(both, abs=1e-6)


def test_pixels_count_alike():
    teacher, student = np.stack([TEACHER, STUDENT], axis=1), np.stack([STUDENT, STUDENT], axis=1)
    both = apart(CLASSES(from_logits=True), TEACHER, STUDENT)
    assert apart(CLASSES(from_logits=True), teacher, student) == pytest.approx(both / 2, abs=1e-6)


def test_regression_is_the_squared_error_to_the_teacher():
    found = apart(keras.losses.MeanSquaredError(), np.array([[1.0], [4.0]]), np.array([[0.0], [2.0]]), 4.0)
    assert found == pytest.approx((1 + 4) / 2)


def test_probabilities_of_zero_are_finite():
    assert np.isfinite(apart(CLASSES(), np.array([[1.0, 0.0]], "float32"), np.array([[0.0, 1.0]], "float32")))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_step_goes_down_the_weighted_sum(weight):
    """One step of plain gradient descent, with the gradient of the loss as the docstring has it."""
    student, teacher = dense(3, inputs=2, seed=1), dense(3, inputs=2, seed=2)
    x, y = np.array([[0.5, -1.0], [2.0, 0.3]], "float32"), np.array([0, 2])
    goal = CLASSES(from_logits=True)
    with tf.GradientTape() as tape:
        far = distillation.distance(goal, 3.0)(teacher(x), student(x))
        total = (1 - weight) * goal(y, student(x)) + weight * far
    slopes = tape.gradient(total, student.trainable_weights)
    wanted = [value - 0.1 * slope for value, slope in zip(student.trainable_weights, slopes, strict=True)]
    before = teacher.get_weights()
    model = distillation.distilled(student, teacher, goal, weight, 3.0)
    model.compile(keras.optimizers.SGD(0.1), goal)
    task = float(goal(y, student(x)))
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(task, rel=1e-5)  # the task's part alone
    for found, expected in zip(student.get_weights(), wanted, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert all(np.array_equal(one, other) for one, other in zip(before, teacher.get_weights(), strict=True))


def test_only_the_student_is_trained_and_saved():
    student, teacher = small(), cnn()
    model = distillation.distilled(student, teacher, CLASSES(), 0.5, 4.0)
    assert [id(variable) for variable in model.variables] == [id(variable) for variable in student.variables]
    assert_identical(weights(model), weights(student))


def test_several_outputs_are_added():
    inputs = keras.Input((2,), name="x")
    one, two = keras.layers.Dense(3, name="one")(inputs), keras.layers.Dense(1, name="two")(inputs)
    student = keras.Model(inputs, [one, two])
    teacher = keras.models.clone_model(student)
    goal = training.objective(student, {"one": "classification", "two": "regression"})
    model = distillation.distilled(student, teacher, goal.loss, 0.5, 2.0)
    x = tf.constant(samples()[0][:4, 0, 0, :2])
    parts = [
        distillation.distance(loss, 2.0)(wanted, found)
        for loss, wanted, found in zip(goal.loss, teacher(x), student(x), strict=True)
    ]
    assert float(model.apart(x, student(x))) == pytest.approx(float(sum(parts)))
