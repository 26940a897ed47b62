"""Every criterion by hand, beside a trusted implementation where there is one, and the contract of the family."""

import inspect
import re

import numpy as np
import pytest
import scipy.stats
from sklearn.feature_selection import f_classif
from sklearn.metrics.pairwise import cosine_distances, euclidean_distances

from edgeprune import catalogue, criteria, granularity, registry

RANDOM = np.random.default_rng(0)
WEIGHTS = np.array([[[-3.0, 0.5], [0.0, -0.25]]], np.float32)  # (1, 2, 2): one place, two inputs, two outputs


def scatter(channels, samples=50, centred=False):
    values = RANDOM.normal(size=(samples, channels)) @ RANDOM.normal(size=(channels, channels))
    return np.atleast_2d(np.cov(values.T)) if centred else values.T @ values / samples


def signals(shape=(3, 3, 4, 6)):
    """One of each signal for a kernel of that shape, by the name that a criterion gives its parameter."""
    *_, inputs, outputs = shape
    rows = int(np.prod(shape[:-1]))
    return {
        "weights": RANDOM.normal(size=shape).astype(np.float32),
        "gradients": RANDOM.normal(size=shape).astype(np.float32),
        "gradient_squares": RANDOM.random(shape),
        "hessian_diagonal": RANDOM.normal(size=shape),
        "hessian_gradient": RANDOM.normal(size=shape),
        "synflow_gradients": RANDOM.random(shape),
        "input_covariance": scatter(rows),
        "scale": RANDOM.normal(size=outputs),
        "input_scale": RANDOM.normal(size=inputs),
        "activation_means": RANDOM.random(outputs),
        "zero_shares": RANDOM.random(outputs),
        "activation_gram": scatter(outputs),
        "activation_covariance": scatter(outputs, centred=True),
        "activation_histogram": RANDOM.integers(0, 9, (outputs, 10)),
        "activation_ranks": RANDOM.random(outputs) * 4,
        "activation_nuclear_norms": RANDOM.random(outputs) * 4,
        "activation_gradients": RANDOM.random(outputs),
        "class_means": RANDOM.normal(size=(3, outputs)),
        "class_variances": RANDOM.random((3, outputs)),
        "class_counts": np.array([5, 1, 9]),
        "seed": 3,
    }


def score(name, given):
    function = registry.function("criteria", name)
    return function(**{signal: given[signal] for signal in inspect.signature(function).parameters})


def dead(given):
    """The same signals of a layer that does nothing at all."""
    return {name: np.zeros_like(value) if name != "seed" else value for name, value in given.items()}


# The contract of the family


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (5, 4), (1, 1), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("name", registry.names("criteria"))
def test_scores_are_finite_not_negative_and_of_the_right_shape(name, shape):
    given = signals(shape)
    before = {signal: np.copy(value) for signal, value in given.items()}
    for values in (given, dead(given)):
        scores = score(name, values)
        assert scores.shape in (shape, shape[-1:])
        assert scores.dtype == np.float64
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        assert not any(np.shares_memory(scores, value) for value in values.values())
    for signal, value in given.items():
        np.testing.assert_array_equal(value, before[signal])


@pytest.mark.parametrize("name", registry.names("criteria"))
def test_a_criterion_says_where_it_is_from_and_what_it_costs(name):
    text = inspect.getdoc(registry.function("criteria", name))
    found = catalogue.criterion(name)  # refuses a docstring without equation, paper or cost
    assert len(catalogue.describe("criteria")[name]) <= 120
    assert set(found.signals) <= set(signals())
    assert re.match(r"score [=~] \S", found.equation)
    assert re.match(r"(none|a |one |two )", found.cost)
    assert found.per_weight == (score(name, signals((2, 5, 3))).shape == (2, 5, 3))
    assert "Args:" in text and "Returns:" in text


def test_a_docstring_without_its_parts_is_refused(monkeypatch):
    monkeypatch.setattr(criteria.l2, "__doc__", "The square: score = w^2.")
    with pytest.raises(ValueError, match=r'criteria\.l2 lacks Author et al\., "Title" \(year\), Cost: \.\.\.'):
        catalogue.criterion("l2")


def test_every_pooling_named_is_there():
    assert set(criteria.POOLING) <= set(registry.names("criteria"))
    assert set(criteria.POOLING.values()) <= set(granularity.POOLINGS)


