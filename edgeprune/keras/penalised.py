"""Penalties at work: the proximal steps of `edgeprune.penalties` after every step of an optimizer, in the step's own graph.

What one unit of gradient moves a weight is the optimizer's: ``learning rate / (1 - momentum)`` of SGD; of Adam, weight by
weight, ``learning rate / (max(sqrt(v), strength / LONGEST) + epsilon)`` with the second moment v. At a minimum its root is at
least the strength (of L1) wherever a weight is not zero; the bound only keeps a weight whose first gradients happened to be
tiny from being zeroed at once. With momentum it is the sum over the steps in which a gradient lives on, so that it stays right
while the learning rate changes.

A strength may be learned: it rises while there are fewer zeros than a schedule wants and falls while there are more, as the
multiplier of a constraint does (Gallego-Posada et al., "Controlled sparsity via constrained optimization or: how I learned to
stop tuning penalties and love constraints" (2022)).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeprune import granularity, masks, registry
from edgeprune.errors import RecipeError
from edgeprune.keras import constraints, coupled, graph, keras, kernels, tf
from edgeprune.training_options import Penalty, needs

LONGEST = 4.0  # of a proximal step, in steps of Adam
EVERY = 10  # steps between two counts of the zeros, while a strength is learned
GAIN = 60.0  # of the logarithm of a strength over a stage in which no weight is zero and all should be
FASTEST = 0.02  # rise of that logarithm in a step: weights need time to reach zero, in which it must not run away
RANGE = 12.0  # of that logarithm: a learned strength is at most 160,000 times the given one, or that part of it
POWER = 3.0  # of the schedule that the zeros follow, as in Zhu and Gupta (2017)


class Library:
    """What `edgeprune.penalties` asks of an array library, by TensorFlow."""

    abs, clip, maximum, sqrt, where = (tf.abs, tf.clip_by_value, tf.maximum, tf.sqrt, tf.where)
    max, sum = tf.reduce_max, tf.reduce_sum


class Penalised(NamedTuple):
    """A penalty that is at work.

    Attributes:
        variables: what it remembers; no weights of the model.
        zeros: the share of what it is of (weights, scales, units) that is zero, 0..1, as a tensor.
        strength: of this moment, as a tensor.
        whole: groups of channels that it leaves alone, with the reason.
    """

    variables: list[Any]
    zeros: Callable[..., Any]
    strength: Callable[[], Any]
    whole: dict[str, str]


class _Target(NamedTuple):
    """What one proximal step is of.

    Attributes:
        variables: that it moves together.
        prox: their values -> the values to keep.
        zeros: their values -> (how many of its weights or units are zero).
        size: how many weights or units it has.
    """

    variables: list[Any]
    prox: Callable[[Sequence[Any]], Sequence[Any]]
    zeros: Callable[[Sequence[Any]], Any]
    size: int


def attach(model: Any, optimizer: Any, penalty: Penalty, steps: int, where: str = "penalty") -> Penalised:
    """Let a penalty act on a model after every step that the optimizer makes.

    Args:
        model: functional tf_keras model; layers in wrappers count as what they wrap, except for penalties of groups.
        optimizer: SGD or Adam of tf_keras, built for the model's trainable variables.
        penalty: kind, strength, layers.
        steps: of the whole training, over which a strength rises or is learned.
        where: the option that asks for it, for messages.

    Returns:
        What has to be saved besides the model and the optimizer, and what there is to tell. `constraints.restored` ends it.

    Raises:
        RecipeError: there is nothing that the penalty could act on, or the optimizer is of another kind.
    """
    units, strength = _steps_of(optimizer, penalty, where), _strength_of(optimizer, penalty, steps)
    targets, chosen, whole = _targets(model, penalty, units.of, strength.now, where)
    order = {variable.ref(): place for place, variable in enumerate(model.trainable_variables)}
    size = sum(target.size for target in targets)

    def zeros(variable: Any = None, moved: Any = None) -> Any:
        """The share of zeros, with a variable's value that is about to be assigned."""
        values = [[moved if one is variable else one for one in target.variables] for target in targets]
        counts = [tf.cast(target.zeros(given), tf.float32) for target, given in zip(targets, values, strict=True)]
        return tf.add_n(counts) / float(size)

    moved = sorted((variable for target in targets for variable in target.variables), key=lambda v: order[v.ref()])
    _each_step(moved[0], lambda _: units.begin())
    for target in targets:
        _act(target, order)
    if strength.learn is not None:
        _each_step(moved[-1], _now_and_then(optimizer, strength.learn, lambda value: zeros(moved[-1], value)))
    return Penalised([*units.variables, *strength.variables, *chosen], zeros, strength.now, whole)


