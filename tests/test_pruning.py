"""Masks: which layers, how many weights, in which pattern, at which step; and zeros that are there in the end."""

from __future__ import annotations

import itertools

import numpy as np
import pruning_reference
import pytest
from keras_models import advance, assert_identical, cnn, dense, keras, layers, run, shaken, small, weights

from edgeprune import pipeline, recipe
from edgeprune.errors import RecipeError
from edgeprune.keras import graph, intake, kernels, pruning, pruning_wrappers, tf, tfmot
from edgeprune.keras.pruning import Pattern, Ramp
from edgeprune.pipelines import prune

WEIGHT, NM, BLOCK = Pattern(), Pattern("n:m", n=2, m=4), Pattern("block", block=(4, 1))
POLYNOMIAL = Ramp("polynomial", 0.0, 0.5, 0.0, 0.6)
STEPS = Ramp("steps", 0.0, 0.5, 0.0, 0.6)


def wrapped(model, pattern, ramp, steps):
    return pruning_wrappers.wrap(model, pruning.plan(model, pattern), pattern, ramp, steps)


def zeros(mask):
    return int(mask.size - mask.sum())


def nm_zeros(mask, m):
    """Zeros in every block of m consecutive input channels; the input axis is the last but one in every Keras kernel."""
    return (~np.moveaxis(mask, -2, -1).reshape(-1, m)).sum(-1)


# which layers


@pytest.fixture(scope="module")
def zoo():
    """One layer for every reason."""
    x = given = keras.Input((8, 8, 3), name="x")
    x = layers.Conv2D(8, 3, name="stem")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(8, 1, groups=2, name="grouped")(x)
    x = layers.DepthwiseConv2D(3, name="depth")(x)
    x = layers.SeparableConv2D(8, 1, name="separable")(x)
    x = layers.Conv2DTranspose(8, 1, name="transposed")(x)
    x = layers.Conv2D(6, 1, name="even")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(given, layers.Dense(4, name="classes")(x))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (WEIGHT, {"stem": None, "even": None, "classes": None, "separable": None, "transposed": None}),
        (
            NM,
            {
                "stem": "3 input channels, not divisible by 4",
                "even": None,
                "classes": "6 input channels, not divisible by 4",
                "separable": None,
                "transposed": None,
            },
        ),
        (
            Pattern("block", block=(2, 4)),
            {
                "stem": "kernel 3x8 (input x output channels), not divisible into 2x4 blocks",
                "even": "kernel 8x6 (input x output channels), not divisible into 2x4 blocks",
                "classes": None,
                "separable": None,
                "transposed": None,
            },
        ),
    ],
    ids=str,
)
def test_plan_names_every_layer_with_its_reason(zoo, pattern, expected):
    found = {entry.name: entry.reason for entry in pruning.plan(zoo, pattern)}
    assert found == {
        **expected,
        "bn": "BatchNormalization has no kernel that is pruned",
        "grouped": "grouped convolution",
        "depth": "depthwise: each filter sees one channel, so there are too few weights to choose from",
    }


def test_plan_takes_whole_names(zoo):
    def prunable(**words):
        return [entry.name for entry in pruning.plan(zoo, WEIGHT, **words) if entry.prunable]

    assert prunable(include="stem|even") == ["stem", "even"]
    assert prunable(include="ste") == []
    assert prunable(exclude="s.*") == ["transposed", "even", "classes"]
    reasons = {entry.name: entry.reason for entry in pruning.plan(zoo, WEIGHT, "e.*", "even")}
    assert (reasons["stem"], reasons["even"]) == ("not named by include: e.*", "named by exclude: even")


def test_only_a_kernel_left_alone_is_worth_a_note(zoo):
    left = [entry.name for entry in pruning.plan(zoo, NM) if entry.left_alone]
    assert left == ["stem", "grouped", "depth", "classes"]


def test_nothing_to_prune_is_a_named_error():
    with pytest.raises(RecipeError, match=r"pattern 2:4 \(d1: 6 input channels, not divisible by 4\)"):
        wrapped(dense(3, inputs=6), NM, STEPS, 10)


