"""Every granularity by hand: the scores of its groups, and the mask that keeps some of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import granularity
from edgeprune.errors import RecipeError

SCORES = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])  # 2 inputs, 4 outputs
PLACES = np.stack([SCORES, 10 * SCORES])  # a kernel of two places


def test_weight():
    kind = granularity.weight()
    np.testing.assert_array_equal(kind.reduce(PLACES), PLACES)
    np.testing.assert_array_equal(kind.expand(PLACES > 3, PLACES.shape), PLACES > 3)


def test_block():
    kind = granularity.block(2, 2)
    np.testing.assert_array_equal(
        kind.reduce(PLACES), [[[14.0, 22.0]], [[140.0, 220.0]]]
    )  # 1 + 2 + 5 + 6, 3 + 4 + 7 + 8
    mask = kind.expand(np.array([[[True, False]], [[False, True]]]), PLACES.shape)
    np.testing.assert_array_equal(mask[0], [[True, True, False, False]] * 2)
    np.testing.assert_array_equal(mask[1], [[False, False, True, True]] * 2)
    np.testing.assert_array_equal(granularity.block(1, 4).reduce(SCORES), [[10.0], [26.0]])
    np.testing.assert_array_equal(granularity.block(2, 1, "max").reduce(SCORES), [[5.0, 6.0, 7.0, 8.0]])


def test_n_of_m_turns_scores_into_places_in_their_run():
    scores = np.array([[3.0], [1.0], [2.0], [9.0], [5.0], [5.0], [5.0], [0.0]])
    kind = granularity.n_of_m(2, 4)
    np.testing.assert_array_equal(kind.reduce(scores).ravel(), [3, 1, 2, 4, 4, 3, 2, 1])  # of equals the first is best
    assert kind.sparsities == (0.0, 0.25, 0.5)


def test_channel_and_neuron():
    for kind in (granularity.channel(), granularity.neuron()):
        np.testing.assert_array_equal(kind.reduce(SCORES), [6.0, 8.0, 10.0, 12.0])
        np.testing.assert_array_equal(kind.reduce(PLACES), [66.0, 88.0, 110.0, 132.0])
        keep = np.array([True, False, False, True])
        np.testing.assert_array_equal(kind.expand(keep, PLACES.shape), np.broadcast_to(keep, (2, 2, 4)))


def test_input_channels():
    kind = granularity.channel(axis=-2)
    np.testing.assert_array_equal(kind.reduce(PLACES), [110.0, 286.0])  # 10 + 100, 26 + 260
    np.testing.assert_array_equal(kind.expand(np.array([False, True]), (2, 2, 4))[:, 0].any(), False)
    assert kind.expand(np.array([False, True]), (2, 2, 4))[:, 1].all()


def test_scores_of_channels_stay_as_they_are():
    kind, scores = granularity.channel("root"), np.array([4.0, 9.0])
    np.testing.assert_array_equal(kind.reduce(scores), scores)
    np.testing.assert_array_equal(kind.expand(np.array([True, False]), (2,)), [True, False])


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("sum", [6.0, 8.0]), ("mean", [3.0, 4.0]), ("max", [5.0, 6.0]), ("root", [6**0.5, 8**0.5])],
)
def test_poolings(pooling, expected):
    np.testing.assert_allclose(granularity.channel(pooling).reduce(SCORES[:, :2]), expected)


def test_kernel():
    kind = granularity.kernel("max")
    np.testing.assert_array_equal(kind.reduce(PLACES), 10 * SCORES)
    np.testing.assert_array_equal(kind.expand(SCORES > 3, PLACES.shape), np.stack([SCORES > 3] * 2))


def test_layer():
    kind = granularity.layer()
    np.testing.assert_array_equal(kind.reduce(SCORES), [4.5])
    np.testing.assert_array_equal(kind.expand(np.array([False]), (2, 4)), np.zeros((2, 4), bool))
    assert kind.whole


@pytest.mark.parametrize(
    ("make", "scores", "message"),
    [
        (lambda: granularity.block(3, 2), SCORES, "kernel of 2x4 .* is not made of 3x2 blocks"),
        (lambda: granularity.block(0, 2), SCORES, "rows of a block must be >= 1, got 0"),
        (lambda: granularity.block(1, 2), np.ones(4), r"block 1x2 needs a score per weight.* \(4,\)"),
        (lambda: granularity.n_of_m(2, 4), SCORES, "2 input channels cannot carry 2:4"),
        (lambda: granularity.n_of_m(4, 4), SCORES, "keeps 4 of 4. Give n:m with 1 <= n < m"),
        (lambda: granularity.n_of_m(1, 2), np.ones(4), "1:2 needs a score per weight"),
        (lambda: granularity.kernel(), np.ones(4), "kernel needs a score per weight"),
        (lambda: granularity.channel("median"), SCORES, "no pooling 'median'. Known: sum, mean, max, root"),
    ],
)
def test_what_cannot_be(make, scores, message):
    with pytest.raises(RecipeError, match=message):
        make().reduce(scores)


KINDS = {
    "weight": granularity.weight(),
    "block": granularity.block(2, 3),
    "n:m": granularity.n_of_m(1, 2),
    "channel": granularity.channel(),
    "input channel": granularity.channel(axis=-2),
    "kernel": granularity.kernel(),
    "layer": granularity.layer(),
}


@pytest.mark.parametrize("name", KINDS)
@given(
    places=st.sampled_from([(), (1,), (3,), (3, 2)]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_groups_are_a_partition(name, places, inputs, outputs, seed):
    """Every weight is in exactly one group, and a kept group is kept whole."""
    kind, random = KINDS[name], np.random.default_rng(seed)
    shape = (*places, 2 * inputs, 3 * outputs)
    scores = random.random(shape)
    before = scores.copy()
    groups = kind.reduce(scores)
    np.testing.assert_array_equal(scores, before)
    count = np.zeros(shape, int)
    for index in np.ndindex(groups.shape):
        keep = np.zeros(groups.shape, bool)
        keep[index] = True
        count += kind.expand(keep, shape)
    np.testing.assert_array_equal(count, 1)
