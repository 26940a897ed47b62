"""Gates: their formulas against hand-worked numbers, what they find in planted problems, and what a model with gates computes."""

from __future__ import annotations

import re

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, layers, shaken, weights

from edgeprune import channels, forecast, masks, registry, target
from edgeprune.granularity import weight
from edgeprune.keras import (
    channel_graph,
    costs,
    gate_costs,
    gate_variables,
    gated,
    graph,
    kernels,
    pruning,
    surgery,
    tf,
)
from edgeprune.keras.gates import (
    Moment,
    attention,
    binary,
    hard_concrete,
    lowest,
    movement,
    soft_threshold,
    targeted_dropout,
    variational,
)
from edgeprune.keras.latency import Stopwatch

KINDS = {name: registry.module("gates", name) for name in registry.names("gates")}
CASES = [(name, granularity) for name, kind in KINDS.items() for granularity in kind.GRANULARITIES]
PAPER = re.compile(r'[A-Z][\w-]+ (?:et al\.|& [A-Z][\w-]+),\s+"[^"]+"\s+\(\d{4}\)')


def moment(seed=0, seen=None):
    generator = tf.random.Generator.from_seed(seed)
    return Moment(lambda like: generator.uniform(like.shape), lambda like: generator.normal(like.shape), seen)


def own(kind, values, **changed):
    """The variables of a gate as tensors, as they start or as they are given."""
    starts = {name: first.values for name, first in kind.start(values, 0).items()}
    return {
        name: tf.constant(np.broadcast_to(value, np.shape(starts[name])), tf.float32)
        for name, value in {**starts, **changed}.items()
    }


# The family's contract


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_every_kind_keeps_the_contract(name, granularity):
    """It starts open, so that a trained network stays what it is, and says of every gate what it costs and what it is worth."""
    kind = KINDS[name]
    values = (
        np.ones(6, np.float32)
        if granularity == "channel"
        else np.linspace(-0.5, 0.7, 6, dtype=np.float32).reshape(3, 2)
    )
    variables = own(kind, values)
    assert kind.HELD in ("penalty", "prior", "schedule") and kind.SCOPE in ("layer", "network") and kind.TRAVEL > 0
    assert (kind.STRENGTH > 0) == (kind.HELD != "schedule")
    decided = kind.decided(tf.constant(values), variables).numpy()
    assert decided.shape == values.shape
    assert np.abs(decided - values).max() <= (0.13 if kind.SEES else 0.02)
    seen = tf.ones((5, 6)) if kind.SEES else None
    assert kind.gated(tf.constant(values), variables, moment(seen=seen)).shape == (
        (5, 6) if kind.SEES else values.shape
    )
    magnitudes = tf.abs(values)
    for found in (kind.penalty(magnitudes, variables), kind.score(magnitudes, variables)):
        assert found.shape == values.shape and np.isfinite(found).all()
    assert (kind.penalty(magnitudes, variables).numpy() >= 0).all()
    moved = kind.moved(magnitudes, variables, tf.constant(0.5), tf.constant(1.0))
    starts = kind.start(values, 0)
    assert all(np.shape(value) == starts[key].values.shape and not starts[key].trained for key, value in moved.items())


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_names_its_paper(name):
    assert PAPER.search(KINDS[name].__doc__)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.HELD == "schedule"])
def test_a_scheduled_kind_closes_the_asked_share(name):
    kind, values = KINDS[name], np.linspace(0.1, 1.0, 10, dtype=np.float32)
    variables = own(kind, values, **({"scores": values} if name == "movement" else {}))
    variables |= kind.moved(tf.abs(values), variables, tf.constant(0.3), tf.constant(0.0))
    assert (kind.decided(tf.constant(values), variables).numpy() == 0).tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize(("share", "below"), [(0.0, 0), (0.3, 3), (0.39, 3), (0.4, 4), (1.0, 10)])
def test_the_threshold_has_a_whole_count_at_or_below_it(share, below):
    scores = tf.constant(np.random.Generator(np.random.PCG64(0)).permutation(10), tf.float32)
    assert int(tf.reduce_sum(tf.cast(scores <= lowest(scores, tf.constant(share)), tf.int32))) == below


# Formulas by hand


def test_the_expected_count_of_hard_concrete_gates_by_hand():
    # log(0.1 / 1.1) = -2.397895; times 2/3 = -1.598597; sigmoid(0 + 1.598597) = 0.831824, sigmoid(-1 + 1.598597) = 0.645336
    chance = hard_concrete.penalty(None, {"log_alpha": tf.constant([0.0, -1.0])})
    np.testing.assert_allclose(chance, [0.831824, 0.645336], atol=2e-6)


