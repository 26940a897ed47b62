"""The record of a build: written, read, and drawn from report.json alone."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console
from samples import bare, plain, sample

from edgeprune import report, report_compare, report_figures, report_html, report_sections, report_view, report_words
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


# Pictures


def test_bars_share_a_scale_that_holds_zero():
    assert report_figures.bars([-1.0, 3.0]) == [(0.0, 25.0), (25.0, 75.0)]
    assert report_figures.bars([0.0, 0.0, None]) == [(0.0, 0.0)] * 3


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 5, [0, 1, 2, 3, 4, 5]), (0.0, 0.05, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert report_figures.ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_point():
    assert report_figures.ticks(0.5, 0.5) == [0.5]


def parse(picture):
    return ElementTree.fromstring(str(picture))  # noqa: S314 - our own drawing


def draw(*points, sparsity=()):
    return parse(report_figures.curves("loss", [report_figures.Series("training", "train", points)], sparsity))


def test_a_curve_is_broken_where_a_figure_is_absent():
    picture = draw((1, 0.5), (2, 0.4), (3, None), (4, 0.3), (5, 0.2))
    lines = [line.get("points").split() for line in picture.iter("polyline")]
    assert [len(line) for line in lines] == [2, 2]
    assert len(list(picture.iter("circle"))) == 4


def test_a_lower_loss_is_lower_and_time_goes_right():
    (line,) = draw((1, 0.5), (2, 0.4)).iter("polyline")
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.get("points").split())
    assert x1 < x2
    assert y1 < y2  # SVG counts downwards


def test_the_schedule_is_drawn_behind_the_curves_on_its_own_axis():
    picture = draw((1, 0.5), (2, 0.4), sparsity=[(0.0, 0.0), (2.0, 1.0)])
    styles = [element.get("class") for element in picture if element.tag in ("polygon", "polyline")]
    assert styles == ["zeros", "zeros", "train"]
    start, end = (tuple(map(float, p.split(","))) for p in picture.find("polyline").get("points").split())
    assert start == (report_figures.LEFT, report_figures.HEIGHT - report_figures.BOTTOM)
    assert end == (report_figures.WIDTH - report_figures.RIGHT, report_figures.TOP)


def test_one_epoch_and_a_flat_line_can_be_drawn():
    for points in ([(1, 0.5)], [(1, 0.5), (2, 0.5)], [(1, 0.0)], [(1, None)]):
        assert draw(*points).tag == "svg"


def test_words_in_a_picture_are_escaped():
    picture = report_figures.curves('"><script>', [report_figures.Series("<b>", "train", [(1, 0.5)])])
    assert "<script>" not in picture
    assert "<b>" not in picture


def test_where_no_schedule_is_recorded_the_epochs_tell_the_sparsity():
    training = report_sections.training("quantize", sample()["history"]["quantize"])
    assert [label for label, _ in training["pictures"]] == ["loss", "accuracy"]
    assert training["legend"][-1][0] == "zeros"
    assert training["words"] == "5 epochs, learning rate 0.0001, 16.0 s"


# The page

ALLOWED_TAGS = re.compile(
    "html|head|meta|title|link|style|body|main|header|section|footer|h[123]|p|ul|li|strong|code|pre|dl|dt|dd|span|bdi|small"
    "|div|table|thead|tbody|tr|th|td|figure|figcaption|details|summary|svg|text|line|polyline|polygon|circle"
)


class Reader(HTMLParser):
    """What a browser would make of a page: its tags, attributes and words."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data.strip())


def poisoned(value):
    """The same report with a script in every name and word."""
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}</style></title>"
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + evil if isinstance(value, str) else value


def check_harmless(page):
    read = Reader(page)
    assert [tag for tag in read.tags if not ALLOWED_TAGS.fullmatch(tag)] == []
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "srcdoc", "action", "formaction", "xlink:href", "background", "poster")
        assert name != "href" or value == "data:,"
        assert "url(" not in (value or "")
    assert "49" not in read.words


def test_names_from_strangers_are_text_everywhere():
    record = poisoned(sample())
    record["history"]["<script>alert(2)</script>"] = record["history"].pop("prune")
    record["history"]["quantize"]["epochs"][0]["<script>"] = 0.5
    record["data"]["splits"]["<img src=x>"] = {"samples": 1}
    record["budget"]["<script>"] = {"limit": 1, "actual": 2}
    check_harmless(report.html(record))
    check_harmless(report.compare_html(report.compare([record, sample()])))


def test_the_page_asks_nothing_of_the_network():
    page = report.html(sample())
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r"https?://|@import|url\(", page)
    check_harmless(page)


def test_the_page_holds_what_matters_in_words_and_pictures():
    words = " ".join(Reader(report.html(sample())).words)
    for expected in (
        "49.6 % zeros, on Raspberry Pi 4",
        "size 94.0 KiB, at most 90.0 KiB allowed: missed",
        "3 input channels are not divisible by 4: stem_conv",
        "HARD_SWISH",
        "buy no latency",
        "calibration",
        "granularity: '2:4'",
        "tensorflow-model-optimization",
        "no board was given",
    ):
        assert expected in words
    page = report.html(sample())
    assert page.count("<svg") == 4  # loss and accuracy of two stages
    assert page.count('class="fallback"') == 4  # two ops, by kind and in order
    assert page.count('class="mark"') == 9  # a target for each pruned layer
    assert 'title="stem_conv: left alone, 3 input channels are not divisible by 4"' in page


def test_every_picture_is_well_formed():
    for picture in re.findall(r"<svg.*?</svg>", report.html(sample()), re.DOTALL):
        assert parse(picture).get("aria-label")