@pytest.mark.parametrize("name", sorted(set(registry.names("criteria")) - {"random"}))
@pytest.mark.parametrize("order", [[3, 0, 5, 1, 2, 4], [5, 4, 3, 2, 1, 0]], ids=str)
def test_the_order_of_the_output_channels_does_not_matter(name, order):
    """Channels that are renumbered keep their scores."""
    given, order = signals((3, 4, 6)), np.array(order)
    renumbered = {}
    for signal, value in given.items():
        if signal in ("activation_gram", "activation_covariance"):
            renumbered[signal] = value[np.ix_(order, order)]
        elif signal == "activation_histogram":
            renumbered[signal] = value[order]
        elif signal in ("input_covariance", "input_scale", "class_counts", "seed"):
            renumbered[signal] = value
        else:
            renumbered[signal] = value[..., order]
    np.testing.assert_allclose(score(name, renumbered), score(name, given)[..., order], rtol=1e-9, atol=1e-12)


QUADRATIC = {"l2", "taylor", "taylor_channel", "obd", "obs", "fisher"}  # in the weights
LINEAR = {"magnitude", "linf", "snip", "synflow", "synaptic_strength", "fpgm"}
CONSTANT = {"l0", "lamp", "weight_entropy", "cosine", "correlation", "random"}


@pytest.mark.parametrize("name", sorted(QUADRATIC | LINEAR | CONSTANT))
def test_what_a_larger_scale_does(name):
    given = signals()
    larger = {
        **given,
        **{signal: 4.0 * given[signal] for signal in ("weights", "activation_gram", "activation_covariance")},
    }
    factor = 16.0 if name in QUADRATIC else 4.0 if name in LINEAR else 1.0
    np.testing.assert_allclose(score(name, larger), factor * score(name, given), rtol=1e-9, atol=1e-12)


# Norms


def test_magnitude():
    np.testing.assert_array_equal(criteria.magnitude(WEIGHTS), [[[3.0, 0.5], [0.0, 0.25]]])


@pytest.mark.parametrize(
    ("name", "order", "by_hand"),
    [
        ("magnitude", 1, [7.0, 0.75]),  # 3 + 4, 0.5 + 0.25
        ("l2", 2, [5.0, 0.3125**0.5]),  # root of 9 + 16, of 0.25 + 0.0625
        ("linf", np.inf, [4.0, 0.5]),
        ("l0", 0, [2.0, 2.0]),
    ],
)
def test_over_a_channel_the_norms_are_the_norms(name, order, by_hand):
    weights = np.array([[-3.0, 0.5], [0.0, 0.0], [4.0, -0.25]])
    channel = granularity.channel(criteria.POOLING.get(name, "sum"))
    np.testing.assert_allclose(channel.reduce(score(name, {"weights": weights})), by_hand)
    kernel = RANDOM.normal(size=(3, 3, 4, 5))
    expected = np.linalg.norm(kernel.reshape(-1, 5), ord=order, axis=0)
    np.testing.assert_allclose(channel.reduce(score(name, {"weights": kernel})), expected)


def test_l2_and_l0_by_hand():
    np.testing.assert_array_equal(criteria.l2(WEIGHTS), [[[9.0, 0.25], [0.0, 0.0625]]])
    np.testing.assert_array_equal(criteria.l0(WEIGHTS), [[[1.0, 1.0], [0.0, 1.0]]])


def test_random_is_the_seeds_and_nothing_elses():
    one = criteria.random(WEIGHTS, 1)
    np.testing.assert_array_equal(one, criteria.random(7 * WEIGHTS, 1))
    assert (one != criteria.random(WEIGHTS, 2)).all()
    assert 0.49 < criteria.random(np.zeros((100, 1000)), 0).mean() < 0.51


# Gradients and curvature


def test_taylor():
    weights, gradients = np.array([[2.0, 1.0], [-1.0, 3.0]]), np.array([[0.5, -1.0], [2.0, 1.0]])
    # g w = [[1, -1], [-2, 3]]
    np.testing.assert_array_equal(criteria.taylor(weights, gradients), [[1.0, 1.0], [4.0, 9.0]])
    np.testing.assert_array_equal(criteria.taylor_channel(weights, gradients), [1.0, 4.0])  # (1 - 2)^2, (-1 + 3)^2
    np.testing.assert_array_equal(criteria.snip(weights, gradients), [[1.0, 1.0], [2.0, 3.0]])


