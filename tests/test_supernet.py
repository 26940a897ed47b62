"""A super-net: sub-nets are cuts, training makes them better, what is judged is what the cut model gives, and all by seed."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from keras_models import CLASSES, SHAPE, assert_identical, keras, layers, samples, state, weights

from edgeprune import data, metrics, progress
from edgeprune.errors import RecipeError
from edgeprune.keras import candidates, gated, supernet, surgery, tf, training, trials
from edgeprune.recipe import FitOptions
from edgeprune.search_space import CRITERION, Knob, Space
from edgeprune.training_options import Penalty

OPTIONS = FitOptions(epochs=6, batch_size=32, learning_rate=0.003)
SHORT = FitOptions(epochs=2, batch_size=128, learning_rate=0.003)


@functools.cache
def given():
    return data.load(samples(400), data.DataOptions(calibration=32, validation=0.3))


def network():
    """A group of two layers whose channels are added, one that goes into a Dense layer, Dropout and BatchNormalization."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="image")
    stem = layers.ReLU()(layers.BatchNormalization(name="bn1")(layers.Conv2D(8, 3, 2, name="stem")(inputs)))
    x = layers.Add(name="add")([stem, layers.Conv2D(8, 1, name="point")(stem)])
    x = layers.ReLU()(layers.BatchNormalization(name="bn2")(layers.Conv2D(8, 1, name="last")(x)))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="tiny")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """The network, trained, with its samples."""
    place = state(tmp_path_factory.mktemp("plain"), samples=given())
    training.start(0)
    model = network()
    goal = training.objective(model, given().tasks)
    training.fit(model, place, FitOptions(epochs=6, batch_size=32, learning_rate=0.01), goal)
    return trials.Trials(model, given(), metrics.choose(given().task, None), 200)


@pytest.fixture(scope="module")
def space(subject):
    return candidates.space(subject, multiple=2, choices={CRITERION: ("taylor",)})


@pytest.fixture(scope="module")
def judge(subject, space, tmp_path_factory):
    return supernet.judge(subject, space, 0, tmp_path_factory.mktemp("net"), progress.Silent(), OPTIONS)


def some(space):
    generator = np.random.default_rng(0)
    return [space.smallest(), space.uniform(0.5), *(space.random(generator) for _ in range(6))]


# sub-nets


def test_a_subnet_computes_what_the_cut_network_does(subject, space):
    scores = space.scores("taylor")
    widths = {knob.name: supernet.Width(knob, scores[knob.name]) for knob in space.knobs}
    slim = gated.along_channels(subject.model, subject.coupling, widths)
    assert len(widths) == 2
    x = given().validation.x[:32]
    for candidate in some(space)[:4]:
        for name, width in widths.items():
            width.count.assign(candidate[name])
        small = surgery.shrink(subject.model, space.cut(candidate))
        assert np.allclose(slim(x), small(x), atol=1e-6)


def test_the_units_that_take_part_are_those_that_a_cut_keeps():
    knob = Knob("group", 5, (1, 3, 5))
    scores = np.array([1.0, 3.0, 1.0, 3.0, 2.0])
    over = Space((knob,), {}, lambda candidate: {}, {}, lambda criterion: {"group": scores})
    width = supernet.Width(knob, scores)
    for count in range(1, 5):
        width.count.assign(count)
        taking_part = np.flatnonzero(width.effective(tf.ones(5), True).numpy())
        assert taking_part.tolist() == over.cut({"group": count})["group"]


def test_a_step_draws_its_subnets_from_seed_and_number():
    widths = [supernet.Width(Knob(name, 8, (2, 4, 6, 8)), np.arange(8)) for name in "abcdef"]
    goal = SimpleNamespace(loss=keras.losses.MeanSquaredError())

    def drawn(seed, step):
        found = []
        for _ in supernet._Sandwich(widths, goal, seed).subnets(tf.constant(step, tf.int64)):
            found.append([int(width.count) for width in widths])
        return found

    assert drawn(0, 3) == drawn(0, 3)
    many = [drawn(0, step) for step in range(40)]
    assert all(narrowest == [2] * 6 and len(set(even)) == 1 for narrowest, even, _ in many)
    assert {even[0] for _, even, _ in many} == {2, 4, 6, 8}
    assert {count for _, _, own in many for count in own} == {2, 4, 6, 8}
    assert sum(len(set(own)) > 1 for _, _, own in many) > 30
    assert drawn(0, 3) != drawn(1, 3)


# training


def test_training_makes_subnets_better(subject, space, judge):
    """Than the trained network's own, and than those of one that was trained on for as many steps without them."""
    proxy = candidates.Proxy(subject, space)
    before = [proxy(candidate).drop for candidate in some(space)]
    after = [judge(candidate).drop for candidate in some(space)]
    assert np.mean(after) < np.mean(before) - 0.05
    assert judge(space.whole()).drop < 0.02


