"""Where the time goes: in sentences, bars and a table, from the report alone."""

import copy
import io

from rich.console import Console
from samples import bare, sample

from edgeprune import report, report_time

BLOCK = {"ms": 2.0, "kind": "predicted", "error_pct": 2.75, "threads": 4}


def op(index, kind, layer, ms):
    return {"index": index, "op": kind, "layer": layer, "ms": ms}


def timed():
    record = copy.deepcopy(sample())
    record["candidates"]["final"]["latency"] = BLOCK
    record["candidates"]["dense_int8"]["latency"] = BLOCK | {"ms": 5.0}
    record["time"] = {
        "kind": "predicted",
        "how": "cycles counted under the emulator",
        "runtime": "tflite-runtime 2.14.0",
        "fixed_ms": {"final": 0.5, "dense_int8": 0.5},
        "ops": {
            "dense_int8": [op(0, "CONV_2D", "stem", 2.0), op(1, "CONV_2D", "body", 2.0), op(2, "ADD", None, 0.5)],
            "final": [op(0, "CONV_2D", "stem", 0.9), op(1, "ADD", None, 0.6)],
        },
        "runtimes": [
            {"runtime": "tflite-runtime 2.14.0", "latency": BLOCK},
            {"runtime": "ai-edge-litert 2.1.6", "latency": BLOCK | {"ms": 1.25}},
        ],
    }
    return record


def test_sentences_say_how_much_faster_where_and_what_would_be_faster_still():
    first, alone, second, third = report_time.sentences(timed())
    assert first == (
        "2 ms, 2.50 times as fast as dense int8 (5 ms); predicted, cycles counted under the emulator, ± 2.75 %."
    )
    assert alone == (
        "Of that 0.5 ms are once per inference, whatever the ops. The ops alone take 1.5 ms, in the dense int8 model 4.5 ms: "
        "3.00 times as fast."
    )
    assert second == "The slowest ops: stem (CONV_2D, 60 %), 1 (ADD, 40 %)."
    assert third == (
        "Under ai-edge-litert 2.1.6 it would take 1.25 ms, 1.60 times as fast as under tflite-runtime 2.14.0."
    )


def test_a_slower_runtime_is_told_as_slower_and_an_equal_one_as_equal():
    record = timed()
    record["time"]["runtimes"][1]["latency"] = BLOCK | {"ms": 4.0}
    assert report_time.sentences(record)[-1].endswith("4 ms: tflite-runtime 2.14.0 is 2.00 times as fast.")
    record["time"]["runtimes"][1]["latency"] = BLOCK | {"ms": 2.05}
    assert "about as long" in report_time.sentences(record)[-1]


def test_what_is_once_per_inference_is_told_only_where_it_is_much():
    record = timed()
    record["time"]["fixed_ms"] = {"final": 0.1, "dense_int8": 0.1}
    assert "once per inference" not in " ".join(report_time.sentences(record))


def test_a_latency_outside_what_was_validated_says_so():
    record = timed()
    record["candidates"]["final"]["latency"] = BLOCK | {"warning": "shorter than any that was validated"}
    assert "Shorter than any that was validated." in report_time.sentences(record)


def test_equal_times_are_as_fast():
    record = timed()
    record["candidates"]["dense_int8"]["latency"] = BLOCK
    assert "as fast as dense int8" in report_time.speed_up(record)
    assert "1.00 times" not in report_time.speed_up(record)


def test_where_nothing_is_known_nothing_is_said():
    record = timed() | {"time": {}}
    record["candidates"]["final"]["latency"] = {"ms": None, "reason": "no board"}
    assert report_time.sentences(record) == []
    shown = report_time.context(record)
    assert shown["time_layers"] == [] and shown["time_kinds"] == []


def test_layers_that_went_are_still_there_before():
    shown = report_time.context(timed())
    rows = {row["name"]: row for row in shown["time_layers"]}
    assert list(rows) == ["stem", "body", "(ADD)"]
    assert [bar["width"] for bar in rows["stem"]["bars"]] == [100.0, 45.0]
    assert rows["body"]["text"] == "–" and rows["body"]["bars"][1]["width"] == 0.0


def test_the_table_of_kinds_adds_up_to_the_latency():
    kinds = {row["name"]: row for row in report_time.context(timed())["time_kinds"]}
    assert list(kinds) == ["CONV_2D", "ADD", "once per inference", "all"]
    assert (kinds["CONV_2D"]["before"], kinds["CONV_2D"]["after"], kinds["CONV_2D"]["share"]) == (
        "4 ms",
        "0.9 ms",
        "45 %",
    )
    assert (kinds["all"]["before"], kinds["all"]["after"]) == ("5 ms", "2 ms")


def test_page_and_terminal_show_it():
    record = timed()
    page = report.html(record)
    assert "Where the time goes, before and after" in page and "stem: 2 ms before, 0.9 ms after" in page
    stream = io.StringIO()
    report.terminal(record, Console(file=stream, width=100))
    assert "Where the time goes" in stream.getvalue() and "2.50 times as fast" in stream.getvalue()
    assert "Where the time goes, before and after" not in report.html(bare())


def test_a_strange_block_breaks_nothing():
    for strange in ({"ops": 3}, {"ops": {"final": [{"ms": "x"}]}}, {"runtimes": {"a": 1}}, {"fixed_ms": []}):
        report.html(timed() | {"time": strange})
