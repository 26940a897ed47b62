"""The sparsify stage, and what it trains with: problems whose right answer is known, and runs that are killed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from keras_models import assert_identical, cnn, dense, keras, loaded, run, shaken, weights
from pydantic import ValidationError

from edgeprune import data, pipeline, progress, recipe, sparsifying
from edgeprune.errors import RecipeError
from edgeprune.keras import intake, pruning, sparse_rounds, sparse_updates, training
from edgeprune.keras.pruning import Pattern
from edgeprune.keras.sparse_channels import Silencing
from edgeprune.keras.sparse_scores import Scores, scorable
from edgeprune.keras.sparse_training import Sparse, Updates, batches, redrawn
from edgeprune.pipelines import sparsify, train
from edgeprune.sparsifying import Ramp, Rule

INPUTS, OUTPUTS, KEPT = 16, 6, 0.25


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    training.start(0)


@pytest.fixture(scope="module")
def planted():
    """(x, y, teacher): y = x W with a quarter of W's weights, none of them small."""
    random = np.random.default_rng(0)
    teacher = np.zeros(INPUTS * OUTPUTS)
    places = random.permutation(teacher.size)[: int(KEPT * teacher.size)]
    teacher[places] = random.uniform(0.5, 1.5, len(places)) * random.choice([-1, 1], len(places))
    x = random.normal(size=(256, INPUTS)).astype(np.float32)
    teacher = teacher.reshape(INPUTS, OUTPUTS)
    return x, (x @ teacher).astype(np.float32), teacher


def linear(seed=0):
    return dense(OUTPUTS, inputs=INPUTS, seed=seed, use_bias=False)


def sparse(model, how="hold", **words):
    return Sparse(model, pruning.plan(model, Pattern()), how, **words)


def source(made, criterion="magnitude", given=(), loss=None):
    return sparse_updates.Source(Scores(made, criterion, loss), lambda seed: given, 0)


class Counting(keras.callbacks.Callback):
    """Non-zero weights of every kernel after every step."""

    def __init__(self, made):
        super().__init__()
        self.made, self.masked, self.nonzero = made, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.masked.append({name: int(mask.sum()) for name, mask in self.made.masks().items()})
        self.nonzero.append(
            {name: int((kernel.variable.numpy() != 0).sum()) for name, kernel in self.made.kernels.items()}
        )


def fitted(made, x, y, updates, epochs=8, *more):
    made.model.compile(keras.optimizers.Adam(0.02), "mse")
    made.model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[updates, *more])
    return 256 // 8 * epochs


# Known answers


@pytest.mark.parametrize("how", ["hold", "dense"])
def test_gradual_pruning_finds_the_weights_of_a_sparse_teacher(planted, how):
    x, y, teacher = planted
    made, steps = sparse(linear(), how), 256
    due = sparsifying.updates(0.1, 0.8, steps, 8)
    ramp = Ramp("polynomial", 0.0, 1 - KEPT, 0.1, 0.8)
    follow = sparse_updates.Following(made, source(made), Rule(), ramp, steps, due[-1], made.masks(), how == "hold")
    assert fitted(made, x, y, Updates(due, follow)) == steps
    mask = made.masks()["d1"]
    assert np.array_equal(mask, teacher != 0)
    plain = made.strip()
    assert np.array_equal(plain.get_layer("d1").kernel.numpy() != 0, mask)
    assert np.allclose(plain.get_layer("d1").kernel.numpy(), teacher, atol=0.02)


