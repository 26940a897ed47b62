"""Every signal against what can be worked out by hand or by NumPy; every criterion on a small network."""

import inspect

import numpy as np
import pytest

from edgeprune import activation_statistics, channels, masks, registry, scoring
from edgeprune.errors import CutError, DataError, NameUnknown
from edgeprune.keras import channel_graph, keras, signals, tf

layers = keras.layers
RANDOM = np.random.default_rng(0)
MSE = keras.losses.MeanSquaredError()


def batched(x, y, size):
    return [(x[first : first + size], y[first : first + size]) for first in range(0, len(x), size)]


def linear(inputs=3, outputs=1, activation=None, bias=False):
    given = keras.Input((inputs,))
    return keras.Model(given, layers.Dense(outputs, activation, use_bias=bias, name="dense")(given))


def collected(model, wanted, x, y=None, size=4, loss=MSE, **options):
    batches = batched(x, y, size) if y is not None else [x[first : first + size] for first in range(0, len(x), size)]
    return signals.collect(model, [wanted] if isinstance(wanted, str) else wanted, batches, loss, **options)


def small(classes=3):
    """Convolutions: plain, transposed, depthwise, separable; a residual addition; BatchNormalization behind every kernel."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 2), name="image")
    x = stem = layers.ReLU(name="relu")(
        layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="stem")(inputs))
    )
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, strides=2, padding="same", name="wide")(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="depth")(x)))
    x = layers.BatchNormalization()(layers.Conv2DTranspose(4, 2, 2, name="narrow")(x))
    x = layers.ReLU()(layers.Add()([x, stem]))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(layers.SeparableConv2D(5, 3, name="separable")(x)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6, name="hidden")(layers.Flatten()(x))))
    model = keras.Model(inputs, layers.Dense(classes, activation="softmax", name="classes")(x), name="small")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            values = [RANDOM.uniform(0.5, 1.5, weight.shape) for weight in layer.weights]
            layer.set_weights(values)
    return model


@pytest.fixture(scope="module")
def network():
    x = np.random.default_rng(1).normal(size=(7, 6, 6, 2)).astype(np.float32)
    return small(), x, np.arange(7) % 3


CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy()


@pytest.fixture(scope="module")
def everything(network):
    model, x, y = network
    before = model.get_weights()
    found = signals.collect(model, signals.NAMES, batched(x, y, 4), CROSS_ENTROPY, probes=2)
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
    return found


# Names


def test_the_signals_are_exactly_what_criteria_ask_for():
    asked = {signal for name in registry.names("criteria") for signal in signals.needed(name)}
    assert asked == set(signals.NAMES)


def test_needed_reads_the_parameters():
    assert signals.needed("taylor_second") == ("weights", "gradients", "hessian_diagonal")
    with pytest.raises(NameUnknown, match="Did you mean 'taylor'"):
        signals.needed("tailor")


# Weights and seeds


def test_weights_have_their_outputs_last():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2DTranspose(5, 2, name="transposed")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    model = keras.Model(inputs, layers.SeparableConv2D(7, 2, name="separable")(x))
    found = signals.collect(model, ["weights"])
    assert {name: one["weights"].shape for name, one in found.items()} == {
        "transposed": (2, 2, 3, 5),
        "depthwise": (3, 3, 1, 10),
        "separable": (1, 1, 10, 7),
    }
    kernel = model.get_layer("depthwise").depthwise_kernel.numpy()
    np.testing.assert_array_equal(found["depthwise"]["weights"][..., 0, 5], kernel[..., 2, 1])  # channel 2 * 2 + 1
    kernel = model.get_layer("transposed").kernel.numpy()
    np.testing.assert_array_equal(found["transposed"]["weights"][..., 1, 4], kernel[..., 4, 1])


def test_every_kernel_has_a_seed_of_its_own_that_the_seed_decides():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="one"), layers.Dense(3, name="two")])
    first, again, other = (signals.collect(model, ["seed"], seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert len({first["one"]["seed"], first["two"]["seed"], other["one"]["seed"], other["two"]["seed"]}) == 4


# Derivatives of a one-layer least squares: L = mean (x w - y)^2


def test_gradients_of_least_squares():
    model, x, y = linear(), RANDOM.normal(size=(10, 3)).astype(np.float32), RANDOM.normal(size=(10, 1))
    w = model.get_layer("dense").kernel.numpy()
    each = 2 * (x @ w - y) * x
    found = collected(model, ["gradients", "gradient_squares"], x, y.astype(np.float32))["dense"]
    np.testing.assert_allclose(found["gradients"][:, 0], each.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["gradient_squares"][:, 0], np.square(each).mean(axis=0), rtol=1e-4, atol=1e-6)


def test_the_hessian_of_a_quadratic():
    model, y = linear(), np.array([[1.0], [-2.0], [0.5], [3.0]], np.float32)
    x = np.diag([1.0, 2.0, 3.0]).astype(np.float32)[[0, 1, 2, 2]]  # no sample has two inputs: the Hessian is diagonal
    hessian = 2 * x.T @ x / 4
    gradient = 2 * x.T @ (x @ model.get_layer("dense").kernel.numpy() - y) / 4
    found = collected(model, ["hessian_diagonal", "hessian_gradient"], x, y, size=3, probes=1)["dense"]
    np.testing.assert_allclose(found["hessian_diagonal"][:, 0], np.diag(hessian), rtol=1e-5)
    np.testing.assert_allclose(found["hessian_gradient"], hessian @ gradient, rtol=1e-5, atol=1e-6)


def test_many_probes_come_near_the_diagonal():
    model, x = linear(), RANDOM.normal(size=(20, 3)).astype(np.float32)
    exact = np.diag(2 * x.T @ x / 20)
    found = collected(model, "hessian_diagonal", x, np.zeros((20, 1), np.float32), probes=200)["dense"]
    np.testing.assert_allclose(found["hessian_diagonal"][:, 0], exact, rtol=0.15)


def test_activation_gradients_are_summed_over_positions_before_their_size_is_taken():
    inputs = keras.Input((2, 1))
    x = layers.Conv1D(1, 1, use_bias=False, name="conv", kernel_initializer="ones")(inputs)
    model = keras.Model(inputs, layers.Dense(1, use_bias=False, kernel_initializer="ones")(layers.Flatten()(x)))
    x = np.array([[3.0, -3.0], [1.0, 1.0]], np.float32)[..., None]
    found = collected(model, "activation_gradients", x, np.array([[-1.0], [0.0]], np.float32), size=1)
    # outputs 0 and 2, dL/da = 2 (output - y) = 2 and 4; |2 * (3 - 3)| = 0 and |4 * (1 + 1)| = 8
    np.testing.assert_allclose(found["conv"]["activation_gradients"], [4.0])


# What goes in, what comes out


def test_the_covariance_of_a_dense_layer_and_of_a_convolution():
    x = RANDOM.normal(size=(7, 5, 4, 2)).astype(np.float32)
    inputs = keras.Input((5, 4, 2))
    conv = layers.Conv2D(3, (3, 2), strides=(2, 1), padding="valid", name="conv")
    model = keras.Model(inputs, layers.Dense(2, name="dense")(conv(inputs)))
    found = collected(model, "input_covariance", x, size=3)
    rows = np.stack([x[:, i : i + 3, j : j + 2].reshape(7, -1) for i in (0, 2) for j in (0, 1, 2)]).reshape(-1, 12)
    np.testing.assert_allclose(found["conv"]["input_covariance"], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    made = conv(x).numpy().reshape(-1, 3)
    np.testing.assert_allclose(found["dense"]["input_covariance"], made.T @ made / len(made), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2D(3, 3, padding="same", dilation_rate=2, use_bias=False), (6, 5, 2)),
        (layers.Conv2D(3, 1, strides=2, use_bias=False), (6, 5, 2)),
        (layers.Conv1D(3, 3, padding="causal", dilation_rate=2, use_bias=False), (6, 2)),
        (layers.Conv1D(3, 4, strides=2, padding="same", use_bias=False), (7, 2)),
        (layers.SeparableConv2D(3, 3, strides=2, depth_multiplier=2, padding="same", use_bias=False), (6, 5, 2)),
        (layers.SeparableConv1D(3, 3, padding="causal", use_bias=False), (6, 2)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_the_covariance_has_the_order_of_the_kernels_rows(layer, shape):
    """E[y y^T] = W^T C W holds for the layer's own outputs only if it is so."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    x = RANDOM.normal(size=(4, *shape)).astype(np.float32)
    found = collected(model, ["input_covariance", "weights"], x)[layer.name]
    columns, outputs = found["weights"].reshape(-1, 3), layer(x).numpy().reshape(-1, 3)
    expected = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(columns.T @ found["input_covariance"] @ columns, expected, rtol=1e-4, atol=1e-5)