def test_the_expected_count_of_hard_concrete_gates_is_what_is_drawn():
    log_alpha = np.repeat(np.linspace(-4, 4, 5, dtype=np.float32), 40_000).reshape(5, -1)
    variables = {"log_alpha": tf.constant(log_alpha)}
    drawn = hard_concrete.gated(tf.ones_like(log_alpha), variables, moment()).numpy() > 0
    np.testing.assert_allclose(
        drawn.mean(axis=1), hard_concrete.penalty(None, variables)[:, 0], atol=0.008
    )  # 3 standard errors


def test_a_hard_concrete_gate_at_inference_by_hand():
    # sigmoid(0) * 1.2 - 0.1 = 0.5; sigmoid(-2.5) * 1.2 - 0.1 < 0; sigmoid(2.5) * 1.2 - 0.1 > 1
    found = hard_concrete.decided(tf.fill([3], 2.0), {"log_alpha": tf.constant([0.0, -2.5, 2.5])})
    np.testing.assert_allclose(found, [1.0, 0.0, 2.0], atol=1e-6)


def _divergence(log_alpha):
    """KL(q || p) = E log|ε| - log(α) / 2 + (γ + log 2) / 2 with ε ~ N(1, α), by the midpoint rule."""
    step = 1e-5
    z = np.arange(-12.0, 12.0, step) + step / 2
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    expected = np.sum(density * np.log(np.abs(1.0 + np.exp(0.5 * log_alpha) * z))) * step
    return expected - 0.5 * log_alpha + 0.5 * (np.euler_gamma + np.log(2.0))


@pytest.mark.parametrize("log_alpha", [-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 3.0, 6.0])
def test_the_divergence_of_variational_dropout_is_the_integral(log_alpha):
    assert float(variational.divergence(tf.constant(log_alpha))) == pytest.approx(_divergence(log_alpha), abs=0.012)


def test_a_weight_that_is_all_noise_is_closed():
    variables = {"log_variance": tf.constant([-4.0, -4.0])}
    # log α = -4 - log w²: of 0.5 it is -2.61, of 0.02 it is 3.82
    np.testing.assert_allclose(variational.decided(tf.constant([0.5, 0.02]), variables), [0.5, 0.0])
    drawn = variational.gated(tf.fill([50_000], 0.5), {"log_variance": tf.constant(-4.0)}, moment()).numpy()
    assert (drawn.mean(), drawn.std()) == pytest.approx((0.5, np.exp(-2.0)), abs=2e-3)


@pytest.mark.parametrize(("kind", "more"), [(binary, {}), (movement, {"threshold": tf.constant(0.0)})])
def test_the_straight_through_gradient_by_hand(kind, more):
    weight, scores, slope = tf.constant([2.0, -3.0]), tf.constant([0.5, -1.0]), tf.constant([10.0, 100.0])
    with tf.GradientTape() as tape:
        tape.watch([weight, scores])
        gated = kind.gated(weight, {"scores": scores, **more}, moment())
        loss = tf.reduce_sum(slope * gated)
    of_weight, of_scores = tape.gradient(loss, [weight, scores])
    np.testing.assert_array_equal(gated, [2.0, 0.0])
    np.testing.assert_array_equal(of_weight, [10.0, 0.0])  # slope * mask
    np.testing.assert_array_equal(of_scores, [20.0, -300.0])  # slope * weight, masked or not


def test_the_soft_threshold_by_hand():
    logit = tf.constant(np.log(0.1 / 0.9), tf.float32)  # sigmoid of it is 0.1, its slope 0.09
    with tf.GradientTape() as tape:
        tape.watch(logit)
        found = soft_threshold.decided(tf.constant([0.5, -0.2, 0.05]), {"logit": logit})
        loss = tf.reduce_sum(found * [1.0, 10.0, 100.0])
    np.testing.assert_allclose(found, [0.4, -0.1, 0.0], atol=1e-6)
    assert float(tape.gradient(loss, logit)) == pytest.approx(0.09 * (-1.0 + 10.0), abs=1e-4)


def test_only_targets_are_dropped_and_half_of_the_time():
    variables = {"targets": tf.constant(np.arange(20_000) < 10_000, tf.float32)}
    kept = targeted_dropout.gated(tf.ones(20_000), variables, moment()).numpy()
    assert kept[10_000:].all() and kept[:10_000].mean() == pytest.approx(1 - targeted_dropout.DROP, abs=0.02)


