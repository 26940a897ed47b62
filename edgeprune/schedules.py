"""Schedules: progress through a pruning stage (0..1) -> sparsity (0..1).

A schedule is a closure that reads like its equation; every public function here is a constructor of one.
"""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[float], float]


def polynomial(initial: float, final: float, begin: float = 0.0, end: float = 1.0, power: float = 3.0) -> Schedule:
    """Sparsity rises from ``initial`` to ``final``, fast at first and ever slower (TFMOT's ``PolynomialDecay``).

    s(p) = final + (initial - final) * (1 - (p - begin) / (end - begin)) ** power   for begin <= p <= end

    Zhu & Gupta, "To prune, or not to prune" (2017), eq. 1, where power is 3.

    Args:
        initial: sparsity at ``begin``, 0..1.
        final: sparsity from ``end`` on, 0..1.
        begin: progress at which pruning starts, 0..1; before it nothing is pruned.
        end: progress at which ``final`` is reached, ``begin`` < end <= 1.
        power: > 0; 1 is a straight line.

    Raises:
        ValueError: a sparsity outside 0..1, or ``begin`` not before ``end``, or a power that is not positive.
    """
    _check(initial=initial, final=final, begin=begin, end=end)
    if power <= 0:
        raise ValueError(f"power must be > 0, got {power}")

    def schedule(progress: float) -> float:
        if progress < begin:
            return 0.0
        fraction = min((progress - begin) / (end - begin), 1.0)
        return final + (initial - final) * (1.0 - fraction) ** power

    return schedule


def constant(final: float, begin: float = 0.0) -> Schedule:
    """Sparsity is ``final`` from ``begin`` on (TFMOT's ``ConstantSparsity``).

    Args:
        final: sparsity, 0..1.
        begin: progress at which pruning starts, 0..1.

    Raises:
        ValueError: a value outside 0..1.
    """
    _check(final=final, begin=begin)

    def schedule(progress: float) -> float:
        return final if progress >= begin else 0.0

    return schedule


def steps(final_zeros: int, of: int, begin: float = 0.0, end: float = 1.0) -> Schedule:
    """An n:m ramp in even steps of one more zero per block: for 2:4, 4:4 -> 3:4 -> 2:4.

    The span begin..end is cut into ``final_zeros`` equal parts; the k-th part (from 1) keeps k zeros of each block, so
    half of the span goes to 3:4 and ``2:4`` holds from its middle on, which leaves it half of the span to recover.

    Args:
        final_zeros: zeros per block at the end, 1..``of``.
        of: block length m.
        begin, end: progress at which the first zero is laid, and at which the ramp is over, 0..1.

    Raises:
        ValueError: more zeros than the block holds, or ``begin`` not before ``end``.
    """
    if not 0 < final_zeros <= of:
        raise ValueError(f"final_zeros must be 1..{of}, got {final_zeros}")
    _check(begin=begin, end=end)

    def schedule(progress: float) -> float:
        if progress < begin:
            return 0.0
        part = int(final_zeros * min((progress - begin) / (end - begin), 1.0)) + 1
        return min(part, final_zeros) / of

    return schedule


def _check(**values: float) -> None:
    """Refuse a value outside 0..1, and a span that does not begin before it ends."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be 0..1, got {value}")
    if "end" in values and not values["begin"] < values["end"]:
        raise ValueError(f"begin ({values['begin']}) must be before end ({values['end']})")