def test_activations_are_those_behind_the_activation():
    inputs = keras.Input((2,))
    x = layers.Dense(3, use_bias=False, name="dense")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.ReLU()(layers.BatchNormalization(epsilon=0.0)(x))))
    model.get_layer("dense").set_weights([np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]])])
    x = np.array([[1.0, 2.0], [3.0, -4.0], [-2.0, 0.0], [5.0, 4.0]], np.float32)
    wanted = ["activation_means", "zero_shares", "activation_gram", "activation_covariance", "activation_ranks"]
    found = collected(model, [*wanted, "activation_nuclear_norms"], x, size=3)["dense"]
    a = np.maximum(np.stack([x[:, 0], -x[:, 0], x[:, 1]], axis=1), 0)  # (1,0,2), (3,0,0), (0,2,0), (5,0,4)
    np.testing.assert_allclose(found["activation_means"], [9 / 4, 2 / 4, 6 / 4])
    np.testing.assert_allclose(found["zero_shares"], [1 / 4, 3 / 4, 2 / 4])
    np.testing.assert_allclose(found["activation_gram"], a.T @ a / 4)
    np.testing.assert_allclose(found["activation_covariance"], np.cov(a.T, bias=True), atol=1e-12)
    np.testing.assert_allclose(found["activation_ranks"], [3 / 4, 1 / 4, 2 / 4])  # maps of one place
    np.testing.assert_allclose(found["activation_nuclear_norms"], [9 / 4, 2 / 4, 6 / 4])


