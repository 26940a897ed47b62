"""How good outputs are, as one number: the metric that a build must not lose.

Outputs are what the model gives for every sample of a split, in float (int8 outputs dequantized): (n, k) scores for k
classes, (n,) or (n, 1) for a single output, (n, height, width, k) where every pixel has a class. A model with several
outputs is judged by one of them; the figures of the others are told beside it. All arithmetic is float64, so that a
metric does not depend on batching.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgeprune import registry
from edgeprune.data_options import Task
from edgeprune.errors import DataError, ModelError


@dataclass(frozen=True)
class Metric:
    """A named figure of merit.

    Attributes:
        name: the word in a recipe: ``accuracy``, ``auc`` ... or ``module:function``.
        higher_is_better: True for accuracy, False for an error.
        function: (y_true, outputs) -> float, NumPy arrays in.
        output: the output that is judged, where the model has several.
        others: metrics of the other outputs, by their names; only told.
    """

    name: str
    higher_is_better: bool
    function: Callable[[np.ndarray, np.ndarray], float]
    output: str | None = None
    others: Mapping[str, Metric] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name, and of which output where there are several."""
        return self.name if self.output is None else f"{self.name} of {self.output}"

    def each(self, y_true: Any, outputs: Any) -> dict[str, float]:
        """The figure of every output by its name, the judged one first; {} for a model with one output."""
        if self.output is None:
            return {}
        return {self.output: self(y_true, outputs), **{name: m(y_true, outputs) for name, m in self.others.items()}}

    def __call__(self, y_true: Any, outputs: Any) -> float:
        """The figure for one split.

        Args:
            y_true: (n,) class numbers, or (n, ...) values; for several outputs by their names.
            outputs: (n, ...) the model's outputs in the same order; for several by their names, or the judged one alone.

        Raises:
            DataError: the two do not belong together, or the metric is not made for such outputs.
            ModelError: an output, or the metric itself, is not finite: the training diverged.
        """
        y_true, outputs = (np.asarray(self._own(given)) for given in (y_true, outputs))
        if outputs.ndim == 0 or y_true.ndim == 0 or len(y_true) != len(outputs) or len(y_true) == 0:
            raise DataError(
                f"The metric '{self.name}' got y {y_true.shape} and outputs {outputs.shape}: expected one output for "
                "each of at least one sample."
            )
        _check_finite(self.name, outputs)
        value = float(self.function(y_true, outputs))
        if not np.isfinite(value):
            raise ModelError(
                f"The metric '{self.name}' is {value} on {len(y_true)} samples. Expected a finite number: check the "
                "metric's function."
            )
        return value

    def _own(self, given: Any) -> Any:
        return given[self.output] if isinstance(given, Mapping) else given


