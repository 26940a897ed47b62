"""Signal-to-noise ratios layer by layer, and what is said about the first bad op."""

from __future__ import annotations

import dataclasses

import converted
import numpy as np
import pytest
from test_verify import one_sided

from edgeprune import diagnosis, layerwise, tflite
from edgeprune.errors import DataError
from edgeprune.inference import Port
from edgeprune.layerwise import Layerwise, Row


@pytest.fixture(scope="module")
def made():
    return converted.artefacts()


@pytest.fixture(scope="module")
def float_model(made):
    from edgeprune.keras import export

    return export.Exported(made.folder / "float")


@pytest.fixture(scope="module")
def inputs():
    return {"image": converted.samples(12, seed=5)}


def summed(reference, stored, scale=0.5, zero_point=0):
    found = layerwise._Sums()
    port = Port("x", 0, (len(stored),), np.dtype(np.int8), scale, zero_point)
    found.add(np.array(reference, np.float32), np.array(stored, np.int8), port)
    return found


# The figures


@pytest.mark.parametrize(
    ("reference", "stored", "snr_db"),
    [
        ([1.0, 2.0], [2, 4], 120.0),  # exact
        ([3.0, 4.0], [6, 7], 20.0),  # 25 against 0.5² = 0.25
        ([1.0, 0.0], [0, 0], 0.0),  # nothing of it
        ([0.0, 0.0], [0, 0], 120.0),
        ([0.0, 0.0], [1, 0], -120.0),
        ([float("nan"), 1.0], [0, 2], -120.0),
    ],
)
def test_the_ratio_is_energy_by_energy_in_decibels(reference, stored, snr_db):
    assert summed(reference, stored).snr_db == pytest.approx(snr_db)


def test_what_the_range_cannot_hold_is_counted_apart():
    found = summed([100.0, 10.0, 0.25], [127, 20, 1])  # at most 63.5
    assert found.ends == 1
    assert found.clipped == pytest.approx(36.5**2)
    assert found.noise == pytest.approx(36.5**2 + 0.25**2)
    assert found.largest == pytest.approx(36.5)


def test_the_cosine_of_opposites_is_minus_one():
    assert summed([1.0, 2.0], [-2, -4]).cosine == pytest.approx(-1)


# Which tensor is which layer


def test_every_op_finds_its_layer(made, float_model, inputs):
    found = layerwise.compare(made.dense_int8, float_model, inputs)
    assert [(row.kind, row.layer, row.output_of) for row in found.rows] == [
        ("CONV_2D", "first", "relu"),
        ("CONV_2D", "second", "second"),
        ("ADD", "sum", "sum_relu"),
        ("MEAN", "pool", "pool"),
        ("FULLY_CONNECTED", "hidden", "hidden_relu"),
        ("SOFTMAX", "scores", "scores"),
    ]
    assert found.fused == ("first", "normal", "sum", "hidden")
    assert found.outputs == (6,)
    assert all(30 < row.snr_db < 60 and row.cosine > 0.999 for row in found.rows)
    (given,) = found.inputs
    assert (given.layer, given.kind, given.op) == ("image", "INPUT", None)
    assert given.largest_steps == pytest.approx(0.5, abs=0.01)


def test_a_float_file_is_its_model(made, float_model, inputs):
    found = layerwise.compare(made.float32, float_model, inputs)
    assert len(found.rows) == 6
    assert all(row.snr_db > 90 and row.largest_steps is None for row in found.rows)
    assert found.inputs == ()
    assert diagnosis.first_bad(found, tflite.read(made.float32)) is None


def test_memory_is_bounded_by_the_batch_and_the_figures_are_the_same(made, float_model, inputs, monkeypatch):
    whole = layerwise.compare(made.dense_int8, float_model, inputs)
    given = []

    class Watched:
        layers = float_model.layers

        def layer_outputs(self, batch):
            given.append(len(batch["image"]))
            return float_model.layer_outputs(batch)

    monkeypatch.setattr(layerwise, "BATCH_BYTES", 1)
    alone = layerwise.compare(made.dense_int8, Watched(), inputs)
    assert given == [1] * 12
    for one, other in zip(whole.rows, alone.rows, strict=True):
        assert one.snr_db == pytest.approx(other.snr_db, abs=0.02)


def test_a_lone_input_needs_no_name_and_several_do(made):
    port = Port("serving_default_x:0", 0, (2,), np.dtype(np.int8), 0.5, 0)
    assert layerwise.paired([port], ["image"]) == ["image"]
    ports = [dataclasses.replace(port, name=name) for name in ("b", "a")]
    assert layerwise.paired(ports, ["a", "b"]) == ["b", "a"]
    with pytest.raises(DataError, match="the inputs b, a, the samples are for a, c"):
        layerwise.paired(ports, ["a", "c"])