def test_wrapping_leaves_the_model_as_it_is():
    model = shaken(cnn())
    before = weights(model)
    pruned = wrapped(model, WEIGHT, POLYNOMIAL, 10)
    advance(pruned, 10)
    assert_identical(weights(model), before)
    assert not {id(layer) for layer in model.layers} & {id(layer) for layer in pruned._flatten_layers()}


# how many weights


@pytest.mark.parametrize("steps", [1, 2, 7, 25, 333])
@pytest.mark.parametrize("span", [(0.0, 0.6), (0.1, 1.0), (0.95, 1.0), (0.3, 0.3001)], ids=str)
@pytest.mark.parametrize("frequency", [None, 1, 4, 1000])
def test_the_last_update_has_the_final_sparsity_within_the_stage(steps, span, frequency):
    """TFMOT updates at multiples of the frequency and not after end_step; where the two do not meet, it stops short."""
    schedule = pruning_wrappers.tfmot_schedule(Ramp("polynomial", 0.0, 0.8, *span, frequency=frequency), steps, WEIGHT)
    updated, sparsity = schedule(tf.range(1, steps + 1))
    assert sparsity[updated].numpy()[-1] == pytest.approx(0.8)


@pytest.mark.parametrize("steps", [7, 25])
@pytest.mark.parametrize("final", [0.37, 0.5, 0.9])
@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_sparsity_is_exact_to_one_weight(schedule, final, steps):
    model = wrapped(shaken(dense(7, 5, inputs=9)), WEIGHT, Ramp(schedule, 0.0, final, 0.1, 0.7), steps)
    advance(model, steps)
    for mask in pruning_wrappers.masks(model).values():
        assert abs(zeros(mask) / mask.size - final) <= 1 / mask.size


def test_the_smallest_magnitudes_go():
    model = shaken(dense(6))
    pruned = wrapped(model, WEIGHT, Ramp("constant", 0.0, 0.5, 0.0, 0.6), 5)
    advance(pruned, 5)
    kernel = np.abs(model.get_layer("d1").kernel.numpy())
    assert np.array_equal(pruning_wrappers.masks(pruned)["d1"], kernel > np.median(kernel))


# in which pattern


def as_dense_and_convolution(pattern, ramp, steps=4, taken=None):
    """Masks of a Dense (in, out) and of a Conv2D (height, width, in, out) kernel, with the kernels they came from."""
    x = given = keras.Input((4, 4, 8), name="x")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, (3, 2), name="conv")(x))
    model = shaken(keras.Model(given, layers.Dense(6, name="dense")(x)))
    pruned = wrapped(model, pattern, ramp, steps)
    advance(pruned, taken or steps)
    found = pruning_wrappers.masks(pruned)
    return [(found[name], model.get_layer(name).kernel.numpy()) for name in ("conv", "dense")]


@pytest.mark.parametrize("ramp", [STEPS, STEPS._replace(schedule="constant")], ids=lambda ramp: ramp.schedule)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
def test_nm_keeps_the_largest_of_consecutive_input_channels(ramp, n, m):
    for mask, kernel in as_dense_and_convolution(Pattern("n:m", n=n, m=m), ramp):
        assert np.array_equal(mask, pruning_reference.nm_mask(kernel, n, m))
        assert np.all(nm_zeros(mask, m) == m - n)


@pytest.mark.parametrize("pooling", ["AVG", "MAX"])
@pytest.mark.parametrize("block", [(4, 1), (1, 2), (4, 2), (8, 1)])
def test_blocks_live_or_die_whole(block, pooling):
    for mask, kernel in as_dense_and_convolution(Pattern("block", block=block, pooling=pooling), POLYNOMIAL):
        assert np.array_equal(mask, pruning_reference.block_mask(kernel, block, 0.5, pooling))
        assert zeros(mask) * 2 == mask.size


# at which step


