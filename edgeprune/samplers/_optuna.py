"""Optuna's samplers as pure functions of what is known, like our own: a study in memory is told the history, and asked once.

A knob is a place in its allowed counts, a choice a category. What a sampler notes of its trial (NSGA-II's generation) is in the
proposal's notes, and comes back with the history.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from types import ModuleType
from typing import Any

from edgeprune import search
from edgeprune.samplers import _aims
from edgeprune.search_space import Candidate, Proposal, Space, Told

NOTES = "optuna"  # in a proposal's notes
EPOCH = datetime(1970, 1, 1)  # without a zone, as Optuna's own; no sampler asks when a trial was

_memo = _aims.Memo()


def proposed(module: ModuleType, space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """What a sampler of Optuna's tries next; what breaks a limit of cost is drawn to where it does not (``Space.fit``).

    Where there are such limits it is the drop alone that is minimised (``search.sought``).
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = search.sought(space)
    ranges = distributions(space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(directions=["minimize"] * len(names), sampler=module.optuna(space, seed))
        study.add_trials(_trials(space, ranges, names, history))
        trial = study.ask(ranges)
    noted = study.get_trials(deepcopy=False)[trial.number].system_attrs
    params = {"params": trial.params, "system": json.loads(json.dumps(noted))}
    return Proposal(space.fit(decoded(space, trial.params)), {NOTES: params})


def _trials(space: Space, ranges: Mapping[str, Any], names: Sequence[str], history: Sequence[Told]) -> list[Any]:
    """The history as trials of Optuna's; those that were made before are taken again."""
    held = _memo.of(space)
    known, made = held.get("trials", ([], []))
    if list(history[: len(known)]) != known:
        known, made = [], []
    made = [*made, *(_trial(space, ranges, names, told) for told in history[len(known) :])]
    held["trials"] = (list(history), made)
    return list(made)


def _trial(space: Space, ranges: Mapping[str, Any], names: Sequence[str], told: Told) -> Any:
    """A finished evaluation as the sampler drew it; one that another sampler drew, as it was evaluated."""
    from optuna.trial import TrialState

    drawn: Mapping[str, Any] = told.notes.get(NOTES, {})
    return _finished()(
        number=-1,  # the study gives it one
        trial_id=-1,
        state=TrialState.COMPLETE,
        value=None,
        values=list(search.values(names, told.drop, told.costs)),
        datetime_start=EPOCH,
        datetime_complete=EPOCH,
        params=drawn.get("params") or encoded(space, told.candidate),
        distributions=dict(ranges),
        user_attrs={},
        system_attrs=dict(drawn.get("system", {})),
        intermediate_values={},
    )


@cache
def _finished() -> type[Any]:
    """Optuna's trial without the deep copies that a study and its samplers make of each: of a finished one only the number changes,
    so a shallow copy does."""
    from optuna.trial import FrozenTrial

    class Finished(FrozenTrial):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return copy.copy(self)

    return Finished


def distributions(space: Space) -> dict[str, Any]:
    """A place in ``Knob.kept`` for every knob, a word for every choice that has more than one."""
    from optuna import distributions as library

    places = {knob.name: library.IntDistribution(0, len(knob.kept) - 1) for knob in space.knobs if len(knob.kept) > 1}
    words = {name: library.CategoricalDistribution(given) for name, given in space.choices.items() if len(given) > 1}
    return {**places, **words}


def encoded(space: Space, candidate: Candidate) -> dict[str, Any]:
    """A candidate as parameters of those distributions."""
    places = {knob.name: knob.kept.index(int(candidate[knob.name])) for knob in space.knobs if len(knob.kept) > 1}
    return {**places, **{name: str(candidate[name]) for name, given in space.choices.items() if len(given) > 1}}


def decoded(space: Space, params: Mapping[str, Any]) -> Candidate:
    """The candidate that parameters stand for."""
    counts = {knob.name: knob.kept[int(params.get(knob.name, len(knob.kept) - 1))] for knob in space.knobs}
    return {**counts, **{name: str(params.get(name, given[0])) for name, given in space.choices.items()}}
