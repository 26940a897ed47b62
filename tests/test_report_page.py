"""The page of a build and of a comparison: pictures, escaping, what is absent, colours; drawn from report.json alone."""

import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console
from samples import bare, plain, sample

from edgeprune import report, report_compare, report_figures, report_html, report_sections
from edgeprune.errors import RunFolderError

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


LONG = ("a word", 0)
KINDS = [None, {"reason": "not measured here"}, [], *(pytest.param(kind, marks=pytest.mark.long) for kind in LONG)]


@pytest.mark.parametrize("absent", KINDS, ids=repr)
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