def sparsities(pattern, ramp, steps, layer="d1"):
    """Share of zeros after every step."""
    model = wrapped(shaken(dense(8, inputs=16)), pattern, ramp, steps)
    found = []
    update = tfmot.sparsity.keras.UpdatePruningStep()
    update.set_model(model)
    update.on_train_begin()
    for _ in range(steps):
        model(np.zeros((1, 16), "float32"), training=True)
        found.append(1.0 - float(pruning_wrappers.masks(model)[layer].mean()))
    return found


def test_a_ramp_lays_one_zero_per_block_at_a_time():
    """Trap 2: TFMOT alone lays 2:4 at step 1, whatever the schedule says."""
    ramp = Ramp("steps", 0.0, 0.5, 0.25, 0.75)
    assert sparsities(NM, ramp, 8) == [0.0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert sparsities(NM, ramp._replace(schedule="constant"), 8) == [0.5] * 8


def test_on_the_way_every_block_has_one_zero():
    for mask, kernel in as_dense_and_convolution(NM, Ramp("steps", 0.0, 0.5, 0.0, 1.0), steps=8, taken=3):
        assert np.array_equal(mask, pruning_reference.nm_mask(kernel, 3, 4))


def test_three_of_four_is_reached_over_two_of_four_to_one_of_four():
    ramp = Ramp("steps", 0.0, 0.75, 0.0, 0.9)
    found = sparsities(Pattern("n:m", n=1, m=4), ramp, 10)
    assert [share for share, _ in itertools.groupby(found)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("pattern", "ramp"),
    [
        (WEIGHT, Ramp("polynomial", 0.0, 0.5, 0.0, 0.75)),
        (WEIGHT, Ramp("polynomial", 0.25, 0.75, 0.125, 0.875, power=1.0)),
        (WEIGHT, Ramp("constant", 0.0, 0.5, 0.25, 0.5)),
        (NM, Ramp("steps", 0.0, 0.5, 0.25, 0.75)),
        (Pattern("n:m", n=1, m=4), Ramp("steps", 0.0, 0.75, 0.0, 1.0)),
    ],
    ids=lambda value: str(value) if isinstance(value, Pattern) else value.schedule,
)
def test_the_reported_schedule_is_the_one_that_is_followed(pattern, ramp):
    steps = 128
    theirs, ours = pruning_wrappers.tfmot_schedule(ramp, steps, pattern), pruning.schedule_function(ramp, pattern)
    updated, sparsity = theirs(tf.range(1, steps + 1))
    compared = [step for step in range(1, steps + 1) if updated[step - 1]]  # between updates, and later, masks stay
    assert len(compared) > 30
    for step in compared:
        assert ours(step / steps) == pytest.approx(float(tf.broadcast_to(sparsity, [steps])[step - 1]), abs=1e-6)
    assert ours(1.0) == ramp.final


def test_what_tfmot_lays_at_once_is_reported_so():
    ours = pruning.schedule_function(Ramp("constant", 0.0, 0.5, 0.3, 0.6), NM)
    assert (ours(0.0), ours(1.0)) == (0.5, 0.5)


# and in the end


def test_strip_masks_once_more():
    """Trap 27: the last step of the optimizer comes after the last masking."""
    model = shaken(cnn())
    pruned = wrapped(model, NM, STEPS, 10)
    advance(pruned, 10)
    masks = pruning_wrappers.masks(pruned)
    for name in masks:
        kernel = next(layer.layer for layer in pruned.layers if getattr(layer, "layer", layer).name == name).kernel
        kernel.assign_add(np.full(kernel.shape, 1e-4))
    plain = pruning_wrappers.strip(pruned)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    for name, mask in masks.items():
        kernel = plain.get_layer(name).kernel.numpy()
        assert np.array_equal(kernel != 0, mask)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"tf_keras"}


