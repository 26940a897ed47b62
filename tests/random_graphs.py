"""Random networks, random cuts of them, and what a cut must not change: for tests, and for benchmarks/surgery_proof.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgeprune import channels, masks, registry, shrinking, target
from edgeprune.keras import channel_graph, graph, inspect, keras, rounding, surgery

layers = keras.layers

KINDS = (
    *("conv", "norm", "depthwise", "grouped", "add", "concat", "gate", "pool", "pad", "shared"),
    *("separable", "transpose", "prelu", "dense", "up"),
)
STEPS, NUMBERS = (2, 7), (0, 50)  # how many steps a network has, and what they pick by; both ends included
EXACT = 1e-5  # of the output range: what masked and shrunk may differ by


class Proof(NamedTuple):
    """What was found of one cut of one model.

    Attributes:
        difference: between the masked and the shrunk model, of the output range.
        excess: the part of it that is neither below ``EXACT`` nor rounding; 0.0 where the cut is proven.
        macs_before, macs_after: multiply-accumulates for one sample, counted in both models.
        units_before, units_after: channels that can go, over all groups that were cut.
    """

    difference: float
    excess: float
    macs_before: int
    macs_after: int
    units_before: int
    units_after: int


def drawn(seed):
    """The steps of a random network: (kind, number) each."""
    random = np.random.Generator(np.random.PCG64(seed))
    length = int(random.integers(*STEPS, endpoint=True))
    return [(str(random.choice(KINDS)), int(random.integers(*NUMBERS, endpoint=True))) for _ in range(length)]


def grown(steps):
    """A network of 4x4 maps that grows step by step; every step reads the last map, or an earlier one that its number picks."""
    given = keras.Input((4, 4, 2))
    maps = [layers.Conv2D(4, 1)(given)]
    again = layers.Conv2D(4, 3, padding="same")

    def conv(x, channels_out=4):
        return layers.Conv2D(channels_out, 3, padding="same", activation="relu")(x)

    def gate(x):
        pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
        return layers.Multiply()([x, layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(pooled)])

    makers = {
        "conv": lambda x, y, n: conv(x, 2 + n % 5),
        "norm": lambda x, y, n: layers.BatchNormalization()(x),
        "depthwise": lambda x, y, n: layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1 + n % 2)(x),
        "grouped": lambda x, y, n: layers.Conv2D(8, 1, groups=(2, 4)[n % 2])(conv(x, 8)),
        "add": lambda x, y, n: layers.Add()([x, y if x.shape == y.shape else conv(y, x.shape[-1])]),
        "concat": lambda x, y, n: layers.Concatenate()([x, y]),
        "gate": lambda x, y, n: gate(x),
        "pool": lambda x, y, n: layers.AveragePooling2D(3, 1, padding="same")(x),
        "pad": lambda x, y, n: layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x)),
        "shared": lambda x, y, n: again(conv(x) if n % 2 else layers.Conv2D(4, 1)(x)),
        "separable": lambda x, y, n: layers.SeparableConv2D(3 + n % 4, 3, padding="same", depth_multiplier=1 + n % 2)(
            x
        ),
        "transpose": lambda x, y, n: layers.Conv2DTranspose(3 + n % 4, 3, padding="same")(x),
        "prelu": lambda x, y, n: layers.PReLU(shared_axes=[1, 2])(x),
        "dense": lambda x, y, n: layers.Dense(2 + n % 5, activation="relu")(x),
        "up": lambda x, y, n: layers.MaxPooling2D()(layers.UpSampling2D()(x)),
    }
    for kind, number in steps:
        earlier = kind in ("add", "concat") or number % 3 == 0
        maps.append(makers[kind](maps[number % len(maps) if earlier else -1], maps[-1], number))
    last = layers.Flatten()(maps[-1]) if len(steps) % 2 else layers.GlobalMaxPooling2D()(maps[-1])
    return randomized(keras.Model(given, layers.Dense(2)(last)))


def randomized(model, seed=0):
    """The model with every weight drawn anew: none is 0 or 1, variances are positive."""
    random = np.random.Generator(np.random.PCG64(seed))
    for layer in model.layers:
        values = [random.uniform(-0.9, 0.9, weight.shape) for weight in layer.weights]
        positive = [np.abs(v) + 0.5 if "variance" in w.name else v for v, w in zip(values, layer.weights, strict=True)]
        layer.set_weights(positive)
    return model


def uneven(model, seed=0):
    """The model with noise on every weight whose values are all equal, as fresh biases, scales and offsets are."""
    random = np.random.Generator(np.random.PCG64(seed))
    for variable in model.weights:
        values = variable.numpy()
        if values.size > 1 and np.ptp(values) == 0:
            variable.assign(values + random.uniform(-0.2, 0.2, values.shape))
    return model


# Cuts: group -> the units that stay


def halves(coupling, seed=0):
    """A random half of the units of every group that can be cut."""
    random = np.random.Generator(np.random.PCG64(seed))
    cut = {
        group.name: random.choice(group.units, (group.units + 1) // 2, replace=False).tolist()
        for group in coupling.groups
        if group.cuttable
    }
    return inhabited(coupling, cut)


def pieces(coupling, seed=0):
    """Of every other group, at random, as many units as chance has it, and never none."""
    random = np.random.Generator(np.random.PCG64(seed))
    counts = {
        g.name: int(random.integers(1, g.units + 1)) for g in coupling.groups if g.cuttable and random.random() < 0.5
    }
    cut = {
        name: random.choice(coupling.group(name).units, count, replace=False).tolist() for name, count in counts.items()
    }
    return inhabited(coupling, cut)


def inhabited(coupling, cut):
    """The cut with a unit more for every kernel that would lose all of its own, as one of several that are concatenated may."""
    found = {}
    for name, kept in cut.items():
        empty = [member for member in coupling.group(name).members if not set(member.units) & set(kept)]
        found[name] = [*kept, *{int(member.units[0]) for member in empty}]
    return found


def steps_of(board, ratio=0.5):
    """The cut that the shrink stage makes for a target: counts of channels that pay there, by random scores."""
    multiple = shrinking.stair(target.load(registry.file("targets", board)).channel_multiple)

    def cut(coupling, seed=0):
        random = np.random.Generator(np.random.PCG64(seed))
        free = [group for group in coupling.groups if group.cuttable]
        if all(group.units * group.step < shrinking.smallest(multiple) for group in free):
            return {}
        scores = {group.name: random.random(group.units) for group in free}
        return masks.cuts(scores, ratio, multiple, steps={group.name: group.step for group in free})

    return cut


# Proofs


def scrambled(masked, coupling, cut, seed=0):
    """The masked model with noise wherever a producer or a per-channel weight belongs to a channel that is cut."""
    masked = graph.rebuild(masked)
    random = np.random.Generator(np.random.PCG64(seed))
    roles = {(m.layer, m.weight, m.axis): m.role for group in coupling.groups for m in group.members}
    for key, indices in channels.apply(coupling, cut).items():
        if roles[key] != "consumer":
            variable = channel_graph.variable(masked.get_layer(key[0]), key[1])
            values = np.moveaxis(variable.numpy().copy(), key[2], 0)
            gone = np.setdiff1d(np.arange(len(values)), indices)
            values[gone] = random.uniform(0.1, 2.0, values[gone].shape) * (values[gone] != 0)  # what is masked stays 0
            variable.assign(np.moveaxis(values, 0, key[2]))
    return masked


def proof(model: Any, coupling: channels.Coupling, cut: channels.Cut, copy: Any = None) -> Proof:
    """Whether the model with the channels gone computes what it does with their consumers zeroed, and costs no more.

    Args:
        model: flat functional.
        coupling: of the model.
        cut: of groups whose cut is exact.
        copy: that is masked in place of the model; either is left as it was.
    """
    masked = model if copy is None else copy
    before = surgery.mask(masked, coupling, cut)
    small, batches = surgery.removed(model, coupling, cut), graph.probes(model)
    expected, found = graph.outputs(masked, batches), graph.outputs(small, batches)
    excess = rounding.excess_of(masked, batches, expected, found, EXACT)
    for variable, values in before:
        variable.assign(values)
    return Proof(
        difference=graph.difference(expected, found),
        excess=excess or 0.0,
        macs_before=sum(inspect.macs_by_layer(model).values()),
        macs_after=sum(inspect.macs_by_layer(small).values()),
        units_before=sum(coupling.group(name).units for name in cut),
        units_after=sum(map(len, cut.values())),
    )


def influence(model: Any, coupling: channels.Coupling, cut: channels.Cut) -> float:
    """By how much noise in the channels that are cut moves the masked model's outputs, of their range."""
    masked = graph.rebuild(model)
    surgery.mask(masked, coupling, cut)
    return graph.largest_difference(masked, scrambled(masked, coupling, cut))


def exact(coupling: channels.Coupling, cut: channels.Cut) -> dict[str, Any]:
    """The part of a cut that computes the same as zeros would; LayerNormalization sees how many channels there are."""
    return {name: units for name, units in cut.items() if not coupling.group(name).inexact}
