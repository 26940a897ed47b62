"""From kernels' scores to units' scores, on couplings small enough to do by hand."""

import numpy as np
import pytest

from edgeprune import channels, masks, scoring
from edgeprune.channels import Graph, Node, Use
from edgeprune.errors import CutError, NameUnknown, RecipeError

KERNEL = (Use("kernel", 0, "in", "consumer"), Use("kernel", 1, "out", "producer"))


def dense(layer, source, target, uses=KERNEL, **fields):
    return Node(layer, "Dense", "mix", (source,), (target,), uses, **fields)


def residual():
    """x (3) -> a (2), x -> b (2), a + b -> c (1)."""
    tensors = {"x": (3,), "a": (2,), "b": (2,), "sum": (2,), "c": (1,)}
    addition = Node("add", "Add", "elementwise", ("a", "b"), ("sum",), additive=True)
    nodes = (dense("a", "x", "a"), dense("b", "x", "b"), addition, dense("c", "sum", "c"))
    return channels.couple(Graph(tensors, nodes, ("x",), ("c",)))


A = np.array([[1.0, -2.0], [0.0, 3.0], [1.0, 1.0]])  # L1 of the columns 2, 6
B = np.array([[-4.0, 1.0], [0.0, 1.0], [4.0, 6.0]])  # 8, 8
C = np.array([[1.0], [-3.0]])  # of the rows 1, 3
SIGNALS = {name: {"weights": values, "seed": 0} for name, values in (("a", A), ("b", B), ("c", C))}


def scores(criterion="magnitude", signals=SIGNALS, coupling=None, **options):
    return scoring.units(coupling or residual(), criterion, signals, **options)


def test_members_are_made_comparable_and_averaged():
    assert list(scores()) == ["a"]  # c is an output
    np.testing.assert_allclose(scores()["a"], np.mean([[0.5, 1.5], [1.0, 1.0]], axis=0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"normalise": None}, [5, 7]),
        ({"normalise": None, "aggregate": "sum"}, [10, 14]),
        ({"normalise": None, "aggregate": "max"}, [8, 8]),
        ({"normalise": "max", "aggregate": "sum"}, [2 / 6 + 1, 2]),
        ({"normalise": "sum"}, [(2 / 8 + 8 / 16) / 2, (6 / 8 + 8 / 16) / 2]),
        ({"normalise": None, "normalise_groups": "mean"}, [5 / 6, 7 / 6]),
        ({"normalise": None, "consumers": True}, [(2 + 8 + 1) / 3, (6 + 8 + 3) / 3]),
    ],
)
def test_options(options, expected):
    np.testing.assert_allclose(scores(**options)["a"], expected)


def test_the_pooling_is_the_criterions_own():
    options = {"normalise": None, "aggregate": "sum", "consumers": True}
    np.testing.assert_allclose(scores("l2", **options)["a"], [2**0.5 + 32**0.5 + 1, 14**0.5 + 38**0.5 + 3])
    np.testing.assert_allclose(scores("linf", **options)["a"], [1 + 4 + 1, 3 + 6 + 3])


def test_scores_per_channel_say_nothing_of_the_inputs_of_a_consumer():
    given = {name: {"scale": np.full(one["weights"].shape[1], 2.0)} for name, one in SIGNALS.items()}
    given["a"]["scale"] = np.array([-1.0, 3.0])
    np.testing.assert_allclose(scores("slimming", given, normalise=None, consumers=True)["a"], [1.5, 2.5])


def test_the_scale_behind_a_kernel_is_a_member_of_its_own():
    given = {name: dict(one) for name, one in SIGNALS.items()}
    given["a"]["scale"] = np.array([-1.0, 3.0])
    heard = scores(signals=given, normalise=None, scales=True)["a"]
    np.testing.assert_allclose(heard, [(2 + 1 + 8) / 3, (6 + 3 + 8) / 3])
    np.testing.assert_allclose(scores(signals=given, normalise=None)["a"], [5, 7])
    np.testing.assert_allclose(
        scores(signals=given, scales=True)["a"], np.mean([[0.5, 1.5], [0.5, 1.5], [1.0, 1.0]], axis=0)
    )


def test_a_member_without_the_signal_has_no_say():
    given = {"a": {"scale": np.array([1.0, 3.0])}, "b": {"weights": B}}
    np.testing.assert_allclose(scores("slimming", given)["a"], [0.5, 1.5])
    assert scoring.unscored(residual(), "slimming", given) == {}


def test_what_no_criterion_can_score_is_an_error_that_names_what_can():
    with pytest.raises(CutError, match=r"'slimming'.*'a' has no scale.*would work: .*magnitude"):
        scores("slimming")
    assert scoring.unscored(residual(), "slimming", SIGNALS) == {"a": "'a' has no scale; 'b' has no scale"}


def test_a_group_that_cannot_be_scored_stays_out_while_others_can():
    tensors = {"x": (3,), "a": (2,), "c": (2,), "d": (1,)}
    nodes = (dense("a", "x", "a"), dense("c", "a", "c"), dense("d", "c", "d"))
    coupling = channels.couple(Graph(tensors, nodes, ("x",), ("d",)))
    given = {"a": {"scale": np.array([1.0, 3.0])}, "c": {}}
    assert list(scores("slimming", given, coupling)) == ["a"]
    assert scoring.unscored(coupling, "slimming", given) == {"c": "'c' has no scale"}


