"""Random search: every allowed count and word with the same probability, whatever came out before.

Bergstra & Bengio, "Random search for hyper-parameter optimization" (2012). It is what every other sampler has to beat. Cost: none.
"""

from __future__ import annotations

from typing import Any

from edgeprune.search_space import Space


def optuna(space: Space, seed: int) -> Any:
    """Optuna's sampler."""
    from optuna.samplers import RandomSampler

    return RandomSampler(seed)
