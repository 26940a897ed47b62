"""A latency without the board: counted, from shapes, or absent with the reason; and the constants that are shipped."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tflite_files import build, operator, tensor

from edgeprune import analytic, forecast, prediction, registry, tflite, yaml_files
from edgeprune import target as targets
from edgeprune.errors import DeviceError, TargetError

CONSTANTS = sorted(path for path in registry.beside("targets", "latency").glob("*.yaml") if "." not in path.stem)
PRICES = sorted(registry.beside("targets", "latency").glob("*.analytic.yaml"))


def two_convolutions():
    """int8: a pointwise convolution of 8×8×16 to 8×8×16, twice, and their sum."""
    kernel = np.ones((16, 1, 1, 16), np.int8)
    tensors = [
        tensor("image", (1, 8, 8, 16), scale=[0.5], zero=[0]),
        *(tensor(f"kernel{place}", (16, 1, 1, 16), data=kernel, scale=[0.1], zero=[0]) for place in range(2)),
        *(tensor(f"map{place}", (1, 8, 8, 16), scale=[0.5], zero=[0]) for place in range(3)),
        tensor("bias", (16,), "INT32", data=np.zeros(16, np.int32), scale=[0.05], zero=[0]),
    ]
    fields = {"strideH": 1, "strideW": 1}
    ops = [
        operator("CONV_2D", [0, 1, 6], [3], "Conv2DOptions", **fields),
        operator("CONV_2D", [3, 2, 6], [4], "Conv2DOptions", **fields),
        operator("ADD", [3, 4], [5], "AddOptions"),
    ]
    return build(tensors, ops, inputs=[0], outputs=[5])


@dataclass
class Counter:
    """A backend that counts what it is told to."""

    cycles: float = 6e6
    reason: str | None = None

    def uncountable(self, target, runtime=None):
        return self.reason

    def count(self, model, target, runtime=None, resolver="default", by_op=True):
        count = len(tflite.read(model).ops)
        ops = [SimpleNamespace(cycles=self.cycles / count)] * count if by_op else []
        return SimpleNamespace(instructions=10, cycles=self.cycles, ops=ops, runtime=f"{runtime} 1.0")


def load(name):
    return targets.load(registry.file("targets", name))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(two_convolutions())
    return path


def test_a_counted_latency_is_the_equation_and_has_the_validated_error(file):
    place = forecast.board(load("rpi4"))
    figures = forecast.forecast(file, place, Counter())
    fit = place.constants.fits["int8"]
    latency = figures["latency"]
    assert latency["kind"] == "predicted" and latency["threads"] == 4
    assert latency["error_pct"] == fit.error.mape_pct
    assert latency["ms"] == pytest.approx(figures["fixed_ms"] + sum(op["ms"] for op in figures["ops"]))
    assert latency["ms"] > fit.terms.fixed_ms + fit.terms.compute * 6e6 / (1.5e6 * 4)
    assert figures["how"] == forecast.COUNTED
    assert figures["cycles"] == pytest.approx(6e6)
    assert [op["op"] for op in figures["ops"]] == [op.op for op in tflite.read(file).ops]


def test_a_latency_like_those_that_were_judged_has_no_warning(file):
    latency = forecast.forecast(file, forecast.board(load("rpi4")), Counter(6e7))["latency"]
    assert latency["ms"] > 10 and latency["warning"] is None
    tiny = forecast.forecast(file, forecast.board(load("rpi4")), Counter(1e5))["latency"]
    assert "shorter than any latency" in tiny["warning"]


def test_more_cycles_are_more_milliseconds(file):
    place = forecast.board(load("rpi4"))
    first, second = (forecast.forecast(file, place, Counter(cycles))["latency"]["ms"] for cycles in (1e6, 2e6))
    assert second > first


def test_without_the_emulator_shapes_tell_it_with_their_own_error(file):
    place = forecast.board(load("rpi4"))
    figures = forecast.forecast(file, place, Counter(reason="the emulator is not installed"))
    assert figures["how"] == forecast.FROM_SHAPES
    assert figures["latency"]["error_pct"] == place.constants.fits["int8"].analytic_error.mape_pct
    assert figures["uncounted"] == "the emulator is not installed"
    assert figures["instructions"] is None


@pytest.mark.parametrize(
    "name, threads, reason",
    [
        ("rpi5", None, "no published latencies of a cortex-a76"),
        ("rpi4", 1, "validated with 4 threads, and 1 were asked for"),
        ("coral-usb", None, "accelerator"),
    ],
)
def test_what_was_not_validated_is_absent_with_the_reason(file, name, threads, reason):
    latency = forecast.forecast(file, forecast.board(load(name), threads), Counter())["latency"]
    assert latency["ms"] is None
    assert reason in latency["reason"] and "--board" in latency["reason"]
    assert ("extrapolated_ms" in latency) == (name == "rpi4")


def test_another_clock_is_not_the_validated_one(file):
    facts = load("rpi4")
    faster = facts.model_copy(update={"cpu": facts.cpu.model_copy(update={"clock_mhz": 1800.0})})
    latency = forecast.forecast(file, forecast.board(faster), Counter())["latency"]
    assert latency["ms"] is None and "1500 MHz" in latency["reason"]
    slower = forecast.forecast(file, forecast.board(facts), Counter())["latency"]["ms"]
    assert latency["extrapolated_ms"] < slower


def test_other_runtimes_are_told_where_they_can_be(file):
    place = forecast.board(load("rpi4"))
    found = forecast.others(file, place, Counter())
    assert [one["kernels"] for one in found] == ["xnnpack"]
    assert found[0]["latency"]["ms"] > 0
    assert forecast.others(file, forecast.board(load("rpi5")), Counter()) == []


def test_a_backend_that_cannot_count_is_no_counter():
    assert forecast.counter(SimpleNamespace(unavailable=None)) is None
    assert forecast.counter(Counter()) is not None


def test_thousands_are_asked_for_without_a_file(file):
    ask = forecast.milliseconds(forecast.board(load("rpi4")))
    layers = analytic.layers(tflite.read(file))
    assert ask(layers[:1]) < ask(layers)
    from_file = forecast.forecast(file, forecast.board(load("rpi4")), Counter(reason="none"))["latency"]["ms"]
    assert ask(layers) == pytest.approx(from_file)


def test_a_board_that_nothing_is_known_of_says_so():
    with pytest.raises(DeviceError, match="no published latencies"):
        forecast.milliseconds(forecast.board(load("rpi5")))


# What is shipped


def test_there_are_constants():
    assert CONSTANTS and PRICES


@pytest.mark.parametrize("path", CONSTANTS, ids=lambda path: path.stem)
def test_constants_name_their_rows_and_state_the_error_that_was_validated(path):
    constants = prediction.load(path)
    assert constants.core == path.stem
    for precision, fit in constants.fits.items():
        assert len(fit.rows) == len(set(fit.rows)) == fit.error.figures
        assert all(f" {precision} " in row for row in fit.rows)
        assert sum(error.figures for error in fit.families.values()) == fit.error.figures
        assert len(fit.families) > 1, "an error is validated by leaving out one family of several"
        mean = sum(error.mape_pct * error.figures for error in fit.families.values()) / fit.error.figures
        assert fit.error.mape_pct == pytest.approx(mean, abs=0.01)
        assert fit.error.worst_pct == pytest.approx(max(error.worst_pct for error in fit.families.values()), abs=0.01)


def test_the_bars_of_the_predictor_hold():
    fits = prediction.load(registry.beside("targets", "latency", "cortex-a72.yaml")).fits
    assert fits["int8"].error.mape_pct <= 6 and fits["int8"].error.worst_pct <= 15
    assert fits["int8"].error.rank_correlation >= 0.99
    assert fits["fp32"].error.mape_pct <= 12


@pytest.mark.parametrize("path", PRICES, ids=lambda path: path.stem)
def test_prices_know_what_to_do_with_any_op(path):
    prices = analytic.load(path)
    assert f"{prices.core}.analytic.yaml" == path.name
    for precisions in prices.prices.values():
        for kinds in precisions.values():
            assert {analytic.OTHER, "CONV_2D", "CONV_2D 1x1", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D other"} <= set(
                kinds
            )
            strange = analytic.Layer("NO_SUCH_OP", "int8", 1000, 1000)
            assert analytic.cycles([strange], kinds)[0] > 0


def test_damaged_constants_are_a_named_error(tmp_path):
    path = tmp_path / "core.yaml"
    path.write_text(yaml_files.dump({"core": "x", "threads": 0}))
    with pytest.raises(TargetError, match=r"core\.yaml"):
        prediction.load(path)
    with pytest.raises(TargetError, match=r"core\.yaml"):
        analytic.load(Path(path))
