"""What is tried next to meet a budget, which attempt is taken, what is said of it; and a cut settled on what its file costs."""

from __future__ import annotations

import numpy as np
import pytest
from test_allocation import chain, curves

from edgeprune import budget, budget_costs, budget_limits, budget_run, recipe, report_budget, report_html
from edgeprune.budget import EVENLY, Aim, Attempt, Goal
from edgeprune.metrics import METRICS

WHOLE = {"latency_ms": 4.0, "macs": 400.0, "size_bytes": 4096.0}
LEAST = {"latency_ms": 1.0, "macs": 40.0, "size_bytes": 1024.0}


def goal(limits=None, drop=None, attempts=5, objective="latency_ms"):
    return Goal(limits or {}, drop, objective, WHOLE, LEAST, attempts)


def attempt(number, aim, drop, costs=None, error=None, same_as=None, confirmed=None, goal_=None):
    """An attempt whose file costs what its aim asks for."""
    reached = costs or {**WHOLE, **budget.targets(goal_ or goal(), aim)}
    return Attempt(
        number, aim, {"layer": number}, reached, confirmed or reached, reached, 0.9, drop, error, "", same_as
    )


def played(asked, lost, error=None):
    """All attempts of a search in which a cut to a share of the latency loses ``lost(share)``."""
    found = []
    while aim := budget.next_aim(asked, found):
        reached = {**WHOLE, **budget.targets(asked, aim)}
        share = next(reached[name] / WHOLE[name] for name in (asked.limits or {asked.objective: 0}))
        found.append(attempt(len(found) + 1, aim, lost(share, aim), reached, error))
        assert len(found) <= asked.attempts
    return found


# what comes next


def test_limits_of_cost_alone_take_one_attempt():
    found = played(goal({"latency_ms": 2.0}), lambda share, aim: 0.5)
    assert [one.aim.ease for one in found] == [0.0]
    assert budget.met(goal({"latency_ms": 2.0}), found[0])


def test_a_drop_that_holds_at_the_limits_ends_the_search():
    asked = goal({"latency_ms": 2.0}, drop=0.01)
    assert len(played(asked, lambda share, aim: 0.01)) == 1


def test_a_drop_that_is_too_large_is_tried_evenly_and_then_more_easily():
    asked = goal({"latency_ms": 2.0}, drop=0.01)
    found = played(asked, lambda share, aim: 0.02 if share < 0.7 else 0.0)
    assert [one.aim.even for one in found[:2]] == [budget.EVEN, EVENLY]
    assert [one.aim.ease for one in found] == [0, 0, 0.5, 0.25, 0.375]
    taken = budget.chosen(asked, found)
    assert taken.number == 1 and not budget.met(asked, taken)
    assert budget.verdict(asked, found) == (
        "The limits cannot be met together after 5 attempts: the nearest, attempt 1 lost 0.0200 where 0.01 may be lost. With that drop "
        "latency 3 ms can be had (attempt 3)."
    )


def test_even_shares_may_hold_where_sensitivity_did_not():
    asked = goal({"macs": 200.0}, drop=0.01)
    found = played(asked, lambda share, aim: 0.0 if aim.even == EVENLY else 0.02)
    assert len(found) == 2 and budget.chosen(asked, found).number == 2
    assert budget.verdict(asked, found).startswith("Attempt 2 is taken after 2 attempts: MACs at 100 % of its limit")


def test_a_file_above_its_limit_makes_the_next_aim_tighter():
    asked = goal({"size_bytes": 1000.0})
    above = attempt(1, Aim(0.0), 0.0, {"size_bytes": 1020.0}, confirmed={"size_bytes": 990.0})
    aim = budget.next_aim(asked, [above])
    assert budget.targets(asked, aim)["size_bytes"] == pytest.approx(1000 / 1.021)
    assert "came out 2 % above" in aim.why


def test_a_limit_that_no_cut_keeps_ends_the_search():
    asked = goal({"size_bytes": 1000.0}, drop=0.01)
    least = attempt(1, Aim(0.0), 0.3, {"size_bytes": 1024.0})
    assert budget.next_aim(asked, [least]) is None
    assert budget.verdict(asked, [least]).startswith(
        "No cut keeps the limits: the nearest, attempt 1, has size 1.0 KiB"
    )


@pytest.mark.parametrize("edge", [0.3, 0.45, 0.8])
def test_the_largest_cut_inside_a_drop_is_found_by_bisection(edge):
    asked = goal(drop=0.01, attempts=6)
    found = played(asked, lambda share, aim: 0.0 if share >= edge else 0.05)
    taken = budget.chosen(asked, found)
    share = taken.costs["latency_ms"] / WHOLE["latency_ms"]
    assert budget.met(asked, taken) and edge <= share <= edge + 0.05


