"""Say before anything is done that an amount is too large."""

from __future__ import annotations

from edgeprune.errors import CutError
from edgeprune.validation import Strict

LOOKED = []


class Options(Strict):
    amount: int = 1


def foresee(state, options):
    LOOKED.append((state.label, dict(state.files)))
    if options.amount > 9:
        raise CutError(f"stages.{state.label}.amount: {options.amount} is too much")


def run(state, options):
    return state.add(notes=[f"{options.amount}"])
