"""How far two runs lie apart."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.agreement import Comparison, boundary_of, compare, worst
from edgeprune.errors import DataError


def raw(*rows):
    return np.array(rows, np.int8)


def test_equal_runs_agree_fully():
    scores = raw([1, 5, 2], [7, 0, 0])
    assert compare(scores, scores) == Comparison(1.0, 1.0, 0, 0.0, 0.0, 2)


def test_the_class_of_the_largest_score_counts_and_not_its_value():
    assert compare(raw([1, 5], [9, 0]), raw([4, 5], [8, 3])).agreement == 1.0
    assert compare(raw([1, 5], [9, 0]), raw([6, 5], [8, 3])).agreement == 0.5


def test_of_equal_scores_the_first_is_the_class():
    assert compare(raw([5, 5]), raw([5, 4])).agreement == 1.0
    assert compare(raw([5, 5]), raw([4, 5])).agreement == 0.0


def test_without_classes_only_equal_outputs_agree():
    assert compare(raw([1, 5], [9, 0]), raw([1, 5], [8, 0]), classes=False).agreement == 0.75


def test_differences_do_not_wrap_around_at_the_ends_of_int8():
    assert compare(raw([-128, 0]), raw([127, 0])).largest_difference_steps == 255


def test_rounding_cancels_in_the_systematic_difference_and_a_bias_does_not():
    reference = raw([10], [10], [10], [10])
    assert compare(raw([13], [7], [13], [7]), reference).systematic_difference_steps == 0.0
    assert compare(raw([13], [7], [13], [7]), reference).rms_difference_steps == 3.0
    assert compare(raw([13], [13], [13], [13]), reference).systematic_difference_steps == 3.0


def test_what_few_samples_show_by_chance_is_not_systematic():
    """4, 0, 4, 0: the mean is 2 and the deviation 2, so sqrt(2 ln 2) 2 / sqrt(4) = 1.18 of it is chance, more than half."""
    assert compare(raw([4], [0], [4], [0]), raw([0], [0], [0], [0])).systematic_difference_steps == 0.0


def test_more_samples_make_it_sure():
    """16 of 4 and 16 of 8: the mean is 6 and the deviation 2, so sqrt(2 ln 2) 2 / sqrt(32) = 0.42 of it is chance."""
    assert compare(raw(*[[4], [8]] * 16), raw(*[[0], [0]] * 16)).systematic_difference_steps == 6.0


def test_the_more_outputs_the_more_is_chance():
    """2, 6, 6, 6: the mean is 5 and the deviation 1.73; of one output 1.02 is chance, of a thousand sqrt(2 ln 2000) / 1.18 as much."""
    column = np.array([2, 6, 6, 6])
    alone = compare(raw(*column[:, None]), raw(*np.zeros((4, 1)))).systematic_difference_steps
    among = compare(raw(*np.repeat(column[:, None], 1000, 1)), raw(*np.zeros((4, 1000)))).systematic_difference_steps
    assert (alone, among) == (5.0, 0.0)


def test_the_systematic_difference_is_that_of_the_worst_output():
    assert compare(raw([0, 4], [0, 4]), raw([0, 0], [0, 0])).systematic_difference_steps == 4.0


def test_a_single_score_needs_the_boundary_between_the_classes():
    low, high = raw([-1], [3]), raw([-5], [-2])
    assert compare(low, high, boundary=0).agreement == 0.5
    assert compare(low, high).agreement == 0.0


def test_the_boundary_is_one_half_behind_a_sigmoid_and_zero_before_one():
    assert boundary_of(1 / 256, -128) == 0
    assert boundary_of(0.1, 7) == 8  # the first number above 0.0


def test_of_several_outputs_the_worst_figures_count():
    one, other = Comparison(1.0, 0.5, 1, 0.5, 0.1, 8), Comparison(0.9, 0.7, 3, 0.2, 0.0, 8)
    assert worst([one, other]) == Comparison(0.9, 0.5, 3, 0.5, 0.1, 8)


@pytest.mark.parametrize(("one", "other"), [(raw([1, 2]), raw([1])), (raw([1]), raw([1], [2])), (raw()[:0], raw()[:0])])
def test_outputs_that_do_not_belong_together_are_refused(one, other):
    with pytest.raises(DataError, match="cannot be compared"):
        compare(one, other)


def test_a_map_of_classes_agrees_pixel_by_pixel():
    one = np.zeros((2, 2, 2, 3), np.int8)
    other = one.copy()
    other[0, 0, 0, 2] = 1
    found = compare(one, other)
    assert found.agreement == pytest.approx(7 / 8)
    assert found.samples == 2
