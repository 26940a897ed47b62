"""One width for the whole network: every group of channels keeps the same share of its units.

The width multiplier, which every other sampler has to beat. With limits the first proposal is the widest network that meets
them; every other one draws what it may cost, uniformly between the smallest network's latency (MACs where no latency is
known) and the whole network's, and takes the widest that meets that and the limits:

    units of group g = w * units of g in the whole network, w = max {w : cost(w) <= aim}

Choices keep their first words.

Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications" (2017), section 3.3.

Cost: none.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeprune.samplers import _aims
from edgeprune.search_space import Proposal, Space, Told


def propose(space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """As ``Sampler.propose``."""
    most = _aims.limits(space)
    if history or not most:
        for name, value in _aims.drawn(space, _aims.generator(seed).uniform()).items():
            most[name] = min(value, most.get(name, value))
    even = {knob.name: 1.0 for knob in space.knobs}
    return Proposal(_aims.fitted(space, even, _aims.words(space, space.whole()), most))