# The first bad op


@pytest.mark.parametrize("layer", ["second", "hidden"])
def test_a_damaged_constant_is_found_at_its_op(made, float_model, inputs, layer):
    content = converted.tampered(made.dense_int8, converted.constant_of(made.dense_int8, layer, 2), one_sided)
    bad = diagnosis.first_bad(layerwise.compare(content, float_model, inputs), tflite.read(content))
    assert bad.layer == layer
    assert bad.cause == "other"
    assert bad.lost_db > diagnosis.SHARP_DB


def test_a_good_file_has_none(made, float_model, inputs):
    found = layerwise.compare(made.dense_int8, float_model, inputs)
    assert diagnosis.first_bad(found, tflite.read(made.dense_int8)) is None


def test_a_threshold_above_all_names_the_first(made, float_model, inputs):
    found = layerwise.compare(made.dense_int8, float_model, inputs)
    bad = diagnosis.first_bad(found, tflite.read(made.dense_int8), min_snr_db=50.0)
    assert (bad.op, bad.layer) == (0, "first")


def test_samples_on_another_scale_are_the_inputs_fault(made, float_model, inputs):
    scaled = {"image": inputs["image"] * 255}
    bad = diagnosis.first_bad(layerwise.compare(made.dense_int8, float_model, scaled), tflite.read(made.dense_int8))
    assert (bad.op, bad.layer, bad.cause) == (None, "image", "input")
    assert "preprocess" in bad.advice


def test_ranges_that_calibration_has_not_seen_ask_for_more_samples(made, float_model, inputs, tmp_path):
    from edgeprune.keras import conversion

    dark = converted.samples(8) * 0.02
    dark[0, 0, 0] = 1.0  # the input's own range is whole
    path = conversion.convert(made.folder / "float", tmp_path / "dark.tflite", representative=dark)
    bad = diagnosis.first_bad(layerwise.compare(path, float_model, inputs), tflite.read(path))
    assert bad.cause == "range"
    assert "data.calibration" in bad.advice


def row(op, kind, layer, snr_db, clipped=0.0):
    return Row(op, kind, layer, layer, snr_db, 1.0, 1.0, 0.0, clipped)


def figures(made, **snr_db):
    """The rows of ``dense_int8`` with these ratios; 40 dB where none is given."""
    names = {0: "first", 1: "second", 2: "sum", 3: "pool", 4: "hidden", 6: "scores"}
    file = tflite.read(made.dense_int8)
    rows = tuple(row(op, file.ops[op].op, name, snr_db.get(name, 40.0)) for op, name in names.items())
    return Layerwise((row(None, "INPUT", "image", 50.0),), rows, (6,), (), 8), file


def test_noise_that_adds_up_asks_for_longer_training(made):
    found, file = figures(made, first=25, second=20, sum=15.5, pool=9.8, hidden=9, scores=8)
    bad = diagnosis.first_bad(found, file)
    assert (bad.layer, bad.cause) == ("pool", "accumulated")
    assert "stages.quantize.epochs" in bad.advice


def test_one_layer_that_does_not_bear_8_bits_is_left_out_of_training(made):
    bad = diagnosis.first_bad(*figures(made, hidden=7))
    assert (bad.cause, bad.lost_db) == ("layer", 33)
    assert "stages.quantize.skip=hidden" in bad.advice


def test_a_sudden_loss_counts_above_the_threshold_too(made):
    assert diagnosis.first_bad(*figures(made, second=14)).layer == "second"
    assert diagnosis.first_bad(*figures(made, second=16)) is None


def test_a_bad_layer_names_its_first_op(made):
    bad = diagnosis.first_bad(*figures(made, scores=5))
    assert (bad.op, bad.kind, bad.layer) == (5, "FULLY_CONNECTED", "scores")


def test_a_channel_that_takes_the_whole_range_asks_for_a_scale_each(made, monkeypatch):
    def lopsided(kernel):
        kernel[1:] = np.clip(kernel[1:], -3, 3)
        kernel[0] = 127
        return kernel

    found, _ = figures(made, hidden=7)
    content = converted.tampered(made.final, converted.constant_of(made.final, "hidden", 1), lopsided)
    bad = diagnosis.first_bad(found, tflite.read(content))  # its Dense layers have one scale; the ops are the same
    assert (bad.layer, bad.cause) == ("hidden", "channel")
    assert "per_channel_dense" in bad.advice
