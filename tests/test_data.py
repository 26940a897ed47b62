"""Splits that never mix, the same for the same seed; and whether a model fits the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.data import DataOptions, Preprocess, load, stratified
from edgeprune.data_fit import Port, check_fits
from edgeprune.data_sources import SOURCES
from edgeprune.errors import DataError, RecipeError
from edgeprune.metrics import METRICS
from edgeprune.validation import validate


def images(count=40, classes=4, shape=(4, 4, 1)):
    """Distinct images, labels 0, 1, 2, 3, 0, 1 ..."""
    x = np.arange(count * int(np.prod(shape)), dtype=np.float32).reshape(count, *shape)
    return x, np.arange(count) % classes


def fits(data, input_shape, output_shape):
    """Whether a model with one input and one output of these shapes can take the data."""
    return check_fits(data, [Port("image", input_shape)], [Port("classes", output_shape)])


def rows(split):
    return {(split.origin, row) for row in split.index.tolist()}


def options(**values):
    return validate(DataOptions, values, "recipe", RecipeError, "data")


# splits


def test_sizes_and_parts():
    data = load(images(), options(test=0.25, validation=0.2, calibration=8))
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 24,
        "calibration": 8,
        "validation": 6,
        "test": 10,
    }
    assert rows(data.calibration) <= rows(data.train)


def test_every_split_holds_every_class_in_its_share():
    data = load(images(), options(test=0.2, validation=0.25, calibration=8))
    for split in data.splits.values():
        assert np.bincount(split.labels(), minlength=4).tolist() == [len(split) // 4] * 4


def test_x_and_y_stay_together():
    x, y = images()
    for split in load((x, y)).splits.values():
        assert np.array_equal(split.x, x[split.index]) and np.array_equal(split.y, y[split.index])


def test_a_test_split_of_the_source_is_kept_whole():
    x, y = images()
    data = load(((x, y), (x[:7] + 1000, y[:7])))
    assert data.test.origin == "x_test" and data.test.index.tolist() == list(range(7))
    assert len(data.train) + len(data.validation) == 40


def test_a_validation_split_of_the_source_is_kept_whole():
    x, y = images()
    data = load(((x, y), (x[:5], y[:5]), (x[:7] + 1000, y[:7])))
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 5, 7)


def test_in_order_the_last_samples_are_the_test():
    data = load(images(), options(shuffle=False, test=0.25, validation=0.1, calibration=4))
    assert data.test.index.tolist() == list(range(30, 40))
    assert data.validation.index.tolist() == [27, 28, 29]
    assert data.train.index.tolist() == list(range(27))


def test_splits_share_one_array():
    x, y = images()
    data = load((x, y))
    assert all(split.base is x for split in data.splits.values())


@given(
    labels=st.lists(st.integers(0, 5), min_size=4, max_size=60),
    test=st.floats(0.01, 0.5),
    validation=st.floats(0, 0.5),
    limit=st.none() | st.integers(2, 50),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_splits_are_always_disjoint(labels, test, validation, limit, shuffle, seed):
    y = np.array([0, 1, *labels])
    data = load(
        (np.arange(len(y), dtype=np.float32)[:, None], y),
        options(test=test, validation=validation, limit=limit, shuffle=shuffle, calibration=5),
        seed,
    )
    train, held, kept = rows(data.train), rows(data.validation), rows(data.test)
    assert not (train & held or train & kept or held & kept)
    assert rows(data.calibration) <= train
    assert train and kept and len(train | held | kept) == len(train) + len(held) + len(kept)
    if limit is None:
        assert len(train | held | kept) == len(y)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0, 1), st.integers(0, 99))
def test_a_stratified_pick_keeps_the_shares(labels, share, seed):
    strata = np.array(labels)
    count = round(share * len(strata))
    picked = stratified(strata, count, np.random.default_rng(seed))
    assert len(np.unique(picked)) == len(picked) == count
    for stratum in set(labels):
        expected = count / len(strata) * np.sum(strata == stratum)
        assert abs(np.sum(strata[picked] == stratum) - expected) < 1 + 1e-9


def test_the_seed_decides():
    first, again, other = (load(images(), seed=seed) for seed in (7, 7, 8))
    assert first.provenance == again.provenance and first.fingerprint == again.fingerprint
    assert first.test.index.tolist() != other.test.index.tolist() and first.fingerprint != other.fingerprint


def test_an_option_moves_only_the_splits_it_names():
    plain = load(images(), options(calibration=8))
    for changed in (options(calibration=4), options(calibration=8, validation=0.3), options(calibration=8, limit=12)):
        assert rows(load(images(), changed).test) <= rows(plain.test)
    assert rows(load(images(), options(calibration=8, limit=12)).train) <= rows(plain.train) | rows(plain.validation)


def test_the_limit_is_on_training_and_on_test():
    data = load(images(), options(limit=6, test=0.5, calibration=2, validation=0.5))
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 3, 6)
    assert "data.limit: at most 6 samples were used for training, and as many for the test" in data.provenance["notes"]


def test_too_few_samples():
    with pytest.raises(DataError, match="holds 2 samples, which leave 0 to train and 1 to test"):
        load((np.zeros((2, 1)), np.array([0, 1])))


# preprocessing and batches


def test_values_are_as_stored_unless_told_otherwise():
    data = load((np.full((10, 2), 200, np.uint8), np.arange(10) % 2))
    assert data.preprocess == Preprocess(1.0, 0.0)
    assert data.test.inputs().dtype == np.float32 and data.test.inputs()[0].tolist() == [200, 200]


def test_model_input_is_value_times_scale_plus_offset():
    data = load(
        (np.full((10, 2), 100, np.uint8), np.arange(10) % 2), options(preprocess={"scale": 0.02, "offset": -1.0})
    )
    assert data.train.inputs(slice(1))[0].tolist() == [1.0, 1.0]
    assert data.train.take(slice(1)).tolist() == [[100, 100]]
    assert data.provenance["preprocess"] == {"scale": 0.02, "offset": -1.0}


def test_preprocessing_leaves_the_stored_values_alone():
    x, y = images()
    before = x.copy()
    load((x, y), options(preprocess={"scale": 2.0, "offset": 1.0})).train.inputs()
    assert np.array_equal(x, before)


def test_batches_cover_the_split_in_order():
    data = load(images())
    batches = list(data.train.batches(10))
    assert [len(x) for x, _ in batches] == [10, 10, 8]
    assert np.array_equal(np.concatenate([x for x, _ in batches]), data.train.inputs())
    assert np.array_equal(np.concatenate([y for _, y in batches]), data.train.y)


# what is reported


def test_the_fingerprint_is_of_contents_not_of_places(tmp_path):
    x, y = images()
    np.savez(tmp_path / "a.npz", x=x, y=y)
    np.savez(tmp_path / "b.npz", x=x, y=y)
    same = {load(source).fingerprint for source in (tmp_path / "a.npz", tmp_path / "b.npz", (x, y))}
    assert len(same) == 1
    changed = x.copy()
    changed[3, 0, 0, 0] += 1
    relabelled = np.where(np.arange(40) == 3, 0, y)
    scaled = options(preprocess={"scale": 2.0})
    others = {
        load((changed, y)).fingerprint,
        load((x, relabelled)).fingerprint,
        load((x, y), scaled).fingerprint,
        load((x, y), seed=1).fingerprint,
        load((x, y), options(calibration=3)).fingerprint,
    }
    assert len(others | same) == 6


def test_provenance_says_which_samples_went_where():
    data = load(images(), options(calibration=8), seed=3)
    told = data.provenance
    assert (told["source"], told["task"], told["classes"], told["seed"]) == ("arrays in memory", "classification", 4, 3)
    assert told["sample"] == {"shape": [4, 4, 1], "dtype": "float32", "range": [0.0, 639.0]}
    assert {name: split["samples"] for name, split in told["splits"].items()} == {
        name: len(split) for name, split in data.splits.items()
    }
    assert told["splits"]["calibration"]["part_of"] == "train"
    assert told["splits"]["test"]["sha256"] == data.test.digest() != data.train.digest()
    assert told["disjoint"] is True


def test_a_test_sample_that_was_trained_on_is_told():
    x, y = images()
    notes = load(((x, y), (x[:3], y[:3]))).provenance["notes"]
    assert "3 of 3 test samples equal a training or validation sample exactly: the metric flatters" in notes


def test_a_class_without_samples_is_told():
    x, y = images()
    notes = load(((x, np.where(y == 2, 0, y)), (x[:4] + 1000, y[:4])), options(calibration=8)).provenance["notes"]
    assert notes == ["no train sample of class 2"]


def test_regression_splits_at_random():
    data = load((np.zeros((10, 3)), np.linspace(0, 1, 10)), options(calibration=2))
    assert (data.task, data.classes, data.labels) == ("regression", None, ())
    assert len(data.test) == 2 and data.train.y.dtype == np.float32


# a model and the data


def test_equal_shapes_fit():
    data = load(images(), options(calibration=8))
    assert fits(data, (4, 4, 1), (4,)) is data
    assert fits(data, (None, None, 1), (4,)) is data


def test_a_missing_channel_axis_is_added_and_told():
    data = fits(load(images(shape=(4, 4)), options(calibration=8)), (4, 4, 1), (4,))
    assert data.train.inputs(slice(2)).shape == (2, 4, 4, 1) and data.sample_shape == (4, 4, 1)
    assert data.provenance["sample"]["shape"] == [4, 4, 1]
    assert data.provenance["notes"] == ["a channel axis was added to every sample: (4, 4) became (4, 4, 1)"]


def test_a_model_with_more_classes_fits_and_is_told():
    data = fits(load(images(), options(calibration=8)), (4, 4, 1), (10,))
    assert data.provenance["notes"] == ["the model tells 10 classes, the data holds 4"]


def test_one_output_tells_two_classes():
    two = load(images(classes=2), options(calibration=8))
    assert fits(two, (4, 4, 1), (1,)) is two


@pytest.mark.parametrize(
    ("shape", "wanted", "advice"),
    [
        ((3, 8, 8), (8, 8, 3), r"\(3, 8, 8\), the model's input is \(8, 8, 3\)\. .*channels first"),
        ((8, 8, 3), (8, 8, 1), r"data\.channels"),
        ((8, 8, 3), (16, 12, 3), r"data\.image_size: \[16, 12\]"),
        ((8, 8), (64,), r"x\.reshape\(len\(x\), 64\)"),
        ((5,), (None, 3), "Expected equal shapes"),
    ],
)
def test_samples_of_another_shape_are_refused(shape, wanted, advice):
    with pytest.raises(DataError, match=advice):
        fits(load(images(shape=shape)), wanted, (4,))


@pytest.mark.parametrize(
    ("labels", "output", "message"),
    [
        ([0, 9], (4,), r"labels of arrays in memory are 0\.\.9, .* output \(4,\) tells 4 classes, 0\.\.3"),
        ([1, 2, 3, 4], (4,), r"are 1\.\.4, .*count from 1: subtract 1"),
        ([0, 1, 2], (1,), r"are 0\.\.2, .* output \(1,\) tells 2 classes"),
        ([0, 1], (8, 8, 2), r"model's output is \(8, 8, 2\)\. Expected \(classes,\)"),
        ([0, 1], (None,), r"model's output is \(None,\)"),
    ],
)
def test_labels_that_the_model_cannot_tell_are_refused(labels, output, message):
    x, _ = images()
    with pytest.raises(DataError, match=message):
        fits(load((x, np.resize(labels, 40))), (4, 4, 1), output)


@pytest.mark.parametrize(("y", "output"), [((40,), (1,)), ((40, 1), (1,)), ((40, 3), (3,)), ((40, 2, 2), (2, 2))])
def test_values_that_the_model_gives_fit(y, output):
    data = load((images()[0], np.random.default_rng(0).random(y)))
    assert fits(data, (4, 4, 1), output) is data


@pytest.mark.parametrize(
    ("y", "output", "message"),
    [
        ((40,), (10,), r"shape \(\) per sample .* output is \(10,\)\. .*data\.task: classification"),
        ((40, 3), (2,), r"shape \(3,\) per sample .* output is \(2,\)"),
        ((40, 2), (2, 2), r"as many values per sample"),
    ],
)
def test_values_that_the_model_does_not_give_are_refused(y, output, message):
    data = load((images()[0], np.random.default_rng(0).random(y)))
    with pytest.raises(DataError, match=message):
        fits(data, (4, 4, 1), output)


# several inputs and outputs


def several(count=40, **values):
    x = {"right": np.arange(count * 3).reshape(count, 3), "left": np.arange(count, dtype=np.float32).reshape(count, 1)}
    y = {"value": np.linspace(0, 1, count), "which": np.arange(count) % 2}
    return load((x, y), options(calibration=8, **values))


TWO = ([Port("left", (1,)), Port("right", (3,))], [Port("which", (2,)), Port("value", (1,))])


def test_several_inputs_and_outputs_are_put_into_the_models_order():
    data = check_fits(several(), *TWO)
    assert list(data.train.inputs(slice(2))) == ["left", "right"] and list(data.train.y) == ["which", "value"]
    assert (data.task, data.tasks) == ("classification", {"which": "classification", "value": "regression"})
    assert data.sample_shape == {"left": (1,), "right": (3,)}
    assert data.provenance["outputs"]["value"] == {"task": "regression", "classes": None}
    for x, y in data.train.batches(5):
        assert np.array_equal(x["right"][:, 0], 3 * x["left"][:, 0]) and np.allclose(y["value"], x["left"][:, 0] / 39)


def test_several_inputs_keep_the_shares_of_the_first_classes():
    data = several(test=0.25)
    assert np.bincount(data.test.y["which"]).tolist() == [5, 5]


def test_every_input_may_have_a_scale_of_its_own():
    data = several(preprocess={"scale": 2.0, "inputs": {"left": {"offset": 1.0}}})
    left, right = (data.train.inputs(slice(1))[name] for name in ("left", "right"))
    row = data.train.index[0]
    assert left.tolist() == [[row + 1.0]] and right.tolist() == [[6.0 * row, 6.0 * row + 2, 6.0 * row + 4]]
    with pytest.raises(DataError, match=r"data\.preprocess\.inputs names 'up', but the data holds right, left"):
        several(preprocess={"inputs": {"up": {"offset": 1.0}}})


def test_a_tuple_goes_by_place():
    data = load(((np.zeros((40, 1)), np.ones((40, 3)) * np.arange(40)[:, None]), np.arange(40) % 2))
    data = check_fits(data, TWO[0], TWO[1][:1])
    assert list(data.train.inputs()) == ["left", "right"] and data.train.y.ndim == 1


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        (
            (TWO[0][:1], TWO[1]),
            r"has 1 input \('left'\); x of arrays in memory holds 'right', 'left'. Give x as one array",
        ),
        (
            (TWO[0], [Port("which", (2,)), Port("size", (1,))]),
            r"2 outputs \('which', 'size'\); y .* 'value', 'which'.*y_size",
        ),
        (
            ([Port("left", (2,)), TWO[0][1]], TWO[1]),
            r"x_left .* has samples of the shape \(1,\), .* input 'left' is \(2,\)",
        ),
        ((TWO[0], [TWO[1][0], Port("value", (3,))]), r"y_value .* shape \(\) per sample .* output 'value' is \(3,\)"),
        (
            (TWO[0], [Port("which", (2, 2)), TWO[1][1]]),
            r"y_which .* output 'which' is \(2, 2\)\. Expected \(classes,\)",
        ),
        (
            ([Port("left", (1,), "int32"), TWO[0][1]], TWO[1]),
            r"'left' takes whole numbers \(int32\); x_left .* is float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(ports, message):
    with pytest.raises(DataError, match=message):
        check_fits(several(), *ports)


def test_tokens_stay_whole_numbers():
    data = load((np.arange(80, dtype=np.uint16).reshape(40, 2), np.arange(40) % 2))
    data = check_fits(data, [Port("words", (2,), "int32")], [Port("classes", (2,))])
    assert data.train.inputs().dtype == np.int32


def test_the_users_word_on_one_of_several_outputs():
    assert several(tasks={"which": "regression"}).tasks == {"value": "regression", "which": "regression"}
    with pytest.raises(DataError, match=r"data\.tasks names 'wich', but y holds 'value', 'which'"):
        several(tasks={"wich": "regression"})


def test_classes_of_pixels_fit_scores_of_pixels():
    data = load((images()[0], np.arange(40 * 16).reshape(40, 4, 4, 1) % 3))
    assert data.train.y.shape[1:] == (4, 4) and data.classes == 3
    assert fits(data, (4, 4, 1), (4, 4, 3)) is data
    with pytest.raises(DataError, match=r"shape \(4, 4\) per sample, .* is \(3,\)\. Expected \(4, 4, classes\)"):
        fits(data, (4, 4, 1), (3,))


# options


def test_options_survive_a_recipe_file():
    given = options(image_size=[8, 6], keys={"x": "images"}, preprocess={"scale": 2}, limit=5)
    assert options(**given.model_dump(mode="json")) == given


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validaton": 0.1}, r"unknown key 'data\.validaton'\. Did you mean 'validation'"),
        ({"validation": 0.9}, r"data\.validation: got 0\.9"),
        ({"test": 0}, r"data\.test: got 0"),
        ({"calibration": 0}, r"data\.calibration: got 0"),
        ({"preprocess": {"scale": 0}}, r"data\.preprocess\.scale: got 0; a scale of 0"),
        ({"preprocess": {"mean": 0}}, r"unknown key 'data\.preprocess\.mean'.*offset, scale"),
        ({"image_size": [0, 5]}, r"data\.image_size: .* at least 1 pixel"),
        ({"keys": {"images": "x"}}, r"data\.keys\.images.*'x_train'"),
        ({"channels": 2}, r"data\.channels: got 2"),
        ({"task": "ranking"}, r"data\.task: got 'ranking'"),
        ({"shuffle": "yes"}, r"data\.shuffle: got 'yes'"),
    ],
)
def test_bad_options_are_named(values, message):
    with pytest.raises(RecipeError, match=message):
        options(**values)


def test_every_option_source_and_metric_is_documented():
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    words = [f"`{name}" for name in DataOptions.model_fields] + [f"`{kind}:NAME`" for kind in SOURCES]
    assert [word for word in [*words, *(f"`{name}`" for name in METRICS)] if word not in page] == []
    assert all(field.description for field in DataOptions.model_fields.values())
