"""What `edgeprune build` says to a shrink stage that cannot be: what was given, where, and what would work."""

from __future__ import annotations

import numpy as np
import pytest
from keras_models import SHAPE, keras, layers, samples

import edgeprune
from edgeprune.errors import CutError, DataError, RecipeError
from edgeprune.keras import intake
from edgeprune.progress import Silent

RECIPE = {"name": "tiny", "stages": {"shrink": {"epochs": 0, "criterion": "magnitude", "samples": 16}}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A convolution with BatchNormalization, two hidden layers without, and a regression, each on the same images."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE, name="image")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, name="conv")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(x))
    intake.save(keras.Model(image, layers.Dense(4, activation="softmax", name="classes")(x)), folder / "normed.keras")
    intake.save(keras.Model(image, layers.Dense(1, name="value")(x)), folder / "regression.keras")
    x = layers.Flatten(name="flat")(image)
    for name in ("hidden1", "hidden2"):
        x = layers.Dense(8, activation="relu", name=name)(x)
    intake.save(keras.Model(image, layers.Dense(4, activation="softmax", name="classes")(x)), folder / "plain.keras")
    return folder


def build(files, folder, model, data=None, **options):
    x, y = samples()
    words = {f"stages.shrink.{key}": value for key, value in options.items()}
    given = (np.array(x), y) if data is None else data
    return edgeprune.build(
        *(files / f"{model}.keras", given),
        **{"recipe": RECIPE, "target": "host", "out": folder / "run", "overrides": words, "progress": Silent()},
    )


@pytest.mark.parametrize(
    ("model", "options", "error", "messages"),
    [
        # A ratio that would leave a layer empty
        (
            "normed",
            {"ratio": 1.0},
            RecipeError,
            ["stages.shrink.ratio: got 1", "the share that goes, from 0 to below 1"],
        ),
        ("normed", {"ratio": 50}, RecipeError, ["stages.shrink.ratio: got 50", "0.5 removes half"]),
        ("normed", {"ratios.conv": 1}, RecipeError, ["stages.shrink.ratios.conv: got 1", "leave nothing"]),
        (
            *("plain", {"ratio": 0.95, "scope": "network"}, CutError),
            ["stages.shrink: 0.95 of 'hidden1', 'hidden2' is 15 of 16", "at least 2 must stay", "at most 0.875"],
        ),
        (
            *("plain", {"ratio": 0.6, "scope": "network", "floors": 0.5}, CutError),
            ["0.6 of 'hidden1', 'hidden2' is 9 of 16", "lower the ratio to at most 0.5, or the floors"],
        ),
        ("normed", {"macs": 0.001}, CutError, ["stages.shrink.macs: 0.001", "at least 0.125", "Ask for that or more"]),
        # A multiple larger than the layer
        (
            "normed",
            {"multiples": 64},
            CutError,
            ["stages.shrink: 'conv' has 8 channels", "64", "at most 8, or leave it out"],
        ),
        ("plain", {"multiples": {"hidden1": 16}}, CutError, ["'hidden1' has 8 channels", "16", "at most 8"]),
        # No such criterion
        (
            "normed",
            {"criterion": "tayler"},
            RecipeError,
            ["got 'tayler'", "Did you mean 'taylor'?", "Known: activation_"],
        ),
        # A signal that the model or the data cannot give
        (
            *("plain", {"criterion": "slimming"}, CutError),
            [
                "stages.shrink: No kernel",
                "'scale': no BatchNormalization is behind it",
                "would work: activation_entropy, ",
            ],
        ),
        (
            *("regression", {"criterion": "lda"}, CutError),
            ["one whole number >= 0 per sample", "y is float32", "would work: activation_entropy, "],
        ),
        # An expression that matches nothing, or is none
        (
            "normed",
            {"include": "block.*"},
            RecipeError,
            ["stages.shrink: include: 'block.*' matches no", "of: conv, classes"],
        ),
        ("normed", {"exclude": "conw"}, RecipeError, ["exclude: 'conw' matches no", "Did you mean 'conv'?"]),
        ("normed", {"ratios": {"conw": 0.5}}, RecipeError, ["stages.shrink: ratios: 'conw'", "Did you mean 'conv'?"]),
        ("normed", {"floors": {"conw": 2}}, RecipeError, ["floors: 'conw' matches no", "whole name of: 'conv'"]),
        ("normed", {"multiples": {"conw": 2}}, RecipeError, ["multiples: 'conw' matches no", "Did you mean 'conv'?"]),
        ("normed", {"scope": ["conw"]}, RecipeError, ["scope: 'conw' matches no", "Did you mean 'conv'?"]),
        ("normed", {"include": "("}, RecipeError, ["stages.shrink.include", "not a regular expression"]),
    ],
    ids=lambda value: " ".join(f"{key}={given}" for key, given in value.items()) if isinstance(value, dict) else None,
)
def test_a_build_that_cannot_be_says_what_would_work(files, tmp_path, model, options, error, messages):
    x, y = samples()
    data = (np.array(x), x.mean(axis=(1, 2, 3))) if model == "regression" else (np.array(x), y)
    with pytest.raises(error) as caught:
        build(files, tmp_path, model, data, **options)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("criterion", ["taylor", "lda"])
def test_data_without_labels_is_refused_before_anything_is_scored(files, tmp_path, criterion):
    with pytest.raises(DataError, match=r"\by\b"):
        build(files, tmp_path, "normed", {"x": np.array(samples()[0])}, criterion=criterion)
    assert not (tmp_path / "run" / "stages").exists()


def test_the_command_line_refuses_with_the_same_words_and_ends_with_1(files, tmp_path, capsys):
    from edgeprune import cli

    x, y = samples()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "recipe.yaml").write_text("name: tiny\nstages: {shrink: {epochs: 0, criterion: magnitude}}\n")
    words = [
        str(files / "normed.keras"),
        "--data",
        str(tmp_path / "data.npz"),
        "--recipe",
        str(tmp_path / "recipe.yaml"),
    ]
    words += ["--target", "host", "--out", str(tmp_path / "run"), "--quiet", "--set", "stages.shrink.multiples=64"]
    assert cli.run(["build", *words]) == 1
    assert "stages.shrink: 'conv' has 8 channels, fewer than the 64" in " ".join(capsys.readouterr().err.split())
