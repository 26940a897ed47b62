"""Proximal steps by hand, by their conditions of optimality and by scikit-learn; what acts after every step of an optimizer."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from keras_models import cnn, dense, keras, layers
from sklearn.linear_model import ElasticNet, Lasso

from edgeprune import catalogue, channels, penalties, recipe, registry
from edgeprune.errors import RecipeError
from edgeprune.keras import channel_graph, constraints, coupled, penalised, surgery, tf
from edgeprune.training_options import Penalty

KINDS = registry.names("penalties")
FURTHER = {"mix": 0.5, "epsilon": 0.2, "sizes": np.full(4, 6.0)}


def values(seed=0, shape=(6, 4)):
    return np.random.Generator(np.random.PCG64(seed)).normal(size=shape)


def step_of(kind, weights, step, strength, xp=np):
    """A penalty's proximal step with plausible further arguments."""
    function = registry.function("penalties", kind)
    kind_of = getattr(weights, "dtype", None) if xp is np else np.float32
    further = {**FURTHER, "sizes": FURTHER["sizes"].astype(kind_of), "chosen": (values(9) > 0).astype(kind_of)}
    wanted = {name: further[name] for name in inspect.signature(function).parameters if name in further}
    return function(weights, step, strength, **wanted, xp=xp)


# the family


@pytest.mark.parametrize("kind", KINDS)
def test_every_penalty_shrinks_and_keeps_signs_and_zeros(kind):
    given = values()
    given[2, 1] = 0.0
    for step in (0.3, np.exp(values(1))):
        found = step_of(kind, given, step, 0.4)
        assert found.shape == given.shape
        assert found[2, 1] == 0.0
        assert (np.abs(found) <= np.abs(given)).all()
        assert (found * given >= 0).all()
        np.testing.assert_allclose(step_of(kind, given, step, 0.0), given, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_tensorflow_does_the_same_arithmetic(kind):
    given, steps = values().astype("float32"), np.exp(values(1)).astype("float32")
    for step in (np.float32(0.3), steps):
        wanted = step_of(kind, given.astype(float), step.astype(float), 0.4)
        found = step_of(kind, tf.constant(given), tf.constant(step), 0.4, penalised.Library)
        np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_penalty_says_its_equation_and_its_paper(kind):
    purpose = catalogue.describe("penalties")[kind]
    assert ": P = " in purpose
    assert catalogue.PAPER.search(" ".join((registry.function("penalties", kind).__doc__ or "").split()))


# by hand, and by what an optimum must satisfy: (z - w) / step is in strength * dP(w)


def test_l1_by_hand():
    # threshold 0.5 * 0.4 = 0.2
    np.testing.assert_allclose(penalties.l1(np.array([1.0, -0.3, 0.2, 0.1]), 0.5, 0.4), [0.8, -0.1, 0.0, 0.0])


def test_elastic_net_by_hand():
    # L1: 1 - 0.5 * 0.4 * 0.25 = 0.95; L2: / (1 + 0.5 * 0.4 * 0.75) = 0.95 / 1.15
    assert penalties.elastic_net(np.array([1.0]), 0.5, 0.4, 0.25) == pytest.approx(0.95 / 1.15)


def test_adaptive_by_hand():
    # strengths 0.4 * 0.1 / (1 + 0.1) and 0.4 * 0.1 / (0.1 + 0.1); thresholds half of that
    found = penalties.adaptive(np.array([1.0, 0.1]), 0.5, 0.4, 0.1)
    np.testing.assert_allclose(found, [1 - 0.02 / 1.1, 0.0])


def test_growing_moves_only_what_was_chosen():
    found = penalties.growing(np.array([2.0, 2.0]), 0.5, 2.0, np.array([1.0, 0.0]))
    np.testing.assert_allclose(found, [1.0, 2.0])


def test_group_lasso_by_hand():
    # norms 5 and 1; threshold 0.5 * 1 * sqrt(2) = 0.7071: factors 1 - 0.14142 and 1 - 0.7071; at 1.5: 2.1213 > 1
    groups = np.array([[3.0, 1.0], [4.0, 0.0]])
    found = penalties.group_lasso(groups, 0.5, 1.0, np.full(2, 2.0))
    np.testing.assert_allclose(found, groups * [1 - 0.5 * 2**0.5 / 5, 1 - 0.5 * 2**0.5])
    assert penalties.group_lasso(groups, 1.5, 1.0, np.full(2, 2.0))[:, 1].tolist() == [0.0, 0.0]


def test_sparse_group_lasso_by_hand():
    # L1 with 0.2: (2.8, 0.8) -> norm sqrt(8.48); group: 1 - 0.2 sqrt(2) / that
    found = penalties.sparse_group_lasso(np.array([[3.0], [-1.0]]), 0.4, 1.0, np.full(1, 2.0), 0.5)
    np.testing.assert_allclose(found[:, 0], np.array([2.8, -0.8]) * (1 - 0.2 * 2**0.5 / 8.48**0.5))


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0, 3.0])
def test_in_a_metric_of_its_own_a_group_is_at_its_optimum(strength):
    given, steps, sizes = values(0, (20, 50)), np.exp(values(1, (20, 50))), np.full(50, 20.0)
    found = penalties.group_lasso(given, steps, strength, sizes)
    norm, pull = np.linalg.norm(found, axis=0), strength * np.sqrt(20)
    alive = norm > 0
    slopes = ((given - found) / steps)[:, alive]
    np.testing.assert_allclose(slopes, pull * found[:, alive] / norm[alive], atol=0.01 * pull)
    assert (np.linalg.norm((given / steps)[:, ~alive], axis=0) <= pull).all()