def test_at_the_edge_a_drop_has_to_be_inside_by_its_error_or_none_at_all():
    asked = goal(drop=0.01)
    assert budget.inside(asked, attempt(1, Aim(0.5), 0.006, error=0.004))
    assert not budget.inside(asked, attempt(1, Aim(0.5), 0.007, error=0.004))
    assert budget.inside(asked, attempt(1, Aim(0.5), 0.0, error=0.02))
    assert budget.inside(goal({"macs": 1.0}, drop=0.01), attempt(1, Aim(0.5), 0.01, error=0.02))


def test_where_no_cut_keeps_the_drop_the_last_attempt_cuts_nothing():
    asked = goal(drop=0.0, attempts=3)
    found = played(asked, lambda share, aim: 0.1 * (1 - share))
    assert found[-1].aim.ease == 1.0 and budget.chosen(asked, found) is found[-1]


def test_the_same_cut_again_is_no_training_and_ends_no_bisection():
    asked = goal(drop=0.01, attempts=2)
    first = attempt(1, Aim(0.5), 0.0)
    again = attempt(2, Aim(0.25), 0.0, same_as=1)
    assert budget.next_aim(asked, [first, again]).ease == 0.125


def test_even_shares_that_are_the_same_cut_do_not_end_the_search():
    asked = goal({"latency_ms": 2.0}, drop=0.01)
    first = attempt(1, Aim(0.0), 0.02)
    again = attempt(2, Aim(0.0, EVENLY), 0.02, same_as=1)
    assert budget.next_aim(asked, [first, again]).ease == 0.5


def test_a_bisection_that_finds_only_cuts_it_knows_ends():
    asked = goal(drop=0.01)
    found = [attempt(1, Aim(0.5), 0.0)]
    while aim := budget.next_aim(asked, found):
        found.append(attempt(len(found) + 1, aim, 0.0, same_as=1))
    assert len(found) < 10


def test_what_comes_next_follows_from_what_was_alone():
    asked = goal({"latency_ms": 2.0}, drop=0.01)
    found = played(asked, lambda share, aim: 0.02)
    for count, one in enumerate(found):
        assert budget.next_aim(asked, found[:count]) == one.aim


# limits and figures


def test_limits_are_in_the_units_of_costs():
    given = {"max_drop": 0.1, "max_latency_ms": 2, "max_size_kib": 3, "max_macs": 5e6, "max_arena_kib": 1}
    assert budget_limits.limits(given) == {"latency_ms": 2, "size_bytes": 3072, "macs": 5e6, "arena_bytes": 1024}
    assert set(given) == {*budget_limits.LIMITS, "max_drop"} == set(recipe.Budget.model_fields) - {"attempts"}


def test_targets_lie_between_the_limits_and_the_uncut_model():
    asked = goal({"latency_ms": 2.0, "macs": 9000.0})
    assert budget.targets(asked, Aim(0.5)) == {"latency_ms": 3.0, "macs": 9000.0}
    assert budget.targets(goal(drop=0.1), Aim(0.5)) == {"latency_ms": 2.5}


def test_the_standard_error_of_a_drop():
    y = np.arange(400) % 2
    right = np.eye(2)[y]
    wrong = right.copy()
    wrong[:8] = 1 - wrong[:8]
    accuracy = METRICS["accuracy"]
    assert budget.standard_error(accuracy, y, right, right) == 0
    expected = np.sqrt(0.02 * 0.98 / 400)
    assert budget.standard_error(accuracy, y, right, wrong) == pytest.approx(expected, rel=0.2)
    several = {"left": y, "right": y}
    both = ({"left": right, "right": right}, {"left": wrong, "right": right})
    assert budget.standard_error(
        METRICS["accuracy"].__class__("accuracy", True, accuracy.function, "left"), several, *both
    )


# a cut that is settled on what its file costs


def filed(space, factor=1.0, more=0.0):
    """What a file costs: another factor than the prediction has, and something besides."""
    asked = []

    def confirm(candidate):
        asked.append(dict(candidate))
        return {name: factor * value + more for name, value in space.costs(candidate).items()}

    return confirm, asked


