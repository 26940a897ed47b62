"""Tree-structured Parzen estimators: densities of what came out well and of the rest, and tries where their quotient is large.

Bergstra et al., "Algorithms for hyper-parameter optimization" (2011); for several objectives Ozaki et al., "Multiobjective
tree-structured Parzen estimator" (2022). All choices are drawn together, and what other workers have at work counts as bad, so that
they try something else. Cost: some ten milliseconds a trial, rising with their number.
"""

from __future__ import annotations

from typing import Any

from edgeprune.search_space import Space

START = 10  # trials at random


def optuna(space: Space, seed: int) -> Any:
    """Optuna's sampler."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=START)
