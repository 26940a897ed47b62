"""From cycles to milliseconds: the equation, and that the fit finds its constants again."""

import numpy as np
import pytest

from edgeprune import calibration, prediction
from edgeprune.analytic import Layer
from edgeprune.prediction import Terms, Work

MACHINE = (1500.0, 4, 4.8)  # MHz, threads, GB/s


def networks(count=20, seed=0):
    random = np.random.default_rng(seed)
    return [
        [
            Work(float(cycles), float(traffic), bool(threaded))
            for cycles, traffic, threaded in zip(
                random.lognormal(13, 1, 12), random.lognormal(11, 1, 12), random.uniform(size=12) < 0.8, strict=True
            )
        ]
        for _ in range(count)
    ]


def test_the_equation_by_hand():
    works = [Work(6e6, 4.8e6, True), Work(1.5e6, 0.0, False)]
    found = prediction.predict(works, Terms(compute=1.5, fixed_ms=0.25), *MACHINE)
    assert found.op_ms == pytest.approx((1.5 * 1.0 + 1.0, 1.0))
    assert found.ms == pytest.approx(0.25 + 2.5 + 1.0)
    assert found.fixed_ms == 0.25


def test_a_fit_finds_the_constants_that_figures_were_made_with():
    terms, models = Terms(compute=1.3, fixed_ms=0.8), networks()
    figures = np.array([prediction.predict(works, terms, *MACHINE).ms for works in models])
    features, known = prediction.system(models, *MACHINE)
    assert calibration.fit(features, figures, known) == pytest.approx([1.3, 0.8])
    families = ["a", "b"] * 10
    assert calibration.leave_one_out(features, figures, families, known) == pytest.approx(figures)


def test_noise_on_the_figures_is_the_error_that_is_found():
    terms, models = Terms(compute=1.3, fixed_ms=0.8), networks(400)
    noise = 1 + np.random.default_rng(1).normal(0, 0.03, 400)
    figures = np.array([prediction.predict(works, terms, *MACHINE).ms for works in models]) * noise
    features, known = prediction.system(models, *MACHINE)
    error = calibration.judge(calibration.leave_one_out(features, figures, ["a", "b"] * 200, known), figures)
    assert error.mape_pct == pytest.approx(100 * 0.03 * np.sqrt(2 / np.pi), rel=0.15)


def test_another_number_of_threads_waits_less_or_more():
    terms = Terms(compute=1.6, fixed_ms=0.5)
    assert prediction.scaled(terms, 4, 4) is terms
    assert prediction.scaled(terms, 4, 1).compute == 1.0
    assert prediction.scaled(terms, 4, 2).compute == pytest.approx(1.2)


def test_built_in_kernels_run_some_ops_on_one_thread_and_a_delegate_none():
    layers = [Layer("CONV_2D", "int8", 8, 8, 1, (8, 1, 1, 8)), Layer("ADD", "int8", 16, 8)]
    assert [work.threaded for work in prediction.works(layers, [1.0, 1.0], "ruy")] == [True, False]
    assert [work.threaded for work in prediction.works(layers, [1.0, 1.0], "xnnpack")] == [True, True]
    assert [work.traffic_bytes for work in prediction.works(layers, [1.0, 1.0], "ruy")] == [80, 24]


def test_the_precision_is_that_of_most_multiplications():
    conv = Layer("CONV_2D", "int8", 800, 800, 100, (8, 1, 1, 8))
    dense = Layer("FULLY_CONNECTED", "fp32", 64, 10, 1, (10, 1, 1, 64))
    assert prediction.precision([conv, dense]) == "int8"
    assert prediction.precision([dense]) == "fp32"