# options


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"kind": "lasso"}, "no such penalty"),
        ({"kind": "l1", "mix": 0.3}, "l1 has no mix"),
        ({"kind": "group_lasso", "epsilon": 0.3, "choose": "channels"}, "no epsilon and no choose"),
        ({"kind": "l2", "sparsity": 0.5}, "none zero"),
        ({"include": "("}, "not a regular expression"),
        ({"strength": 0}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_met_are_refused(words, said):
    with pytest.raises(RecipeError, match=said) as error:
        recipe.load({"name": "x", "stages": {"train": {"penalty": words}}})
    assert "stages.train.penalty" in str(error.value)


# at work


def linear(inputs, units=1):
    keras.utils.set_random_seed(0)
    x = keras.Input((inputs,))
    return keras.Model(x, layers.Dense(units, use_bias=False, name="d")(x))


def planted(samples=200, inputs=40, true=8, seed=0):
    """A regression problem whose answer hangs on its first inputs alone."""
    random = np.random.Generator(np.random.PCG64(seed))
    x = random.normal(size=(samples, inputs))
    slopes = np.zeros(inputs)
    slopes[:true] = random.normal(size=true) + np.sign(random.normal(size=true))
    y = x @ slopes + 0.3 * random.normal(size=samples)
    return x.astype("float32"), y.astype("float32")[:, None], slopes


def descended(model, penalty, x, y, steps, optimizer):
    """Train on all samples at once; what the penalty has to tell."""
    optimizer.build(model.trainable_variables)
    x, y = tf.constant(x), tf.constant(y)
    with constraints.restored(model.trainable_variables):
        found = penalised.attach(model, optimizer, penalty, steps)

        @tf.function
        def run():
            for _ in tf.range(steps):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(x) - y))
                slopes = tape.gradient(loss, model.trainable_variables)
                optimizer.apply_gradients(zip(slopes, model.trainable_variables, strict=True))

        run()
        return float(found.zeros()), float(found.strength())