def test_one_step_adds_up_the_gradients_of_all_four(subject, space):
    """By hand: labels for the whole network, its outputs for the others; the moving statistics are those of the whole one alone."""
    scores = space.scores("taylor")
    widths = [supernet.Width(knob, scores[knob.name]) for knob in space.knobs]
    names = [knob.name for knob in space.knobs]
    goal = training.objective(subject.model, given().tasks)
    sandwich = supernet._Sandwich(widths, goal, 0)
    plain = gated.along_channels(subject.model, subject.coupling, dict(zip(names, widths, strict=True)))
    for layer in plain.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    slim = supernet._slimmable(plain, sandwich)
    slim.compile(keras.optimizers.SGD(1.0), goal.loss, metrics=[goal.metric])
    x, y = given().train.x[:32], given().train.y[:32]
    moving = [variable.numpy() for variable in supernet._moving(slim)]
    before = [variable.numpy() for variable in slim.trainable_variables]

    def loss(kind, wanted=None):
        with tf.GradientTape() as tape:
            outputs = plain(x, training=True)
            value = goal.loss(y, outputs) if kind == "labels" else keras.losses.KLDivergence()(wanted, outputs)
        return outputs, tape.gradient(value, slim.trainable_variables)

    sandwich.whole()
    wanted, total = loss("labels")
    after_whole = [variable.numpy() for variable in supernet._moving(slim)]
    for _ in sandwich.subnets(tf.constant(0, tf.int64)):
        total = [one + other for one, other in zip(total, loss("wanted", tf.stop_gradient(wanted))[1], strict=True)]
    for variable, values in zip(supernet._moving(slim), moving, strict=True):
        variable.assign(values)
    slim.train_on_batch(x, y)
    for variable, start, gradient in zip(slim.trainable_variables, before, total, strict=True):
        assert np.allclose(variable.numpy(), start - gradient.numpy(), atol=2e-5)
    for variable, values in zip(supernet._moving(slim), after_whole, strict=True):
        assert np.allclose(variable.numpy(), values, atol=1e-5)
    assert [int(width.count) for width in widths] == [knob.units for knob in space.knobs]


class Killed(progress.Silent):
    """Ends the process, as it were, at the end of an epoch, before that is kept."""

    def __init__(self, epoch):
        self.epoch = epoch

    def step(self, done, total, unit, **values):
        if done >= self.epoch:
            raise KeyboardInterrupt


@pytest.mark.long
def test_a_killed_training_goes_on_and_a_finished_one_is_only_read(tmp_path, monkeypatch):
    monkeypatch.setattr(supernet, "RANDOM", 1)
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE, name="image")
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(8, 3, 2, activation="relu", name="conv")(inputs))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax", name="classes")(x), name="tiny")
    space = Space((Knob("conv", 8, (2, 5, 8)),), {}, lambda candidate: {}, {}, lambda criterion: {"conv": np.arange(8)})

    def trained(folder, shown):
        (tmp_path / folder).mkdir(exist_ok=True)
        place = supernet.Place(given(), 0, shown, tmp_path / folder)
        return weights(supernet.train(model, space, place, SHORT).model)

    unbroken = trained("unbroken", progress.Silent())
    with pytest.raises(KeyboardInterrupt):
        trained("killed", Killed(2))
    assert_identical(trained("killed", progress.Silent()), unbroken)
    assert_identical(trained("killed", Killed(0)), unbroken)  # any training would end it


def test_another_supernet_has_another_folder(subject, space):
    names = {
        supernet.key(subject, space, 0, SHORT),
        supernet.key(subject, space, 1, SHORT),
        supernet.key(subject, space, 0, OPTIONS),
        supernet.key(subject, candidates.space(subject, multiple=4), 0, SHORT),
    }
    assert len(names) == 4


def test_a_penalty_or_another_teacher_is_refused(subject, space, tmp_path):
    place = supernet.Place(given(), 0, progress.Silent(), tmp_path)
    with pytest.raises(RecipeError, match="Leave both out"):
        supernet.train(subject.model, space, place, FitOptions(penalty=Penalty()))


# judging


def test_what_is_judged_is_what_the_cut_model_gives(subject, space, judge):
    for candidate in some(space)[:4]:
        small = judge.cut(candidate)
        value = subject.metric(subject.split.y, training.outputs(small, subject.split))
        assert judge(candidate).drop == pytest.approx(judge.reference - value, abs=1e-5)
        assert small.get_layer("last").kernel.shape[-1] == candidate["last"]


def test_drops_are_against_the_network_that_was_given(subject, space, judge):
    assert judge.reference == candidates.Proxy(subject, space).reference
    value = subject.metric(subject.split.y, training.outputs(judge.net.model, subject.split))
    assert judge(space.whole()).drop == pytest.approx(judge.reference - value, abs=0.02)  # statistics of fewer samples


def test_judging_leaves_no_trace(space, judge):
    first = [judge(candidate).drop for candidate in some(space)]
    assert [judge(candidate).drop for candidate in reversed(some(space))] == first[::-1]