def accuracy(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Share of samples whose class is right, 0..1; of pixels (or steps) where each has a class.

    With k >= 2 scores the class is the one with the largest (the first of equals). A single output is a probability of
    class 1 when all n lie in 0..1, which a sigmoid guarantees: class 1 from 0.5 up. Otherwise it is a logit or a signed
    score: class 1 above 0.
    """
    told, right = _told(y_true, outputs)
    return float(np.mean(told == right))


def iou(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Mean intersection over union, 0..1, over the classes that occur in y or in the outputs.

    IoU_c = TP_c / (TP_c + FP_c + FN_c), counted over all samples and pixels.

    Everingham et al. (2015), The Pascal Visual Object Classes challenge: a retrospective.
    """
    told, right = _told(y_true, outputs)
    classes = int(max(told.max(), right.max())) + 1
    confusion = np.bincount(right * classes + told, minlength=classes**2).reshape(classes, classes)
    hit = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hit
    return float(np.mean(hit[union > 0] / union[union > 0]))


def top5(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Share of samples whose class is among the five largest scores, 0..1; of equal scores the first is larger."""
    scores = _scores(outputs)
    classes = _classes(y_true, scores.shape[1])
    if scores.shape[1] < 6:
        raise DataError(
            f"The metric 'top5' got outputs {outputs.shape}: with fewer than 6 classes it is always 1. Choose "
            "'accuracy'."
        )
    own = np.take_along_axis(scores, classes[:, None], axis=1)
    before = np.arange(scores.shape[1]) < classes[:, None]
    rank = np.sum((scores > own) | ((scores == own) & before), axis=1)
    return float(np.mean(rank < 5))


def auc(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Area under the ROC curve, 0..1: the chance that a sample of class 1 scores above one of class 0, equals half.

    AUC = (R1 - n1 (n1 + 1) / 2) / (n0 n1), with R1 the sum of the mid-ranks of class 1: the Mann-Whitney U statistic.
    Two outputs are scored by their difference, which ranks softmax outputs and logits alike.

    Hanley & McNeil (1982), The meaning and use of the area under a receiver operating characteristic curve.
    """
    scores, classes = _scores(outputs), _classes(y_true, 2)
    if scores.shape[1] > 2:
        raise DataError(
            f"The metric 'auc' got outputs {outputs.shape}: expected one or two per sample. Choose 'accuracy' for more "
            "classes."
        )
    positive = classes == 1
    n1, n0 = int(positive.sum()), int((~positive).sum())
    if n0 == 0 or n1 == 0:
        raise DataError(f"The metric 'auc' got {n0} samples of class 0 and {n1} of class 1: expected some of both.")
    score = scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores[:, 0]
    _, place, ties = np.unique(score, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(ties) - (ties - 1) / 2
    return float((mid_rank[place][positive].sum() - n1 * (n1 + 1) / 2) / (n0 * n1))


def mse(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Mean squared error, in the square of y's unit."""
    return float(np.mean(np.square(_errors(y_true, outputs))))


def rmse(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Root of the mean squared error, in y's unit."""
    return float(np.sqrt(mse(y_true, outputs)))


def mae(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Mean absolute error, in y's unit."""
    return float(np.mean(np.abs(_errors(y_true, outputs))))


def snr(y_true: np.ndarray, outputs: np.ndarray) -> float:
    """Signal-to-noise ratio, dB: 10 log10(sum y^2 / sum (outputs - y)^2), at most 200 dB; for y that a model rebuilds."""
    noise = float(np.square(_errors(y_true, outputs)).sum())
    signal = float(np.square(y_true.astype(np.float64)).sum())
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / max(noise, 1e-300)), -200, 200))


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, accuracy),
        Metric("auc", True, auc),
        Metric("iou", True, iou),
        Metric("mae", False, mae),
        Metric("mse", False, mse),
        Metric("rmse", False, rmse),
        Metric("snr", True, snr),
        Metric("top5", True, top5),
    )
}

DEFAULTS: dict[Task, str] = {"classification": "accuracy", "regression": "mae"}
_FOR_CLASSES = ("accuracy", "auc", "iou", "top5")


def judging(tasks: Mapping[str, Task], name: str | None, output: str | None) -> Metric:
    """The metric of a build, and those of the other outputs, which go by their tasks.

    Args:
        tasks: of every output by its name, in the model's order; a lone one is called ``""``.
        name: as for ``choose``.
        output: the one to judge by; None: the first.

    Raises:
        DataError: there is no such output.
    """
    if output is not None and output not in tasks:
        there = ", ".join(filter(None, tasks)) or "one output, which needs no name"
        raise DataError(f"metric_output names '{output}'.{registry.suggestion(output, tasks)} The model has {there}.")
    judged = next(iter(tasks)) if output is None else output
    metric = choose(tasks[judged], name)
    if len(tasks) == 1:
        return metric
    others = {other: replace(choose(task), output=other) for other, task in tasks.items() if other != judged}
    return replace(metric, output=judged, others=others)


def choose(task: Task, name: str | Callable[..., Any] | Metric | None = None) -> Metric:
    """The metric that a recipe or a caller names.

    Args:
        task: decides the default, and refuses a metric that is made for the other task.
        name: a name in `METRICS`, ``module:function``, a function, a `Metric`, or None for the task's default. A
            function takes (y_true, outputs), returns a float and says which way is up:
            ``function.higher_is_better = True``.

    Raises:
        NameUnknown: no such metric, module or function.
        DataError: a metric for the other task, or a function that does not say which way is up.
    """
    if isinstance(name, Metric):
        return name
    if callable(name):
        return _custom(getattr(name, "__qualname__", type(name).__name__), name)
    if name is not None and ":" in name:
        return _custom(name, registry.attribute(name))
    word = name or DEFAULTS[task]
    if word not in METRICS:
        raise registry.unknown("metric", word, [*METRICS, "module:function"])
    if (word in _FOR_CLASSES) != (task == "classification"):
        fitting = [other for other in METRICS if (other in _FOR_CLASSES) == (task == "classification")]
        raise DataError(
            f"The metric '{word}' is not made for {task}. Choose {', '.join(fitting)} or module:function, or set "
            "data.task."
        )
    return METRICS[word]