def test_attention_ends_in_a_constant():
    values, seen = tf.ones(8), tf.constant(np.random.Generator(np.random.PCG64(0)).normal(size=(4, 8)), tf.float32)
    free, settled = own(attention, np.ones(8)), own(attention, np.ones(8), progress=1.0, seen=np.ones(8))
    assert np.ptp(attention.gated(values, free, moment(seen=seen)).numpy(), axis=0).max() > 0
    found = attention.gated(values, settled, moment(seen=seen)).numpy()
    np.testing.assert_allclose(found, np.broadcast_to(attention.decided(values, settled), (4, 8)))


# Helpers of the model


def test_a_gate_learns_so_many_times_as_fast():
    """In gradient descent and in Adam, which knows no scale."""
    for make in (keras.optimizers.SGD, keras.optimizers.Adam):
        moves = []
        for rate in (1.0, 5.0):
            variable, optimizer = tf.Variable([1.0 / rate]), make(0.01)
            with tf.GradientTape() as tape:
                value = gate_variables.rated(variable, rate)
                loss = tf.reduce_sum(3.0 * value)
            optimizer.apply_gradients([(tape.gradient(loss, variable), variable)])
            assert float(value[0]) == pytest.approx(1.0)
            moves.append(float(gate_variables.rated(variable, rate)[0]) - 1.0)
        assert moves[1] == pytest.approx(5.0 * moves[0], rel=1e-4)


def wrapped(model, name, granularity="weight", final=0.5, steps=100, rate=1.0, **words):
    kind, course = KINDS[name], gated.Course(steps, final, rate=rate, **words)
    if granularity == "weight":
        plans = pruning.plan(model, pruning.Pattern())
        names = [kernels.key(plan.name, kernel) for plan in plans for kernel in plan.kernels]
        return gated.on_weights(model, plans, kind, course, gate_costs.weights(dict.fromkeys(names, 1.0)))
    meter = costs.Meter(model)
    names = [group.name for group in meter.coupling.groups if group.cuttable]
    return gated.on_channels(model, meter.coupling, names, kind, course, gate_costs.macs(meter, names))


def sequence(*made):
    """Layers one after the other on (6, 8)."""
    x = given = keras.Input((6, 8))
    for layer in made:
        x = layer(x)
    return keras.Model(given, x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sequence(layers.LSTM(4, name="lstm"), layers.Dense(2, name="d")),
        lambda: sequence(layers.Bidirectional(layers.GRU(4), name="both")),
        lambda: sequence(layers.TimeDistributed(layers.Dense(3), name="each"), layers.Conv1DTranspose(4, 2, name="up")),
        lambda: sequence(layers.SeparableConv1D(4, 2, name="separable"), layers.Flatten(), layers.Dense(2, name="d")),
    ],
)
def test_every_kernel_that_can_be_pruned_can_have_gates(make):
    model = shaken(make())
    made = wrapped(model, "binary")
    x = tf.random.stateless_normal((3, 6, 8), [1, 2])
    np.testing.assert_allclose(made.model(x), model(x), atol=1e-6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(made.model(x, training=True)))
    scores = [variable for variable in made.model.trainable_variables if "scores" in variable.name]
    assert len(scores) == len(made.gates) > 0
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, scores))
    assert_identical(weights(gated.plain(model, made)), weights(model))


def test_gates_leave_the_model_as_it_is():
    model = shaken(cnn())
    before = weights(model)
    made = wrapped(model, "hard-concrete")
    made.model(tf.zeros((2, 8, 8, 4)), training=True)
    assert_identical(weights(model), before)
    assert not {id(layer) for layer in model.layers} & {id(layer) for layer in made.model._flatten_layers()}
    assert made.model.output_names == model.output_names


def test_masks_of_an_earlier_stage_stay():
    model = dense(6, 3)
    kept = {"d1": np.arange(48).reshape(8, 6) % 2 == 0}
    kind, plans = KINDS["variational"], pruning.plan(model, pruning.Pattern())
    made = gated.on_weights(model, plans, kind, gated.Course(10, 0.5), gate_costs.weights({"d1": 1.0, "d2": 1.0}), kept)
    effective = made.gates["d1"].effective(tf.ones((8, 6)), True).numpy()
    np.testing.assert_array_equal(effective != 0, kept["d1"])
    scores = made.gates["d1"].scores()
    assert scores[~kept["d1"]].max() < scores[kept["d1"]].min()


# What it costs