def test_taylor_activation():
    np.testing.assert_array_equal(criteria.taylor_activation(np.array([0.5, 2.0], np.float32)), [0.5, 2.0])


def test_second_order():
    weights, gradients = np.array([[2.0, -1.0]]), np.array([[0.5, 1.0]])
    hessian = np.array([[3.0, -4.0]])
    # g w - h w^2 / 2: 1 - 3 * 4 / 2 = -5 and -1 + 4 / 2 = 1
    np.testing.assert_array_equal(criteria.taylor_second(weights, gradients, hessian), [[25.0, 1.0]])
    # h w^2 / 2: 3 * 4 / 2; the curvature -4 counts as 0
    np.testing.assert_array_equal(criteria.obd(weights, hessian), [[6.0, 0.0]])


def test_taylor_second_is_exact_for_a_quadratic_loss():
    weights, centre, hessian = RANDOM.normal(size=(3, 4, 5))

    def loss(w):
        return (hessian * (w - centre) ** 2 / 2).sum()

    without = [loss(weights) - loss(weights * (np.arange(20).reshape(4, 5) != n)) for n in range(20)]
    found = criteria.taylor_second(weights, hessian * (weights - centre), hessian)
    np.testing.assert_allclose(found.ravel(), np.square(without))


def test_fisher():
    # F w^2 / 2: 0.5 * 4 / 2, 2 * 9 / 2
    found = criteria.fisher(np.array([[2.0, -3.0]]), np.array([[0.5, 2.0]]))
    np.testing.assert_array_equal(found, [[1.0, 9.0]])


def test_obs_by_hand():
    # H = [[2, 1], [1, 2]] + 0.01 * 2 I = [[2.02, 1], [1, 2.02]]; [H^-1]_qq = 2.02 / (2.02^2 - 1) for both rows
    found = criteria.obs(np.array([[2.0, 1.0], [0.0, -3.0]]), np.array([[2.0, 1.0], [1.0, 2.0]]))
    inverse = 2.02 / 3.0804
    np.testing.assert_allclose(found, [[4 / (2 * inverse), 1 / (2 * inverse)], [0.0, 9 / (2 * inverse)]])


def test_obs_is_half_the_error_that_the_best_other_weights_leave():
    """Brute force: without each weight in turn, the least-squares fit of the others to the layer's outputs."""
    inputs, weights = RANDOM.normal(size=(40, 5)) @ RANDOM.normal(size=(5, 5)), RANDOM.normal(size=(5, 3))
    covariance = inputs.T @ inputs / len(inputs)
    # The damping is what samples of sqrt(d) times each unit vector would add
    damped = np.vstack([inputs / np.sqrt(len(inputs)), np.sqrt(0.01 * np.trace(covariance) / 5) * np.eye(5)])
    target = damped @ weights
    expected = np.empty((5, 3))
    for gone in range(5):
        others = np.delete(damped, gone, axis=1)
        fit = np.linalg.lstsq(others, target, rcond=None)[0]
        expected[gone] = np.square(others @ fit - target).sum(axis=0) / 2
    np.testing.assert_allclose(criteria.obs(weights, covariance), expected)


def test_grasp():
    # x = w (H g) = 0.75, -0.75, 0; x + sqrt(1 + x^2) = 0.75 + 1.25, -0.75 + 1.25, 1
    found = criteria.grasp(np.array([[1.5, 1.5, 1.0]]), np.array([[0.5, -0.5, 0.0]]))
    np.testing.assert_allclose(found, [[2.0, 0.5, 1.0]])


def test_grasp_keeps_the_order_of_very_large_and_small_flows():
    flow = np.array([-1e200, -1e9, -1e8, -1.0, -1e-12, 0.0, 1e-12, 1.0, 1e9, 1e200])
    assert (np.diff(criteria.grasp(np.ones(10), flow)) > 0).all()


def test_grasp_keeps_what_the_gradient_flow_needs():
    """Of the loss (3 a^2 + b^2) / 2 the squared gradient is 9 a^2 + b^2: without a more of it is lost."""
    weights, curvature = np.array([[1.0, 1.0]]), np.array([[3.0, 1.0]])
    a, b = criteria.grasp(weights, curvature * (curvature * weights))[0]
    assert a > b


def test_synflow():
    # R = |w2| |w1| with w1 = -2, w2 = 3: dR/d|w1| = 3, so the score of w1 is 6, as is that of w2
    assert criteria.synflow(np.array([[-2.0]]), np.array([[3.0]])) == [[6.0]]
    assert criteria.synflow(np.array([[3.0]]), np.array([[2.0]])) == [[6.0]]


