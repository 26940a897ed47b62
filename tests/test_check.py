"""What `check` says of each layer, before anything is trained."""

from __future__ import annotations

import json

import converted
import pytest
from keras_models import cnn

from edgeprune import checking, cli, registry, target
from edgeprune.errors import ArtefactError, ConversionError, ModelError
from edgeprune.keras import check, conversion, keras, preparation

kl = keras.layers
FACTS = target.load(registry.file("targets", "rpi4"))


def checked(model, tmp_path, **keywords):
    model.save(tmp_path / "model.keras", save_format="keras")
    return check.check(str(tmp_path / "model.keras"), FACTS, **keywords)


def by_name(found):
    return {layer["name"]: layer for layer in found["layers"]}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A layer for every answer: an input that is rewritten, a stem that no 2:4 fits, an activation that stays float.

    ELU has an exact int8 rewrite, which is taken away here: every activation of Keras is int8 with all of them.
    """
    inputs = keras.Input((8, 8, 3), name="image")
    x = kl.Rescaling(1 / 255, name="scale")(inputs)
    x = kl.BatchNormalization(name="bn")(kl.Conv2D(8, 3, name="stem")(x))
    x = kl.Conv2D(8, 3, activation="elu", name="middle")(x)
    x = kl.Dropout(0.1, name="drop")(kl.GlobalAveragePooling2D(name="pool")(x))
    model = keras.Model(inputs, kl.Dense(4, activation="softmax", name="scores")(x), name="odd")
    kept = tuple(rewrite for rewrite in preparation.REWRITES if rewrite.name != "exponential units")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparation, "REWRITES", kept)
        return checked(model, tmp_path_factory.mktemp("odd"))


def test_layers_in_the_models_order_without_its_inputs(odd):
    assert list(by_name(odd)) == ["scale", "stem", "bn", "middle", "pool", "drop", "scores"]
    assert (odd["model"], odd["target"]) == ("odd", "rpi4")
    assert json.loads(json.dumps(odd)) == odd
    for layer in odd["layers"]:
        keys = {"name", "kind", "params", "macs", "prunable", "shrinkable", "qat", "int8", "reason"}
        assert set(layer) == keys
        assert set(layer["prunable"]) == {"weight", "2:4"}
        assert set(layer["qat"]) == {"how", "reason"}


def test_prunable_and_why_not(odd):
    layers = by_name(odd)
    assert layers["middle"]["prunable"] == {"weight": None, "2:4": None}
    assert layers["stem"]["prunable"]["weight"] is None
    assert "3 input channels" in layers["stem"]["prunable"]["2:4"]
    assert layers["pool"]["prunable"]["weight"] == check.NO_KERNEL


def test_shrinkable_and_why_not(odd):
    layers = by_name(odd)
    assert layers["stem"]["shrinkable"] is layers["middle"]["shrinkable"] is None
    assert "output of the model" in layers["scores"]["shrinkable"]
    assert layers["bn"]["shrinkable"] == check.NO_CHANNELS


def test_an_activation_without_an_int8_kernel_is_its_layers_fault(odd):
    layers = by_name(odd)
    assert layers["middle"]["qat"]["how"] == check.POST_TRAINING
    assert "ELU" in layers["middle"]["qat"]["reason"]
    assert layers["middle"]["int8"] is False
    assert layers["middle"]["reason"] == "stays in float: ELU"
    assert layers["stem"]["int8"] is True and layers["stem"]["reason"] is None


def test_rewrites_name_their_layers(odd):
    assert {"name": "scales", "layers": ["scale"]} in odd["rewrites"]


def test_rewrites_of_rewrites_name_the_users_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "convert", crash)  # the file says nothing about rewrites
    inputs = keras.Input((4,), name="x")
    found = checked(keras.Model(inputs, kl.Dense(3, activation="elu", name="curved")(inputs)), tmp_path)
    assert {name for rewrite in found["rewrites"] for name in rewrite["layers"]} == {"curved"}


def test_the_summary_counts(odd):
    summary = odd["summary"]
    assert summary["prunable"] == {"weight": 3, "2:4": 2}
    assert (summary["layers"], summary["with_kernel"], summary["shrinkable"]) == (7, 3, 2)
    assert summary["post_training"] == ["middle"]
    assert summary["int8"] is False
    assert summary["float_ops"]["middle"] == ["ELU"]
    assert summary["words"].startswith(
        "2 of 3 layers with a kernel prunable 2:4, 2 shrinkable, 1 quantized after training"
    )


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """A model whose every layer is trained with fake quantizers, ranges from the user's samples; and what the converter got."""
    given = {}
    convert = conversion.convert

    def watched(*arguments, representative, **keywords):
        given.update(representative)
        return convert(*arguments, representative=representative, **keywords)

    data = {"x": converted.samples(40) * 7, "y": [0, 1] * 20}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(conversion, "convert", watched)
        return checked(cnn(), tmp_path_factory.mktemp("carried"), data=data), given