def sgd(rate=0.02):
    return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("words", "peer"),
    [
        ({"kind": "l1", "strength": 0.2}, Lasso(alpha=0.1, fit_intercept=False, tol=1e-8)),
        (
            {"kind": "elastic_net", "strength": 0.4, "mix": 0.5},
            ElasticNet(alpha=0.2, l1_ratio=0.5, fit_intercept=False, tol=1e-8),
        ),
    ],
)
def test_the_minimum_is_that_of_scikit_learn(words, peer):
    """Its loss is half of the mean squared error, so its alpha is half of the strength."""
    x, y, _ = planted()
    model = linear(40)
    descended(model, Penalty(**words), x, y, 600, sgd())
    wanted = peer.fit(x.astype(float), y[:, 0].astype(float)).coef_
    found = model.get_layer("d").kernel.numpy()[:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert ((found == 0) == (wanted == 0)).all()


@pytest.mark.parametrize("kind", ["l1", "adaptive"])
def test_a_learned_strength_recovers_the_planted_support(kind):
    x, y, slopes = planted()
    model = linear(40)
    zeros, strength = descended(model, Penalty(kind=kind, strength=0.001, sparsity=0.8), x, y, 400, sgd())
    found = model.get_layer("d").kernel.numpy()[:, 0]
    assert zeros == pytest.approx(0.8, abs=0.051)
    assert strength > 0.001
    assert ((found != 0) == (slopes != 0)).mean() >= 0.9


def test_adam_ends_where_descent_does():
    x, y, _ = planted()
    model = linear(40)
    rate = keras.optimizers.schedules.CosineDecay(0.05, 1500)
    descended(model, Penalty(strength=0.2), x, y, 1500, keras.optimizers.Adam(rate, beta_2=0.9))
    wanted = Lasso(alpha=0.1, fit_intercept=False, tol=1e-8).fit(x.astype(float), y[:, 0].astype(float)).coef_
    np.testing.assert_allclose(model.get_layer("d").kernel.numpy()[:, 0], wanted, atol=0.01)


def two_layers(hidden=12, seed=0):
    """A hidden layer whose units can go; what reads them is not trained, so the problem is convex."""
    model = dense(hidden, 3, inputs=10, seed=seed, use_bias=False)
    model.get_layer("d1").activation = keras.activations.linear
    model.get_layer("d2").trainable = False
    return model


def test_group_lasso_meets_its_conditions_of_optimality():
    random = np.random.Generator(np.random.PCG64(3))
    x = random.normal(size=(100, 10)).astype("float32")
    y = (x[:, :2] @ random.normal(size=(2, 3))).astype("float32")
    model, strength = two_layers(), 0.08
    zeros, _ = descended(model, Penalty(kind="group_lasso", strength=strength), x, y, 1500, sgd(0.05))
    kernel = model.get_layer("d1").kernel
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    slope, weights = tape.gradient(loss, kernel).numpy(), kernel.numpy()
    norms, pull = np.linalg.norm(weights, axis=0), strength * np.sqrt(10)
    alive = norms > 0
    assert 0 < alive.sum() < 12 and zeros == pytest.approx(1 - alive.mean())
    np.testing.assert_allclose(slope[:, alive], -pull * weights[:, alive] / norms[alive], atol=2e-3)
    assert (np.linalg.norm(slope[:, ~alive], axis=0) <= pull + 1e-6).all()


# one step by hand


def one_step(model, optimizer, penalty, slopes, steps=100):
    """The kernels after so many steps with the same gradients."""
    optimizer.build(model.trainable_variables)
    with constraints.restored(model.trainable_variables):
        found = penalised.attach(model, optimizer, penalty, steps)
        for slope in slopes:
            optimizer.apply_gradients([(tf.fill(v.shape, slope), v) for v in model.trainable_variables])
        return found


def test_adams_steps_are_in_its_own_metric():
    model = linear(3)
    model.set_weights([np.array([[1.0], [0.5], [-1.0]], "float32")])
    one_step(model, keras.optimizers.Adam(0.1, epsilon=0.0), Penalty(strength=0.5), [2.0])
    # Adam's first step is 0.1 whatever the gradient; the threshold 0.1 * 0.5 / |2| = 0.025
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [0.875, 0.375, -1.075], atol=1e-5)


def test_momentum_reaches_as_far_as_a_gradient_lives():
    model = linear(1)
    model.set_weights([np.array([[10.0]], "float32")])
    found = one_step(model, sgd(0.1), Penalty(strength=1.0), [0.0, 0.0])
    # reach: 0.1, 0.19; nesterov: 0.1 + 0.9 * reach = 0.19, 0.271
    assert model.get_weights()[0][0, 0] == pytest.approx(10 - 0.19 - 0.271, abs=1e-5)
    assert [variable.numpy() for variable in found.variables] == [pytest.approx(0.19)]


def test_growing_chooses_the_smallest_and_its_strength_rises():
    model = linear(4)
    model.set_weights([np.array([[1.0], [-0.1], [0.2], [2.0]], "float32")])
    penalty = Penalty(kind="growing", strength=4.0, sparsity=0.5)
    found = one_step(model, keras.optimizers.SGD(0.5), penalty, [0.0, 0.0], steps=4)
    # strengths 1 and 2: / (1 + 0.5) / (1 + 1) = / 3
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [1.0, -0.1 / 3, 0.2 / 3, 2.0], atol=1e-6)
    assert found.variables[0].numpy()[:, 0].tolist() == [0, 1, 1, 0]
    assert float(found.strength()) == 2.0


def test_a_mask_has_the_last_word_and_the_models_own_constraint_the_first():
    x = keras.Input((2,))
    model = keras.Model(x, layers.Dense(2, use_bias=False, kernel_constraint="non_neg", name="d")(x))
    kernel = model.get_layer("d").kernel
    kernel.assign([[1.0, -1.0], [1.0, 1.0]])
    own = kernel.constraint
    with constraints.restored(model.trainable_variables):
        constraints.hold(kernel, np.array([[True, True], [False, True]]))
        constraints.step(kernel, lambda value: value + 0.25)
        keras.optimizers.SGD(0.1).apply_gradients([(tf.zeros((2, 2)), kernel)])
        assert kernel.numpy().tolist() == [[1.25, 0.25], [0.0, 1.25]]
    assert kernel.constraint is own


