"""The Keras side of the channel analysis, and removal for good: what is cut must not matter, and nothing else may change."""

import json

import numpy as np
import pytest
import random_graphs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from random_graphs import grown, halves, randomized, scrambled

from edgeprune import channel_blocks, channels
from edgeprune.errors import CutError, ModelError
from edgeprune.keras import channel_graph, graph, keras, surgery, tf
from edgeprune.keras import layers as own

layers = keras.layers


def groups(model):
    return {group.name: group for group in channels.couple(channel_graph.describe(model)).groups}


def assert_exact(model, seed=0):
    """Index-exactness: cut channels have no influence once their consumers are 0, and removing them changes nothing."""
    coupling = channels.couple(channel_graph.describe(model))
    cut = halves(coupling, seed)
    masked = surgery.masked(model, cut)
    assert all(not coupling.group(name).inexact for name in cut)
    small = surgery.shrink(model, cut)
    batches = graph.probes(model)
    expected = graph.outputs(masked, batches)
    assert graph.difference(expected, graph.outputs(scrambled(masked, coupling, cut), batches)) < 1e-5
    assert graph.difference(expected, graph.outputs(small, batches)) < 1e-5
    assert small.count_params() < model.count_params() or not cut
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]
    return small


def model_of(build, *shapes, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = [keras.Input(shape) for shape in shapes]
    return randomized(keras.Model(inputs, build(*inputs)))


def residual(x):
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    y = layers.BatchNormalization()(layers.Conv2D(4, 1, name="inner", use_bias=False)(x))
    y = layers.Conv2D(6, 3, padding="same")(layers.ReLU(6.0)(y))
    x = layers.Add()([x, y])
    return layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def squeeze_and_excite(x):
    x = layers.Conv2D(6, 3, name="wide", activation="swish")(x)
    gate = layers.Reshape((1, 1, 6), name="reshape")(layers.GlobalAveragePooling2D()(x))
    gate = layers.Conv2D(6, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="relu")(gate))
    x = layers.Dropout(0.2, noise_shape=(None, 1, 1, 1))(
        layers.Multiply()([x, gate])
    )  # for whole branches, as in EfficientNet
    return layers.Dense(3)(layers.Flatten()(x))


def grouped(x):
    x = layers.Conv2D(8, 3, name="before")(x)
    x = layers.Conv2D(12, 3, groups=4, padding="same", name="many")(x)
    x = layers.Conv2D(8, 1)(x)
    x = layers.Conv2D(8, 3, groups=2, padding="same", name="few")(x)
    x = layers.GroupNormalization(4, name="norm")(x)
    return layers.Conv2D(2, 1)(x)


def depthwise(x):
    x = layers.Conv2D(4, 1)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth")(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.ZeroPadding2D()(x))
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2)(x)
    x = layers.PReLU()(layers.UpSampling2D()(x))
    x = layers.Conv2DTranspose(4, 3, strides=2)(x)
    return layers.Dense(2)(layers.Flatten()(layers.MaxPooling2D()(x)))


def sequence(x):
    x = layers.Conv1D(4, 3, padding="same")(x)
    x = layers.LSTM(4, return_sequences=True, name="lstm")(layers.DepthwiseConv1D(3, padding="same")(x))
    x = layers.GRU(4, return_sequences=True, name="gru")(layers.SeparableConv1D(4, 3, padding="same")(x))
    x = layers.SimpleRNN(4)(layers.Conv1DTranspose(4, 3)(x))
    return layers.Dense(2)(x)


def states(x):
    x, *given = layers.LSTM(4, return_sequences=True, return_state=True, name="encoder")(x)
    x = layers.LSTM(4, name="decoder")(layers.Dense(3, name="between")(x), initial_state=given)
    return layers.Dense(2)(layers.RepeatVector(2)(x))