def closed(made, share=0.5, seed=0):
    """Close gates at random, leave others half open, and give the cut that keeps the open ones."""
    random = np.random.Generator(np.random.PCG64(seed))
    cut = {}
    for name, gates in made.gates.items():
        count = len(gates.ones)
        order = random.permutation(count)
        kept = np.sort(order[: max(1, round(count * share))])
        log_alpha = np.full(count, -5.0)
        log_alpha[kept] = random.uniform(-1.0, 1.0, len(kept))
        gates._own["log_alpha"].assign(log_alpha / gates._rates["log_alpha"])
        cut[name] = kept
    return cut


def residual():
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(6, 3, padding="same", name="a")(x))
    y = layers.DepthwiseConv2D(3, padding="same", name="depth")(layers.ReLU(name="relu")(y))
    x = layers.Add(name="add")([x, layers.Conv2D(8, 1, name="b")(y)])
    x = layers.Concatenate(name="both")([x, layers.Conv2D(4, 1, name="side")(x)])
    x = layers.Flatten(name="flat")(layers.AveragePooling2D(4, name="pool")(x))
    return shaken(keras.Model(image, layers.Dense(3, name="classes")(x)))


def test_a_closed_unit_is_a_removed_one():
    """Masked equals shrunk, in a network with every way that channels are tied, and with factors left on the open ones."""
    model = residual()
    made = wrapped(model, "hard-concrete", "channel")
    cut = closed(made)
    coupling = channels.couple(channel_graph.describe(model))
    small = surgery.shrink(gated.with_factors(model, made, coupling, cut), cut)
    assert small.count_params() < 0.6 * model.count_params()
    assert graph.largest_difference(made.model, small) < 1e-5
    assert any(0 < value < 1 for gates in made.gates.values() for value in gates.decided().numpy())


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_open_or_closed_gates_cost_what_the_cut_model_does(share):
    model = residual()
    made, meter = wrapped(model, "hard-concrete", "channel"), costs.Meter(model)
    cut = closed(made, share)
    opened = {name: gates.opened() for name, gates in made.gates.items()}
    assert float(gate_costs.macs(meter, list(made.gates))(opened)) == pytest.approx(
        meter(cut).macs / meter({}).macs, rel=1e-5
    )
    assert float(gate_costs.params(meter, list(made.gates))(opened)) == pytest.approx(
        meter(cut).params / meter({}).params, rel=1e-5
    )


def test_between_both_a_kernel_costs_the_product_of_its_sides_by_hand():
    # 4 * 8 + 8 * 2 MACs; three quarters of the 8 units: (32 + 16) * 0.75, and the slope by each unit is an eighth
    model = dense(8, 2, inputs=4)
    meter, chance = costs.Meter(model), tf.fill([8], 0.75)
    with tf.GradientTape() as tape:
        tape.watch(chance)
        share = gate_costs.macs(meter, ["d1"])({"d1": chance})
    assert float(share) == pytest.approx(0.75)
    np.testing.assert_allclose(tape.gradient(share, chance), np.full(8, 1 / 8), rtol=1e-5)


def test_the_latency_of_open_or_closed_gates_is_the_predicted_one():
    model = residual()
    names = [group.name for group in costs.Meter(model).coupling.groups if group.cuttable]
    milliseconds = forecast.milliseconds(forecast.board(target.load(registry.file("targets", "rpi4"))))
    watch = Stopwatch(model, milliseconds)
    cost = gate_costs.latency(watch, names, milliseconds)
    units = {name: watch.coupling.group(name).units for name in names}
    for share in (1.0, 0.5):  # no more than POINTS channels: every count is in the tables
        cut = {name: range(round(count * share)) for name, count in units.items()}
        opened = {
            name: tf.constant(np.arange(count) < round(count * share), tf.float32) for name, count in units.items()
        }
        assert float(cost(opened)) == pytest.approx(watch(cut) / watch({}), rel=0.02)
    half = {name: tf.fill([count], 0.5) for name, count in units.items()}
    with tf.GradientTape() as tape:
        tape.watch(half)
        share = cost(half)
    assert all(np.isfinite(slope).all() for slope in tape.gradient(share, half).values())


def test_a_weight_costs_what_it_is_multiplied():
    x = given = keras.Input((4, 4, 2))
    x = layers.Conv2D(3, 1, name="c")(x)
    model = keras.Model(given, layers.Dense(5, name="d")(layers.Flatten()(x)))
    assert gate_costs.multiplied(model, ["c", "d"]) == {"c": 16.0, "d": 1.0}
    share = gate_costs.weights({"c": 16.0, "d": 1.0})({"c": tf.zeros((2, 3)), "d": tf.ones((48, 5))})
    assert float(share) == pytest.approx(240 / (96 + 240))


# What is planted is found