def test_the_channels_of_one_unit_are_pooled():
    """A grouped convolution that takes channels 0, 1 and 2, 3 together."""
    tensors = {"x": (2, 3), "a": (2, 4), "b": (2, 4), "c": (2, 1)}
    grouped = dense("b", "a", "b", groups=2)
    coupling = channels.couple(Graph(tensors, (dense("a", "x", "a"), grouped, dense("c", "b", "c")), ("x",), ("c",)))
    (group,) = (group for group in coupling.groups if group.cuttable)
    assert (group.units, group.step) == (2, 2)
    given = {
        "a": {"weights": np.array([[1.0, 2.0, -3.0, 4.0]] * 3), "scale": np.array([1.0, 2.0, -3.0, 5.0])},
        "b": {"weights": np.zeros((2, 4))},
    }
    raw = {"normalise": None, "aggregate": "sum"}
    np.testing.assert_allclose(scores("magnitude", given, coupling, **raw)["a"], [9, 21])
    np.testing.assert_allclose(scores("l2", given, coupling, **raw)["a"], [15**0.5, 75**0.5])
    np.testing.assert_allclose(scores("slimming", given, coupling, **raw)["a"], [1.5, 4])  # the mean of their channels


def test_members_that_hold_only_some_of_the_units():
    """Two layers side by side, added to a third: units 0, 1 are a's and c's, unit 2 is b's and c's."""
    tensors = {"x": (1,), "a": (2,), "b": (1,), "both": (3,), "c": (3,), "sum": (3,), "d": (1,)}
    nodes = (
        dense("a", "x", "a"),
        dense("b", "x", "b"),
        Node("both", "Concatenate", "concatenate", ("a", "b"), ("both",)),
        dense("c", "x", "c"),
        Node("add", "Add", "elementwise", ("both", "c"), ("sum",), additive=True),
        dense("d", "sum", "d"),
    )
    coupling = channels.couple(Graph(tensors, nodes, ("x",), ("d",)))
    weights = {"a": [[1.0, 2.0]], "b": [[3.0]], "c": [[4.0, 5.0, 7.0]], "d": [[1.0], [1.0], [1.0]]}
    given = {name: {"weights": np.array(values)} for name, values in weights.items()}
    (found,) = scores(signals=given, coupling=coupling, normalise=None).values()
    np.testing.assert_allclose(found, [2.5, 5.0, 5.0])  # 3.5 of itself, but a's best
    given["b"]["weights"][:] = given["c"]["weights"][:, 2] = 0.5
    (found,) = scores(signals=given, coupling=coupling, normalise=None).values()
    np.testing.assert_allclose(found, [2.5, 3.5, 3.5])
    (kept,) = masks.cuts({"a": found}, 1 / 3).values()
    assert 2 in kept  # or nothing of b were left
    del given["c"], given["b"]["weights"]
    assert scoring.unscored(coupling, "magnitude", given) == {"a": "'b' has no weights; 'c' has no weights"}


def test_a_recurrent_layer_is_scored_by_its_kernel_over_all_gates():
    gates = (
        Use("kernel", 0, "in", "consumer"),
        Use("kernel", 1, "out", "producer", tile=3),
        Use("recurrent_kernel", 0, "out", "consumer"),
        Use("recurrent_kernel", 1, "out", "producer", tile=3),
    )
    tensors = {"x": (4, 1), "h": (2,), "y": (1,)}
    nodes = (Node("gru", "GRU", "recurrent", ("x",), ("h",), gates), dense("out", "h", "y"))
    coupling = channels.couple(Graph(tensors, nodes, ("x",), ("y",)))
    given = {"gru": {"weights": np.array([[1.0, 2.0, 3.0, -4.0, 5.0, 6.0]]), "activation_means": np.array([1.0, 3.0])}}
    np.testing.assert_allclose(scores("magnitude", given, coupling, normalise=None)["gru"], [9, 12])
    np.testing.assert_allclose(scores("activation_mean", given, coupling, normalise=None)["gru"], [1, 3])


def test_scores_of_zero_stay_zero():
    given = {name: {"weights": np.zeros_like(one["weights"])} for name, one in SIGNALS.items()}
    np.testing.assert_array_equal(scores(signals=given)["a"], [0, 0])


def test_scores_that_are_not_finite_are_refused():
    given = {**SIGNALS, "b": {"weights": np.full((3, 2), np.nan)}}
    with pytest.raises(CutError, match=r"'magnitude' gives 'b' scores that are not finite.*diverged"):
        scores(signals=given)


def test_words_that_name_nothing():
    with pytest.raises(NameUnknown, match="Did you mean 'magnitude'"):
        scores("magnitudes")
    with pytest.raises(RecipeError, match="Did you mean 'mean'"):
        scores(aggregate="means")
    with pytest.raises(RecipeError, match="Did you mean 'max'"):
        scores(normalise="maxx")


def test_able_names_the_criteria_that_do_without():
    assert "taylor" not in scoring.able({"gradients"})
    assert {"magnitude", "slimming"} <= set(scoring.able({"gradients"}))
