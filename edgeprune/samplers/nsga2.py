"""NSGA-II: a population whose fronts come first, and of one front those that stand alone; children by crossover and mutation.

Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002). A generation is small here, for an evaluation is
dear. Cost: none beside the evaluations; it begins to choose after one generation.
"""

from __future__ import annotations

from typing import Any

from edgeprune.search_space import Space

POPULATION = 16


def optuna(space: Space, seed: int) -> Any:
    """Optuna's sampler."""
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=POPULATION)