# Weights alone


def test_lamp():
    # squares 1, 9, 4, 0; sums of all that are as large: 14, 9, 13, 14
    np.testing.assert_allclose(criteria.lamp(np.array([[1.0, -3.0], [2.0, 0.0]])), [[1 / 14, 1.0], [4 / 13, 0.0]])


def test_lamp_of_equal_weights_puts_the_first_first():
    np.testing.assert_allclose(criteria.lamp(np.array([[2.0, 2.0]])), [[1.0, 0.5]])


def test_lamp_keeps_the_order_of_the_magnitudes():
    weights = RANDOM.normal(size=(3, 3, 4, 5))
    order = np.argsort(np.abs(weights), axis=None)
    np.testing.assert_array_equal(np.argsort(criteria.lamp(weights), axis=None), order)


def test_slimming():
    np.testing.assert_array_equal(criteria.slimming(np.array([-0.5, 0.0, 2.0])), [0.5, 0.0, 2.0])


def test_synaptic_strength():
    weights = np.array([[[3.0, 0.0], [1.0, 2.0]], [[-4.0, 1.0], [0.0, -2.0]]])  # (2 places, 2 inputs, 2 outputs)
    # norms over the places: in 0: 5, 1; in 1: 1, root 8; times |gamma| = 2 and 0.5
    synapses = np.array([[10.0, 2.0], [0.5, 2**0.5]])
    np.testing.assert_allclose(criteria.synaptic_strength(weights, np.array([2.0, -0.5])), [synapses, synapses])


def test_fpgm_by_hand():
    # filters (0, 0), (3, 4), (0, 4): distances 5 and 4, 5 and 3, 4 and 3
    np.testing.assert_allclose(criteria.fpgm(np.array([[0.0, 3.0, 0.0], [0.0, 4.0, 4.0]])), [9.0, 8.0, 7.0])


def test_fpgm_beside_scikit_learn():
    weights = RANDOM.normal(size=(3, 3, 2, 7))
    expected = euclidean_distances(weights.reshape(-1, 7).T).sum(axis=1)
    np.testing.assert_allclose(criteria.fpgm(weights), expected)