def test_the_same_report_gives_the_same_page():
    assert report.html(sample()) == report.html(sample())


def every_path(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from every_path(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from every_path(value[0], (*path, 0))


@pytest.mark.parametrize("absent", [None, {"reason": "not measured here"}, "a word", 0, []], ids=repr)
def test_whatever_is_absent_everything_can_be_drawn(absent):
    """Every key of the report in turn: gone, absent for a reason, or of a kind that nobody expected."""
    blocks = set(report._BLOCKS)
    for path in every_path(sample()):
        if len(path) == 1 and path[0] in blocks and absent is not None:
            continue  # load refuses these
        record = sample()
        *above, last = path
        inner = record
        for key in above:
            inner = inner[key]
        inner[last] = absent
        assert "<h1>" in report.html(record), path
        report.terminal(record, Console(file=io.StringIO()))
        report.compare_html(report.compare([record, sample()]))


def contrast(one, other):
    """WCAG 2 contrast ratio of two #rrggbb colours, 1..21."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_words_can_be_read_in_light_and_in_dark():
    style = report.html(sample())
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]
    assert len(themes) == 2
    for colours in themes:
        for paper in ("bg", "card"):
            for ink in ("fg", "muted", "good"):
                assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
            for ink in ("float", "dense_int8", "final", "train", "val", "zeros"):  # bars and curves
                assert contrast(colours[ink], colours[paper]) >= 3.0, (ink, paper)
        assert contrast(colours["warn-fg"], colours["warn-bg"]) >= 4.5


def test_notebook_shows_the_page_in_a_frame_that_may_run_nothing():
    record = sample()
    record["run"]["name"] = '"></iframe><script>alert(1)</script>'
    shown = report.notebook_html(record)
    assert Reader(shown).tags == {"p", "strong", "iframe"}
    attributes = dict(Reader(shown).attributes)
    assert attributes["sandbox"] is None
    assert attributes["srcdoc"] == report.html(record)


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


# Comparing


def two():
    one, other = plain(), plain()
    other["run"].update(name="resnet8-poly50", recipe_name="poly50")
    other["recipe"]["stages"][1]["prune"]["granularity"] = "weight"
    other["candidates"]["final"].update(metric=0.872, size_gzip_bytes=50_000)
    return one, other


def test_compare_says_who_leads_and_how_the_recipes_differ():
    result = report.compare(two())
    assert json.loads(json.dumps(result)) == result
    assert result["flags"] == []
    assert result["best"] == {"metric": [1], "drop": [1], "size_gzip_bytes": [1]}
    assert result["recipe_differences"] == [{"key": "stages.prune.granularity", "values": ["2:4", "weight"]}]
    assert [run["figures"]["size_gzip_bytes"]["value"] for run in result["runs"]] == [55_210, 50_000]


def test_other_targets_and_metrics_are_flagged_and_nobody_leads_in_them():
    one, other = two()
    other.update(target="rpi5", target_title="Raspberry Pi 5")
    other["metric"]["name"] = "f1"
    other["candidates"]["final"]["latency"]["ms"] = 1.0
    result = report.compare([one, other])
    assert result["flags"] == [
        "The targets differ: Raspberry Pi 4, Raspberry Pi 5.",
        "The metrics differ: accuracy, f1.",
    ]
    assert not {"metric", "drop", "latency"} & (set(result["best"]) | set(result["comparable"]))


def test_a_measured_and_a_predicted_latency_are_not_ranked():
    one, other = two()
    other["candidates"]["final"]["latency"] = {"ms": 1.0, "kind": "measured", "threads": 4}
    result = report.compare([one, other])
    assert result["flags"] == ["The origins of the latencies differ: predicted, measured."]
    assert "latency" not in result["best"]


def test_a_lower_error_leads():
    one, other = two()
    for record in (one, other):
        record["metric"].update(name="mae", higher_is_better=False)
    assert report.compare([one, other])["best"]["metric"] == [0]


def test_one_run_cannot_be_compared():
    with pytest.raises(RunFolderError, match="1 run given, expected two or more"):
        report.compare([sample()])


def test_runs_of_one_name_are_told_apart():
    assert [run["name"] for run in report.compare([sample(), sample()])["runs"]] == [
        "resnet8-cifar10 (1)",
        "resnet8-cifar10 (2)",
    ]


def test_two_stages_of_one_kind_are_compared_one_by_one():
    def recipe(*finals):
        return {"stages": [{"stage": "prune", "final": final} for final in finals]}

    assert report_compare.recipe_differences([recipe(0.5, 0.8), recipe(0.5, 0.9)]) == [
        {"key": "stages.prune#2.final", "values": [0.8, 0.9]}
    ]


def test_the_comparison_in_the_terminal_and_on_a_page():
    result = report.compare([*two(), bare()])
    console = Console(file=io.StringIO(), width=120)
    report.compare_terminal(result, console)
    page = " ".join(Reader(report.compare_html(result)).words)
    text = " ".join(console.file.getvalue().split())
    for expected in ("The targets differ", "resnet8-poly50", "interrupted before conversion", "48.8 KiB"):
        assert expected in text
        assert expected in page
    assert "stages.prune.granularity 2:4 weight –" in text


def test_what_stands_between_backticks_is_code_and_nothing_else_is_markup():
    words = report_html.coded("Remove them: `--set a=<b>`; <script>`x`</script>")
    assert words == ("Remove them: <code>--set a=&lt;b&gt;</code>; &lt;script&gt;<code>x</code>&lt;/script&gt;")
