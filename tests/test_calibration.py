"""Fitting a few non-negative constants, and judging them on what they were not fitted on."""

import numpy as np
import pytest

from edgeprune import calibration


def random_features(seed=0, figures=24, constants=4):
    return np.random.default_rng(seed).uniform(0.1, 10, (figures, constants))


def test_known_constants_are_found():
    features, constants = random_features(), np.array([0.35, 0.0, 2.0, 0.75])
    assert calibration.fit(features, features @ constants) == pytest.approx(constants, abs=1e-9)


def test_columns_of_very_different_size_are_found_too():
    features = random_features() * np.array([1e9, 1.0, 1e-6, 1.0])
    constants = np.array([3e-10, 0.5, 4e5, 0.1])
    assert calibration.fit(features, features @ constants) == pytest.approx(constants, rel=1e-6)


def test_no_constant_is_negative_and_the_others_make_up_for_it():
    features = random_features(1, constants=2)
    found = calibration.fit(features, features @ np.array([2.0, -0.05]))
    assert found[1] == 0 and found[0] > 0
    alone = calibration.fit(features[:, :1], features @ np.array([2.0, -0.05]))
    assert found[0] == pytest.approx(alone[0])


def test_it_is_the_best_of_all_non_negative_constants():
    random = np.random.default_rng(2)
    features, figures = random_features(2), random.uniform(1, 20, 24)
    found = calibration.fit(features, figures)

    def loss(constants):
        return float(np.sum((features @ constants / figures - 1) ** 2))

    for _ in range(500):
        other = np.maximum(0, found + random.normal(0, 0.05, 4))
        assert loss(other) >= loss(found) - 1e-9


def test_relative_errors_are_fitted_so_that_small_figures_count_as_much():
    features, figures = np.array([[1.0], [1.0]]), np.array([1.0, 100.0])
    found = calibration.fit(features, figures)
    assert found[0] == pytest.approx((1 + 0.01) / (1 + 0.0001))


def test_a_column_of_zeros_costs_nothing():
    features = random_features()
    features[:, 2] = 0
    assert calibration.fit(features, features @ np.ones(4))[2] == 0


@pytest.mark.parametrize("figure", [0.0, -1.0, np.nan, np.inf])
def test_a_figure_that_has_no_relative_error_is_refused(figure):
    with pytest.raises(ValueError, match="above 0"):
        calibration.fit(np.ones((2, 1)), np.array([1.0, figure]))


def test_too_many_constants_are_refused():
    with pytest.raises(ValueError, match="at most 10"):
        calibration.fit(np.ones((20, 11)), np.ones(20))


def test_errors_are_in_percent_and_the_worst_is_among_them():
    errors = calibration.judge(np.array([1.1, 1.8, 3.0]), np.array([1.0, 2.0, 3.0]))
    assert errors == (3, pytest.approx(20 / 3), pytest.approx(10), 1.0)


def test_the_rank_correlation_is_spearmans():
    assert calibration.rank_correlation(np.array([1, 2, 3, 4]), np.array([10, 20, 40, 30])) == pytest.approx(0.8)
    assert calibration.rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    assert calibration.rank_correlation(np.array([1, 1, 2]), np.array([1, 2, 3])) == pytest.approx(np.sqrt(3) / 2)


def test_a_family_is_judged_by_constants_that_never_saw_it():
    features = random_features(3, figures=12, constants=2)
    figures = features @ np.array([1.0, 0.5])
    families = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    figures[8:] *= 3  # what the others cannot know
    predicted = calibration.leave_one_out(features, figures, families)
    assert predicted[8:] == pytest.approx(figures[8:] / 3)
    without = calibration.fit(features[4:], figures[4:])
    assert predicted[:4] == pytest.approx(features[:4] @ without)


def test_one_family_cannot_be_left_out():
    with pytest.raises(ValueError, match="two are needed"):
        calibration.leave_one_out(np.ones((3, 1)), np.ones(3), ["a"] * 3)