def test_masks_come_back_from_their_file(tmp_path):
    masks = {"a": np.array([[True, False]]), "b/c": np.zeros((2, 2, 1, 1), bool)}
    found = pruning.load_masks(pruning.save_masks(masks, tmp_path / "masks.npz"))
    assert list(found) == ["a", "b/c"] and all(np.array_equal(found[name], masks[name]) for name in masks)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ({"final": 0.4, "frequency": 2}, "weight"),
        ({"granularity": "n:m"}, "2:4"),
        ({"granularity": "block", "final": 0.75}, "block 4x1"),
    ],
    ids=["weight", "n:m", "block"],
)
def test_the_stage_trains_prunes_and_tells(tmp_path, words, pattern):
    model = cnn() if pattern == "weight" else small()
    (tmp_path / "work").mkdir()
    intake.save(model, tmp_path / "model.keras")
    whole = run(tmp_path, {"prune": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, **words}})
    state = pipeline.State(whole, files={"model": "model.keras"}, label="prune", workspace=tmp_path / "work")
    made = prune.run(state, whole.recipe.stages[0].options)
    pruned = intake.load_own(tmp_path / "work" / "model.keras")
    masks = pruning.load_masks(tmp_path / "work" / "masks.npz")
    final = words.get("final", 0.5)
    for name, mask in masks.items():
        entry = made.facts["pruning"]["layers"][name]
        assert (entry["granularity"], entry["sparsity_target"]) == (pattern, final)
        assert entry["sparsity_keras"] == pytest.approx(zeros(mask) / mask.size)
        assert abs(zeros(mask) / mask.size - final) <= 4 / mask.size
        assert np.all(pruned.get_layer(name).kernel.numpy()[~mask] == 0)
    noted = [note for note in made.facts["notes"] if "depth is not pruned: depthwise" in note]
    assert len(noted) == (pattern == "weight")
    epochs = made.facts["history"]["prune"]["epochs"]
    assert [entry["epoch"] for entry in epochs] == [1, 2, 3] and epochs[-1]["sparsity"] == final
    assert made.facts["history"]["prune"]["schedule"][-1] == {"epoch": 3.0, "sparsity": final}
    assert graph.largest_difference(model, pruned) > 0.01


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_broken_regular_expression_is_a_recipe_error(key):
    with pytest.raises(RecipeError, match=rf"stages\.prune\.{key}: got '\(conv'; '\(conv' is not a regular expression"):
        recipe.parse({"stages": {"prune": {key: "(conv"}}}, "mine.yaml")


def test_a_second_stage_may_not_drop_what_the_first_has_pruned(tmp_path):
    model = small()
    (tmp_path / "work").mkdir()
    intake.save(model, tmp_path / "model.keras")
    pruning.save_masks({"gone": np.ones((2, 2), bool)}, tmp_path / "masks.npz")
    whole = run(tmp_path, {"prune": {"epochs": 1}})
    files = {"model": "model.keras", "masks": "masks.npz"}
    state = pipeline.State(whole, files=files, label="prune", workspace=tmp_path / "work")
    with pytest.raises(RecipeError, match="does not prune gone, which an earlier stage has pruned"):
        prune.run(state, whole.recipe.stages[0].options)


# kernels of other ranks and layouts


def sequence(*made, shape=(6, 8), dtype="float32"):
    x = given = keras.Input(shape, dtype=dtype, name="x")
    for layer in made:
        x = layer(x)
    return keras.Model(given, x)


