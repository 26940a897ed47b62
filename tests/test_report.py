"""The record of a build: written, read, put into words and numbers, and shown in the terminal."""

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console
from samples import bare, plain, sample

from edgeprune import report, report_sections, report_view, report_words
from edgeprune.errors import RunFolderError

# Writing and reading


def test_what_is_written_is_read_and_keeps_its_order(tmp_path):
    path = report.write(tmp_path / "run", sample())
    assert report.load(path) == report.load(tmp_path / "run") == sample()
    assert list(json.loads(path.read_text())) == list(sample())
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == report.html(sample())
    assert {p.name for p in path.parent.iterdir()} == {"report.json", "report.html"}


def test_a_figure_that_json_cannot_hold_becomes_a_reason(tmp_path):
    record = sample()
    record["candidates"]["final"]["metric"] = float("nan")
    record["history"]["prune"]["epochs"][0]["loss"] = float("inf")
    read = report.load(report.write(tmp_path, record))
    assert read["candidates"]["final"]["metric"] == {"reason": "the figure is nan"}
    assert read["history"]["prune"]["epochs"][0]["loss"] == {"reason": "the figure is inf"}
    assert "the figure is nan" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_numpy_and_paths_are_plain_in_the_file(tmp_path):
    numpy = pytest.importorskip("numpy")
    given = {"a": numpy.float32(0.5), "b": numpy.arange(3), "c": (tmp_path, True), "d": numpy.float64("nan")}
    assert report.finite(given) == {
        "a": 0.5,
        "b": [0, 1, 2],
        "c": [str(tmp_path), True],
        "d": {"reason": "the figure is nan"},
    }


def test_a_file_name_that_is_no_text_can_be_written(tmp_path):
    record = sample()
    record["model"]["source"] = b"model\xff.h5".decode("utf-8", "surrogateescape")
    assert report.load(report.write(tmp_path, record))["model"]["source"] == "model\\udcff.h5"


@pytest.mark.parametrize(
    "text, message",
    [
        (None, r"does not exist.*--resume"),
        ('{"schema": 1,', r"is damaged: it is not JSON"),
        ("[" * 100_000, r"is damaged: it is not JSON"),
        ("[]", r"is not a report of edgeprune.*Give a run folder"),
        ('{"schema": 2, "edgeprune": "9.9.9"}', r"has schema 2 and this edgeprune reads schema 1.*9\.9\.9"),
        ('{"schema": 1, "candidates": []}', r"'candidates' is list, expected an object"),
        ('{"schema": 1, "layers": {}}', r"'layers' is dict, expected a list"),
    ],
)
def test_a_report_that_cannot_be_read_is_a_named_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunFolderError, match=message):
        report.load(tmp_path)