def test_ranks_and_nuclear_norms_of_maps():
    maps = np.zeros((2, 3, 3, 2))
    maps[0, :, :, 0] = np.diag([3.0, 2.0, 1.0])
    maps[1, :, :, 0] = np.outer([1.0, 0.0, 0.0], [3.0, 4.0, 0.0])
    wanted = ("activation_ranks", "activation_nuclear_norms")
    found = activation_statistics.finished(activation_statistics.summed(maps, wanted), wanted)
    np.testing.assert_allclose(found["activation_ranks"], [2.0, 0.0])
    np.testing.assert_allclose(found["activation_nuclear_norms"], [(6 + 5) / 2, 0.0])


def test_the_histogram_spans_what_the_layer_gives():
    model = linear(inputs=2, outputs=2)
    model.get_layer("dense").set_weights([np.diag([1.0, 2.0])])
    x = np.array([[0.0, 0.0], [8.0, 16.0], [16.0, 16.0]], np.float32)  # activations 0..32: bins of width 1
    counts = collected(model, "activation_histogram", x, size=1)["dense"]["activation_histogram"]
    assert counts.shape == (2, 32)
    assert {(int(c), int(b)): int(counts[c, b]) for c, b in zip(*np.nonzero(counts), strict=True)} == {
        (0, 0): 1,
        (0, 8): 1,
        (0, 16): 1,
        (1, 0): 1,
        (1, 31): 2,
    }


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_class_statistics(shape):
    model = linear(inputs=1, outputs=2)
    model.get_layer("dense").set_weights([np.array([[1.0, 2.0]])])
    x = np.array([[1.0], [3.0], [5.0], [7.0], [10.0]], np.float32)
    y = np.array([0, 0, 2, 2, 2]).reshape(shape)
    found = collected(model, activation_statistics.CLASSES, x, y, size=2)["dense"]
    np.testing.assert_array_equal(found["class_counts"], [2, 0, 3])
    np.testing.assert_allclose(found["class_means"], np.outer([2, 0, 22 / 3], [1, 2]))
    np.testing.assert_allclose(found["class_variances"], np.outer([1, 0, np.var([5, 7, 10])], [1, 4]))


# Scales


def test_scales_behind_and_in_front():
    model = small()
    gammas = {layer.name: layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)}
    found = signals.collect(model, ["scale", "input_scale"])
    stem, wide, depth, narrow, separable, hidden = (layer.gamma.numpy() for layer in gammas.values())
    for name, gamma in zip(("stem", "wide", "depth", "narrow", "separable", "hidden"), gammas.values(), strict=True):
        np.testing.assert_allclose(found[name]["scale"], gamma.gamma.numpy())
    assert "scale" not in found["classes"]
    np.testing.assert_array_equal(found["stem"]["input_scale"], [1, 1])  # the model's inputs
    np.testing.assert_allclose(found["wide"]["input_scale"], stem)
    np.testing.assert_allclose(found["narrow"]["input_scale"], depth)
    np.testing.assert_allclose(found["separable"]["input_scale"], np.sqrt(stem**2 + narrow**2), rtol=1e-6)
    np.testing.assert_allclose(found["hidden"]["input_scale"], separable)
    np.testing.assert_allclose(found["classes"]["input_scale"], hidden)
    assert "input_scale" not in found["depth"]
    absent = signals.absent(model, ["scale", "input_scale"])
    assert absent == {
        "classes": {"scale": "no BatchNormalization is behind it"},
        "depth": {"input_scale": "its output channels do not read the same inputs"},
    }
    assert len(wide) == 6