def planted(random, count=1500):
    """A sparse linear teacher, 12 of 120 weights of size 0.5 to 1, its noisy answers, and what least squares makes of them."""
    truth = np.zeros((12, 10), np.float32)
    truth.flat[random.permutation(120)[:12]] = random.uniform(0.5, 1.0, 12) * random.choice([-1, 1], 12)
    x = random.normal(size=(count, 12)).astype(np.float32)
    y = (x @ truth + 0.3 * random.normal(size=(count, 10))).astype(np.float32)
    return truth, x, y


def trained(made, x, y, steps, learning_rate=0.01):
    """In a loop of one's own; batches of a fifteenth."""
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, steps))
    variables = made.model.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(part, wanted):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(made.model(part, training=True) - wanted)) + sum(made.model.losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    parts = list(zip(np.split(x, 15), np.split(y, 15), strict=True))
    for number in range(steps):
        step(*map(tf.constant, parts[number % 15]))
    return 1.0 - float(made.controller.opened())


@pytest.mark.parametrize("name", [name for name, granularity in CASES if granularity == "weight"])
def test_the_support_of_a_sparse_teacher_is_found(name):
    """With weights that start far from the truth: noise of half the size of the smallest true ones."""
    random = np.random.Generator(np.random.PCG64(3))
    truth, x, y = planted(random)
    model = dense(10, inputs=12, use_bias=False)
    model.get_layer("d1").kernel.assign(truth + 0.25 * random.normal(size=truth.shape))
    steps, rate = 300, 0.01
    words = (
        {"strength": KINDS[name].STRENGTH * 120 / len(x)} if KINDS[name].HELD == "prior" else {"stakes": float(y.var())}
    )
    made = wrapped(model, name, final=0.9, steps=steps, rate=KINDS[name].TRAVEL / (rate * steps), **words)
    closed = trained(made, x, y, steps, rate)
    if not words.get("strength"):
        assert closed == pytest.approx(0.9, abs=0.05)
    kept = masks.masks({"d1": made.gates["d1"].scores()}, 0.9, weight())["d1"]
    assert (kept & (truth != 0)).sum() >= 0.9 * 12


@pytest.mark.parametrize("name", [name for name, granularity in CASES if granularity == "channel"])
def test_the_channels_of_a_narrow_teacher_are_found(name):
    """4 of 16 hidden units make the answer; the others start with a third of their size on both sides, which is noise."""
    random = np.random.Generator(np.random.PCG64(5))
    narrow = dense(4, 3, inputs=6, seed=1)
    signs = random.choice([-1, 1], (4, 3))
    narrow.set_weights([random.normal(size=(6, 4)), np.zeros(4), signs * random.uniform(0.7, 1.0, (4, 3)), np.zeros(3)])
    x = random.normal(size=(1500, 6)).astype(np.float32)
    y = narrow(x).numpy()
    wide = dense(16, 3, inputs=6, seed=2)
    true = np.sort(random.permutation(16)[:4])
    first, out = 0.3 * random.normal(size=(6, 16)), 0.3 * random.normal(size=(16, 3))
    bias = np.zeros(16)
    first[:, true], bias[true], out[true] = narrow.get_weights()[0], narrow.get_weights()[1], narrow.get_weights()[2]
    wide.set_weights([first, bias, out, narrow.get_weights()[3]])
    steps, rate = 300, 0.005
    made = wrapped(wide, name, "channel", 0.75, steps, KINDS[name].TRAVEL / (rate * steps), stakes=float(y.var()))
    trained(made, x, y, steps, rate)
    kept = np.argsort(-made.gates["d1"].scores())[:4]
    assert len(set(kept.tolist()) & set(true.tolist())) == 4


# Other people's training


def test_mixed_precision_computes_gates_in_float32():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = dense(6, 3)
        made = wrapped(model, "hard-concrete")
        made.model.compile("adam", "mse")
        made.model.fit(np.ones((8, 8), np.float32), np.ones((8, 3), np.float32), verbose=0)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert made.model.get_layer("d1").layer.compute_dtype == "bfloat16"
    assert made.gates["d1"]._own["log_alpha"].dtype == tf.float32
    assert int(made.controller.clock.step) == 1


def test_noise_is_a_function_of_the_step():
    made = wrapped(dense(6, 3), "hard-concrete")
    x = tf.ones((2, 8))
    made.gates["d1"]._own["log_alpha"].assign(tf.zeros((8, 6)))
    first, second = made.model(x, training=True).numpy(), made.model(x, training=True).numpy()
    made.controller.clock.step.assign(0)
    assert np.abs(first - second).max() > 0
    np.testing.assert_array_equal(made.model(x, training=True).numpy(), first)
