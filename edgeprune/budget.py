"""Budgets: what is asked of a model, what is tried next to meet it, which of the attempts is taken.

An *attempt* is one allocation of channels, trained, quantized and converted. Every aim lies between two ends: at ``ease`` 0 the limits
of cost themselves (without any, the least that the model can be cut to), at 1 the uncut model. What comes next follows from the
attempts before alone, so that a search that was killed goes on as if it had not been:

- With limits of cost, the first attempt is at the limits. If its drop is too large, the second shares the cuts out evenly; if that
  does not help either, the limits cannot be met together, and the attempts that are left find out, by bisection, at which cost
  the drop would be small enough.
- With a limit of drop alone, bisection finds the largest cut inside it. The smallest drop of several that lie at the edge is a
  lucky one; so an attempt counts as inside when its drop and one standard error of it are.

No figure here is of the test split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeprune import columns
from edgeprune.allocation import EVEN
from edgeprune.budget_limits import LIMITS, NAMES, amount
from edgeprune.errors import EdgepruneError
from edgeprune.metrics import Metric, drop
from edgeprune.search_space import Candidate, Costs

EVENLY = 10.0  # weight of the pull to even shares that lets sensitivity decide nothing
RESAMPLES = 200  # of the samples, for a standard error
CLOSE = 1.05  # neighbouring aims: nothing between them is worth a training


class Goal(NamedTuple):
    """What is asked for.

    Attributes:
        limits: cost -> the most.
        drop: the most, in the metric's unit; None: whatever it is.
        objective: the cost that is made as small as ``drop`` allows where no cost is limited.
        whole, least: costs of the uncut model, and of the one that is cut as far as it may be; of a converted file where
            one was made, else predicted.
        attempts: trainings at most.
    """

    limits: Mapping[str, float]
    drop: float | None
    objective: str
    whole: Costs
    least: Costs
    attempts: int


class Aim(NamedTuple):
    """What an attempt is made for.

    Attributes:
        ease: 0: the limits (or the least that can be reached) .. 1: the uncut model.
        even: weight of the pull to even shares (`edgeprune.allocation`).
        tighter: what the limits are multiplied by, because a file came out above what its cut had promised.
        why: in words.
    """

    ease: float
    even: float = EVEN
    tighter: float = 1.0
    why: str = ""


class Attempt(NamedTuple):
    """An attempt that was made.

    Attributes:
        number: from 1.
        candidate: knob -> units that stay.
        predicted: costs from the shapes alone.
        confirmed: of the cut model as a file, before any training.
        costs: of the file in the end.
        metric, drop: on held-out samples; ``drop`` > 0 is worse than the float model.
        error: standard error of the drop; None where it cannot be told.
        note: what else is to be said of the cut; empty for nothing.
        same_as: an earlier attempt with the same cut, of which all this is; None: it was made.
    """

    number: int
    aim: Aim
    candidate: Candidate
    predicted: Costs
    confirmed: Costs
    costs: Costs
    metric: float
    drop: float
    error: float | None = None
    note: str = ""
    same_as: int | None = None


def targets(goal: Goal, aim: Aim) -> dict[str, float]:
    """Cost -> the most that the aim allows; costs that the uncut model keeps to stay at their limits."""
    hard = goal.limits or {goal.objective: goal.least[goal.objective]}
    return {name: aim.tighter * (most + aim.ease * max(goal.whole[name] - most, 0.0)) for name, most in hard.items()}


def over(goal: Goal, costs: Costs) -> float:
    """By how much limits of cost are broken, each as a share of it, together; 0: all are met."""
    return sum(max(costs[name] / most - 1, 0.0) for name, most in goal.limits.items())


def inside(goal: Goal, attempt: Attempt) -> bool:
    """Whether the drop is: where the search is for its edge, by a standard error, or by being none at all."""
    if goal.drop is None:
        return True
    margin = 0.0 if goal.limits else attempt.error or 0.0
    return attempt.drop <= max(goal.drop - margin, 0.0)


def next_aim(goal: Goal, attempts: Sequence[Attempt]) -> Aim | None:
    """What to try next; None: there is nothing that would help."""
    if len([one for one in attempts if one.same_as is None]) >= goal.attempts:
        return None
    return _at_the_limits(goal, attempts) if goal.limits else _at_the_edge(goal, attempts)


def _at_the_limits(goal: Goal, attempts: Sequence[Attempt]) -> Aim | None:
    if not attempts:
        return Aim(0.0, why="at the limits, shared out by sensitivity")
    hard = [one for one in attempts if one.aim.ease == 0]
    if any(over(goal, one.costs) == 0 and inside(goal, one) for one in hard):
        return None
    last = hard[-1]
    above = over(goal, last.costs)
    if above > 0 and over(goal, last.confirmed) == 0 and last.same_as is None:
        why = f"the file of attempt {last.number} came out {100 * above:.2g} % above a limit that its cut had kept"
        return Aim(0.0, last.aim.even, last.aim.tighter / (1 + above + 0.001), why)
    if above > 0 or goal.drop is None:
        return None  # no cut keeps the limits
    if last.aim.even != EVENLY:
        return Aim(0.0, EVENLY, last.aim.tighter, f"{_lost(goal, last)}: the same limits, shared out evenly")
    return _between(goal, attempts, "to find what the drop would allow")


def _at_the_edge(goal: Goal, attempts: Sequence[Attempt]) -> Aim | None:
    if not attempts:
        return Aim(0.5, why="half way between the uncut model and the least that it can be cut to")
    made = [one for one in attempts if one.same_as is None]
    if len(made) == goal.attempts - 1 and not any(inside(goal, one) for one in attempts):
        return Aim(1.0, why=f"no cut so far keeps the drop: {_lost(goal, made[-1])}; nothing is cut")
    return _between(goal, attempts, "as much as the drop allows")


def _between(goal: Goal, attempts: Sequence[Attempt], purpose: str) -> Aim | None:
    """Half way between the easiest aim that lost too much and the hardest that did not."""
    good = [one.aim.ease for one in attempts if inside(goal, one)]
    bad = [one.aim.ease for one in attempts if not inside(goal, one)]
    high = min(good, default=1.0)
    low = max((ease for ease in bad if ease < high), default=0.0)
    aim = Aim((low + high) / 2)
    ends = [targets(goal, Aim(ease)) for ease in (low, high)]
    if all(ends[1][name] <= CLOSE * ends[0][name] for name in ends[0]):
        return None
    last = attempts[-1]
    way = "less" if not inside(goal, last) else "more"
    return aim._replace(why=f"{_lost(goal, last)}: {way} is cut, {purpose}")


def _lost(goal: Goal, attempt: Attempt) -> str:
    """'attempt 2 lost 0.0210 ± 0.0040 where 0.01 may be lost'."""
    error = "" if attempt.error is None else f" ± {attempt.error:.4f}"
    return f"attempt {attempt.number} lost {attempt.drop:.4f}{error} where {goal.drop:g} may be lost"


def chosen(goal: Goal, attempts: Sequence[Attempt]) -> Attempt:
    """The attempt that is taken: what meets everything, or comes nearest to it.

    With limits of cost: the least drop of those that keep them; where none does, the one nearest to them. Without: the
    cheapest inside the drop; where none is, the least drop.
    """
    if goal.limits:
        return min(attempts, key=lambda one: (over(goal, one.costs), one.drop, one.number))
    held = [one for one in attempts if inside(goal, one)]
    if held:
        return min(held, key=lambda one: (one.costs[goal.objective], one.drop, one.number))
    return min(attempts, key=lambda one: (one.drop, one.number))


def met(goal: Goal, attempt: Attempt) -> bool:
    """Whether an attempt keeps every limit on the held-out samples."""
    return over(goal, attempt.costs) == 0 and inside(goal, attempt)


def verdict(goal: Goal, attempts: Sequence[Attempt]) -> str:
    """What came of the search, in one or two sentences."""
    taken = chosen(goal, attempts)
    made = len([one for one in attempts if one.same_as is None])
    count = f"after {made} {'attempt' if made == 1 else 'attempts'}"
    if met(goal, taken):
        how = fill(goal, taken)
        return f"Attempt {taken.number} is taken {count}: {how}."
    if over(goal, taken.costs) > 0:
        return (
            f"No cut keeps the limits: the nearest, attempt {taken.number}, has {_costs(goal, taken.costs, goal.limits)} where "
            f"{_costs(goal, goal.limits, goal.limits)} may be had at most."
        )
    words = f"The limits cannot be met together {count}: the nearest, {_lost(goal, taken)}."
    easier = [one for one in attempts if inside(goal, one)]
    if easier:
        best = min(easier, key=lambda one: one.aim.ease)
        words += f" With that drop {_costs(goal, best.costs, goal.limits or [goal.objective])} can be had (attempt {best.number})."
    return words


def fill(goal: Goal, attempt: Attempt) -> str:
    """'latency at 97 % of its limit, drop 0.0020 of 0.01'."""
    parts = [
        f"{LIMITS[NAMES[name]].title} at {100 * attempt.costs[name] / most:.0f} % of its limit"
        for name, most in goal.limits.items()
    ]
    if not goal.limits:
        share = attempt.costs[goal.objective] / goal.whole[goal.objective]
        parts.append(f"{LIMITS[NAMES[goal.objective]].title} at {100 * share:.0f} % of the uncut model's")
    if goal.drop is not None:
        parts.append(f"drop {attempt.drop:.4f} of {goal.drop:g} on held-out samples")
    return ", ".join(parts)


def _costs(goal: Goal, costs: Costs, names: Any) -> str:
    return " and ".join(amount(name, costs[name]) for name in names)


def standard_error(metric: Metric, y: Any, reference: Any, outputs: Any, seed: int = 0) -> float | None:
    """Of the drop on these samples, which both models have answered: from samples drawn anew, in pairs (bootstrap).

    Args:
        metric: what is judged by.
        y: the answers that are right.
        reference, outputs: of the two models, in the same order.
        seed: of the drawing.

    Returns:
        In the metric's unit; None where the metric cannot be taken of what was drawn.

    Efron & Tibshirani, "An introduction to the bootstrap" (1993).
    """
    random = np.random.Generator(np.random.PCG64(seed))
    count = columns.rows(y)
    found = []
    for _ in range(RESAMPLES):
        drawn = random.integers(0, count, count)
        rows = [columns.each(lambda array, drawn=drawn: array[drawn], given) for given in (y, reference, outputs)]
        try:
            found.append(drop(metric, metric(rows[0], rows[1]), metric(rows[0], rows[2])))
        except EdgepruneError:
            return None
    error = float(np.std(found))
    return error if math.isfinite(error) else None
