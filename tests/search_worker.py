"""A worker of a study without a network: ``python search_worker.py URL NAME SAMPLER TRIALS SECONDS``.

The space is synthetic: every group costs its units, and loses by the square of the share that goes, weighed by the group.
"""

from __future__ import annotations

import sys
import time

from edgeprune import search, search_storage, search_study
from edgeprune.search_space import Knob, Space

UNITS = 16


def space(limits=None, groups=4):
    """Groups of different worth, whose drop has a known shape."""
    knobs = tuple(
        Knob(f"g{place}", UNITS, tuple(range(2, UNITS + 1, 2)), {"place": place / groups}) for place in range(groups)
    )

    def costs(candidate):
        kept = [int(candidate[knob.name]) for knob in knobs]
        macs = sum(one * other for one, other in zip(kept, [3, *kept[:-1]], strict=True))
        return {
            "macs": float(macs),
            "params": float(macs),
            "size_bytes": 500.0 + sum(kept) * 10,
            "latency_ms": 0.1 + macs / 500,
        }

    return Space(knobs, {"criterion": ("l2", "taylor")}, costs, limits or {}, lambda criterion: {})


def drop(candidate):
    """0 for the whole network; the first groups are worth the most, and one criterion is better."""
    lost = [(1 - int(candidate[f"g{place}"]) / UNITS) ** 2 / (1 + place) for place in range(4)]
    return 0.3 * sum(lost) + (0.01 if candidate["criterion"] == "l2" else 0.0) * (sum(lost) > 0)


def work(study, trials, seconds=0.0, told=lambda: None):
    """Evaluate until so many are finished, as ``search_run`` does."""
    while True:
        claim = study.ask(trials)
        if claim is None:
            counts = study.counts()
            if counts["running"] + counts["waiting"] == 0:
                return
            time.sleep(0.05)
            continue
        with study.alive(claim):
            time.sleep(seconds)
        study.tell(claim, drop(claim.candidate), study._space.costs(claim.candidate))
        told()


def opened(url, name, sampler, seed=0, limits=None):
    storage = search_storage.opened(url)
    return search_study.Study(storage, url, name, space(limits), seed, search_study.sampler(sampler))


def front(study):
    """The points of the front of a study."""
    study.refresh()
    names = search.objectives(study._space.costs(study._space.whole()))
    points = [search.values(names, one.drop, one.costs) for one in study.finished()]
    return [points[place] for place in search.front(points)]


if __name__ == "__main__":
    url, name, sampler, trials, seconds = sys.argv[1:]
    print("ready", flush=True)
    work(opened(url, name, sampler), int(trials), float(seconds), lambda: print("told", flush=True))
