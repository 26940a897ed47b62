"""The distance to a teacher by hand, and a student that is nothing but itself afterwards."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, samples, small, state, weights

from edgeprune import recipe
from edgeprune.errors import RecipeError
from edgeprune.keras import distillation, intake, tf, training
from edgeprune.pipelines import train
from edgeprune.training_options import Attention, Distillation

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


# which teacher, in any stage


def stage(folder, model, label="train", **roles):
    """A state that was handed a model."""
    made = state(folder, label=label)
    return made.add(files={"model": intake.save(model, Path(folder) / "given.keras"), **roles})


def options(**distill):
    return (
        recipe.load({"name": "x", "stages": {"train": {"epochs": 1, "batch_size": 16, "distill": distill}}})
        .stages[0]
        .options
    )


def test_attention_maps_by_hand():
    # energies (1, 4) and (4, 4): maps (1, 4) / sqrt(17) and (1, 1) / sqrt(2)
    one = tf.constant([[[1.0, 0.0], [0.0, 2.0]]])
    other = tf.constant([[[2.0], [-2.0]]])
    wanted = ((1 / 17**0.5 - 1 / 2**0.5) ** 2 + (4 / 17**0.5 - 1 / 2**0.5) ** 2) / 2
    assert float(distillation.attention_distance(one, other)) == pytest.approx(wanted, abs=1e-6)
    assert float(distillation.attention_distance(one, 3.0 * one)) == pytest.approx(0.0, abs=1e-12)


def test_a_step_goes_down_the_attention_too():
    student, teacher = cnn(seed=1), cnn(seed=2)
    x, y = (part[:6] for part in samples())
    goal, pairs = CLASSES(), [("stem", "stem"), ("depth", "plain")]
    slopes = _slopes(student, teacher, goal, pairs, x, y)
    wanted = [value - 0.1 * slope for value, slope in zip(student.trainable_weights, slopes, strict=True)]
    wanted = [value.numpy() for value in wanted]
    twin = cnn(seed=1)
    model = distillation.distilled(twin, teacher, goal, 0.3, 3.0, pairs, 50.0)
    model.compile(keras.optimizers.SGD(0.1), goal)
    model.train_on_batch(x, y)
    for found, expected in zip(twin.trainable_weights, wanted, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def _slopes(student, teacher, goal, pairs, x, y):
    """The gradients of the loss as the module's docstring has it."""
    ours, theirs = (
        keras.Model(model.inputs, [*model.outputs, *(model.get_layer(pair[side]).output for pair in pairs)])
        for side, model in enumerate((student, teacher))
    )
    with tf.GradientTape() as tape:
        found, wanted = ours(x, training=True), theirs(x, training=False)
        maps = [distillation.attention_distance(w, f) for w, f in zip(wanted[1:], found[1:], strict=True)]
        total = 0.7 * goal(y, found[0]) + 0.3 * distillation.distance(goal, 3.0)(wanted[0], found[0])
        total += 50.0 * tf.add_n(maps)
    return tape.gradient(total, student.trainable_weights)


def test_the_last_layer_of_every_resolution_is_compared_unless_named(tmp_path):
    before = stage(tmp_path, cnn(seed=2)).add(stages=[{"name": "earlier"}])
    pairs = functools.partial(distillation._pairs, cnn(), intake.load_own(before.path("model")))
    assert pairs(Attention(), "x") == [("depth_relu", "depth_relu")]
    assert pairs(Attention(layers=["p.*n"]), "x") == [("plain", "plain")]
    assert pairs(Attention(layers={"stem": "depth"}), "x") == [("stem", "depth")]
    with pytest.raises(RecipeError, match=r"no layer 'steem' with places\. Did you mean 'stem'"):
        pairs(Attention(layers=["steem"]), "x")
    with pytest.raises(RecipeError, match="different places"):
        distillation._pairs(cnn(), small(), Attention(layers={"stem": "conv"}), "x")


def test_a_teacher_by_path_is_kept_with_the_run(tmp_path):
    """Wider than the student; gone from its place, the stage goes on with its copy."""
    path, student = tmp_path / "teacher.keras", small(dropout=0.0)
    intake.save(cnn(seed=5), path)
    (tmp_path / "run").mkdir()
    before = stage(tmp_path / "run", student)
    words = options(teacher=str(path))
    history = training.fit(student, before, words, training.objective(student, "classification"))
    assert len(history) == 1
    path.unlink()
    again = distillation.taught(small(dropout=0.0), before, words.distill, CLASSES())
    assert again.weight == 0.5


def test_it_learns_from_the_float_reference_through_wrappers(tmp_path):
    """Pruning with TFMOT: the student's layers are wrapped, and are compared with the teacher's of the same name."""
    from edgeprune.keras import pruning
    from edgeprune.pipelines import prune

    reference = intake.save(cnn(seed=3), tmp_path / "float.keras")
    before = stage(tmp_path, cnn(), "prune", float=reference)
    words = {"epochs": 1, "batch_size": 16, "distill": {"teacher": "float", "attention": {}}}
    spec = recipe.load({"name": "x", "stages": {"prune": words}}).stages[0]
    after = prune.run(before, spec.options)
    masks = pruning.load_masks(after.path("masks"))
    assert all(0.3 < 1 - mask.mean() < 0.7 for mask in masks.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"teacher": "flaot"}, "Did you mean 'float'"),
        ({"teacher": "best.onnx"}, "ends in .keras, .h5"),
        ({"weight": 1.5}, "less than or equal to 1"),
        ({"attention": {"weight": 0}}, "greater than 0"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(words, said):
    with pytest.raises(RecipeError, match=said):
        options(**words)


def test_a_teacher_of_another_task_is_refused(tmp_path):
    before = stage(tmp_path, dense(3)).add(stages=[{"name": "earlier"}])
    with pytest.raises(RecipeError, match=r"stages.train.distill.teacher: its inputs have the shapes \[\(8,\)\]"):
        distillation.taught(small(), before, Distillation(), CLASSES())


def test_an_untrained_model_has_nothing_to_teach_itself(tmp_path):
    with pytest.raises(RecipeError, match="not trained yet"):
        train.run(stage(tmp_path, small()), options())