@pytest.mark.parametrize(("grow", "least"), [("random", 0.6), ("gradient", 0.9)])
def test_moving_weights_find_the_teacher_at_a_constant_count(planted, grow, least):
    """From weights that chance has chosen, a quarter of which are right; at every step there are as many as at the first."""
    x, y, teacher = planted
    made = sparse(linear())
    sparse_updates.cut(made, source(made, "random"), 1 - KEPT, Rule("random"), made.masks())
    assert not np.array_equal(made.masks()["d1"], teacher != 0)
    if grow == "random":
        growth = sparse_updates.random_growth(made, 0)
    else:
        growth = sparse_updates.gradient_growth(
            made, lambda seed: [(x[:64], y[:64])], keras.losses.MeanSquaredError(), 0
        )
    due = list(range(10, 350, 10))
    counting = Counting(made)
    fitted(made, x, y, Updates(due, sparse_updates.Moving(made, growth, 0.3, 350, {})), 12, counting)
    assert {count["d1"] for count in counting.masked} == {int(KEPT * teacher.size)}
    assert max(count["d1"] for count in counting.nonzero) <= int(KEPT * teacher.size)
    recovered = (made.masks()["d1"] & (teacher != 0)).sum() / (teacher != 0).sum()
    assert recovered >= least


def test_weights_behind_the_mask_train_on_and_come_back(planted):
    """The smallest half of the first weights goes; where the teacher has weights among them, the gradient brings them back."""
    x, y, teacher = planted
    made = sparse(linear(), "dense")
    sparse_updates.cut(made, source(made), 1 - KEPT, Rule(), made.masks())
    first = made.masks()["d1"]
    follow = sparse_updates.Following(
        made, source(made), Rule(), Ramp("constant", 0, 1 - KEPT), 256, 200, {"d1": np.ones_like(first)}, False
    )
    fitted(made, x, y, Updates(range(0, 201, 8), follow))
    assert (made.masks()["d1"] & ~first).any()
    assert np.array_equal(made.masks()["d1"], teacher != 0)


