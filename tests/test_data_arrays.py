"""Checks on what a source gives: every refusal names both shapes, ranges or types."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune.data_arrays import Source, checked
from edgeprune.errors import DataError

X = np.arange(6, dtype=np.uint8).reshape(3, 2)


def one(x, y, task=None, labels=()):
    return checked(Source({"all": (x, y)}, labels), task)


def two(train, test, task=None, labels=()):
    return checked(Source({"train": train, "test": test}, labels), task)


@pytest.mark.parametrize(
    ("y", "task", "numbers", "labels"),
    [
        ([0, 2, 1], "classification", [0, 2, 1], ("0", "1", "2")),
        ([[0], [2], [1]], "classification", [0, 2, 1], ("0", "1", "2")),
        ([[1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]], "classification", [0, 2, 1], ("0", "1", "2", "3")),
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], "classification", [0, 1, 1], ("0", "1")),
        ([True, False, True], "classification", [1, 0, 1], ("0", "1")),
        (["dog", "cat", "dog"], "classification", [1, 0, 1], ("cat", "dog")),
        ([b"dog", b"cat", b"dog"], "classification", [1, 0, 1], ("cat", "dog")),
        ([0.0, 2.0, 1.0], "regression", [0.0, 2.0, 1.0], ()),
        ([[0.5, 1], [1, 2], [2, 3]], "regression", [[0.5, 1], [1, 2], [2, 3]], ()),
    ],
)
def test_the_type_of_y_tells_the_task(y, task, numbers, labels):
    arrays = one(X, np.array(y))
    assert arrays.targets[""] == (task, labels)
    assert arrays.parts["all"].y.tolist() == numbers
    assert arrays.parts["all"].y.dtype == (np.int64 if task == "classification" else np.float32)


def test_the_users_word_on_the_task_wins():
    assert one(X, np.array([0.0, 1.0, 1.0]), "classification").targets[""].labels == ("0", "1")
    assert one(X, np.array([0, 1, 7]), "regression").parts["all"].y.dtype == np.float32


def test_classes_are_counted_over_all_parts():
    assert two((X, np.array([0, 1, 0])), (X, np.array([4, 0, 0]))).targets[""].labels == ("0", "1", "2", "3", "4")


def test_text_labels_keep_a_given_order():
    arrays = one(X, np.array(["dog", "cat", "dog"]), labels=("dog", "eel", "cat"))
    assert arrays.targets[""].labels == ("dog", "eel", "cat")
    assert arrays.parts["all"].y.tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("u1", "u1"), ("i1", "i1"), ("?", "u1"), ("f2", "f2"), ("f4", "f4"), ("f8", "f4"), (">f4", "f4"), (">i2", "i2")],
)
def test_types_of_x(given, kept):
    x = np.array([[0, 1], [1, 1], [1, 0]]).astype(given)
    arrays = one(x, np.array([0, 1, 1]))
    assert arrays.parts["all"].x.dtype == np.dtype(kept) and arrays.parts["all"].x.dtype.isnative
    assert arrays.parts["all"].x.tolist() == [[0, 1], [1, 1], [1, 0]]


def test_nothing_is_copied_that_need_not_be():
    assert one(X, np.array([0, 1, 1])).parts["all"].x is X


def test_the_range_is_over_all_parts():
    assert two((X, np.array([0, 1, 1])), (X + np.uint8(9), np.array([0, 1, 1]))).ranges == {"": (0, 14)}


NAN, INFINITE, HUGE = ([[0, 1], [2, bad], [3, 4]] for bad in (np.nan, -np.inf, 1e300))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, [0, 1], r"x \(3, 2\) and y \(2,\) do not belong together"),
        (X, 1, r"x \(3, 2\) and y \(\) do not belong together"),
        (X[:0], np.zeros(0, int), r"x \(0, 2\) is empty"),
        (X[:, :0], [0, 1, 1], r"x \(3, 0\) has samples without any value"),
        (5, [0], "x is the single number 5"),
        (NAN, [0, 1, 1], r"x\[1\] holds NaN \(shape \(3, 2\), float32\)"),
        (INFINITE, [0, 1, 1], r"x\[1\] holds an infinite value"),
        (HUGE, [0, 1, 1], r"x\[1\] holds an infinite value"),
        (X, [0.5, np.nan, 1], r"y\[1\] holds NaN"),
        (X, [0.5, 1e300, 1], r"y\[1\] holds an infinite value"),
        (np.array([[1], [2, 3], [4]], dtype=object), [0, 1, 1], "x has the dtype object"),
        ([[1], [2, 3], [4]], [0, 1, 1], "x: its samples do not form one array"),
        (np.array([["a"], ["b"], ["c"]]), [0, 1, 1], "x holds text"),
        (X.astype(complex), [0, 1, 1], "x has the dtype complex128"),
        (X, [0, -1, 1], r"y holds labels -1\.\.1, but classes are numbered 0, 1"),
        (X, [0, 0, 0], "same label"),
        (X, ["a", "a", "a"], "same label"),
        (X, [[1, 1], [0, 1], [1, 0]], r"y \(3, 2\) is no list of classes"),
        (X, np.zeros((3, 2, 2), int), "same label"),
    ],
)
def test_bad_data_is_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        one(x, y if isinstance(y, np.ndarray) else np.array(y))


def test_labels_beyond_the_named_classes():
    with pytest.raises(DataError, match=r"y holds labels 0\.\.2, but the 2 named classes are 0\.\.1"):
        one(X, np.array([0, 1, 2]), labels=("a", "b"))
    with pytest.raises(DataError, match="label 'eel', which is not among the given labels: cat, dog"):
        one(X, np.array(["cat", "eel", "dog"]), labels=("cat", "dog"))


def test_a_task_that_y_cannot_be():
    with pytest.raises(DataError, match=r"y\[1\] is 0\.5, but data\.task is classification"):
        one(X, np.array([0.0, 0.5, 1.0]), "classification")
    with pytest.raises(DataError, match=r"text .* but data\.task is regression"):
        one(X, np.array(["a", "b", "c"]), "regression")


def test_parts_must_be_alike():
    y = np.array([0, 1, 1])
    with pytest.raises(DataError, match=r"x_train \(3, 2\) and x_test \(3, 1\) .* \(2,\) and \(1,\)"):
        two((X, y), (X[:, :1], y))
    with pytest.raises(DataError, match="x_train is uint8 and x_test is float32"):
        two((X, y), (X / 255, y))
    with pytest.raises(DataError, match="y_train is int64 and y_test is <U1"):
        two((X, y), (X, np.array(["a", "b", "b"])))
    with pytest.raises(DataError, match=r"y_train \(3,\) and y_test \(3, 2\)"):
        two((X, y), (X, np.eye(2)[[0, 1, 1]]))


def test_a_bad_value_is_found_beyond_the_first_chunk(monkeypatch):
    monkeypatch.setattr("edgeprune.data_arrays.CHUNK_BYTES", 16)
    x = np.zeros((9, 2), np.float32)
    x[7, 1] = np.nan
    with pytest.raises(DataError, match=r"x\[7\] holds NaN"):
        one(x, np.arange(9))