def test_input_scales_through_concatenate_and_flatten():
    inputs = keras.Input((2, 2, 1))
    sides = [layers.BatchNormalization()(layers.Conv2D(n, 1)(inputs)) for n in (1, 2)]
    x = layers.Flatten()(layers.MaxPooling2D(1)(layers.Concatenate()(sides)))
    model = keras.Model(inputs, layers.Dense(2, name="dense")(x))
    for layer, gamma in zip(model.layers[-6:], ([3.0], [5.0, 7.0]), strict=False):
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(gamma)
    normalizations = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    expected = np.concatenate([layer.gamma.numpy() for layer in normalizations])
    found = signals.collect(model, ["input_scale"])["dense"]["input_scale"]
    np.testing.assert_array_equal(found, np.tile(expected, 4))


# Synaptic flow


def test_synaptic_flow_is_the_sum_over_paths():
    inputs = keras.Input((2,))
    x = layers.ReLU(6.0)(layers.Dense(3, name="one")(inputs))
    model = keras.Model(inputs, layers.Dense(2, "softmax", name="two")(x))
    first, second = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]]), np.array([[1.0, -1.0], [2.0, 0.0], [-3.0, 7.0]])
    model.get_layer("one").set_weights([first, np.full(3, 100.0)])
    model.get_layer("two").set_weights([second, np.full(2, -100.0)])
    found = signals.collect(model, ["synflow_gradients", "weights"])
    a, b = np.abs(first), np.abs(second)
    np.testing.assert_allclose(found["one"]["synflow_gradients"], np.broadcast_to(b.sum(axis=1), (2, 3)))
    np.testing.assert_allclose(found["two"]["synflow_gradients"], np.broadcast_to(a.sum(axis=0)[:, None], (3, 2)))
    flow = {name: float(np.sum(np.abs(one["weights"]) * one["synflow_gradients"])) for name, one in found.items()}
    assert flow["one"] == pytest.approx((a @ b).sum()) == flow["two"]  # what flows is conserved from layer to layer
    np.testing.assert_array_equal(model.get_layer("one").kernel.numpy(), first)


def test_synaptic_flow_through_a_normalization_and_beyond_float32():
    inputs = x = keras.Input((1,))
    for _ in range(5):
        x = layers.Dense(1, kernel_initializer=keras.initializers.Constant(-1e10))(x)
    x = layers.BatchNormalization(epsilon=0.0, name="bn")(x)
    model = keras.Model(inputs, layers.Dense(1, name="last")(x))
    model.get_layer("bn").set_weights([np.array([-3.0]), np.array([9.0]), np.array([1e30]), np.array([4.0])])
    found = signals.collect(model, ["synflow_gradients"])
    np.testing.assert_allclose(found["last"]["synflow_gradients"], [[1.5e50]], rtol=1e-6)


# The whole


@pytest.mark.parametrize("criterion", registry.names("criteria"))
def test_every_criterion_scores_every_group(network, everything, criterion):
    coupling = channels.couple(channel_graph.describe(network[0]))
    scores = scoring.units(coupling, criterion, everything)
    cuttable = {group.name: group.units for group in coupling.groups if group.cuttable}
    assert {name: len(values) for name, values in scores.items()} == cuttable
    assert all(np.isfinite(values).all() and (values >= 0).all() for values in scores.values())
    assert not scoring.unscored(coupling, criterion, everything)
    assert set(masks.cuts(scores, 0.5)) == set(cuttable)


def test_nothing_depends_on_the_size_of_a_batch(network, everything):
    model, x, y = network
    found = signals.collect(model, signals.NAMES, batched(x, y, 1), CROSS_ENTROPY, probes=2)
    assert found.keys() == everything.keys()
    for name, expected in everything.items():
        assert found[name].keys() == expected.keys()
        for signal, values in expected.items():
            scale = float(np.abs(values).max()) or 1.0
            np.testing.assert_allclose(
                found[name][signal], values, rtol=0, atol=1e-5 * scale, err_msg=f"{name} {signal}"
            )


def test_what_is_collected_does_not_depend_on_what_else_is(network, everything):
    model, x, y = network
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    for criterion in ("taylor", "lda", "grasp"):
        found = signals.collect(model, signals.needed(criterion), data, CROSS_ENTROPY, only=["stem", "hidden"])
        assert list(found) == ["stem", "hidden"]
        for signal in signals.needed(criterion):
            np.testing.assert_allclose(found["stem"][signal], everything["stem"][signal], rtol=1e-3, atol=1e-6)


