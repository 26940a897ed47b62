"""Metrics against sums worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune import metrics
from edgeprune.errors import DataError, ModelError, NameUnknown
from edgeprune.metrics import METRICS, Metric, accuracy, auc, choose, drop, mae, mse, rmse, top5


def test_accuracy_takes_the_largest_score():
    assert accuracy(np.array([0, 1, 2, 2]), np.array([[9, 1, 0], [0, 5, 1], [3, 2, 1], [0, 1, 2]])) == 0.75


def test_accuracy_of_equal_scores_takes_the_first_class():
    assert accuracy(np.array([0, 1]), np.array([[7, 7], [7, 7]])) == 0.5


def test_one_output_in_0_to_1_is_a_probability():
    assert accuracy(np.array([0, 0, 1, 1]), np.array([[0.1], [0.5], [0.5], [0.9]])) == 0.75  # 0.5 counts as class 1


def test_one_output_beyond_0_to_1_is_a_logit():
    assert accuracy(np.array([0, 0, 1, 1]), np.array([-3.0, 0.0, 0.2, 4.0])) == 1.0  # 0 counts as class 0


def test_accuracy_takes_labels_in_a_column():
    assert accuracy(np.array([[0], [1]]), np.array([[1, 0], [0, 1]])) == 1.0


def test_top5_counts_a_class_among_the_five_largest():
    scores = np.array([[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1]])
    assert top5(np.array([4, 5]), scores) == 0.5


def test_top5_of_equal_scores_takes_the_first_five():
    assert top5(np.array([4, 5]), np.zeros((2, 6))) == 0.5


def test_auc_counts_the_pairs_in_the_right_order():
    # class 1 at 0.35 and 0.8, class 0 at 0.1 and 0.4: three of the four pairs are right
    assert auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.75


def test_auc_counts_a_tie_as_half():
    assert auc(np.array([0, 1, 1]), np.array([[2.0], [2.0], [3.0]])) == 0.75


def test_auc_of_two_outputs_ranks_by_their_difference():
    assert auc(np.array([0, 1]), np.array([[0.9, 0.8], [0.1, 0.7]])) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_auc_is_the_share_of_pairs(samples):
    ones = [score for label, score in samples if label]
    zeros = [score for label, score in samples if not label]
    if not ones or not zeros:
        return
    pairs = [(one > zero) + (one == zero) / 2 for one in ones for zero in zeros]
    labels, scores = (np.array(column) for column in zip(*samples, strict=True))
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))


def test_errors_of_a_regression():
    y, outputs = np.array([1.0, 2.0, 3.0]), np.array([[1.0], [4.0], [2.0]])  # errors 0, 2, -1
    assert mse(y, outputs) == pytest.approx(5 / 3)
    assert mae(y, outputs) == 1.0
    assert rmse(y, outputs) == pytest.approx((5 / 3) ** 0.5)


def test_drop_is_positive_when_worse():
    assert drop(METRICS["accuracy"], 0.9, 0.8) == pytest.approx(0.1)
    assert drop(METRICS["accuracy"], 0.9, 0.95) == pytest.approx(-0.05)
    assert drop(METRICS["mse"], 2.0, 3.0) == 1.0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_perfect_answer_is_the_best_answer(metric):
    labels = np.array([0, 1, 1, 0])
    regression = metric.name in ("mae", "mse", "rmse", "snr")
    perfect = labels.astype(float) if regression else np.eye(6)[labels] if metric.name == "top5" else np.eye(2)[labels]
    assert metric(labels.astype(float) if regression else labels, perfect) == (
        200.0 if metric.name == "snr" else 1.0 if metric.higher_is_better else 0.0
    )


def test_the_task_decides_the_default():
    assert choose("classification").name == "accuracy"
    assert choose("regression").name == "mae"
    assert choose("classification", "auc") is METRICS["auc"]


def mean_output(y_true, outputs):
    return float(outputs.mean())


def upward(y_true, outputs):
    return float(outputs.mean())


upward.higher_is_better = True


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "outside_metrics.py").write_text(
        "def worst(y, outputs):\n    return abs(outputs[:, 0] - y).max()\n\n\nworst.higher_is_better = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "outside_metrics:worst"


def test_a_metric_from_outside(outside):
    metric = choose("regression", outside)
    assert (metric.name, metric.higher_is_better) == (outside, False)
    assert metric(np.array([1.0, 2.0]), np.array([[1.5], [5.0]])) == 3.0


def test_a_function_or_a_metric_is_taken_as_it_is():
    assert choose("regression", upward)(np.zeros(2), np.array([1.0, 3.0])) == 2.0
    own = Metric("own", True, upward)
    assert choose("classification", own) is own


def test_a_function_must_say_which_way_is_up():
    with pytest.raises(DataError, match=r"mean_output\.higher_is_better = True"):
        choose("regression", mean_output)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(NameUnknown, match=r"no metric 'acuracy'\. Did you mean 'accuracy'\?"):
        choose("classification", "acuracy")
    with pytest.raises(NameUnknown, match="no module 'nowhere'"):
        choose("classification", "nowhere:metric")


def test_a_metric_of_the_other_task_is_refused():
    with pytest.raises(DataError, match=r"'mse' is not made for classification. Choose accuracy, auc, iou, top5"):
        choose("classification", "mse")


@pytest.mark.parametrize(
    ("metric", "y", "outputs", "message"),
    [
        ("accuracy", np.zeros(3, int), np.zeros((2, 2)), r"y \(3,\) and outputs \(2, 2\)"),
        ("accuracy", np.zeros(0, int), np.zeros((0, 2)), "at least one sample"),
        ("accuracy", np.array([0, 5]), np.zeros((2, 2)), r"labels 0\.\.5: expected 0\.\.1"),
        ("accuracy", np.array([0, 1]), np.zeros((2, 4, 4)), r"outputs \(2, 4, 4\) do not belong together"),
        ("accuracy", np.array([0.5, 1]), np.zeros((2, 2)), "float64: expected .* class numbers"),
        ("auc", np.array([1, 1]), np.zeros((2, 1)), "0 samples of class 0 and 2 of class 1"),
        ("auc", np.array([0, 1]), np.zeros((2, 3)), "one or two per sample"),
        ("top5", np.array([0, 1]), np.zeros((2, 5)), "fewer than 6 classes"),
        ("mse", np.zeros((2, 3)), np.zeros((2, 2)), r"y \(2, 3\) and outputs \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(metric, y, outputs, message):
    with pytest.raises(DataError, match=message):
        METRICS[metric](y, outputs)


def test_outputs_that_are_not_finite_are_the_models_fault():
    with pytest.raises(ModelError, match=r"1 of 2 samples.*diverged"):
        METRICS["accuracy"](np.array([0, 1]), np.array([[np.nan, 0], [0, 1]]))
    with pytest.raises(ModelError, match="'own' is nan"):
        Metric("own", True, lambda y, outputs: float("nan"))(np.array([1.0]), np.array([1.0]))


def test_every_default_exists():
    assert set(metrics.DEFAULTS.values()) <= set(METRICS)


# pixels, and several outputs


def test_pixels_are_counted_one_by_one():
    y = np.array([[[0, 1], [1, 1]]])
    scores = np.eye(2)[np.array([[[0, 1], [1, 0]]])]
    assert METRICS["accuracy"](y, scores) == 0.75
    assert METRICS["iou"](y, scores) == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 0: 1 of 2; class 1: 2 of 3
    assert METRICS["accuracy"](y, np.array([[[[0.1], [0.9]], [[0.8], [0.2]]]])) == 0.75  # one sigmoid per pixel


def test_a_signal_that_is_rebuilt_is_measured_in_db():
    y = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert METRICS["snr"](y, y + 0.5) == pytest.approx(10 * np.log10(25 / 1))


def test_several_outputs_are_judged_by_one_and_the_others_are_told():
    y = {"which": np.array([0, 1]), "value": np.array([1.0, 2.0])}
    outputs = {"which": np.eye(2), "value": np.array([[1.5], [2.0]])}
    metric = metrics.judging({"which": "classification", "value": "regression"}, None, "value")
    assert (metric.name, metric.title, metric.higher_is_better) == ("mae", "mae of value", False)
    assert metric(y, outputs) == 0.25
    assert metric.each(y, outputs) == {"value": 0.25, "which": 1.0}
    first = metrics.judging({"which": "classification", "value": "regression"}, "accuracy", None)
    assert first.output == "which" and first(y, outputs["which"]) == 1.0


def test_one_output_needs_no_name():
    metric = metrics.judging({"": "classification"}, None, None)
    assert (
        metric is METRICS["accuracy"]
        and metric.title == "accuracy"
        and metric.each(np.zeros(1, int), np.eye(2)[:1]) == {}
    )


def test_an_output_that_is_not_there():
    with pytest.raises(
        DataError, match=r"metric_output names 'wich'\. Did you mean 'which'\? The model has which, value"
    ):
        metrics.judging({"which": "classification", "value": "regression"}, None, "wich")