# How far a unit of gradient moves a weight, and how strong the penalty is


class _Steps(NamedTuple):
    """What a unit of gradient moves a weight by.

    Attributes:
        of: (variable, strength) -> a scalar, or a tensor of its shape.
        begin: to be done before the first of them in every step.
        variables: what has to be remembered for it.
    """

    of: Callable[[Any, Any], Any]
    begin: Callable[[], Any]
    variables: list[Any]


def _steps_of(optimizer: Any, penalty: Penalty, where: str) -> _Steps:
    if type(optimizer) is keras.optimizers.SGD:
        return _steps_of_sgd(optimizer)
    if type(optimizer) is not keras.optimizers.Adam or optimizer.amsgrad:
        raise RecipeError(
            f"{where}: the proximal step of a penalty is known for SGD and Adam (without amsgrad), got {type(optimizer).__name__}. "
            "Choose one of them."
        )

    least = _least_gradient(penalty) / LONGEST

    def of(variable: Any, strength: Any) -> Any:
        second = optimizer._velocities[optimizer._index_dict[optimizer._var_key(variable)]]
        gone = 1.0 - tf.pow(tf.cast(optimizer.beta_2, variable.dtype), tf.cast(optimizer.iterations, variable.dtype))
        root = tf.maximum(tf.sqrt(second / gone), least * tf.cast(strength, variable.dtype))
        return tf.cast(optimizer.learning_rate, variable.dtype) / (root + optimizer.epsilon)

    return _Steps(of, lambda: None, [])


def _least_gradient(penalty: Penalty) -> float:
    """What the gradient of a weight that is not zero is at a minimum, at least, as a share of the strength.

    For groups more, so that they shrink no faster than Adam moves: all units of a layer would be gone before one is counted.
    """
    if needs(penalty.kind)[0] == "groups":
        return LONGEST
    if "mix" in needs(penalty.kind):
        return penalty.mix
    return {"l2": 0.0, "growing": 0.0, "adaptive": 0.1}.get(
        penalty.kind, 1.0
    )  # the last: for weights of up to 9 epsilon


def _steps_of_sgd(optimizer: Any) -> _Steps:
    """A gradient of 1 in every step so far would move a weight by the learning rates summed as momentum sums them."""
    rate, momentum = (lambda: tf.cast(optimizer.learning_rate, tf.float32)), float(optimizer.momentum)
    if not momentum:
        return _Steps(lambda variable, _: tf.cast(rate(), variable.dtype), lambda: None, [])
    reach = tf.Variable(0.0, trainable=False, name="reach")

    def of(variable: Any, _: Any) -> Any:
        return tf.cast(rate() + momentum * reach if optimizer.nesterov else tf.identity(reach), variable.dtype)

    return _Steps(of, lambda: reach.assign(rate() + momentum * reach), [reach])


class _Strength(NamedTuple):
    """How strong the penalty is.

    Attributes:
        now: the strength of this moment.
        learn: the share of zeros -> moves the strength; None where it is given.
        variables: what has to be remembered for it.
    """

    now: Callable[[], Any]
    learn: Callable[[Any], Any] | None
    variables: list[Any]


def _strength_of(optimizer: Any, penalty: Penalty, steps: int) -> _Strength:
    if penalty.sparsity is not None and penalty.kind != "growing":
        return _learned(optimizer, penalty, steps)
    rise = (1.0 if penalty.kind == "growing" else 0.0) if penalty.rise is None else penalty.rise
    if not rise:
        return _Strength(lambda: tf.constant(penalty.strength, tf.float32), None, [])
    share = lambda: tf.minimum(tf.cast(optimizer.iterations, tf.float32) / (rise * steps), 1.0)  # noqa: E731
    return _Strength(lambda: penalty.strength * share(), None, [])


def _learned(optimizer: Any, penalty: Penalty, steps: int) -> _Strength:
    """The strength that keeps as many zeros as the schedule wants: its logarithm is the sum of what they lack."""
    lacking = tf.Variable(0.0, trainable=False, name="lacking")

    def now() -> Any:
        return penalty.strength * tf.exp(GAIN * lacking)

    def learn(zeros: Any) -> Any:
        progress = tf.minimum(tf.cast(optimizer.iterations, tf.float32) / (penalty.end * steps), 1.0)
        gap = float(penalty.sparsity or 0.0) * (1.0 - tf.pow(1.0 - progress, POWER)) - zeros
        change = tf.minimum(gap * EVERY / steps, FASTEST * EVERY / GAIN)
        return lacking.assign(tf.clip_by_value(lacking + change, -RANGE / GAIN, RANGE / GAIN))

    return _Strength(now, learn, [lacking])