def test_a_model_that_is_carried_whole(carried):
    found, _ = carried
    assert found["summary"]["int8"] is True
    assert found["summary"]["post_training"] == []
    assert found["summary"]["words"].endswith("all trained, fully int8")
    assert {layer["qat"]["how"] for layer in found["layers"]} == {"trained", "fused"}
    assert all(layer["int8"] for layer in found["layers"])


def crash(*_, **__):
    raise ConversionError("The converter crashed with SIGSEGV on the model.")


def test_a_converter_that_dies_costs_the_answer_about_int8_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "convert", crash)
    found = checked(cnn(), tmp_path)
    assert all(layer["int8"] is None for layer in found["layers"])
    assert found["summary"]["int8"] is None
    assert "SIGSEGV" in found["summary"]["error"]
    assert found["summary"]["words"].endswith("not converted")
    assert by_name(found)["stem"]["qat"]["how"] == "trained"


def test_samples_of_the_users_set_the_ranges(carried):
    _, given = carried
    assert list(given) == ["image"]
    assert given["image"].shape == (check.SAMPLES, *converted.SHAPE)
    assert given["image"].max() > 1


def test_what_is_no_model_is_a_named_error():
    with pytest.raises(ModelError, match="absent"):
        check.check("absent", FACTS)


# Of a .tflite


def test_a_true_int8_file(tmp_path):
    found = checking.check(converted.artefacts().final, FACTS)
    assert found["violations"] == []
    assert all(op["int8"] and op["reason"] is None for op in found["ops"])
    assert found["summary"]["int8"] is True
    assert found["summary"]["words"].endswith("fully int8")


def test_a_float_file_says_which_ops_and_why():
    found = checking.check(converted.artefacts().float32, FACTS)
    assert found["summary"]["int8"] is False
    assert found["violations"]
    assert {op["reason"] for op in found["ops"] if not op["int8"]} == {"computes in float"}
    assert len(found["summary"]["float_ops"]) == sum(not op["int8"] for op in found["ops"])


def test_an_accelerator_is_asked():
    found = checking.check(converted.artefacts().final, target.load(registry.file("targets", "coral-usb")))
    assert found["accelerator"] == "Edge TPU"
    assert found["summary"]["mapped"] + found["summary"]["cpu"] == len(found["ops"])
    assert all((op["reason"] is None) is op["mapped"] for op in found["ops"])


def test_a_damaged_file_is_a_named_error(tmp_path):
    (tmp_path / "torn.tflite").write_bytes(converted.artefacts().final.read_bytes()[:100])
    with pytest.raises(ArtefactError, match=r"torn\.tflite"):
        checking.check(tmp_path / "torn.tflite", FACTS)


# The command


def test_the_command_for_a_model(carried, tmp_path, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(check, "check", lambda *given: seen.update(given=given) or carried[0])
    assert cli.run(["check", "cnn.keras", "--target", "rpi5", "--data", "data.npz", "--trust"]) == 0
    source, facts, *words = seen["given"]
    assert (source, facts.name, *words) == ("cnn.keras", "rpi5", True, "data.npz")
    shown = capsys.readouterr().out
    assert "fully int8" in shown and "depthwise" in shown


def test_a_note_about_the_model_is_shown(odd, capsys):
    from rich.console import Console

    from edgeprune import tables

    Console(width=300).print(tables.check_model({**odd, "notes": ["Left out of the model: flip."]}))
    assert "Left out of the model: flip." in capsys.readouterr().out


def test_the_command_for_a_file(capsys):
    assert cli.run(["check", str(converted.artefacts().final), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["int8"] is True
    assert cli.run(["check", str(converted.artefacts().float32)]) == 0
    assert "computes in float" in capsys.readouterr().out
