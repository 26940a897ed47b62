"""What the verify stage proves, and that it does not pass what is broken."""

from __future__ import annotations

import dataclasses
import json
import types

import converted
import numpy as np
import pytest

from edgeprune import data, divergence, metrics, parity, pipeline, progress, proof, recipe, registry, target, tflite
from edgeprune.data_options import DataOptions
from edgeprune.errors import ArtefactError


@pytest.fixture(scope="module")
def made():
    return converted.artefacts()


@pytest.fixture(scope="module")
def final(made):
    return tflite.read(made.final)


@pytest.fixture(scope="module")
def masks(made):
    with np.load(made.folder / "masks.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def fake_quantized(made):
    from edgeprune.keras import export

    return export.Exported(made.folder / "quantized")


PATTERNS = dict.fromkeys(converted.PRUNED, "2:4")


# Zeros and patterns


def test_every_mask_is_found_in_the_file(final, masks):
    proofs = {each.layer: each for each in proof.prove(final, masks, PATTERNS)}
    assert set(proofs) == set(converted.PRUNED)
    for each in proofs.values():
        assert each.sparsity_keras == 0.5
        assert each.sparsity >= 0.5
        assert each.n_of_m == {"n": 2, "m": 4, "share": 1.0}


def test_kept_weights_that_int8_rounds_to_zero_are_counted_and_allowed(made, masks):
    tensor = converted.constant_of(made.final, "hidden", 1)
    kept = np.argwhere(masks["hidden"].T)[:3]

    def zeroed(values):
        values[tuple(kept.T)] = 0
        return values

    before = proof.prove(tflite.read(made.final), masks, PATTERNS)[2]
    after = proof.prove(tflite.read(converted.tampered(made.final, tensor, zeroed)), masks, PATTERNS)[2]
    assert (after.layer, after.extra_zeros) == ("hidden", before.extra_zeros + 3)


@pytest.mark.parametrize("layer", converted.PRUNED)
def test_one_weight_that_came_back_is_an_error_that_names_the_layer(made, masks, layer):
    def revived(values):
        values[tuple(np.argwhere(values == 0)[0])] = 1
        return values

    broken = tflite.read(converted.tampered(made.final, converted.constant_of(made.final, layer, 1), revived))
    with pytest.raises(ArtefactError, match=f"'{layer}' has 1 of .* pruned weights that are not zero"):
        proof.prove(broken, masks, PATTERNS)


def test_a_mask_along_the_wrong_axis_is_seen(final, masks):
    turned = {"hidden": masks["hidden"].T}
    with pytest.raises(ArtefactError, match="'hidden'"):
        proof.prove(final, turned, {})


def test_a_block_that_keeps_too_many_is_an_error(final, masks):
    everything = {name: np.ones_like(mask) for name, mask in masks.items()}
    with pytest.raises(ArtefactError, match=r"'first' must keep at most 1 of every 4"):
        proof.prove(final, everything, dict.fromkeys(converted.PRUNED, "1:4"))


def test_a_pruned_layer_that_the_file_lacks_is_an_error(final):
    with pytest.raises(ArtefactError, match=r"no kernel for the pruned layer 'lost'.*first.*hidden"):
        proof.prove(final, {"lost": np.ones((5, 7), bool)}, {})


@pytest.mark.parametrize(
    ("keras_shape", "file_shape"),
    [((2, 3, 4, 5), (5, 2, 3, 4)), ((7, 9), (9, 7)), ((3, 4, 5), (5, 1, 3, 4))],
    ids=["Conv2D", "Dense", "Conv1D"],
)
def test_layouts_follow_each_weight_from_keras_to_the_file(keras_shape, file_shape):
    numbered = np.arange(np.prod(keras_shape)).reshape(keras_shape)
    (moved,) = next(proof._forms(numbered))
    assert moved.shape == file_shape
    assert moved[(-1, *[0] * (moved.ndim - 2), 1)] == numbered[(*[0] * (numbered.ndim - 2), 1, -1)]


# Does it compute what the model computes?


def test_the_file_computes_what_the_fake_quantized_model_computes(made, fake_quantized):
    result = parity.check(made.final, fake_quantized, {"image": converted.samples(64, seed=5)}, True, 2.0)
    assert result.agrees
    assert result.first is None
    assert result.comparison.agreement >= 0.95
    assert result.comparison.largest_difference_steps <= 4


def one_sided(bias):
    """Push half of the outputs to the end of their range."""
    bias[: len(bias) // 2] += 40 * max(1000, int(np.abs(bias).max()))
    return bias


@pytest.mark.parametrize(
    ("layer", "op"), [("second", "CONV_2D"), ("hidden", "FULLY_CONNECTED"), ("scores", "FULLY_CONNECTED")]
)
def test_a_wrong_bias_is_found_at_its_op(made, fake_quantized, layer, op):
    broken = converted.tampered(made.final, converted.constant_of(made.final, layer, 2), one_sided)
    result = parity.check(broken, fake_quantized, {"image": converted.samples(32, seed=5)}, True, 2.0)
    assert result.agrees is False
    assert (result.first.op, result.first.layer) == (op, layer)
    assert result.first.steps > 2


def test_swapped_outputs_of_two_branches_do_not_pass(tmp_path):
    """Two branches that share nothing: only their order can be wrong (tflite-micro tests its comparison so)."""
    from edgeprune.keras import conversion, export, keras

    inputs = [keras.Input((6,), name=name) for name in ("left", "right")]
    outputs = [keras.layers.Dense(3, name=f"{each.name}_out")(each) for each in inputs]
    given = {
        name: np.random.default_rng(i).normal(size=(64, 6)).astype(np.float32)
        for i, name in enumerate(("left", "right"))
    }
    folder = export.save(keras.Model(inputs, outputs), tmp_path / "two")
    path = conversion.convert(folder, tmp_path / "two.tflite", representative=given)
    straight = export.Exported(folder)

    class Swapped:
        def outputs(self, batch):
            right = straight.outputs(batch)
            return {"left_out": right["right_out"], "right_out": right["left_out"]}

        layer_outputs = staticmethod(straight.layer_outputs)

    assert parity.check(path, straight, given, False, 8.0).agrees
    assert not parity.check(path, Swapped(), given, False, 8.0).agrees
    with pytest.raises(ArtefactError, match=r"the inputs .*, the Keras model only"):
        parity.check(path, straight, {"only": given["left"]}, False, 8.0)


def test_rounding_has_no_direction_and_is_small():
    assert divergence.agrees(systematic=1.9, rms=7.9, tolerance=2.0)
    assert not divergence.agrees(systematic=2.1, rms=2.1, tolerance=2.0)
    assert not divergence.agrees(systematic=0.0, rms=8.1, tolerance=2.0)


# The two stages in a run folder


@pytest.fixture(scope="module")
def samples():
    inputs = converted.samples(200, seed=3)
    labels = np.arange(200) % converted.CLASSES
    return data.load({"x": inputs, "y": labels}, DataOptions(test=0.2, validation=0.1, calibration=32))


def state_of(folder, samples, label="convert", **files):
    facts = target.load(registry.file("targets", "rpi4"))
    options = recipe.load({"name": "test", "seed": 1, "stages": {"convert": {}, "verify": {}}})
    run = pipeline.Run(folder, options, facts, samples, metrics.choose("classification"), progress.Silent(), {})
    workspace = folder / "stages" / f"1-{label}"
    workspace.mkdir(parents=True, exist_ok=True)
    roles = {role: str(path.relative_to(folder)) for role, path in files.items()}
    return pipeline.State(run, files=roles, label=label, workspace=workspace)


def stage(name, **options):
    module = registry.module("stages", name)
    return lambda state: module.run(state, module.Options(**options))


@pytest.fixture(scope="module")
def trained(made, samples):
    """What the convert stage makes of a model with fake quantizers."""
    start = state_of(
        made.folder,
        samples,
        float=made.folder / "float.keras",
        model=made.folder / "float.keras",
        quantized=made.folder / "quantized",
        masks=made.folder / "masks.npz",
    )
    done = stage("convert")(start)
    planned = {"layers": {name: {"name": name, "pattern": "2:4"} for name in converted.PRUNED}}
    return dataclasses.replace(done.add(pruning=planned), label="verify")


def test_convert_leaves_the_final_file_and_what_it_is_compared_with(trained, made):
    assert {"final", "dense_int8", "float_tflite", "reference", "quantized"} <= set(trained.files)
    assert trained.path("final").read_bytes() == made.final.read_bytes()
    assert trained.facts["model"]["input"]["shape"] == list(converted.SHAPE)
    assert trained.facts["model"]["input"]["dtype"] == trained.facts["model"]["output"]["dtype"] == "int8"
    assert set(trained.facts["conversion"]) == {"final", "dense_int8", "float_tflite"}


def test_verify_reports_what_it_proved(trained):
    facts = stage("verify", samples=32)(trained).facts
    verify = facts["verify"]
    assert (verify["int8_share"], verify["float_ops"]) == (1.0, [])
    assert verify["zeros_match"] is verify["n_of_m_match"] is verify["outputs_agree"] is True
    assert verify["first_divergence"] is None
    assert verify["samples"] == 32
    assert "validation" in verify["inputs"]
    assert "noise" in verify["inputs"]
    assert all(0 <= value <= 1 for value in verify["metric"].values())
    assert set(facts["candidates"]) == {"float", "dense_int8", "final"}
    assert facts["candidates"]["final"]["sparsity"] > facts["candidates"]["dense_int8"]["sparsity"]
    assert facts["candidates"]["float"]["size_bytes"] > facts["candidates"]["final"]["size_bytes"]
    assert facts["verified_layers"]["second"]["n_of_m"]["share"] == 1.0
    assert facts["ops"][0]["layer"] == "first"
    json.dumps(dict(facts))  # goes into report.json


def test_the_test_split_gives_the_metric_and_nothing_else(trained, monkeypatch):
    used = []
    taken = data.Split.inputs

    def watched(self, *positions):
        used.append(self)
        return taken(self, *positions)

    monkeypatch.setattr(data.Split, "inputs", watched)
    stage("verify", samples=8)(trained)
    test, *others = [split for split in trained.run.data.splits.values() if split is trained.run.data.test]
    rest = [split for split in used if split is not test]
    assert others == []
    assert all(split is trained.run.data.validation for split in rest)
    assert len(rest) == 1


def test_equal_seeds_compare_equal_inputs(trained):
    one, other = (stage("verify", samples=16)(trained).facts["verify"] for _ in range(2))
    assert one == other


@pytest.fixture
def broken(trained, made, tmp_path):
    """The same run with a final file of which one bias is wrong."""
    path = made.folder / "stages" / "broken.tflite"
    path.write_bytes(converted.tampered(made.final, converted.constant_of(made.final, "scores", 2), one_sided))
    files = {**trained.files, "final": str(path.relative_to(made.folder))}
    return dataclasses.replace(trained, files=files)


def test_a_file_that_computes_something_else_is_an_error_that_names_the_op(broken):
    with pytest.raises(ArtefactError, match=r"FULLY_CONNECTED of the layer 'scores'.*stages\.verify\.strict=false"):
        stage("verify", samples=16)(broken)


def test_without_strict_the_report_says_so(broken):
    facts = stage("verify", samples=16, strict=False)(broken).facts
    assert facts["verify"]["outputs_agree"] is False
    assert facts["verify"]["first_divergence"]["layer"] == "scores"
    assert any("'scores'" in note for note in facts["notes"])


def test_without_a_quantize_stage_the_model_is_quantized_after_training(made, samples):
    float_model = made.folder / "float.keras"
    start = state_of(made.folder, samples, "ptq", float=float_model, model=float_model)
    done = stage("convert")(start)
    assert "exported" in done.files
    verify = stage("verify", samples=16)(dataclasses.replace(done, label="verify")).facts["verify"]
    assert verify["metric"]["fake_quant"] is None
    assert verify["zeros_match"] is verify["n_of_m_match"] is verify["outputs_agree"] is None
    assert "float Keras" in verify["compared_with"]
    assert verify["agreement"] > 0.8


# kernels that the file does not name, or splits


def stored(*constants):
    """Constants of a file: (values, op, layer), all with zero point 0."""
    tensors = tuple(
        tflite.Tensor(
            place, f"t{place}", values.shape, "int8", np.ones(1), np.zeros(1, int), 0, values, False, True, False
        )
        for place, (values, _, _) in enumerate(constants)
    )
    ops = tuple(
        tflite.Op(place, kind, False, (place,), (), {}, layer=layer) for place, (_, kind, layer) in enumerate(constants)
    )
    return types.SimpleNamespace(tensors=tensors, ops=ops)


def kernel(seed, shape):
    random = np.random.default_rng(seed)
    mask = np.argsort(random.random((shape[0] // 4, 4, *shape[1:])), axis=1).reshape(shape) < 2
    return mask, np.where(mask, random.integers(1, 127, shape), 0).astype(np.int8)


def test_the_gates_of_an_lstm_are_known_by_their_zeros():
    (mask, inputs), (own, states) = kernel(0, (8, 32)), kernel(1, (8, 32))
    gates = [(part, "UNIDIRECTIONAL_SEQUENCE_LSTM", None) for part in np.split(states.T, 4) + np.split(inputs.T, 4)]
    first, second = proof.prove(
        stored(*gates), {"lstm": mask, "lstm:recurrent_kernel": own}, {"lstm": "2:4", "lstm:recurrent_kernel": "2:4"}
    )
    assert (first.tensor, second.tensor) == ("t4, t5, t6, t7", "t0, t1, t2, t3")
    assert first.sparsity == 0.5 and first.extra_zeros == 0 and first.n_of_m == {"n": 2, "m": 4, "share": 1.0}
    broken = [*gates[:5], (np.ones_like(gates[5][0]), *gates[5][1:]), *gates[6:]]
    with pytest.raises(ArtefactError, match=r"'lstm' has \d+ of 128 pruned weights that are not zero"):
        proof.prove(stored(*broken), {"lstm": mask}, {})


def test_a_table_is_as_keras_stores_it_and_only_where_rows_are_looked_up():
    mask, values = kernel(0, (8, 8))
    (found,) = proof.prove(stored((values, "GATHER", None)), {"table": mask}, {})
    assert found.tensor == "t0"
    with pytest.raises(ArtefactError, match="not zero"):
        proof.prove(stored((values, "FULLY_CONNECTED", "table")), {"table": mask}, {})


def test_another_layers_tensor_proves_nothing_unless_it_has_the_zeros():
    mask, values = kernel(0, (8, 12))
    part = [(gate, "FULLY_CONNECTED", f"gru_{place}") for place, gate in enumerate(np.split(values.T, 3))]
    assert proof.prove(stored(*part), {"gru": mask}, {})[0].tensor == "t0, t1, t2"
    with pytest.raises(
        ArtefactError, match=r"no kernel for the pruned layer 'other'.*The kernels are: gru_0, gru_1, gru_2"
    ):
        proof.prove(stored(*part), {"other": kernel(1, (8, 12))[0]}, {})


@pytest.mark.parametrize(
    ("keras_shape", "axes", "file_shape"),
    [
        ((3, 8, 5), (2, 0, 1), (5, 1, 3, 8)),  # Conv1D as the converter does it
        ((3, 8, 5), (2, 0, 1), (5, 3, 1, 8)),  # Conv1D as Conv2D(k, 1)
        ((2, 2, 5, 8), (2, 0, 1, 3), (5, 2, 2, 8)),  # Conv2DTranspose
        ((1, 1, 8, 5), (3, 0, 1, 2), (5, 8)),  # a pointwise convolution as a product
        ((1, 8, 5), (2, 0, 1), (5, 1, 1, 8)),  # the pointwise kernel of a SeparableConv1D
    ],
)
def test_every_form_of_a_kernel_is_found(keras_shape, axes, file_shape):
    mask = np.random.default_rng(0).random(keras_shape) < 0.5
    values = mask.transpose(axes).reshape(file_shape).astype(np.int8)
    (found,) = proof.prove(stored((values, "CONV_2D", "it")), {"it": mask}, {})
    assert found.extra_zeros == 0 and found.sparsity == found.sparsity_keras