def _each_step(variable: Any, deed: Callable[[Any], Any]) -> None:
    """Do something in every step, when a variable has been moved: it is given the value."""

    def unchanged(value: Any) -> Any:
        deed(value)
        return value

    constraints.step(variable, unchanged)


def _now_and_then(optimizer: Any, learn: Callable[[Any], Any], zeros: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A deed for ``_each_step`` that counts the zeros and moves the strength in some of the steps."""
    return lambda value: tf.cond(
        optimizer.iterations % EVERY == 0, lambda: learn(zeros(value)), lambda: tf.constant(0.0)
    )


def _act(target: _Target, order: dict[Any, int]) -> None:
    """Do a proximal step when the last of its variables has been moved; the others are then written besides."""
    last = max(target.variables, key=lambda variable: order[variable.ref()])

    def deed(value: Any) -> Any:
        given = [value if variable is last else tf.convert_to_tensor(variable) for variable in target.variables]
        for variable, kept in zip(target.variables, target.prox(given), strict=True):
            if variable is last:
                value = kept
            else:
                variable.assign(kept)
        return value

    constraints.step(last, deed)


# What a penalty is of


def _targets(
    model: Any, penalty: Penalty, step: Any, strength: Any, where: str
) -> tuple[list[_Target], list[Any], dict[str, str]]:
    """What the penalty acts on, the variables that say what was chosen to go, and the groups that are left alone."""
    asked = needs(penalty.kind)
    formula = _formula(penalty, asked, strength)
    chosen: list[Any] = []
    whole: dict[str, str] = {}
    if asked[0] == "groups":
        blocks, whole = coupled.blocks(_plain(model, where), penalty.include, penalty.exclude)
        targets = [_of_block(block, formula, step, strength, "mix" in asked) for block in blocks]
    elif asked[0] == "scales":
        blocks, whole = coupled.blocks(_plain(model, where), penalty.include, penalty.exclude)
        scales = {
            part.variable.ref(): part.variable for block in blocks for part in block.parts if _is_scale(model, part)
        }
        targets = [_of_weights(variable, formula, step, strength) for variable in scales.values()]
    elif "chosen" in asked:
        targets, chosen, whole = _of_chosen(model, penalty, formula, step, strength, where)
    else:
        targets = [_of_weights(variable, formula, step, strength) for variable in _kernels(model, penalty, where)]
    if not targets:
        raise RecipeError(f"{where}: {_nothing(asked[0], whole)} Choose another kind of penalty, or leave it out.")
    return targets, chosen, whole


def _nothing(what: str, whole: dict[str, str]) -> str:
    """Why a penalty finds nothing to act on."""
    if what == "weights":
        return "no layer that is trained has a kernel."
    reasons = "; ".join(f"'{name}': {why}" for name, why in whole.items()) or "it has no kernel that makes channels"
    behind = " with a BatchNormalization behind them" if what == "scales" else ""
    return f"this model has no coupled channels{behind} that could go ({reasons})."


def _formula(penalty: Penalty, asked: tuple[str, ...], strength: Callable[[], Any]) -> Callable[..., Any]:
    """The proximal step with the penalty's own options filled in: (values, step, further arguments) -> values."""
    function = registry.function("penalties", penalty.kind)
    own = {name: getattr(penalty, name) for name in ("mix", "epsilon") if name in asked}

    def prox(values: Any, step: Any, **further: Any) -> Any:
        return function(values, step, tf.cast(strength(), values.dtype), **own, **further, xp=Library)

    return prox


def _of_weights(variable: Any, formula: Any, step: Any, strength: Any, **further: Any) -> _Target:
    """Weight by weight."""

    def prox(values: Sequence[Any]) -> Sequence[Any]:
        return [formula(values[0], step(variable, strength()), **further)]

    return _Target([variable], prox, lambda values: _count_zeros(values[0]), int(variable.shape.num_elements()))


def _of_block(block: coupled.Block, formula: Any, step: Any, strength: Any, inside: bool) -> _Target:
    """Unit by unit; where single weights become zero inside of units, these are what is counted."""
    variables = [part.variable for part in block.parts]
    sizes = tf.constant(block.sizes)

    def prox(values: Sequence[Any]) -> Sequence[Any]:
        steps = [step(variable, strength()) for variable in variables]
        joint = steps[0] if not steps[0].shape.rank else block.matrix(steps)
        return block.values(formula(block.matrix(values), joint, sizes=sizes), values)

    def zeros(values: Sequence[Any]) -> Any:
        matrix = block.matrix(values)
        if inside:
            return int(block.sizes.sum()) - tf.math.count_nonzero(matrix)  # not what it is filled up with
        return _count_zeros(tf.reduce_max(tf.abs(matrix), axis=0))

    return _Target(variables, prox, zeros, int(block.sizes.sum()) if inside else block.units)


def _of_chosen(
    model: Any, penalty: Penalty, formula: Any, step: Any, strength: Any, where: str
) -> tuple[list[_Target], list[Any], dict[str, str]]:
    """Weights, or all weights of units, that are chosen to go by their magnitude now, each layer's or group's share."""
    share = 0.5 if penalty.sparsity is None else penalty.sparsity
    picked: dict[Any, np.ndarray] = {}
    variables: list[Any] = []
    whole: dict[str, str] = {}
    if penalty.choose == "weights":
        variables = _kernels(model, penalty, where)
        for variable in variables:
            picked[variable.ref()] = ~_smallest_go(np.abs(variable.numpy()), share)
    else:
        blocks, whole = coupled.blocks(_plain(model, where), penalty.include, penalty.exclude)
        for block in blocks:
            own = [part.variable for part in block.parts]
            goes = ~_smallest_go(np.abs(block.matrix(own).numpy()).sum(axis=0), share)
            rows = np.broadcast_to(goes.astype("float32"), block.matrix(own).shape)
            before = [tf.zeros(variable.shape) for variable in own]
            for variable, marks in zip(own, block.values(tf.constant(rows), before), strict=True):
                variables += [] if variable.ref() in picked else [variable]
                picked[variable.ref()] = picked.get(variable.ref(), False) | (marks.numpy() > 0)
    chosen = {
        variable.ref(): tf.Variable(picked[variable.ref()], trainable=False, dtype=variable.dtype, name="chosen")
        for variable in variables
    }
    targets = [_of_weights(variable, formula, step, strength, chosen=chosen[variable.ref()]) for variable in variables]
    return targets, list(chosen.values()), whole


def _smallest_go(scores: np.ndarray, share: float) -> np.ndarray:
    """Of the scores' shape: True = stays."""
    return masks.masks({"": scores}, share, granularity.weight())[""]


def _kernels(model: Any, penalty: Penalty, where: str) -> list[Any]:
    """The trainable kernels of layers whose names fit, also of those inside wrappers."""
    trainable = {variable.ref() for variable in model.trainable_variables}
    named = {layer.name: layer for layer in map(_unwrapped, graph.functional(model).layers) if kernels.of(layer)}
    fitting = [
        layer
        for name, layer in named.items()
        if re.fullmatch(penalty.include, name) and not (penalty.exclude and re.fullmatch(penalty.exclude, name))
    ]
    if named and not fitting:
        raise RecipeError(
            f"{where}: include '{penalty.include}'{f' without {penalty.exclude}' if penalty.exclude else ''} leaves none of the layers "
            f"with kernels. They are: {', '.join(named)}."
        )
    found = [kernel.of(layer) for layer in fitting for kernel in kernels.of(layer)]
    return [variable for variable in found if variable.ref() in trainable]


def _unwrapped(layer: Any) -> Any:
    """The layer that a wrapper of TFMOT's or ours holds; wrappers of Keras' own are layers themselves."""
    while hasattr(layer, "layer") and not isinstance(layer, (keras.layers.TimeDistributed, keras.layers.Bidirectional)):
        layer = layer.layer
    return layer


def _plain(model: Any, where: str) -> Any:
    """The model, if its channels can be followed.

    Raises:
        RecipeError: its layers are wrapped.
    """
    wrapped = [layer.name for layer in model.layers if layer is not _unwrapped(layer)]
    if wrapped:
        raise RecipeError(
            f"{where}: channels that go together cannot be followed through wrapped layers ({wrapped[0]}). Put a penalty of groups "
            "into a stage that trains plain layers (train, regularize, shrink), or choose one of single weights (l1, elastic_net)."
        )
    return model


def _is_scale(model: Any, part: coupled.Part) -> bool:
    return any(
        isinstance(layer, keras.layers.BatchNormalization) and part.variable is layer.gamma for layer in model.layers
    )


def _count_zeros(values: Any) -> Any:
    return tf.size(values, tf.int64) - tf.math.count_nonzero(values)
