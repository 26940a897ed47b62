"""Clustered weights: the values that fit best, no more of them than asked through training and int8, zeros kept."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from keras_models import SHAPE, assert_identical, cnn, keras, layers, loaded, samples, small, state, steps, weights
from pydantic import ValidationError
from tensorflow_model_optimization.python.core.clustering.keras import clustering_algorithm

from edgeprune import clusters, recipe, report_clusters, tflite
from edgeprune.errors import ArtefactError, RecipeError
from edgeprune.keras import (
    clustering,
    conversion,
    graph,
    intake,
    preparation,
    pruning,
    quantization,
    tf,
    training,
)
from edgeprune.pipelines import cluster, quantize

CLUSTERED = ("stem", "plain", "hidden", "classes")


def random(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


# the values


def test_planted_clusters_are_found_whatever_their_sizes():
    centres, sizes = np.array([-0.8, -0.1, 0.3, 1.0]), (5, 400, 20, 60)
    parts = [centre + 0.01 * random(size).normal(size=size) for centre, size in zip(centres, sizes, strict=True)]
    found = clusters.k_means(np.concatenate(parts), 4)
    np.testing.assert_allclose(found, [part.mean() for part in parts], atol=1e-12)


def test_k_means_by_hand():
    np.testing.assert_allclose(clusters.k_means(np.array([0.0, 0.1, 0.9, 1.0]), 2), [0.05, 0.95])
    np.testing.assert_allclose(clusters.k_means(np.array([[3.0, 1.0], [1.0, 3.0]]), 5), [1.0, 3.0])


def test_more_clusters_never_fit_worse_and_k_means_fits_better_than_equal_distances():
    values = random().normal(size=3000)

    def moved(centroids):
        return float(((values - clusters.nearest(values, centroids)) ** 2).sum())

    losses = [moved(clusters.k_means(values, count)) for count in (1, 2, 4, 8, 16)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * moved(np.linspace(values.min(), values.max(), 16))


def test_distinct_values_of_a_kernel_and_of_its_channels():
    kernel = np.array([[1, 2, 3], [1, 4, 5]])
    assert clusters.distinct(kernel, "layer") == 5
    assert clusters.distinct(kernel, "channel") == 2
    assert clusters.distinct(kernel, "channel", axis=0) == 3


def test_entropy_is_the_length_of_the_best_code():
    assert clusters.entropy(np.arange(16)) == 4.0
    assert clusters.entropy(np.zeros(8)) == 0.0
    assert clusters.entropy(np.array([0, 0, 0, 0, 1, 1, 2, 3])) == 1.75


# TFMOT's arithmetic, done otherwise


@pytest.fixture(scope="module")
def looked_up():
    """(weights, centroids of the layer, of every channel), the centroids in no order."""
    generator = random(3)
    return [generator.normal(size=shape).astype("float32") for shape in ((3, 3, 4, 6), (5,), (6, 5))]


@pytest.mark.parametrize("aggregation", clustering.AGGREGATIONS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["layer", "channel"])
def test_values_and_gradients_are_those_of_tfmot(looked_up, per_channel, aggregation):
    weight, centroids = tf.Variable(looked_up[0]), tf.Variable(looked_up[1 + per_channel])
    words = clustering.AGGREGATIONS[aggregation], "channels_last"
    theirs = (
        clustering_algorithm.ClusteringAlgorithmPerChannel if per_channel else clustering_algorithm.ClusteringAlgorithm
    )
    found = []
    for kind in (clustering.Nearest, theirs):
        algorithm = kind(centroids, *words)
        with tf.GradientTape() as tape:
            made = algorithm.get_clustered_weight(algorithm.get_pulling_indices(weight), weight)
            loss = tf.reduce_sum(made * tf.constant(looked_up[0] ** 2))
        found.append([made, *tape.gradient(loss, [weight, centroids])])
    for ours, other in zip(*found, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(ours), tf.convert_to_tensor(other), rtol=1e-5, atol=1e-6)


# which layers


@pytest.fixture(scope="module")
def model():
    """Every neighbourhood, its BatchNormalization in use and turning the sign of channels."""
    made = cnn()
    normal = made.get_layer("stem_bn")
    normal.gamma.assign(np.linspace(-1.0, 1.5, 8))
    normal.moving_mean.assign(np.linspace(-0.3, 0.3, 8))
    normal.moving_variance.assign(np.linspace(0.5, 2.0, 8))
    return made


def test_the_plan_names_every_layer_with_its_reason(model):
    plans = clustering.plan(model, clustering.Codebook(40, "channel"), exclude="hid.*")
    reasons = {plan.name: plan.reason for plan in plans}
    assert list(reasons) == ["stem", "plain", "depth", "hidden", "classes"]
    assert reasons["stem"] == "it has 36 distinct values already, no more than 40"
    assert reasons["depth"].startswith("depthwise")
    assert reasons["hidden"] == "named by exclude: hid.*"
    assert reasons["classes"] == "it has 32 distinct values already, no more than 40"
    assert {plan.name: plan.scope for plan in plans}["classes"] == "layer"  # a Dense has no channels of its own


def test_nothing_to_cluster_is_a_named_error(model):
    with pytest.raises(RecipeError, match=r"depth: depthwise.*Change clusters or include"):
        clustering.wrap(model, clustering.plan(model, clustering.Codebook(4), "depth"), clustering.Codebook(4))


def test_no_normalization_turns_a_sign_and_the_model_is_equal(model):
    turned = clustering.upright(model, CLUSTERED)
    assert np.all(turned.get_layer("stem_bn").gamma.numpy() >= 0) and np.any(
        model.get_layer("stem_bn").gamma.numpy() < 0
    )
    assert graph.largest_difference(model, turned) < 1e-5


# training


def halved(given):
    """The model with the smaller half of the weights of every kernel at zero."""
    made = graph.rebuild(given)
    for name in CLUSTERED:
        kernel = made.get_layer(name).kernel
        size = np.abs(kernel.numpy())
        kernel.assign(np.where(size < np.median(size), 0.0, kernel))
    return made


@pytest.mark.parametrize(("scope", "zeros"), [("layer", False), ("channel", True)])
def test_hard_training_leaves_as_many_values_as_asked_and_every_zero(model, scope, zeros):
    codebook = clustering.Codebook(5, scope, zeros=zeros)
    plain = clustering.upright(halved(model) if zeros else model, CLUSTERED)
    plans = clustering.plan(plain, codebook)
    wrapped = clustering.wrap(plain, plans, codebook)
    start = clustering.strip(wrapped, plain)
    steps(wrapped, 5, learning_rate=0.02)
    made = clustering.strip(wrapped, plain)
    for entry in clustering.entries(plans, made, codebook).values():
        assert (entry["asked"], entry["distinct_keras"]) == ((None, None) if entry["name"] == "depth" else (5, 5))
    for name in CLUSTERED:
        before, now = (each.get_layer(name).kernel.numpy() for each in (start, made))
        assert np.any(before != now)
        assert not zeros or np.array_equal(now == 0, plain.get_layer(name).kernel.numpy() == 0)  # these, and no others
    assert np.all(made.get_layer("stem_bn").gamma.numpy() >= 0)


def test_planted_values_are_where_training_starts():
    given = small()
    kernel = given.get_layer("conv").kernel
    planted = random().choice([-0.5, 0.0, 0.25, 1.0], kernel.shape)
    kernel.assign(planted + 0.01 * random(1).normal(size=kernel.shape))
    codebook = clustering.Codebook(4)
    wrapped = clustering.wrap(given, clustering.plan(given, codebook, "conv"), codebook)
    made = clustering.strip(wrapped, given).get_layer("conv").kernel.numpy()
    for value in (-0.5, 0.0, 0.25, 1.0):
        expected = kernel.numpy()[planted == value].mean()
        np.testing.assert_allclose(made[planted == value], expected, rtol=1e-5, atol=1e-6)


class Kept(keras.callbacks.Callback):
    """Copies the checkpoint of the first epoch, as a kill in the second would leave it."""

    def __init__(self, checkpoint, to):
        super().__init__()
        self.checkpoint, self.to = checkpoint, to

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1 and self.to:
            self.to.mkdir()
            shutil.copy(self.checkpoint, self.to)


def tiny():
    """Two kernels of 32 weights, ``first`` and ``classes``: what is traced quickly."""
    keras.utils.set_random_seed(0)
    x = image = keras.Input(SHAPE, name="image")
    x = layers.Dense(8, name="first")(layers.GlobalAveragePooling2D(name="pool")(x))
    x = layers.Dense(4, activation="softmax", name="classes")(layers.ReLU(name="relu")(x))
    return keras.Model(image, x, name="tiny")


def clustering_tiny():
    codebook = clustering.Codebook(4)
    return clustering.wrap(tiny(), clustering.plan(tiny(), codebook), codebook)


def preserving_tiny():
    given = clustering.strip(clustering_tiny(), tiny())
    made = quantization.quantize(given, True, shared={"first": "layer", "classes": "layer"})
    quantization.calibrate(made, [samples()[0][:32]])
    return made


@pytest.mark.parametrize("make", [clustering_tiny, preserving_tiny], ids=["cluster", "CQAT"])
def test_killed_and_resumed_nothing_differs(make, tmp_path):
    options = recipe.FitOptions(epochs=2, batch_size=16, learning_rate=0.01)
    given, found = loaded(validation=0.0), []
    (tmp_path / "unbroken").mkdir()
    for name, killed in (("unbroken", tmp_path / "killed"), ("killed", None)):
        training.start(7)
        made, goal = make(), training.objective(tiny(), "classification")
        copies = Kept(tmp_path / name / training.CHECKPOINT, killed)
        training.fit(made, state(tmp_path / name, seed=7, samples=given), options, goal, [copies])
        found.append(weights(made))
    assert_identical(*found)
    assert any("centroids" in name for name in found[0])


# int8


def given(folder, model, masks=None):
    """A state in which a model waits for the cluster stage."""
    files = {"model": intake.save(model, folder / "given.keras")}
    if masks:
        files["masks"] = pruning.save_masks(masks, folder / "masks.npz")
    before = state(folder, "cluster", samples=loaded(validation=0.0))
    return dataclasses.replace(before, files={role: str(path.relative_to(folder)) for role, path in files.items()})


def after(made, folder, name):
    """The state as the next stage finds it, with a workspace of its own."""
    (folder / name).mkdir()
    return dataclasses.replace(made, workspace=folder / name, label=name)


def test_zeros_of_a_kernel_that_has_few_values_as_it_is_hold_too(tmp_path):
    """With three weights left it needs no clusters, but it trains."""
    model = tiny()
    kernel = model.get_layer("first").kernel
    mask = np.zeros(kernel.shape, bool)
    mask.reshape(-1)[:3] = True
    kernel.assign(np.where(mask, kernel.numpy(), 0.0))
    done = cluster.run(
        given(tmp_path, model, {"first": mask}),
        cluster.Options(clusters=8, epochs=1, batch_size=16, learning_rate=0.01),
    )
    after = intake.load_own(done.path("model")).get_layer("first").kernel.numpy()
    assert not done.facts["clustering"]["layers"]["first"]["asked"]
    assert np.count_nonzero(after[~mask]) == 0 and np.count_nonzero(after) == 3
    assert not np.array_equal(after, kernel.numpy())


@pytest.fixture(scope="module")
def built(model, tmp_path_factory):
    """Zeros, clusters, quantization-aware training: the last state, the file, the masks, the clustered model."""
    folder = tmp_path_factory.mktemp("built")
    pruned = halved(model)
    masks = {name: pruned.get_layer(name).kernel.numpy() != 0 for name in CLUSTERED}
    made = cluster.run(given(folder, pruned, masks), cluster.Options(clusters=6, epochs=1, batch_size=16))
    clustered = intake.load_own(folder / "model.keras")
    options = quantize.Options(epochs=1, batch_size=16, learning_rate=0.01)
    made = quantize.run(after(made, folder, "quantize"), options)
    with conversion.Converter(folder / "log") as converter:
        converter.convert(made.path("quantized"), folder / "model.tflite")
    return made, tflite.read(folder / "model.tflite"), masks, clustered


def claims(made, scope=None):
    entries = made.facts["clustering"]["layers"]
    return [
        clusters.Claim(name, tuple(entry["shape"]), entry["asked"], scope or entry["scope"])
        for name, entry in entries.items()
        if entry["asked"]
    ]


def test_the_file_has_as_many_values_as_asked_in_every_kernel_with_its_zeros(built):
    made, file, masks, clustered = built
    found = clusters.prove(file, claims(made))
    assert {name: (entry["asked"], entry["distinct"] <= 6) for name, entry in found.items()} == dict.fromkeys(
        CLUSTERED, (6, True)
    )
    assert found["stem"]["distinct"] == found["stem"]["distinct_per_channel"] == 6  # the same bytes in all channels
    assert found["stem"]["bits_per_weight"] <= np.log2(6)
    zeros = tflite.weights_by_layer(file)
    for name, mask in masks.items():
        (kernel,) = zeros[name]
        stored = tflite.zeros(kernel)
        assert np.all(stored[~(mask.transpose(3, 0, 1, 2) if mask.ndim == 4 else mask.T)])
    for name in CLUSTERED:
        assert clusters.distinct(clustered.get_layer(name).kernel.numpy(), "layer") == 6


def test_what_the_stages_tell(built):
    made = built[0]
    assert made.facts["clustering"]["kept"] == "asked"
    layers_ = made.facts["clustering"]["layers"]
    assert layers_["depth"]["reason"].startswith("depthwise")
    assert layers_["stem"] == {
        **{"name": "stem", "type": "Conv2D", "reason": None, "asked": 6, "scope": "layer", "distinct_keras": 6},
        "shape": [3, 3, 4, 8],
    }
    assert made.facts["summaries"]["cluster"] == "4 layers at 6 values a layer at most, 1 left alone"


def test_more_values_than_claimed_are_an_error(built):
    made, file, _, _ = built
    wrong = [claim._replace(asked=3) for claim in claims(made)]
    with pytest.raises(
        ArtefactError, match=r"'stem' has 6 distinct int8 values.*clustered to 3: the clusters were lost"
    ):
        clusters.prove(file, wrong)
    with pytest.raises(ArtefactError, match=r"no kernel for the layer 'stem' of the shape \(7, 7, 4, 8\)"):
        clusters.prove(file, [claims(made)[0]._replace(shape=(7, 7, 4, 8))])


def test_the_report_counts_and_compares(built):
    made, file, _, _ = built
    found = {name: {**entry, "dense_gzip_bytes": 400} for name, entry in clusters.prove(file, claims(made)).items()}
    shown = {"clusters": found, "verify": {"clusters_match": True}}
    first, second = report_clusters.paragraphs(shown)
    assert first == "4 kernels with at most 6 distinct int8 values in each kernel."
    assert "less than in the dense int8 file, where they are 1.6 KiB." in second
    assert report_clusters.proven(shown) == [(True, "clustered kernels have no more distinct int8 values than asked")]
    assert report_clusters.table(shown)[0]["asked"] == "6"
    assert report_clusters.paragraphs({}) == [] and report_clusters.proven({}) == []


def test_without_preserving_the_clusters_are_given_up_and_nothing_is_claimed(built, tmp_path):
    made = built[0]
    options = quantize.Options(epochs=0, preserve_clusters=False)
    model = intake.load_own(made.run.folder / "model.keras")
    intake.save(model, tmp_path / "model.keras")
    before = dataclasses.replace(state(tmp_path, "quantize"), files={"model": "model.keras"}, facts=made.facts)
    again = quantize.run(before, options)
    assert again.facts["clustering"]["kept"] is None


# what would undo it


def test_a_scale_multiplied_in_afterwards_is_refused(built, tmp_path):
    made = built[0]
    intake.save(intake.load_own(made.run.folder / "model.keras"), tmp_path / "model.keras")
    before = dataclasses.replace(state(tmp_path, "quantize"), files={"model": "model.keras"}, facts=made.facts)
    with pytest.raises(RecipeError, match=r"'stem' was clustered to 6 values, but has .* after the rewrites"):
        quantize.run(before, quantize.Options(epochs=0, fold="all"))


def test_normalization_into_dense_is_done_before_clustering():
    x = image = keras.Input(SHAPE, name="image")
    x = layers.BatchNormalization(name="bn")(layers.Dense(8, name="dense")(layers.Flatten(name="flat")(x)))
    model = keras.Model(image, layers.Dense(4, name="classes")(x))
    prepared = preparation.prepare(model).model
    assert [plan.name for plan in clustering.plan(prepared, clustering.Codebook(4))] == ["dense", "classes"]
    assert "bn" not in [layer.name for layer in prepared.layers]


def test_a_second_cluster_stage_may_not_leave_what_the_first_has_clustered(built, tmp_path):
    made = built[0]
    intake.save(intake.load_own(made.run.folder / "model.keras"), tmp_path / "model.keras")
    before = dataclasses.replace(state(tmp_path, "again"), files={"model": "model.keras"}, facts=made.facts)
    with pytest.raises(RecipeError, match="does not cluster stem, plain, hidden, classes, which an earlier stage"):
        cluster.run(before, cluster.Options(clusters=7, epochs=1))


@pytest.mark.parametrize("later", ["train", "shrink", "prune"])
def test_training_without_clusters_may_not_come_after(later):
    with pytest.raises(RecipeError, match=f"no {later} stage may come after a cluster stage"):
        recipe.load({"name": "x", "stages": {"cluster": {}, later: {}}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 2}, "clusters must be at least 3"),
        ({"clusters": 256}, "less than or equal to 255"),
        ({"include": "("}, "not a regular expression"),
        ({"start": "random"}, "k-means"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        cluster.Options(**options)
