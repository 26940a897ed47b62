"""Samplers: what is evaluated next, from what is known. One module each; its name is the word for ``--sampler``.

A sampler of our own has ``propose(space, history, seed)``, a pure function: the same history and seed give the same proposal, so
a search resumes, repeats, and runs with any number of workers. What is expensive to know of a history (an agent that learned from
it) is a fold over it, remembered but never needed. One of Optuna's has ``optuna(space, seed)`` in its place.

A module may say more of itself:

* ``JUDGE``: what its candidates are evaluated with, ``cut`` (the default: the trained model, cut, its BatchNormalization's
  statistics re-estimated) or ``supernet`` (a super-net trained for it);
* ``PATIENT = True``: its trials must not be stopped early, since what comes next depends on the drop of each;
* ``OVER_LIMITS = True``: on its way to the limits it has candidates evaluated that break them.

Where the space has limits of cost, candidates meet them. Where it has none, each proposal draws what it may cost, so that a search
spreads over the front (`edgeprune.samplers._aims`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edgeprune.search_space import Proposal, Space, Told


class Sampler(Protocol):
    """What a module of our own satisfies."""

    def propose(self, space: Space, history: Sequence[Told], seed: int) -> Proposal:
        """What to evaluate next.

        Args:
            space: what can be chosen.
            history: finished evaluations, in the order in which they finished.
            seed: of this trial.

        Raises:
            CutError: the space's limits cannot be met, and which not.
        """