def shared(x, y):
    kernel, norm = layers.Conv2D(4, 3, name="twice"), layers.BatchNormalization()
    x = norm(kernel(layers.Conv2D(4, 1, name="left")(x)))
    y = norm(kernel(layers.Conv2D(4, 1, name="right")(y)))
    x = layers.Concatenate()([layers.Conv2D(4, 1)(x), y, x])
    return [layers.Conv2D(2, 1, name="first")(x), layers.Dense(3)(layers.Flatten()(y))]


def turned(x):
    x = layers.Permute((3, 1, 2), name="first")(layers.Conv2D(4, 3)(x))
    x = layers.Reshape((-1,), name="flat")(x)
    return layers.Dense(2)(x)


def volume(x):
    x = layers.Conv3D(4, 1)(x)
    x = layers.Conv3D(4, 2, strides=(1, 1, 2))(layers.MaxPooling3D((1, 1, 2))(x))
    return layers.Dense(2)(layers.GlobalMaxPooling3D()(layers.UpSampling3D()(x)))


def modern(x):
    x = own.HardSwish()(layers.Conv2D(6, 3, name="stem")(x))
    y = own.LayerScale(6)(layers.Dense(6, activation="gelu")(layers.Dense(8, name="inner")(x)))
    x = own.Operation("math.add", [{"tensor": 0}, {"tensor": 1}])([x, y])
    x = own.Operation("math.multiply", [{"tensor": 0}, 0.5])(x)
    return layers.Dense(2)(layers.GlobalAveragePooling2D(keepdims=True)(x))


def written(x):
    """As Python says it: Keras wraps every function and operator into a layer of its own."""
    x = layers.Conv2D(6, 3, name="stem")(x)
    x = tf.math.multiply(x, tf.nn.relu6(x + 3.0) * np.float32(1 / 6))
    x = x / 2.0 - tf.identity(layers.Conv2D(6, 1, name="side")(x))
    return layers.Dense(2)(layers.Flatten()(x))


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (residual, [(6, 6, 3)]),
        (squeeze_and_excite, [(6, 6, 3)]),
        (grouped, [(5, 5, 3)]),
        (depthwise, [(6, 6, 3)]),
        (sequence, [(7, 3)]),
        (states, [(5, 3)]),
        (shared, [(5, 5, 2), (5, 5, 3)]),
        (turned, [(5, 5, 2)]),
        (volume, [(3, 3, 6, 2)]),
        (modern, [(5, 5, 3)]),
        (written, [(5, 5, 3)]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_cut_channels_have_no_influence_and_can_be_removed(build, shapes):
    assert_exact(model_of(build, *shapes))


def test_sizes_after_a_cut():
    small = surgery.shrink(model_of(grouped, (5, 5, 3)), {"before": [1, 3], "few": [0]})
    many, few, norm = (small.get_layer(name) for name in ("many", "few", "norm"))
    assert (many.groups, many.kernel.shape, few.groups, norm.groups) == (2, (3, 3, 2, 6), 2, 2)


def test_reshape_takes_its_new_size():
    small = surgery.shrink(model_of(squeeze_and_excite, (6, 6, 3)), {"wide": [1, 3]})
    assert small.get_layer("reshape").target_shape == (1, 1, 2)


def test_an_embedding_is_cut_along_its_columns():
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 6, name="words")(words)
    model = randomized(keras.Model(words, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))))
    assert assert_exact(model).get_layer("words").embeddings.shape == (7, 3)


def test_layer_normalization_is_cut_though_not_exactly():
    model = model_of(
        lambda x: layers.Dense(2)(layers.LayerNormalization(name="norm")(layers.Dense(6, name="a")(x))), (4,)
    )
    assert groups(model)["a"].inexact != ()
    small = surgery.shrink(model, {"a": [0, 4]})
    assert small.get_layer("norm").gamma.shape == (2,)


