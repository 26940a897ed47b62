"""The update of the weights that remain, beside least squares on the samples themselves, and beside Hassibi's formula."""

import numpy as np
import pytest

from edgeprune import criteria, surgeon

RANDOM = np.random.default_rng(0)


def layer(samples=60, rows=6, outputs=3):
    """Inputs whose columns depend on each other, their second moment, weights."""
    inputs = RANDOM.normal(size=(samples, rows)) @ RANDOM.normal(size=(rows, rows))
    return inputs, inputs.T @ inputs / samples, RANDOM.normal(size=(rows, outputs))


def fitted(inputs, weights, keep):
    """Brute force: every output on its own, the least-squares fit of the inputs that it keeps to what it gave."""
    result = np.zeros_like(weights)
    for output in range(weights.shape[1]):
        rows = np.flatnonzero(keep[:, output])
        target = inputs @ weights[:, output]
        result[rows, output] = np.linalg.lstsq(inputs[:, rows], target, rcond=None)[0]
    return result


def test_by_hand():
    # C = [[2, 1], [1, 2]]; without the second weight the first takes over 1/2 of it: 2^-1 * 1 * 4
    found = surgeon.update(
        np.array([[3.0], [4.0]]), np.array([[2.0, 1.0], [1.0, 2.0]]), np.array([[True], [False]]), 0.0
    )
    np.testing.assert_allclose(found, [[5.0], [0.0]])


def test_single_weights_are_the_least_squares_fit():
    inputs, covariance, weights = layer()
    keep = RANDOM.random(weights.shape) < 0.6
    np.testing.assert_allclose(surgeon.update(weights, covariance, keep, 0.0), fitted(inputs, weights, keep))


def test_a_mask_of_input_channels_serves_all_outputs():
    inputs, covariance, weights = layer(rows=12)
    kernel = weights.reshape(2, 6, 3)
    keep = np.broadcast_to(np.array([True, False, True, True, False, True]), (2, 6))
    expected = fitted(inputs, weights, np.repeat(keep.reshape(12, 1), 3, axis=1)).reshape(2, 6, 3)
    np.testing.assert_allclose(surgeon.update(kernel, covariance, keep, 0.0), expected)
    of_all = np.repeat(keep[..., None], 3, axis=-1)
    np.testing.assert_allclose(surgeon.update(kernel, covariance, of_all, 0.0), expected)


def test_damping_is_what_samples_along_each_axis_would_do():
    inputs, covariance, weights = layer()
    keep = RANDOM.random(weights.shape) < 0.5
    added = np.sqrt(0.1 * np.trace(covariance) / 6) * np.eye(6)
    damped = np.vstack([inputs / np.sqrt(len(inputs)), added])
    np.testing.assert_allclose(surgeon.update(weights, covariance, keep, 0.1), fitted(damped, weights, keep))


def test_one_by_one_in_any_order_arrives_at_the_same():
    """Hassibi's update, w - w_q [H^-1]_:q / [H^-1]_qq, and the inverse Hessian without q, step by step."""
    _, covariance, weights = layer(outputs=1)
    gone = [4, 0, 3]
    keep = ~np.isin(np.arange(6), gone)[:, None]
    expected = surgeon.update(weights, covariance, keep, 0.0)[:, 0]
    for order in (gone, gone[::-1]):
        moved, inverse = weights[:, 0].copy(), np.linalg.inv(covariance)
        for q in order:
            moved -= moved[q] / inverse[q, q] * inverse[:, q]
            inverse -= np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
            inverse[q, q] = 1.0  # q is gone: its row and column are 0
            moved[q] = 0.0
        np.testing.assert_allclose(moved, expected, atol=1e-10)


def test_the_error_that_is_left_is_what_the_criterion_foretells():
    _, covariance, weights = layer()
    damped = covariance + criteria.DAMPING * np.trace(covariance) / 6 * np.eye(6)
    scores = criteria.obs(weights, covariance)
    for row in range(6):
        keep = np.ones(6, bool)
        keep[row] = False
        change = surgeon.update(weights, covariance, keep, criteria.DAMPING) - weights
        np.testing.assert_allclose(np.einsum("io,ij,jo->o", change, damped, change) / 2, scores[row])


def test_the_layer_gives_nearly_what_it_gave_when_an_input_is_twice_there():
    inputs, _, weights = layer(rows=5)
    inputs = np.column_stack([inputs, inputs[:, 2]])
    weights = np.vstack([weights, RANDOM.normal(size=3)])
    covariance = inputs.T @ inputs / len(inputs)
    keep = np.array([True, True, True, True, True, False])
    found = surgeon.update(weights, covariance, keep, 0.0)
    np.testing.assert_allclose(inputs @ found, inputs @ weights)
    plain = np.where(keep[:, None], weights, 0.0)
    assert (
        np.square(inputs @ found - inputs @ weights).sum() < 1e-6 * np.square(inputs @ plain - inputs @ weights).sum()
    )


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_degenerate_layers(damping):
    weights = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    keep = np.array([[True, False], [False, False]])
    nothing = surgeon.update(weights, np.zeros((2, 2)), keep, damping)
    np.testing.assert_array_equal(nothing, [[1.0, 0.0], [0.0, 0.0]])
    assert nothing.dtype == np.float32
    whole = surgeon.update(weights, np.eye(2), np.ones((2, 2), bool), damping)
    np.testing.assert_array_equal(whole, weights)
    np.testing.assert_array_equal(weights, [[1.0, 2.0], [3.0, 4.0]])
    # a kept input that is always 0 keeps its weight
    found = surgeon.update(
        np.array([[1.0], [3.0], [5.0]]), np.diag([0.0, 2.0, 2.0]), np.array([True, True, False]), damping
    )
    np.testing.assert_allclose(found, [[1.0], [3.0], [0.0]])


@pytest.mark.parametrize(
    ("covariance", "keep", "damping", "message"),
    [
        (np.eye(3), np.ones((2, 2), bool), 0.0, r"input_covariance is \(3, 3\).* must be \(2, 2\)"),
        (np.eye(2), np.ones((1, 2), bool), 0.0, r"keep is \(1, 2\); it must be \(2, 2\), or \(2,\)"),
        (np.eye(2), np.ones((2, 2), bool), -1.0, "damping must be >= 0, got -1"),
    ],
)
def test_what_does_not_fit(covariance, keep, damping, message):
    with pytest.raises(ValueError, match=message):
        surgeon.update(np.ones((2, 2)), covariance, keep, damping)
