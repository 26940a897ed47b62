"""What is done to a variable after every step of the optimizer, in the step's own graph: masks, proximal steps.

Keras' optimizers assign ``variable.constraint(variable)`` to a variable after they have moved it, also under
``tf.distribute`` strategies. Several such deeds are done one after the other: first the constraint that the model itself
came with, then proximal steps in the order in which they were added, masks last. So whatever a penalty does, what a mask
holds at zero is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from edgeprune.keras import tf

Constraint = Callable[[Any], Any]  # the new value -> the value to keep, of the same shape


def step(variable: Any, deed: Constraint) -> None:
    """Do something to a variable after every step, before masks.

    Args:
        variable: trainable; of a layer, or of the model.
        deed: the value after the optimizer's step -> the value to keep.
    """
    _order(variable).steps.append(deed)


def mask(variable: Any, deed: Constraint) -> None:
    """Do something to a variable after every step, after all proximal steps."""
    _order(variable).masks.append(deed)


def hold(variable: Any, kept: Any) -> None:
    """Keep zeros at zero: the variable times its mask, now and after every step.

    Args:
        variable: trainable.
        kept: of its shape, True or 1 = may differ from zero; an array, or a variable that may change.
    """
    mask(variable, lambda value: value * tf.cast(kept, value.dtype))
    variable.assign(variable * tf.cast(kept, variable.dtype))


@contextmanager
def restored(variables: Iterable[Any]) -> Iterator[None]:
    """Within it constraints may be added; afterwards the variables have those that they had before."""
    held = [(_inner(variable), _inner(variable).constraint) for variable in variables]
    for inner, constraint in held:
        if isinstance(constraint, _Order):
            inner._constraint = constraint.copy()
    try:
        yield
    finally:
        for inner, constraint in held:
            inner._constraint = constraint


class _Order:
    """The constraint of a variable that several deeds are done to."""

    def __init__(self, first: Constraint | None, steps: Iterable[Constraint], masks: Iterable[Constraint]) -> None:
        self.first, self.steps, self.masks = first, list(steps), list(masks)

    def __call__(self, value: Any) -> Any:
        for deed in (*([self.first] if self.first else []), *self.steps, *self.masks):
            value = deed(value)
        return value

    def copy(self) -> _Order:
        return _Order(self.first, self.steps, self.masks)


def _order(variable: Any) -> _Order:
    """The order of a variable's deeds, made at its first."""
    inner = _inner(variable)
    if not isinstance(inner.constraint, _Order):
        inner._constraint = _Order(inner.constraint, (), ())
    return inner.constraint


def _inner(variable: Any) -> Any:
    """The variable that holds the constraint: mixed precision and strategies put others around it."""
    for outer in ("_variable", "_primary"):
        while getattr(variable, outer, None) is not None:
            variable = getattr(variable, outer)
    return variable
