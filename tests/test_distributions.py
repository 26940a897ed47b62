"""How sparse each kernel becomes: by hand, and as a family."""

from __future__ import annotations

import inspect
from math import prod

import pytest

from edgeprune import distributions, registry

LENET = {"conv1": (5, 5, 1, 6), "conv2": (5, 5, 6, 16), "d1": (400, 120), "d2": (120, 84), "d3": (84, 10)}


def overall(shapes, sparsities):
    return sum(sparsities[name] * prod(shape) for name, shape in shapes.items()) / sum(map(prod, shapes.values()))


def test_uniform_is_the_same_everywhere():
    assert distributions.uniform({"a": (2, 3), "b": (4, 5)}, 0.7) == {"a": 0.7, "b": 0.7}


def test_erdos_renyi_by_hand():
    """(20 + 20) / 400 = 0.1 and (20 + 60) / 1200 = 1 / 15, so 40 and 80 weights; half of 1600 is 800: e = 800 / 120."""
    found = distributions.er({"a": (20, 20), "b": (20, 60)}, 0.5)
    assert found["a"] == pytest.approx(1 - 0.1 * 800 / 120)
    assert found["b"] == pytest.approx(1 - 800 / 120 / 15)


def test_the_kernels_sides_count_for_erk_alone():
    shapes = {"conv": (3, 3, 10, 10), "dense": (30, 30)}
    er, erk = distributions.er(shapes, 0.9), distributions.erk(shapes, 0.9)
    assert er["conv"] == pytest.approx(1 - 20 / 100 * 180 / (0.2 * 900 + 60))
    assert erk["conv"] == pytest.approx(1 - 26 / 900 * 180 / (26 + 60))


def test_what_would_need_more_than_it_has_stays_dense_and_the_others_give():
    found = distributions.erk({"tiny": (2, 2), "large": (100, 100)}, 0.9)
    assert found["tiny"] == 0.0
    assert found["large"] * 10_000 == pytest.approx(0.9 * 10_004)


@pytest.mark.parametrize("name", registry.names("distributions"))
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.98, 0.999])
def test_every_distribution_gives_all_together_what_was_asked(name, sparsity):
    found = registry.function("distributions", name)(LENET, sparsity)
    assert list(found) == list(LENET)
    assert all(0 <= share < 1 for share in found.values())
    assert overall(LENET, found) == pytest.approx(sparsity, abs=1e-9)


@pytest.mark.parametrize("name", registry.names("distributions"))
def test_every_distribution_refuses_what_leaves_nothing_and_documents_its_arguments(name):
    function = registry.function("distributions", name)
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"sparsity must be from 0 to below 1, got"):
            function(LENET, wrong)
    assert all(argument in inspect.getdoc(function) for argument in inspect.signature(function).parameters)
