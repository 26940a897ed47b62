"""Masked equals shrunk: on the four smallest networks of keras.applications and on seeded random graphs.

benchmarks/surgery_proof.py does the same for all fourteen, as they are taken in from Keras 3, and for 300 graphs.
"""

from __future__ import annotations

import numpy as np
import pytest
import random_graphs

from edgeprune import channels
from edgeprune.keras import channel_graph, graph, keras

SIDE, CLASSES = 32, 10


def application(name):
    """With random weights; BatchNormalization statistics are the data's, or random weights fade the signal."""
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(SIDE, SIDE, 3), classes=CLASSES)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    if norms:
        model(np.random.Generator(np.random.PCG64(0)).normal(size=(16, SIDE, SIDE, 3)).astype("float32"), training=True)
    return random_graphs.uneven(graph.flatten(model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("MobileNet", random_graphs.steps_of("rpi4")),
        pytest.param("MobileNetV3Small", random_graphs.halves, marks=pytest.mark.long),
        ("MobileNetV2", random_graphs.pieces),
        pytest.param("VGG16", random_graphs.steps_of("coral-usb"), marks=pytest.mark.long),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_networks_are_cut_exactly_and_cost_less(name, cut):
    model = application(name)
    coupling = channels.couple(channel_graph.describe(model))
    found = random_graphs.proof(model, coupling, random_graphs.exact(coupling, cut(coupling, 0)))
    assert found.excess == 0.0
    assert found.macs_after < 0.8 * found.macs_before and found.units_after < found.units_before
    whole = [group for group in coupling.groups if not group.cuttable]
    assert len(whole) == 1 and "are an output of the model" in whole[0].reasons


@pytest.mark.parametrize("seed", range(4))
def test_seeded_random_graphs_are_cut_exactly_and_cost_no_more(seed):
    model = graph.flatten(random_graphs.grown(random_graphs.drawn(seed)))
    coupling = channels.couple(channel_graph.describe(model))
    for cut in (random_graphs.halves(coupling, seed), random_graphs.pieces(coupling, seed)):
        found = random_graphs.proof(model, coupling, cut)
        assert found.difference < random_graphs.EXACT
        assert found.macs_after <= found.macs_before
    assert random_graphs.influence(model, coupling, cut) == 0.0


def test_the_graphs_of_a_seed_are_the_same_and_hold_every_kind():
    assert random_graphs.drawn(3) == random_graphs.drawn(3)
    assert {kind for seed in range(60) for kind, _ in random_graphs.drawn(seed)} == set(random_graphs.KINDS)


def test_a_wrong_index_shows():
    """The proof is one: two channels swapped in one consumer of the small model are found."""
    model = graph.flatten(random_graphs.grown([("conv", 1), ("norm", 1), ("conv", 1)]))
    coupling = channels.couple(channel_graph.describe(model))
    cut = random_graphs.halves(coupling)
    copy = graph.rebuild(model)
    kernel = copy.layers[-1].kernel
    kernel.assign(np.roll(kernel.numpy(), 1, axis=0))
    assert random_graphs.proof(model, coupling, cut, copy).excess > 1e-3