CRITERIA = ("taylor", "fisher", "taylor_activation", "lda", "activation_entropy", "synflow")


def test_several_inputs_and_outputs_and_a_recurrent_layer():
    tokens, numbers = keras.Input((4,), dtype="int32", name="tokens"), keras.Input((3,), name="numbers")
    x = layers.LSTM(3, name="lstm")(layers.Embedding(6, 5, name="table")(tokens))
    x = layers.Concatenate()([x, layers.Dense(2, name="side")(numbers)])
    model = keras.Model(
        [tokens, numbers], [layers.Dense(1, name="value")(x), layers.Dense(3, "softmax", name="class")(x)]
    )
    given = (RANDOM.integers(0, 6, (6, 4)).astype(np.int32), RANDOM.normal(size=(6, 3)).astype(np.float32))
    labels = (RANDOM.normal(size=(6, 1)).astype(np.float32), np.arange(6) % 3)
    coupling = channels.couple(channel_graph.describe(model))
    wanted = {signal for name in CRITERIA for signal in signals.needed(name)}
    found = signals.collect(model, wanted, [(given, labels)], [MSE, CROSS_ENTROPY])
    for criterion in CRITERIA:
        scores = scoring.units(coupling, criterion, found)
        assert {name: len(values) for name, values in scores.items()} == {"table": 5, "lstm": 3, "side": 2}
        assert all(np.isfinite(values).all() for values in scores.values())


# What cannot be had


def test_no_normalization_names_what_works():
    model = linear()
    with pytest.raises(
        CutError, match=r"'scale'.*no BatchNormalization is behind it.*would work:.*magnitude"
    ) as caught:
        signals.collect(model, signals.needed("slimming"))
    assert "slimming" not in str(caught.value)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.BatchNormalization(scale=False, name="bn")(layers.Dense(2)(inputs)))
    with pytest.raises(CutError, match="'bn' has no scale"):
        signals.collect(model, ["scale"])


def test_regression_has_no_classes():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(CutError, match=r"float32.*would work: .*taylor") as caught:
        collected(linear(), signals.needed("lda"), x, np.zeros((4, 1), np.float32))
    assert "lda" not in str(caught.value).partition("would work")[2]
    with pytest.raises(CutError, match=r"no labels.*would work: ") as caught:
        collected(linear(), signals.needed("lda"), x)
    assert "taylor" not in str(caught.value).partition("would work")[2]


def test_derivatives_need_a_loss_and_labels():
    x = np.zeros((4, 3), np.float32)
    with pytest.raises(DataError, match="loss"):
        collected(linear(), "gradients", x, x[:, :1], loss=None)
    with pytest.raises(DataError, match=r"needs y.*would work without: .*magnitude"):
        collected(linear(), "gradients", x)
    with pytest.raises(DataError, match="1 outputs, and 2 losses"):
        collected(linear(), "gradients", x, x[:, :1], loss=[MSE, MSE])


def test_batches_must_be_there_and_lend_themselves_to_several_passes():
    with pytest.raises(DataError, match=r"no batches.*apoz|no batches.*zero_shares"):
        signals.collect(linear(), ["zero_shares"], [])
    with pytest.raises(DataError, match="only once; give a list"):
        signals.collect(linear(), ["zero_shares"], iter([np.zeros((1, 3), np.float32)]))


def test_a_covariance_that_would_not_fit():
    inputs = keras.Input((4609,))
    model = keras.Model(inputs, layers.Dense(1, name="dense")(inputs))
    with pytest.raises(CutError, match="4609 rows, more than 4608"):
        collected(model, "input_covariance", np.zeros((1, 4609), np.float32))
    inputs = keras.Input((4, 4, 4))
    model = keras.Model(inputs, layers.Conv2D(4, 3, groups=2, name="grouped")(inputs))
    assert "do not read the same inputs" in signals.absent(model, ["input_covariance"])["grouped"]["input_covariance"]


def test_a_layer_without_a_second_derivative():
    inputs = keras.Input((2, 2, 1))
    x = layers.UpSampling2D()(layers.Conv2D(2, 1)(inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(x)))
    x = np.zeros((2, 2, 2, 1), np.float32)
    with pytest.raises(CutError, match=r"ResizeNearestNeighborGrad.*would work: .*taylor"):
        collected(model, "hessian_diagonal", x, np.zeros((2, 1), np.float32))


def test_an_unknown_signal():
    with pytest.raises(NameUnknown, match="Did you mean 'gradients'"):
        signals.collect(linear(), ["gradient"])


def test_the_signature_that_others_build_on():
    assert list(inspect.signature(signals.collect).parameters)[:4] == ["model", "wanted", "batches", "loss"]