def test_soft_masks_hold_nothing_between_updates(planted):
    x, y, _ = planted
    made, counting = (one := sparse(linear(), "soft")), Counting(one)
    follow = sparse_updates.Following(made, source(made), Rule(), Ramp("constant", 0, 0.5), 64, 60, made.masks(), False)
    fitted(made, x, y, Updates([0, 32], follow), 2, counting)
    assert {count["d1"] for count in counting.masked} == {INPUTS * OUTPUTS // 2}
    assert counting.nonzero[0]["d1"] == counting.nonzero[-1]["d1"] == INPUTS * OUTPUTS


def test_what_remains_makes_up_for_what_goes_without_training(planted):
    """For a linear layer the update gives what least squares give on the weights that stay."""
    x, _, _ = planted
    model = shaken(linear())
    made = sparse(model)
    mixed = x @ np.random.default_rng(1).normal(size=(INPUTS, INPUTS)).astype(np.float32)
    sparse_updates.cut(made, source(made), 0.5, Rule(), made.masks())
    mask = made.masks()["d1"]
    assert sparse_updates.restore(made, model, [(mixed, None)]) == []
    wanted = mixed @ model.get_layer("d1").kernel.numpy()
    found = made.strip().get_layer("d1").kernel.numpy()
    assert np.array_equal(found != 0, mask)
    for column in range(OUTPUTS):
        rows = np.flatnonzero(mask[:, column])
        best = np.linalg.lstsq(mixed[:, rows], wanted[:, column], rcond=None)[0]
        errors = [np.square(mixed[:, rows] @ one - wanted[:, column]).mean() for one in (best, found[rows, column])]
        cut = np.square(mixed[:, rows] @ model.get_layer("d1").kernel.numpy()[rows, column] - wanted[:, column]).mean()
        assert errors[0] <= errors[1] < errors[0] + 0.05 * (cut - errors[0])


def test_synflow_never_collapses_a_layer_where_one_cut_does():
    """At 99 % of a network whose layers are of very different size; a path remains from the inputs to the outputs."""
    model = dense(100, 8, 100, 4, inputs=100)

    def flows(iterations):
        made = sparse(model)
        sparse_updates.cut(
            made, source(made, "synflow"), 0.99, Rule("synflow", scope="network"), made.masks(), iterations
        )
        assert sparsifying.sparsity_of(made.masks()) == pytest.approx(0.99, abs=1e-3)
        path = np.eye(100)
        for mask in made.masks().values():
            path = (path @ mask > 0).astype(float)
        return min(mask.sum() for mask in made.masks().values()), path.any()

    assert flows(1)[0] <= 1  # the floor of one weight, that leads nowhere
    least, connected = flows(100)
    assert least >= 4 and connected


def test_units_are_silenced_in_all_their_kernels_and_can_come_back():
    """Biases and scales stay, or no gradient would reach the unit again."""
    silenced = shaken(cnn())
    silence = Silencing(silenced, "l2", lambda done: 0.5, lambda done: [], None, include="stem|plain")
    silence(0)
    assert silence.gone == {"stem": 4, "plain": 4}
    for name in silence.gone:
        assert (np.abs(silenced.get_layer(name).kernel.numpy()).reshape(-1, 8).sum(axis=0) == 0).sum() == 4
    assert silenced.get_layer("stem_bn").gamma.numpy().all() and silenced.get_layer("plain").bias.numpy().all()
    assert silenced.get_layer("hidden").kernel.numpy().all()


# Scores


def test_a_model_that_was_never_trained_is_scored_with_the_statistics_of_the_samples():
    """Its BatchNormalization knows none yet, and would let any scale through."""
    from keras_models import samples

    made = sparse(cnn())
    x, y = samples()
    loss = keras.losses.SparseCategoricalCrossentropy()
    found = Scores(made, "snip", loss)([(np.array(x), y)])
    scaled = Scores(made, "snip", loss)([(1000 * np.array(x), y)])
    for name in found:
        assert np.allclose(found[name], scaled[name], rtol=0.05, atol=1e-4 * found[name].max())
    assert not made.model.get_layer("stem_bn").moving_mean.numpy().any()


def test_kernels_that_a_criterion_cannot_score_are_left_with_a_reason():
    given = keras.Input((6, 8), name="x")
    x = keras.layers.LSTM(4, name="lstm")(given)
    model = keras.Model(given, keras.layers.Dense(3, name="last")(x))
    plans = {plan.name: plan for plan in scorable(model, pruning.plan(model, Pattern()), ["weights", "gradients"])}
    assert [kernel.name for kernel in plans["lstm"].kernels] == [""]
    assert plans["lstm"].left == ("recurrent_kernel: only the main kernel of a layer has signals of data",)
    (covered,) = scorable(model, pruning.plan(model, Pattern(), "lstm")[:1], ["input_covariance"])
    assert covered.reason is not None and "LSTM" in covered.reason


def test_weights_drawn_anew_are_others_and_the_same_by_seed():
    model = dense(4, inputs=4, kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    one, again, other = (redrawn(model, seed).get_layer("d1").kernel.numpy() for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert not np.array_equal(one, model.get_layer("d1").kernel.numpy())


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "magnitud"}, "there is no such criterion. Did you mean 'magnitude'"),
        ({"distribution": "erq"}, "there is no such distribution. Did you mean 'er"),
        ({"begin": 0.8}, r"begin (0.8) must be smaller than end (0.75)"),
        ({"rounds": 3, "epochs": 2}, "2 epochs cannot be shared by 3 rounds"),
        ({"epochs": 0, "schedule": "polynomial"}, "without epochs zeros are laid once"),
        ({"epochs": 0, "grow": "random"}, "without epochs zeros are laid once"),
        ({"grow": "gradient", "masked": "dense"}, "grow moves single weights at a constant sparsity"),
        ({"grow": "gradient", "granularity": "block"}, "grow moves single weights at a constant sparsity"),
        ({"scope": "network", "distribution": "erk"}, "a distribution is for scope layer"),
        ({"granularity": "n:m", "distribution": "erk"}, "n:m fixes every layer's sparsity"),
        ({"granularity": "channel"}, "granularity channel is for masked soft"),
        ({"criterion": "fpgm"}, "fpgm ranks channels, and here weights are ranked"),
        (
            {"granularity": "channel", "masked": "soft", "rounds": 2},
            "granularity channel silences the model as it comes",
        ),
        ({"controls": ["random"]}, "controls are compared with a ticket: rewind weights"),
        ({"rewind": "weights", "epochs": 0}, "rewind needs epochs to train again"),
        ({"adapt": {}, "schedule": "polynomial"}, "adapt chooses every layer's sparsity"),
        ({"adapt": {}, "distribution": "erk"}, "adapt finds the distribution itself"),
        ({"restore": "obs", "masked": "soft"}, "restore needs schedule constant"),
        ({"include": "("}, "not a regular expression"),
        ({"pattern": "4:4"}, "n must be smaller than m"),
        ({"block": [0, 1]}, "both sides of a block must be at least 1"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValidationError) as caught:
        sparsify.Options.model_validate(options)
    assert message in str(caught.value)


def test_channels_may_be_removed_after_they_were_silenced_but_not_after_weights_were_masked():
    silenced = {"granularity": "channel", "masked": "soft"}
    recipe.load({"stages": {"sparsify": silenced, "shrink": {}}})
    with pytest.raises(RecipeError, match=r"stages\.shrink .*comes after stages\.sparsify"):
        recipe.load({"stages": {"sparsify": {}, "shrink": {}}})


# The stage


class Killed(Exception):
    """What a test ends a stage with in the middle of an epoch."""


class Killer(progress.Silent):
    """Ends the run at a place in its epochs."""

    def __init__(self, at):
        self.at = at

    def step(self, done, total, unit, **values):
        if unit == "epochs" and done > self.at:
            raise Killed


@pytest.fixture(scope="module")
def samples(planted):
    x, y, _ = planted
    return data.load((x, y), data.DataOptions(calibration=32, validation=0.2))


def begun(folder, samples, early=True, shown=None, model=None, **files):
    """A state with a trained model and the weights of an early epoch, which the stage may begin from."""
    folder.mkdir(exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    intake.save(model or linear(), folder / "model.keras")
    given = {"model": "model.keras", **files}
    facts = {}
    if early:
        intake.save(linear(seed=7), folder / "early.keras")
        given["early"] = "early.keras"
        facts = {"early": {"share": 0.5, "epochs": 4, "learning_rate": 0.02, "decay": "cosine", "optimizer": "adam"}}
    whole = run(folder, samples=samples, shown=shown)
    return pipeline.State(whole, files=given, facts=facts, label="sparsify", workspace=folder / "work")


def made(state, **words):
    options = sparsify.Options.model_validate({"batch_size": 16, "epochs": 2, "learning_rate": 0.02, **words})
    after = sparsify.run(state, options)
    work = state.workspace
    found = dict(
        sorted((f"{path.relative_to(work)}", path) for path in work.rglob("*.npz") if path.name == "masks.npz")
    )
    return after, {name: pruning.load_masks(path) for name, path in found.items()}


def left(after):
    return weights(intake.load_own(after.run.folder / "work" / str(after.files["model"]).partition("work/")[2]))


@pytest.mark.parametrize(
    ("words", "at"),
    [
        ({"criterion": "random", "grow": "gradient", "frequency": 5, "final": 0.75}, 1.5),
        (
            {
                "rounds": 2,
                "rewind": "weights",
                "schedule": "polynomial",
                "masked": "dense",
                "frequency": 3,
                "final": 0.75,
            },
            2.5,
        ),
    ],
    ids=["RigL", "dense and rewound"],
)
def test_a_killed_stage_ends_in_the_same_weights_and_masks(tmp_path, samples, words, at):
    whole, masks = made(begun(tmp_path / "whole", samples), epochs=4, **words)
    with pytest.raises(Killed):
        made(begun(tmp_path / "killed", samples, shown=Killer(at)), epochs=4, **words)
    resumed, again = made(begun(tmp_path / "killed", samples), epochs=4, **words)
    assert_identical(left(whole), left(resumed))
    assert list(masks) == list(again)
    for name in masks:
        assert_identical(masks[name], again[name])
    share = sparsifying.sparsity_of(pruning.load_masks(resumed.run.folder / "work" / next(reversed(again))))
    assert share == pytest.approx(0.75)


def test_a_ticket_is_trained_from_the_early_weights_and_compared(tmp_path, samples):
    state = begun(tmp_path / "run", samples)
    words = {"rounds": 2, "rewind": "weights", "final": 0.75, "controls": ["random", "reinitialised"]}
    after, masks = made(state, **words)
    early, ticket = intake.load_own(state.path("early")), intake.load_own(tmp_path / "run" / after.files["ticket"])
    kept = masks["round-2/tuned/masks.npz"]["d1"]
    assert np.array_equal(ticket.get_layer("d1").kernel.numpy(), early.get_layer("d1").kernel.numpy() * kept)
    first = masks["round-1/tuned/masks.npz"]["d1"]
    assert 1 - first.mean() == pytest.approx(0.5) and not (kept & ~first).any()
    facts = after.facts["sparsify"]["sparsify"]
    assert list(facts["tickets"]) == ["ticket", "random", "reinitialised"]
    other = masks["control-random/tuned/masks.npz"]["d1"]
    assert other.sum() == kept.sum() and not np.array_equal(other, kept)
    again = intake.load_own(tmp_path / "run" / "work" / "control-reinitialised" / "cut" / "model.keras")
    assert np.array_equal(again.get_layer("d1").kernel.numpy() != 0, kept)
    assert np.array_equal(masks["control-reinitialised/tuned/masks.npz"]["d1"], kept)
    assert any("of tickets trained alike: ticket " in note for note in after.facts["notes"])
    assert [epoch["epoch"] for epoch in after.facts["history"]["sparsify"]["epochs"]] == [1, 2]
    _equal_to_a_fresh_run(tmp_path, state, after)


def _equal_to_a_fresh_run(tmp_path, state, after):
    """The rewound round is a training from the ticket, with the learning rate that the early epoch had."""
    cut = tmp_path / "run" / "work" / "round-2" / "cut"
    model = intake.load_own(cut / "model.keras")
    fresh = sparse(model, found=pruning.load_masks(cut / "masks.npz"))
    (tmp_path / "fresh").mkdir()
    elsewhere = dataclasses.replace(state, workspace=tmp_path / "fresh")
    words = {"batch_size": 16, "epochs": 1, "learning_rate": 0.02}
    goal = training.objective(fresh.model, state.run.data.tasks)
    history = training.fit(fresh.model, elsewhere, sparsify.Options.model_validate(words), goal, behind=0.5)
    assert_identical(weights(fresh.strip()), left(after))
    steps = training.steps_per_epoch(state.run.data.train, sparsify.Options.model_validate(words))
    assert history[0]["learning_rate"] == pytest.approx(
        0.01 * (1 + np.cos(np.pi * (2 * steps - 1) / (2 * steps))), rel=1e-3
    )


def test_the_early_weights_must_have_been_kept(tmp_path, samples):
    for words in ({"rewind": "learning-rate"}, {"start": "early"}):
        with pytest.raises(RecipeError, match=r"needs the weights of an early epoch.*--set stages\.train\.keep=0\.1"):
            made(begun(tmp_path / "run", samples, early=False), **words)


def test_who_was_never_trained_does_not_teach(tmp_path, samples):
    with pytest.raises(RecipeError, match=r"distill\.teacher: the model as this stage gets it is not trained"):
        made(begun(tmp_path / "run", samples), distill={})


def test_train_keeps_an_early_epoch_and_says_how_it_went_on(tmp_path, samples):
    intake.save(linear(), tmp_path / "model.keras")
    (tmp_path / "work").mkdir()
    whole = run(tmp_path, samples=samples)
    state = pipeline.State(whole, files={"model": "model.keras"}, label="train", workspace=tmp_path / "work")
    options = train.Options(epochs=2, batch_size=64, keep=0.5)
    after = train.run(state, options)
    assert after.facts["early"] == {
        "share": 0.5,
        "epochs": 2,
        "learning_rate": 1e-3,
        "decay": "cosine",
        "optimizer": "adam",
    }
    first, early, last = (
        intake.load_own(path).get_layer("d1").kernel.numpy()
        for path in (tmp_path / "model.keras", tmp_path / after.files["early"], tmp_path / after.files["model"])
    )
    assert not np.array_equal(first, early) and not np.array_equal(early, last)


def test_zeros_of_an_earlier_stage_stay_and_must_be_pruned_again(tmp_path, samples):
    earlier = {"d1": np.arange(INPUTS * OUTPUTS).reshape(INPUTS, OUTPUTS) % 4 != 0}
    state = begun(tmp_path / "run", samples)
    pruning.save_masks(earlier, tmp_path / "run" / "earlier.npz")
    state = dataclasses.replace(state, files={**state.files, "masks": "earlier.npz"})
    after, masks = made(state, epochs=0, final=0.5)
    kept = masks["round-1/tuned/masks.npz"]["d1"]
    assert not (kept & ~earlier["d1"]).any() and kept.mean() == 0.5
    entry = after.facts["pruning"]["layers"]["d1"]
    assert (entry["sparsity_target"], entry["sparsity_keras"]) == (0.5, 0.5)
    pruning.save_masks({"gone": earlier["d1"]}, tmp_path / "run" / "earlier.npz")
    with pytest.raises(RecipeError, match="does not prune gone, which an earlier stage has pruned"):
        made(state, epochs=0)


def test_the_run_stops_before_the_metric_is_lost_and_undoes_what_lost_it(tmp_path, samples, planted):
    """A teacher of a quarter of the weights bears three quarters of zeros, and no more."""
    teacher = linear()
    teacher.get_layer("d1").kernel.assign(planted[2])
    words = {"epochs": 0, "rounds": 3, "final": 0.984375, "adapt": {"max_drop": 0.01, "lowest": 0.01}}
    after, masks = made(begun(tmp_path / "run", samples, model=teacher), **words)
    facts = after.facts["sparsify"]["sparsify"]
    assert (facts["rounds"], facts["undone"]) == (1, True)
    assert [record["sparsity"] for record in facts["records"]] == pytest.approx([0.75, 0.9375], abs=0.01)
    assert np.array_equal(masks["round-1/tuned/masks.npz"]["d1"], planted[2] != 0)
    assert "Round 2 of 3 lost more than 0.01" in " ".join(after.facts["notes"])
    made_of = json.loads((tmp_path / "run" / "work" / "round-1" / "tuned" / "record.json").read_text())
    assert made_of["epochs"] == []


def test_silenced_channels_wait_for_their_removal(tmp_path):
    given = loaded()
    words = {"granularity": "channel", "masked": "soft", "criterion": "l2", "batch_size": 32, "epochs": 1}
    state = begun(tmp_path / "run", given, early=False, model=cnn())
    after = sparsify.run(state, sparsify.Options.model_validate(words))
    assert after.facts["sparsify"]["sparsify"]["silent"] == {"stem": 4, "plain": 4, "hidden": 4}
    assert "masks" not in after.files and after.files["float"] == after.files["model"]
    left_over = intake.load_own(state.workspace / "model.keras")
    for name in ("stem", "plain", "hidden"):
        assert (np.abs(left_over.get_layer(name).kernel.numpy()).reshape(-1, 8).sum(axis=0) == 0).sum() == 4


def test_rounds_share_the_epochs_and_the_schedule_is_told():
    options = sparsify.Options(rounds=2, epochs=4, final=0.75, schedule="polynomial", end=1.0)
    curve = sparsify._curve(options)
    assert curve[0] == {"epoch": 0.0, "sparsity": 0.0}
    assert curve[-1] == {"epoch": 4.0, "sparsity": 0.75}
    assert curve[100]["sparsity"] == pytest.approx(0.5)
    assert [sparse_rounds.share_of(7, number, 3) for number in (1, 2, 3)] == [2, 2, 3]


def test_samples_come_in_the_models_order_and_by_seed(samples):
    one, again, other = (batches(samples.train, 8, 4, seed) for seed in (0, 0, 1))
    assert len(one) == 2 and np.array_equal(one[0][0], again[0][0]) and not np.array_equal(one[0][0], other[0][0])
    assert len(batches(samples.train, 10_000, 64)[0][0]) == 64