def test_models_inside_models_are_inlined():
    inner_input = keras.Input((4, 4, 3))
    inner = keras.Model(inner_input, layers.Conv2D(6, 1, name="inside")(inner_input))
    model = model_of(lambda x: layers.Conv2D(2, 1)(inner(x)), (4, 4, 3))
    assert surgery.shrink(model, {"inside": [0, 5]}).get_layer("inside").filters == 2


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda x: layers.Lambda(lambda y: y[..., ::-1], name="odd")(x),
            r"go into 'odd' \(Lambda\), which cannot be followed",
        ),
        (lambda x: layers.MultiHeadAttention(2, 2, name="odd")(x, x), r"go into 'odd' \(MultiHeadAttention\)"),
        (lambda x: layers.Dot(2, name="odd")([x, x]), r"go into 'odd' \(Dot\), which cannot be followed"),
        (lambda x: layers.Softmax(name="odd")(x), r"weighed against each other by 'odd' \(Softmax\)"),
        (lambda x: layers.Activation("softmax", name="odd")(x), r"weighed against each other by 'odd' \(Activation\)"),
        (lambda x: layers.Bidirectional(layers.LSTM(2), name="odd")(x), r"go into 'odd' \(Bidirectional\)"),
        (lambda x: layers.TimeDistributed(layers.Dense(2), name="odd")(x), r"go into 'odd' \(TimeDistributed\)"),
        (lambda x: own.Operation("math.cumsum", [{"tensor": 0}], name="odd")(x), r"go into 'odd' \(Operation\)"),
        (lambda x: x + np.ones((1, 1, 4), "float32"), r"go into 'tf.__operators__.add\w*' \(TFOpLambda\)"),
        (lambda x: layers.Dropout(0.1, noise_shape=(None, 1, 4), name="odd")(x), r"go into 'odd' \(Dropout\)"),
        (lambda x: layers.Reshape((6, 2, 2), name="odd")(x), r"go into 'odd' \(Reshape\), which cannot be followed"),
        (lambda x: layers.BatchNormalization(axis=[1, 2], name="odd")(x), r"go into 'odd' \(BatchNormalization\)"),
        (
            lambda x: layers.Activation(lambda y: y, name="odd")(x),
            r"go through '<lambda>' of 'odd', which is not known",
        ),
    ],
)
def test_what_cannot_be_followed_is_left_whole_with_the_reason(build, reason):
    def around(x):
        x = layers.Dense(4, name="free")(x)
        x = build(layers.Dense(4, name="held")(x))
        return layers.Dense(2)(layers.Flatten()(x))

    model = model_of(around, (6, 3))
    assert groups(model)["free"].cuttable
    with pytest.raises(CutError, match=rf"'held' cannot be cut: its channels .*{reason}"):
        surgery.shrink(model, {"held": [0]})


def test_an_activation_inside_a_kernel_layer_may_hold_it():
    model = model_of(lambda x: layers.Dense(2)(layers.Dense(4, activation="softmax", name="held")(x)), (3,))
    assert groups(model)["held"].reasons == ("are weighed against each other by the softmax of 'held'",)


def test_inventory_is_plain_data():
    found = channel_graph.inventory(model_of(residual, (6, 6, 3)))["groups"]
    assert json.loads(json.dumps(found)) == found
    assert [(group["name"], group["units"], group["cuttable"]) for group in found] == [
        ("stem", 6, True),
        ("inner", 4, True),
        (found[2]["name"], 3, False),
    ]
    assert found[1]["consumers"] == [found[0]["producers"][1]]
    assert found[1]["members"][0] == {
        **{"layer": "inner", "weight": "kernel", "axis": 3, "role": "producer", "size": 4},
        "indices": [[0], [3]],
    }


def test_every_layer_that_makes_channels_can_be_cut_or_says_why_not():
    found = channel_graph.shrinkable(model_of(residual, (6, 6, 3)))
    assert (found["stem"], found["inner"], len(found)) == (None, None, 4)
    assert list(found.values())[-1] == (
        f"its channels are weighed against each other by the softmax of '{list(found)[-1]}'; are an output of the model"
    )