def test_weight_entropy_by_hand():
    # the range -1..1 has 32 bins; column 0 lies in one of them, column 1 half and half in two: ln 2
    weights = np.array([[1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    np.testing.assert_allclose(criteria.weight_entropy(weights), [0.0, np.log(2)], atol=1e-15)


def test_weight_entropy_beside_scipy():
    weights = RANDOM.normal(size=(3, 3, 8, 5))
    columns = weights.reshape(-1, 5)
    counts = [np.histogram(column, bins=32, range=(columns.min(), columns.max()))[0] for column in columns.T]
    np.testing.assert_allclose(criteria.weight_entropy(weights), scipy.stats.entropy(counts, axis=1))


# Activations


def test_activation_entropy():
    counts = np.array([[4, 0, 0, 0], [1, 1, 1, 1], [6, 2, 0, 0]])
    # ln 1; ln 4; -(3/4 ln 3/4 + 1/4 ln 1/4) = 0.562335
    np.testing.assert_allclose(criteria.activation_entropy(counts), [0.0, np.log(4), 0.562335], atol=1e-6)
    counts = RANDOM.integers(1, 50, (5, 12))
    np.testing.assert_allclose(criteria.activation_entropy(counts), scipy.stats.entropy(counts, axis=1))


def test_means_and_ranks_are_the_scores():
    given = np.array([0.25, 3.0], np.float32)
    for function in (criteria.activation_mean, criteria.hrank, criteria.nuclear_norm):
        np.testing.assert_array_equal(function(given), [0.25, 3.0])


def test_apoz():
    np.testing.assert_allclose(criteria.apoz(np.array([0.0, 0.9, 1.0])), [1.0, 0.1, 0.0])


def test_cosine_by_hand():
    # directions at 0, 60 and 90 degrees: cosines 0.5, 0 and cos 30 = 0.866025. The closest pair is 60 and 90; 60 is nearer
    # to the third as well and goes at 1 - 0.866025; of 0 and 90, equally far, the last goes at 1 - 0; the one left scores 1
    angles = np.radians([0.0, 60.0, 90.0])
    directions = np.stack([np.cos(angles), np.sin(angles)])
    lengths = np.array([1.0, 5.0, 0.1])  # do not matter
    gram = (directions * lengths).T @ (directions * lengths)
    np.testing.assert_allclose(criteria.cosine(gram), [1.0, 0.133975, 1.0], atol=1e-6)


def test_of_twins_one_stays():
    activations = RANDOM.random((30, 3))
    twins = np.column_stack([activations, activations[:, 0] * 2])
    found = criteria.cosine(twins.T @ twins)
    assert sorted(found < 1e-9) == [False, False, False, True]
    found = criteria.correlation(np.cov(twins.T))
    assert np.argmin(found) in (0, 3)
    assert np.sort(found[[0, 3]])[1] > np.sort(found[[0, 3]])[0] + 0.2


def test_the_first_to_go_is_the_closest_by_scikit_learn():
    activations = RANDOM.random((30, 8))
    distances = cosine_distances(activations.T) + 2 * np.eye(8)
    found = criteria.cosine(activations.T @ activations)
    np.testing.assert_allclose(found.min(), distances.min())
    assert np.argmin(found) in np.argwhere(np.isclose(distances, distances.min()))


def test_correlation_by_hand():
    # correlations: 0-1 0.8, 0-2 -0.6, 1-2 0; sums 1.4, 0.8, 0.6. 0 goes first at 1 - 1.4 / 2; 1 and 2 are then left with 0
    correlations = np.array([[1.0, 0.8, -0.6], [0.8, 1.0, 0.0], [-0.6, 0.0, 1.0]])
    deviations = np.array([2.0, 0.1, 7.0])  # do not matter
    found = criteria.correlation(correlations * np.outer(deviations, deviations))
    np.testing.assert_allclose(found, [0.3, 1.0, 1.0])


def test_correlation_of_equal_sums_the_largest_single_one_decides():
    # sums 1, 1, 1, 0.5; channels 0 and 1 have 0.75 with each other, channel 2 at most 0.5. Of 0 and 1 the last goes, at 1 - 1 / 3;
    # then 2, at 1 - 0.75 / 3; 0 and 3 are left with 0
    given = np.eye(4)
    for one, other, value in ((0, 1, 0.75), (0, 2, 0.25), (1, 2, 0.25), (2, 3, 0.5)):
        given[one, other] = given[other, one] = value
    np.testing.assert_allclose(criteria.correlation(given), [1.0, 2 / 3, 0.75, 1.0])


def test_the_first_to_go_is_the_most_correlated_by_numpy():
    activations = RANDOM.random((30, 8)) @ RANDOM.random((8, 8))
    sums = np.abs(np.corrcoef(activations.T)).sum(axis=1) - 1
    found = criteria.correlation(np.cov(activations.T))
    assert np.argmin(found) == np.argmax(sums)
    np.testing.assert_allclose(found.min(), 1 - sums.max() / 7)


def test_channels_that_say_nothing_score_0():
    """A dead channel, and one that is constant."""
    activations = np.column_stack([RANDOM.random((30, 2)), np.zeros(30), np.full(30, 2.0)])
    assert criteria.cosine(activations.T @ activations)[2] == 0
    np.testing.assert_array_equal(criteria.correlation(np.cov(activations.T))[2:], [0.0, 0.0])


def test_lda_by_hand():
    # class means 0 and 2 of 1 and 3 samples: mean 1.5, B = 1 * 2.25 + 3 * 0.25 = 3; W = 1 * 0 + 3 * 1 = 3; 3 / 6
    # the second channel has the same mean in both classes: B = 0
    found = criteria.lda(np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[0.0, 1.0], [1.0, 2.0]]), np.array([1, 3]))
    np.testing.assert_allclose(found, [0.5, 0.0])


def test_lda_has_the_order_of_scikit_learns_f_statistic():
    labels = np.repeat([0, 1, 2], [20, 5, 15])
    activations = RANDOM.normal(size=(40, 6)) + labels[:, None] * RANDOM.normal(size=6)
    of_class = [activations[labels == label] for label in range(3)]
    found = criteria.lda(
        np.stack([values.mean(axis=0) for values in of_class]),
        np.stack([values.var(axis=0) for values in of_class]),
        np.bincount(labels),
    )
    ratio = f_classif(activations, labels)[0] * (3 - 1) / (40 - 3)  # F = (B / (k - 1)) / (W / (n - k))
    np.testing.assert_allclose(found, ratio / (1 + ratio))