def test_bytes_that_are_no_text_are_a_named_error(tmp_path):
    (tmp_path / "report.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunFolderError, match="is damaged"):
        report.load(tmp_path)


def test_reading_and_drawing_need_neither_tensorflow_nor_a_plotting_library(tmp_path):
    report.write(tmp_path, sample())
    code = (
        "import sys; from rich.console import Console; from edgeprune import report\n"
        "record = report.load(sys.argv[1]); report.html(record); report.terminal(record, Console())\n"
        "assert not {'tensorflow', 'tf_keras', 'keras', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)


# Words and numbers


@pytest.mark.parametrize(
    "final, words",
    [
        ({}, "94.0 KiB int8, 0.4 points below float, 49.6 % zeros, on Raspberry Pi 4"),
        ({"metric": 0.874}, "94.0 KiB int8, equal to float, 49.6 % zeros, on Raspberry Pi 4"),
        ({"metric": 0.88}, "94.0 KiB int8, 0.6 points above float, 49.6 % zeros, on Raspberry Pi 4"),
        ({"metric": 0.87399}, "94.0 KiB int8, < 0.01 points below float, 49.6 % zeros, on Raspberry Pi 4"),
        ({"sparsity": 0.0}, "94.0 KiB int8, 0.4 points below float, no zeros, on Raspberry Pi 4"),
        ({"metric": None, "sparsity": None}, "94.0 KiB int8, on Raspberry Pi 4"),
    ],
)
def test_headline(final, words):
    record = plain()
    record["candidates"]["final"].update(final)
    assert report_view.headline(record) == words


def test_the_headline_of_an_error_metric_is_not_in_points():
    record = plain()
    record["metric"] = {"name": "mae", "higher_is_better": False}
    assert "mae 0.0040 better than float" in report_view.headline(record)


def test_the_headline_says_when_not_all_is_int8():
    assert report_view.headline(sample()).startswith("94.0 KiB (88.9 % of the ops int8)")


def test_the_headline_without_a_final_model_says_why():
    assert report_view.headline(bare()) == "No final model for coral-usb: interrupted before conversion"


def test_drop_is_how_much_worse_in_both_directions():
    record = {"candidates": {"float": {"metric": 0.9}, "final": {"metric": 0.88}}}
    assert report_view.drop(record, "final").value == pytest.approx(0.02)
    assert report_view.drop(record, "final").text == "−2.00 points"
    record["metric"] = {"name": "mae", "higher_is_better": False}
    assert report_view.drop(record, "final").value == pytest.approx(-0.02)
    assert report_view.drop(record, "final").text == "−0.0200 (better)"


def test_an_absent_figure_is_a_dash_with_its_reason_and_never_a_zero():
    rows = {row.key: row for row in report_view.table(bare())}
    assert [f.text for f in rows["metric"].figures] == ["0.1200", "–", "–"]
    assert rows["size_bytes"].figures[0].reason == "not recorded"
    assert rows["macs"].figures[2].reason == "interrupted before conversion"
    assert not any(f.text.startswith("0 ") or f.text == "0" for row in rows.values() for f in row.figures)
    assert report_view.absences(list(rows.values())) == [
        "mae, against float, latency of dense int8: not recorded",
        "final: interrupted before conversion",
        "size, compressed, parameters, MACs, sparsity of float and dense int8: not recorded",
        "latency of float: no board was given",
    ]


def test_a_latency_says_what_it_is():
    def words(**given):
        return report_view.latency({"latency": given}).text

    assert words(ms=3.1, kind="measured", threads=1) == "3.1 ms (measured, 1 thread)"
    assert words(ms=3.1234, kind="predicted", error_pct=6.0, threads=4) == "3.12 ms (predicted, ± 6 %, 4 threads)"
    assert words(ms=3.1) == "3.1 ms (of unknown origin)"
    assert words(ms=None, reason="no board") == "–"


def test_proofs_are_told_apart_from_claims():
    assert [held for held, _ in report_words.verify_sentences(sample())] == [False, True, True, None]
    record = plain()
    record["verify"].update(zeros_match=False, first_divergence={"index": 7, "op": "ADD", "layer": "add", "steps": 12})
    words = dict(reversed(item) for item in report_words.verify_sentences(record))
    assert words["the zeros in the file do not equal the masks"] is False
    assert any("they part at op 7 ADD (add), by 12 steps" in sentence for sentence in words)


def test_what_breaks_the_int8_guarantee_is_told_and_float_ops_only_once():
    record = plain()
    record["verify"]["int8"] = {"holds": True, "violations": []}
    assert any(
        held and words.startswith("every tensor is int8") for held, words in report_words.verify_sentences(record)
    )
    violations = [{"kind": "float_op", "message": "one"}, {"kind": "size", "message": "The file is too large."}]
    record["verify"]["int8"] = {"holds": False, "violations": violations}
    found = report_words.verify_sentences(record)
    assert (False, "The file is too large.") in found
    assert "one" not in dict(reversed(item) for item in found)


def test_signal_to_noise_is_drawn_for_every_layer():
    drawn = report_sections.signal(sample())
    assert [bar["text"] for bar in drawn["signal"]] == ["41 dB", "8 dB", "exact"]
    assert [bar["low"] for bar in drawn["signal"]] == [False, True, False]
    assert drawn["signal"][2]["width"] == 100
    page = report.html(sample())
    assert "Signal to noise, layer by layer" in page and "head, FULLY_CONNECTED: 7.9 dB" in page
    record = sample()
    record["verify"]["layers"] = [{"layer": "odd", "snr_db": "loud"}]
    assert "Signal to noise" not in report.html(record)


def test_how_the_layers_became_int8_is_told_in_one_sentence_and_why_not():
    assert report_words.quantization_sentence(sample()) == (
        "Trained with fake quantizers: of 5 layers 1 trained with their ranges, 1 computed inside the op before them, "
        "1 without a range of their own, 2 left to ranges after training; all ranges of the file come from calibration "
        "samples."
    )
    assert report_words.post_training(sample()) == [("LayerNormalization: it is several ops", ["norm_1", "norm_2"])]
    assert report_words.rewrites(sample()) == [("pairwise", "stage1_block1_add")]
    page = report.html(sample())
    for expected in ("How the layers became int8", "it is several ops: norm_1, norm_2", "<dt>pairwise</dt>"):
        assert expected in page
    assert "LayerNormalization: it is several ops: norm_1, norm_2" in printed(sample(), 200)


def test_a_model_that_no_stage_trains_for_quantization_says_so():
    given = {"trained": False, "layers": [], "reason": "no stage of the recipe trains for quantization"}
    assert report_words.quantization_sentence({"quantization": given}) == (
        "Quantized after training, with ranges from calibration samples: no stage of the recipe trains for quantization."
    )
    assert report_words.quantization_sentence(bare()) == ""
    assert "How the layers became int8" not in report.html(bare())


def test_several_inputs_are_shown_by_their_names():
    record = sample()
    record["model"]["inputs"] = [
        {**record["model"]["input"], "name": "image"},
        {"name": "words", "shape": [16], "dtype": "int32"},
    ]
    shown = dict(report_sections.model(record["model"]))
    assert shown["input words"] == "16; int32"
    assert shown["input image"].startswith("32 × 32 × 3; int8") and "input" not in shown
    assert shown["output"].startswith("10; int8")


def test_a_budget_whose_figure_is_unknown_is_not_met():
    assert [met for met, _ in report_words.budgets(sample())] == [True, False, None]
    assert report_words.budgets(sample())[1][1] == "size 94.0 KiB, at most 90.0 KiB allowed: missed"


def test_arm_sentence_says_how_to_get_it():
    assert report_words.arm_sentence(bare()) == (
        "Not run on Arm kernels: the emulator is not installed. To get it: edgeprune emulator install"
    )
    assert "0.8720 on Arm kernels (tflite-runtime 2.14.0, cortex-a72, emulated)" in report_words.arm_sentence(sample())


# The terminal


def printed(record, width=80, **options):
    console = Console(file=io.StringIO(), width=width)
    report.terminal(record, console, **options)
    return console.file.getvalue()


def test_the_closing_table(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"")
    report.write(tmp_path, sample())
    text = printed(sample(), folder=tmp_path, width=300)
    for expected in (
        "94.0 KiB (88.9 % of the ops int8), 0.4 points below float, 49.6 % zeros, on Raspberry Pi 4",
        "✗ size 94.0 KiB, at most 90.0 KiB allowed: missed",
        "✓ 2:4 holds in every block of its layers",
        "3 input channels are not divisible by 4: stem_conv",
        str(tmp_path / "model.tflite"),
        str(tmp_path / "report.html"),
    ):
        assert expected in text
    assert re.search(r"compressed +287\.1 KiB +75\.3 KiB +53\.9 KiB", text)
    assert "recipe.yaml" not in text  # it is not there


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("record", [sample, bare])
def test_the_terminal_keeps_to_its_width(record, width):
    assert max(map(len, printed(record(), width).splitlines())) <= width


def test_markup_in_names_is_text_in_the_terminal():
    record = plain()
    record["layers"][0]["name"] = "[red]stem[/] [/nothing]"
    assert "[red]stem[/] [/nothing]" in printed(record, 200)


def test_names_cannot_steer_the_terminal():
    record = plain()
    record["layers"][0]["name"] = "stem\x1b[2J\x07\x9b31m"
    record["run"]["name"] = record["target_title"] = "\x1b]0;title\x07"
    record["metric"]["name"] = "\x1b[8m"
    console = Console(file=io.StringIO(), width=200)
    report.terminal(record, console)
    report.compare_terminal(report.compare([record, record]), console)
    assert not {"\x1b", "\x07", "\x9b"} & set(console.file.getvalue())