def test_the_model_is_not_changed():
    model = model_of(residual, (6, 6, 3))
    before = [weight.copy() for weight in model.get_weights()]
    surgery.shrink(model, {"inner": [0]})
    surgery.masked(model, {"inner": [0]})
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_a_model_whose_proof_is_interrupted_is_not_left_masked(monkeypatch):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(4, name="hidden")(inputs)))
    before, seen = model.get_weights(), []

    def interrupted(expected, small):
        seen.append(expected.get_weights())
        raise KeyboardInterrupt

    monkeypatch.setattr(surgery, "_prove", interrupted)
    with pytest.raises(KeyboardInterrupt):
        surgery.shrink(model, {"hidden": [1, 2]})
    assert not seen[0][2][[0, 3]].any() and before[2][[0, 3]].all()  # it was masked for the proof
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))


def test_a_residual_branch_is_removed_whole():
    """Without f, x + f(x) is x: the same as a branch whose last kernel is zero."""
    model = model_of(residual, (6, 6, 3))
    (branch,) = channel_blocks.removable(channel_graph.describe(model))
    small = surgery.without(model, [branch])
    assert len(small.layers) == len(model.layers) - 5  # the branch's four, and the addition
    last = model.get_layer(branch.name)
    last.set_weights([np.zeros_like(weight) for weight in last.get_weights()])
    assert graph.largest_difference(model, small) < 1e-6


@pytest.mark.parametrize("make", [keras.optimizers.Adam, lambda rate: keras.optimizers.SGD(rate, momentum=0.9)])
def test_training_goes_on_where_it_was(make):
    """A step of the shrunk model moves its weights as the same step of the masked model would have."""
    model = graph.rebuild(model_of(residual, (6, 6, 3)))
    random = np.random.Generator(np.random.PCG64(0))
    x, y = random.normal(size=(8, 6, 6, 3)).astype("float32"), np.arange(8) % 3
    model.compile(make(0.01), "sparse_categorical_crossentropy")
    model.train_on_batch(x, y)
    cut = {"stem": [0, 2, 5], "inner": [1, 2]}
    small, masked = surgery.shrink(model, cut), surgery.masked(model, cut)
    small.compile(surgery.carried_optimizer(model.optimizer, model, small, cut), "sparse_categorical_crossentropy")
    everything = {"stem": range(6), "inner": range(4)}
    masked.compile(surgery.carried_optimizer(model.optimizer, model, masked, everything), small.loss)
    assert small.optimizer.iterations.numpy() == 1
    small.train_on_batch(x, y)
    masked.train_on_batch(x, y)
    pairs = zip(small.get_weights(), surgery.shrink(masked, cut).get_weights(), strict=True)
    assert max(np.abs(one - other).max() for one, other in pairs) < 1e-5


def test_the_optimizer_of_another_model_is_refused():
    model = model_of(residual, (6, 6, 3))
    with pytest.raises(ModelError, match=r"has no slots for 'model\w*': give the one that trained this model"):
        surgery.carried_optimizer(keras.optimizers.Adam(), model, model, {})


def test_one_branch_of_an_addition_must_stay():
    def fork(x):
        x = layers.Dense(3, name="stem")(x)
        return layers.Add(name="sum")([layers.Dense(3, name="main")(x), layers.Dense(3, name="side")(x)])

    model = model_of(fork, (4,))
    main, side = channel_blocks.removable(channel_graph.describe(model))
    assert [layer.name for layer in surgery.without(model, [main]).layers[1:]] == ["stem", "side"]
    with pytest.raises(CutError, match="Nothing would be left for 'sum' to add: keep one of main, side"):
        surgery.without(model, [main, side])


STEPS = st.lists(
    st.tuples(st.sampled_from(random_graphs.KINDS), st.integers(*random_graphs.NUMBERS)),
    min_size=random_graphs.STEPS[0],
    max_size=random_graphs.STEPS[1],
)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@example([("conv", 0), ("concat", 0), ("add", 1), ("grouped", 2), ("gate", 3), ("shared", 1), ("shared", 0)])
@given(STEPS)
def test_random_networks_are_cut_exactly(steps):
    assert_exact(grown(steps))