# coupled channels


def test_all_that_makes_a_unit_is_of_its_group():
    blocks, whole = coupled.blocks(cnn())
    assert {block.name: [part.variable.name.split(":")[0] for part in block.parts] for block in blocks} == {
        "stem": ["stem/kernel", "stem_bn/gamma", "stem_bn/beta"],
        "plain": ["plain/kernel", "plain/bias", "depth/depthwise_kernel", "depth/bias"],
        "hidden": ["hidden/kernel", "hidden/bias"],
    }
    assert set(whole) == {"classes"}
    assert [block.sizes[0] for block in blocks] == [9 * 4 + 2, 8 + 1 + 9 + 1, 8 + 1]


def tangled():
    """A unit with several channels (Flatten, LSTM), units of different makers (Concatenate), an axis that is not the last."""
    x = keras.Input((4, 4, 3), name="x")
    left = layers.Conv2DTranspose(4, 2, name="left")(x)
    right = layers.Conv2D(6, 2, padding="same", name="right")(layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(x))
    both = layers.BatchNormalization(name="norm")(layers.Concatenate(name="both")([left, right]))
    flat = layers.BatchNormalization(name="flat_norm")(layers.Flatten(name="flat")(both))
    steps = layers.Reshape((25, 10), name="steps")(flat)
    return keras.Model(x, layers.Dense(2, name="out")(layers.LSTM(5, name="lstm")(steps)))


@pytest.mark.parametrize("model", [cnn, tangled])
def test_a_matrix_holds_every_weight_once_and_gives_it_back(model):
    blocks, _ = coupled.blocks(model())
    assert blocks
    for block in blocks:
        given = [tf.constant(values(n, part.variable.shape), tf.float32) for n, part in enumerate(block.parts)]
        matrix = block.matrix(given)
        assert matrix.shape[1] == block.units
        assert ((matrix.numpy() != 0).sum(axis=0) == block.sizes).all()
        for one, other in zip(block.values(2.0 * matrix, given), given, strict=True):
            factors = np.unique(np.round(one.numpy() / other.numpy(), 5))
            assert set(factors) <= {1.0, 2.0} and 2.0 in factors


def test_what_a_groups_penalty_zeroes_can_be_removed_without_a_trace():
    model = cnn()
    kernel = model.get_layer("hidden").kernel
    kernel.assign(kernel * np.repeat([0.1, 2.0], [3, 5]))
    one_step(model, keras.optimizers.SGD(0.1), Penalty(kind="group_lasso", strength=1.2), [0.0])
    silent = {block.name: block.silent() for block in coupled.blocks(model)[0]}
    found, _ = coupled.alive(model, channels.couple(channel_graph.describe(model)))
    assert all(((found[name] == 0) == gone).all() for name, gone in silent.items())
    kept = {name: np.flatnonzero(~gone) for name, gone in silent.items() if 0 < gone.sum() < len(gone)}
    assert kept["hidden"].tolist() == [3, 4, 5, 6, 7]
    x = values(4, (3, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(surgery.shrink(model, kept)(x), model(x), atol=1e-6)


def test_slimming_is_of_the_scales_behind_channels_that_can_go():
    model = cnn()
    model.get_layer("stem_bn").gamma.assign(np.linspace(0.0, 0.7, 8))
    found = one_step(model, keras.optimizers.SGD(0.1), Penalty(kind="slimming", strength=2.0), [0.0])
    np.testing.assert_allclose(model.get_layer("stem_bn").gamma, np.maximum(np.linspace(-0.2, 0.5, 8), 0), atol=1e-6)
    assert float(found.zeros()) == 3 / 8


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        (lambda: linear(3), {"kind": "group_lasso"}, "no coupled channels"),
        (lambda: dense(4, 2), {"kind": "slimming"}, "with a BatchNormalization behind"),
        (lambda: dense(4, 2), {"include": "nothing"}, "leaves none of the layers"),
    ],
)
def test_a_penalty_of_nothing_is_refused(model, words, said):
    made = model()
    optimizer = sgd()
    optimizer.build(made.trainable_variables)
    with pytest.raises(RecipeError, match=said):
        penalised.attach(made, optimizer, Penalty(**words), 10, "stages.train.penalty")


def test_an_optimizer_whose_steps_are_not_known_is_refused():
    model = linear(3)
    with pytest.raises(RecipeError, match="SGD and Adam"):
        penalised.attach(model, keras.optimizers.RMSprop(), Penalty(), 10)
