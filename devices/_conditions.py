"""What a board did while it was measured: whether its times stand for it, and why not.

The probe reads governor, clock, temperature and the marks of throttling before and after the timed invocations and twice a
second in between; here that becomes one line of words and a list of doubts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune.devices._probe import conditions_in_words, median, throttling_in_words

SINCE_START = 16  # the Raspberry Pi's bits from here on: the same things, but since the board was started
SLOW = 0.95  # a clock below this share of the highest is not the full clock
SLOW_SHARE = 0.1  # ... and in so many of the readings it matters
DRIFT = 0.05  # the last quarter of the runs against the first
FEWEST_FOR_DRIFT = 20
PERFORMANCE = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"

Conditions = Mapping[str, Any]


def in_words(before: Conditions, after: Conditions) -> str:
    """Both ends of a run in one line."""
    return f"{conditions_in_words(dict(before))} -> {conditions_in_words(dict(after))}"


def doubts(
    before: Conditions, during: Sequence[Conditions], after: Conditions, samples_ms: Sequence[float]
) -> tuple[str, ...]:
    """Why the times may not be the board's own: throttling, a clock that was not the highest, a drift.

    Args:
        before, after: what `_probe.read_conditions` found around the timed runs.
        during: the same, between them.
        samples_ms: the timed runs, in their order.
    """
    found = (_throttling(before, during, after), _clock([*during, after]), _drift(samples_ms))
    return tuple(doubt for doubt in found if doubt)


def _throttling(before: Conditions, during: Sequence[Conditions], after: Conditions) -> str | None:
    words = [throttling_in_words(dict(conditions)) for conditions in (*during, after)]
    said = list(dict.fromkeys(word for word in words if word))
    new = (after["throttled"] or 0) & ~(before["throttled"] or 0)
    said += (
        [earlier]
        if not said and (earlier := throttling_in_words({"throttled": new >> SINCE_START, "cooling": None}))
        else []
    )
    return (
        f"the board slowed itself down while it was measured ({'; '.join(said)}); cool it and check its power supply"
        if said
        else None
    )


def _clock(readings: Sequence[Conditions]) -> str | None:
    known = [(one["clock_mhz"], one["max_clock_mhz"]) for one in readings if one["clock_mhz"] and one["max_clock_mhz"]]
    slow = [clock for clock, highest in known if clock < SLOW * highest]
    if not known or len(slow) < SLOW_SHARE * len(known):
        return None
    governor = next((one["governor"] for one in readings if one["governor"]), "unknown")
    return (
        f"its clock was {median(slow):.0f} of {known[-1][1]:.0f} MHz in {len(slow)} of {len(known)} readings (governor "
        f"{governor}); for its full clock: {PERFORMANCE}"
    )


def _drift(samples_ms: Sequence[float]) -> str | None:
    if len(samples_ms) < FEWEST_FOR_DRIFT:
        return None
    quarter = len(samples_ms) // 4
    change = median(list(samples_ms[-quarter:])) / median(list(samples_ms[:quarter])) - 1
    if abs(change) <= DRIFT:
        return None
    return f"the last quarter of the runs took {change:+.0%} against the first; give it more warm-ups, or cool it"
