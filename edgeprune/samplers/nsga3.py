"""NSGA-III: as NSGA-II, but of one front those stay that lie near reference directions, which spreads three objectives better.

Deb & Jain, "An evolutionary many-objective optimization algorithm using reference-point-based nondominated sorting approach"
(2014). Cost: none beside the evaluations; it begins to choose after one generation.
"""

from __future__ import annotations

from typing import Any

from edgeprune.samplers.nsga2 import POPULATION
from edgeprune.search_space import Space


def optuna(space: Space, seed: int) -> Any:
    """Optuna's sampler."""
    from optuna.samplers import NSGAIIISampler

    return NSGAIIISampler(seed=seed, population_size=POPULATION)