def drop(metric: Metric, reference: float, value: float) -> float:
    """How much worse ``value`` is than ``reference``, in the metric's own unit: > 0 when worse, < 0 when better."""
    return reference - value if metric.higher_is_better else value - reference


def _custom(name: str, function: Any) -> Metric:
    if isinstance(function, Metric):
        return function
    if not callable(function) or inspect.isclass(function):
        raise DataError(
            f"The metric '{name}' is a {type(function).__name__}. Expected a function of (y_true, outputs) that "
            "returns a float."
        )
    higher_is_better = getattr(function, "higher_is_better", None)
    if not isinstance(higher_is_better, bool):
        raise DataError(
            f"The metric '{name}' does not say which way is up. Write after its definition: "
            f"{name.rpartition(':')[2]}.higher_is_better = True, or False for an error."
        )
    return Metric(name, higher_is_better, function)


def _check_finite(name: str, outputs: np.ndarray) -> None:
    if outputs.dtype.kind != "f" or np.isfinite(outputs).all():
        return
    bad = int((~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)).sum())
    raise ModelError(
        f"The model's outputs are not finite (NaN or infinite) for {bad} of {len(outputs)} samples, so '{name}' cannot "
        "be told. The training diverged: lower the learning rate, or check the preprocessing."
    )


def _scores(outputs: np.ndarray) -> np.ndarray:
    """(n,) or (n, k) -> (n, k) float64."""
    if outputs.ndim > 2 or outputs.size == 0:
        raise DataError(
            f"The model's outputs have the shape {outputs.shape}: expected (n, classes), (n, 1) or (n,). Give a metric "
            "as module:function."
        )
    return outputs.reshape(len(outputs), -1).astype(np.float64)


def _told(y_true: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class that the outputs tell, and the right one, of every sample or place: two (m,) int64 arrays."""
    if outputs.ndim > 2:
        if y_true.size * outputs.shape[-1] != outputs.size:
            raise DataError(
                f"y {y_true.shape} and outputs {outputs.shape} do not belong together: expected class numbers (n, ...) and a score for "
                "every class at each of these places, (n, ..., classes)."
            )
        y_true, outputs = y_true.reshape(-1), outputs.reshape(-1, outputs.shape[-1])
    scores = _scores(outputs)
    if scores.shape[1] > 1:
        return np.argmax(scores, axis=1), _classes(y_true, scores.shape[1])
    single = scores[:, 0]
    probabilities = single.min() >= 0 and single.max() <= 1
    return (single >= 0.5 if probabilities else single > 0).astype(np.int64), _classes(y_true, 2)


def _classes(y_true: np.ndarray, classes: int) -> np.ndarray:
    """(n,) or (n, 1) class numbers -> (n,) int64."""
    if y_true.size != len(y_true) or y_true.dtype.kind not in "biu":
        raise DataError(f"y {y_true.shape} of type {y_true.dtype}: expected (n,) class numbers for this metric.")
    numbers = y_true.reshape(-1).astype(np.int64)
    if numbers.min() < 0 or numbers.max() >= classes:
        raise DataError(
            f"y holds labels {numbers.min()}..{numbers.max()}: expected 0..{classes - 1} for this metric and the "
            "model's outputs."
        )
    return numbers


def _errors(y_true: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """outputs - y; (n,) and (n, 1) are the same thing, which NumPy would otherwise broadcast to (n, n)."""
    if y_true.size != outputs.size:
        raise DataError(
            f"y {y_true.shape} and outputs {outputs.shape} differ in shape: expected as many outputs per sample as y "
            "holds."
        )
    return outputs.reshape(y_true.shape).astype(np.float64) - y_true.astype(np.float64)
