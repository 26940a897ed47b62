"""Measurements: what they say, what they refuse to say, and their JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeprune.errors import DeviceError
from edgeprune.measurement import Measurement, Reply, Tensor

STEADY = Measurement("measured", (1.0, 2.0, 3.0, 4.0, 5.0), (9.0,), {"threads": 4})


def measured(*times):
    return Measurement("measured", times)


def test_percentiles_are_of_the_samples_alone():
    assert (STEADY.p50_ms, STEADY.p90_ms, STEADY.percentile_ms(0)) == (3.0, pytest.approx(4.6), 1.0)


def test_spread_is_standard_deviation_over_mean():
    assert measured(9.0, 11.0).spread == pytest.approx(2**0.5 / 10)
    assert measured(1.0).spread is None


def test_no_samples_is_absent_and_not_zero():
    empty = Measurement("measured", ())
    assert (empty.p50_ms, empty.p90_ms, empty.spread, empty.unstable) == (None, None, None, None)
    assert empty.latency() == {"ms": None, "reason": "no timed runs were asked for"}


def test_latency_of_a_measurement():
    assert STEADY.latency() == {
        "ms": 3.0,
        "kind": "measured",
        "threads": 4,
        "p90_ms": pytest.approx(4.6),
        "runs": 5,
        "spread": pytest.approx(0.527, abs=1e-3),
        "warning": STEADY.unstable,
    }


def test_wall_time_under_an_emulator_is_never_a_latency():
    block = Measurement("emulated", (900.0,) * 9).latency()
    assert block["ms"] is None
    assert "emulator" in block["reason"]


def test_a_prediction_carries_its_error():
    block = Measurement("predicted", (3.1,), (), {"threads": 4}, error_pct=6.0).latency()
    assert block == {"ms": 3.1, "kind": "predicted", "threads": 4, "error_pct": 6.0}
    with pytest.raises(ValueError, match="error_pct"):
        Measurement("predicted", (3.1,))


@pytest.mark.parametrize(
    ("times", "word"),
    [
        ((1.0,) * 9, None),
        ((1.0, 1.0, 1.0), "only 3 timed runs"),
        ((1.0, 2.0) * 5, "standard deviation"),
        ((1.0,) * 99 + (1.6,), "slowest"),
    ],
)
def test_unstable_results_warn(times, word):
    warning = measured(*times).unstable
    assert warning is None if word is None else word in warning


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(time):
    with pytest.raises(ValueError, match="above 0"):
        measured(1.0, time)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="guessed"):
        Measurement("guessed", (1.0,))


def test_json_round_trip():
    again = Measurement.from_json(STEADY.to_json())
    assert again == STEADY
    assert json.loads(STEADY.to_json())["schema"] == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}', '{"schema": 1, "kind": "measured"}'])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(DeviceError, match="not a measurement"):
        Measurement.from_json(text)


def test_a_measurement_cannot_be_changed():
    with pytest.raises(AttributeError):
        STEADY.kind = "predicted"
    with pytest.raises(TypeError):
        STEADY.metadata["threads"] = 1


def test_a_reply_as_plain_data():
    reply = Reply(
        kind="measured",
        measurement=STEADY,
        inputs=(Tensor("x", (1, 2), "int8", 0.5, -128),),
        outputs_info=(Tensor("y", (1, 1), "int8", 0.5, -128),),
        outputs=(np.zeros((1, 1), np.int8),),
        digests=("abc",),
        runtime={"package": "tflite-runtime", "version": "2.14.0"},
        device={"cpu": "cortex-a72"},
        load_ms=1.5,
        arena_bytes=64,
        arena_how="tensor addresses",
        peak_rss_bytes=4096,
    )
    plain = json.loads(json.dumps(reply.to_dict()))
    assert (plain["runtime"], plain["latency"]["ms"], plain["inputs"][0]["shape"]) == (
        "tflite-runtime 2.14.0",
        3.0,
        [1, 2],
    )
