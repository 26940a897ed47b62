"""What a report says of channels that were removed, in the terminal and on the page; and of a damaged record."""

from __future__ import annotations

import io

from rich.console import Console
from samples import sample

from edgeprune import report, report_shrink, report_view


def group(name, before, after, **more):
    return {"name": name, "layers": [name], "step": 1, "units_before": before, "units_after": after, **more}


def shrunk():
    record = sample()
    record["candidates"]["final"]["macs"] = 6_287_680
    stage = {
        **{
            "criterion": "taylor",
            "scope": "network",
            "rounds": 2,
            "ratio": 0.36,
            "blocks": [{"name": "b2", "layers": []}],
        },
        **{"macs_before": 12_575_360, "macs_after": 6_287_680, "params_before": 78_666, "params_after": 41_000},
    }
    groups = [
        group("stem<b>", 16, 8, layers=["stem<b>", "add"], score_kept=0.93, reason=None),
        group("grouped", 4, 3, step=8, score_kept=0.9, reason=None),
        group("head", 10, 10, score_kept=1.0, reason="its channels are an output of the model"),
    ]
    record["shrink"] = {"shrink": {**stage, "groups": groups}}
    return record


def printed(record):
    console = Console(file=io.StringIO(), width=200)
    report.terminal(record, console)
    return " ".join(console.file.getvalue().split())


def test_a_latency_that_was_aimed_at_is_told():
    record = shrunk()
    record["shrink"]["shrink"] |= {"latency_ms_before": 12.34, "latency_ms_after": 6.17}
    assert "(52.1 %), predicted latency 12.3 ms to 6.17 ms (50 %), by taylor" in printed(record)


def test_the_terminal_says_what_changed():
    words = printed(shrunk())
    assert "50 % fewer MACs" in words
    assert (
        "shrink: MACs 12.6 M to 6.29 M (50 %), parameters 78.7 k to 41 k (52.1 %), by taylor over the network, in 2 rounds."
        in words
    )
    assert "Channels: stem<b> 16 to 8, grouped 32 to 24." in words
    assert "Whole blocks: b2." in words


def test_many_groups_are_counted():
    record = shrunk()
    record["shrink"]["shrink"]["groups"] = [group(f"c{place}", 8, 4) for place in range(15)]
    assert "c11 8 to 4 and 3 more groups." in printed(record)


def test_the_page_has_a_row_for_every_group():
    page = report.html(shrunk())
    assert "Channels removed for good" in page and "<b>" not in page
    assert "stem&lt;b&gt;, add" in page and ">93 %<" in page
    assert "its channels are an output of the model" in page


def test_without_such_a_stage_nothing_is_said():
    assert "Channels removed" not in report.html(sample()) and "Channels removed" not in printed(sample())
    assert "fewer MACs" not in report_view.headline(sample())


def test_a_record_with_holes_is_shown_with_dashes():
    record = {**sample(), "shrink": {"early": {"groups": [{"name": "conv"}, 3]}, "late": None}}
    (early, late) = report_shrink.stages(record)
    assert (early["groups"][0]["before"], early["groups"][0]["cut"], late["groups"]) == ("–", False, [])
    assert "early" in report.html(record) and "early" in printed(record)