@pytest.mark.parametrize(("factor", "more"), [(1.0, 0.0), (1.3, 0.0), (0.8, 0.0), (1.0, 60.0)])
def test_a_prediction_that_is_off_is_corrected(factor, more):
    space = chain(64, 64, 64)
    confirm, asked = filed(space, factor, more)
    most = 0.5 * confirm(space.whole())["macs"]
    found = budget_costs.settle(space, curves(space, 1, 2, 3), {"macs": most}, 0.1, confirm)
    assert 0.95 * most <= found.confirmed["macs"] <= most
    assert len(asked) <= 2 + budget_costs.SETTLING and not found.note


def test_where_channels_go_in_steps_the_nearest_cut_below_is_taken():
    space = chain(16, 16, kept=(8, 16))
    confirm, _ = filed(space)
    found = budget_costs.settle(space, curves(space, 1, 1), {"macs": 275.0}, 0.1, confirm)
    assert found.confirmed["macs"] <= 275 and "channels go in steps" in found.note


def test_a_model_that_keeps_the_limits_stays_whole():
    space = chain(16, 16)
    confirm, _ = filed(space)
    found = budget_costs.settle(space, {}, {"macs": 1e6}, 0.1, confirm)
    assert found.candidate == space.whole() and not found.note


def test_limits_below_all_cuts_give_the_smallest():
    space = chain(16, 16, kept=(8, 16))
    confirm, _ = filed(space)
    found = budget_costs.settle(space, {}, {"macs": 10.0}, 0.1, confirm)
    assert found.candidate == space.smallest()


# the recipe that is found


def test_the_found_recipe_cuts_exactly_the_counts_and_is_only_judged():
    given = recipe.load("rpi4", {"budget.max_macs": 10})
    space = chain(24, 32, kept=(8, 16, 24))
    found = budget_run.found_recipe(given, {"layer0": 8, "layer1": 32}, space)
    options = next(spec.options for spec in found.stages if spec.stage == "shrink")
    assert options.ratios == {"layer0": pytest.approx(2 / 3), ".*": 0.0}
    assert (options.macs, options.ratio, options.scope) == (None, None, "layer")
    assert found.file.budget.attempts == 1 and found.file.budget.max_macs == 10
    assert recipe.load(found.resolved()).resolved() == found.resolved()


@pytest.mark.parametrize(
    ("key", "by_hand"),
    [
        ("stages.shrink.macs", True),
        ("stages.shrink.ratios", True),
        ("stages.shrink.ratios.layer0", True),
        ("stages.shrink.epochs", False),
        ("stages.prune.final", False),
    ],
)
def test_a_share_that_the_user_gives_is_the_users(key, by_hand):
    assert budget_run.set_by_hand(recipe.load("rpi4"), {key: 0.5}) is by_hand


# what the report says


def told():
    """A report's blocks after a search that missed."""
    asked = goal({"latency_ms": 2.0}, drop=0.01)
    found = played(asked, lambda share, aim: 0.02 if share < 0.7 else 0.0, error=0.004)
    taken = budget.chosen(asked, found)
    entries = [
        {
            "number": one.number,
            "same_as": one.same_as,
            "why": one.aim.why,
            "kept": {"<b>": [8, 16], "other": [4, 4]},
            "costs": dict(one.costs),
            "drop": one.drop,
            "drop_error": one.error,
            "chosen": one is taken,
        }
        for one in found
    ]
    common = {"verdict": budget.verdict(asked, found), "split": "validation", "samples": 500, "max_drop": 0.01}
    return {
        "schema": 1,
        "attempts": entries,
        "budgeting": {**common, "limits": dict(asked.limits), "objective": "latency_ms", "whole": WHOLE},
    }


def test_the_report_tells_every_attempt():
    rows = report_budget.table(told())
    assert [row["number"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[0]["drop"] == "drop 0.0200 ± 0.0040" and rows[0]["chosen"]
    assert rows[0]["costs"] == "latency 2 ms (100 % of the limit)"
    assert rows[0]["kept"] == "<b> 16 to 8"
    assert report_budget.words({"schema": 1}) == [] == report_budget.paragraphs({"schema": 1})


def test_the_picture_has_a_dot_for_each_attempt_and_a_line_for_each_limit():
    ((title, picture),) = report_budget.pictures(told())
    assert title == "latency" and picture.count('class="val"') == 4
    assert picture.count('<circle class="train"') == 1 and picture.count('<polyline class="zeros"') == 2


def test_the_page_escapes_names_and_shows_the_attempts():
    page = report_html.html(told())
    assert "How the budgets were met, or missed" in page and "&lt;b&gt; 16 to 8" in page and "<b> 16" not in page
    assert "How the budgets were met" not in report_html.html({"schema": 1})