OTHERS = {
    "Conv1D": (lambda: sequence(layers.Conv1D(6, 3, name="it")), {"it": -2}),
    "SeparableConv1D": (lambda: sequence(layers.SeparableConv1D(6, 3, name="it")), {"it": -2}),
    "Conv1DTranspose": (lambda: sequence(layers.Conv1DTranspose(6, 3, name="it")), {"it": -1}),
    "SeparableConv2D": (lambda: sequence(layers.SeparableConv2D(6, 3, name="it"), shape=(6, 6, 8)), {"it": -2}),
    "Conv2DTranspose": (lambda: sequence(layers.Conv2DTranspose(6, 3, name="it"), shape=(6, 6, 8)), {"it": -1}),
    "Dense of steps": (lambda: sequence(layers.Dense(6, name="it")), {"it": -2}),
    "TimeDistributed": (lambda: sequence(layers.TimeDistributed(layers.Dense(6), name="it")), {"it": -2}),
    "LSTM": (lambda: sequence(layers.LSTM(4, name="it")), {"it": -2, "it:recurrent_kernel": -2}),
    "GRU": (lambda: sequence(layers.GRU(4, name="it")), {"it": -2, "it:recurrent_kernel": -2}),
    "Bidirectional": (
        lambda: sequence(layers.Bidirectional(layers.SimpleRNN(4), name="it")),
        dict.fromkeys(
            [f"it:{side}_{kernel}" for side in ("forward", "backward") for kernel in ("kernel", "recurrent_kernel")], -2
        ),
    ),
}


@pytest.mark.parametrize("ramp", [STEPS, Ramp("constant", 0.0, 0.5, 0.0, 0.6)], ids=["ramp", "at once"])
@pytest.mark.parametrize(("make", "inputs"), OTHERS.values(), ids=OTHERS)
def test_the_pattern_lies_along_the_input_channels_of_every_kernel(make, inputs, ramp):
    model = wrapped(make(), NM, ramp, 4)
    advance(model, 4)
    found = pruning_wrappers.masks(model)
    assert list(found) == list(inputs)
    for name, axis in inputs.items():
        assert (np.moveaxis(found[name], axis, -1).reshape(-1, 4).sum(-1) == 2).all(), name
    plain = pruning_wrappers.strip(model)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in make().layers]
    for name, mask in found.items():
        kept = kernels.find(plain, name).numpy()
        assert not kept[~mask].any() and kept[mask].all()


def test_blocks_in_a_transposed_convolution_are_input_by_output_channels():
    model = wrapped(OTHERS["Conv2DTranspose"][0](), BLOCK, POLYNOMIAL, 4)
    advance(model, 4)
    (mask,) = pruning_wrappers.masks(model).values()
    blocks = mask.reshape(3, 3, 6, 2, 4)  # (..., out, in / 4, 4)
    assert np.array_equal(blocks.all(-1), blocks.any(-1)) and 0.4 < mask.mean() < 0.6


def test_a_table_is_pruned_weight_by_weight_only_and_its_mask_of_steps_goes_through():
    model = sequence(
        layers.Embedding(10, 4, mask_zero=True, name="table"),
        layers.Dense(4, name="dense"),
        layers.LSTM(4, name="recurrent"),
        shape=(6,),
        dtype="int32",
    )
    (table, *_) = pruning.plan(model, NM)
    assert table.reason == "a table of Embedding has rows, not input channels, that the pattern 2:4 could follow"
    whole = wrapped(model, WEIGHT, POLYNOMIAL, 4)
    words = np.array([[1, 2, 3, 0, 0, 0]])
    assert np.allclose(whole(words), model(words), atol=1e-6)
    advance(whole, 4)
    assert zeros(pruning_wrappers.masks(whole)["table"]) == 20


def test_a_kernel_that_cannot_carry_the_pattern_is_left_and_the_others_are_not():
    (plan,) = pruning.plan(sequence(layers.LSTM(4, name="it"), shape=(6, 3)), NM)
    assert plan.reason is None and [kernel.name for kernel in plan.kernels] == ["recurrent_kernel"]
    assert plan.left == ("kernel: 3 input channels, not divisible by 4",)


def test_the_kernels_of_an_einsum_are_left_with_the_reason():
    x = keras.Input((6, 8))
    model = keras.Model(x, layers.EinsumDense("abc,cd->abd", (None, 8))(layers.MultiHeadAttention(2, 4)(x, x)))
    assert [plan.reason for plan in pruning.plan(model, NM)] == [
        f"{kind}: which axis of its kernels is the inputs depends on an equation"
        for kind in ("MultiHeadAttention", "EinsumDense")
    ]
