import inspect

import numpy as np
import pytest

from edgeprune import criteria, registry

WEIGHTS = np.array([[[-3.0, 0.5], [0.0, -0.25]]], np.float32)
SIGNALS = {"weights": WEIGHTS}  # what the harness can collect, by parameter name


def test_magnitude():
    np.testing.assert_array_equal(criteria.magnitude(WEIGHTS), [[[3.0, 0.5], [0.0, 0.25]]])


@pytest.mark.parametrize("name", registry.names("criteria"))
def test_every_criterion_scores_each_weight(name):
    function = registry.function("criteria", name)
    before = WEIGHTS.copy()
    scores = function(**{signal: SIGNALS[signal] for signal in inspect.signature(function).parameters})
    assert scores.shape == WEIGHTS.shape
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    np.testing.assert_array_equal(before, WEIGHTS)
