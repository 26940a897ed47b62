"""What a person sees while a build runs."""

import io
import sys
import types

import pytest
from rich.console import Console

from edgeprune import progress
from edgeprune.progress import Notebook, Silent, Terminal


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("NO_COLOR", "CI", "TERM", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def plain(clock):
    return Terminal(Console(file=io.StringIO(), width=80), clock)


def live(clock, width=120):
    return Terminal(Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None), clock)


def run_two_epochs(shown, clock):
    shown.stage("prune", 3, 7)
    for done in (0.0, 0.5, 1.0, 1.5, 2.0):
        clock.now += 2.0
        shown.step(done, 2, "epochs", loss=1.0 - done / 4, accuracy=0.9, sparsity=done / 4)
    shown.note("left alone: stem (3 input channels)")
    shown.done("50 % zeros", 10.0)
    shown.close()


def test_plain_lines_are_one_per_epoch():
    clock = Clock()
    shown = plain(clock)
    run_two_epochs(shown, clock)
    assert shown.console.file.getvalue().splitlines() == [
        "[3/7] prune ...",
        "[3/7] prune: epoch 1/2, loss 0.750, accuracy 0.900, sparsity 0.250, 4 s left",
        "[3/7] prune: epoch 2/2, loss 0.500, accuracy 0.900, sparsity 0.500",
        "      left alone: stem (3 input channels)",
        "[3/7] prune: 50 % zeros (10.0 s)",
    ]


def test_plain_lines_are_flushed_and_never_folded():
    class Log(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    log = Log()
    shown = Terminal(Console(file=log, width=20), Clock())
    shown.stage("prune", 1, 1)
    shown.note("a line that is much longer than twenty columns")
    assert log.flushed >= 2
    assert "      a line that is much longer than twenty columns\n" in log.getvalue()


def test_a_log_that_cannot_say_an_umlaut_does_not_end_the_build():
    log = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    shown = Terminal(Console(file=log), Clock())
    shown.stage("prüfen", 1, 1)
    log.flush()
    assert log.buffer.getvalue() == b"[1/1] pr?fen ...\n"


def test_plain_lines_about_samples_come_at_quarters_and_not_in_a_rush():
    clock = Clock()
    shown = plain(clock)
    shown.stage("verify", 1, 1)
    for done in range(0, 101):
        clock.now += 0.01
        shown.step(done, 100, "samples")
    assert len(shown.console.file.getvalue().splitlines()) == 1
    for done in range(0, 101):
        clock.now += 1
        shown.step(done, 100, "samples")
    assert [line.split(":")[1].split(",")[0] for line in shown.console.file.getvalue().splitlines()[1:]] == [
        " 25/100 samples",
        " 50/100 samples",
        " 75/100 samples",
        " 100/100 samples",
    ]


def test_a_resumed_epoch_says_nothing_about_the_epochs_before_it():
    clock = Clock()
    shown = plain(clock)
    shown.stage("prune", 1, 1)
    shown.step(5.0, 10, "epochs")
    clock.now = 3.0
    shown.step(6.0, 10, "epochs", loss=1.0)
    assert shown.console.file.getvalue().splitlines()[1:] == ["[1/1] prune: epoch 6/10, loss 1.000, 12 s left"]


def test_a_stage_that_speaks_only_at_epoch_ends_gets_every_line():
    shown = plain(Clock())
    shown.stage("train", 1, 1)
    for epoch in (1, 2):
        shown.step(epoch, 2, "epochs", loss=1.0)
    assert [line.split(",")[0] for line in shown.console.file.getvalue().splitlines()[1:]] == [
        "[1/1] train: epoch 1/2",
        "[1/1] train: epoch 2/2",
    ]


@pytest.mark.parametrize("name", ["NO_COLOR", "CI"])
def test_environment_asks_for_plain_lines(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert live(Clock()).plain
    monkeypatch.setenv(name, "")
    assert not live(Clock()).plain


def test_the_live_line_shows_all_figures_and_the_finished_stage_stays():
    clock = Clock()
    shown = live(clock)
    shown.stage("prune", 3, 7)
    shown.step(0.0, 2, "epochs", loss=0.5)
    clock.now = 4.0
    shown.step(1.5, 2, "epochs", loss=0.25, sparsity=0.375)
    shown.close()  # its thread draws no more
    with shown.console.capture() as captured:
        shown.console.print(shown)
    line = captured.get()
    assert line.count("\n") == 1
    for word in ("3/7", "prune", "━", "epoch 2/2", "loss 0.250", "sparsity 0.375", "1 s left"):
        assert word in line
    shown.done("50 % zeros, accuracy 0.981", 75.0)
    assert "✓ 3/7 prune     50 % zeros, accuracy 0.981  1 min 15 s\n" in shown.console.file.getvalue()


def test_the_live_line_fits_a_narrow_terminal():
    shown = live(Clock(), width=40)
    shown.stage("quantize", 4, 7)
    shown.step(1.5, 2, "epochs", loss=0.25, accuracy=0.5, sparsity=0.375)
    shown.close()  # its thread draws no more
    with shown.console.capture() as captured:
        shown.console.print(shown)
    assert captured.get().count("\n") == 1
    assert "…" in captured.get()


def test_the_cursor_comes_back_when_the_run_ends_in_the_middle_of_a_stage():
    shown = live(Clock())
    shown.stage("prune", 1, 1)
    shown.close()
    shown.close()
    written = shown.console.file.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_a_resumed_stage_says_so():
    shown = plain(Clock())
    shown.stage("train", 1, 7)
    shown.done("accuracy 0.981", 0.0, resumed=True)
    assert "accuracy 0.981 (kept from the earlier run)" in shown.console.file.getvalue()


def test_markup_in_names_is_text():
    shown = live(Clock())
    shown.stage("[red]x", 1, 1)
    shown.note("[bold]layer[/] [/nothing]")
    shown.done("[blink]", 1.0)
    for words in ("[bold]layer[/] [/nothing]", "[red]x", "[blink]"):
        assert words in shown.console.file.getvalue()


@pytest.mark.parametrize("form", [plain, live])
def test_names_cannot_steer_the_terminal(form):
    shown = form(Clock())
    shown.stage("pr\x07une", 1, 1)
    shown.note("left alone: \x1b]0;title\x07")
    shown.done("\x1b[2J", 1.0)
    written = shown.console.file.getvalue()
    assert "\x07" not in written
    assert "\x1b]" not in written
    assert "\x1b[2J" not in written


def test_a_stage_without_a_summary_is_done():
    shown = plain(Clock())
    shown.stage("verify", 1, 1)
    shown.done("", 1.0)
    assert "[1/1] verify: done (1.0 s)" in shown.console.file.getvalue()


def test_silent_and_out_of_order_calls_do_nothing(capsys):
    for shown in (Silent(), plain(Clock())):
        shown.step(1, 2, "epochs")
        shown.done("nothing began", 1.0)
        shown.close()
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def ipython(monkeypatch):
    """IPython's two names that are used, so that the notebook form is tested without a kernel."""
    drawn = []

    class Handle:
        def update(self, shown):
            drawn.append(shown._repr_html_())

    def display(shown, display_id):
        assert display_id
        drawn.append(shown._repr_html_())
        return Handle()

    module = types.ModuleType("IPython")
    module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    module.display = types.ModuleType("IPython.display")
    module.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    return drawn


def test_a_notebook_shows_the_same_and_escapes_it(ipython):
    clock = Clock()
    shown = Notebook(clock)
    shown.stage("<prune>", 3, 7)
    shown.step(0.0, 2, "epochs", loss=0.5)
    clock.now = 4.0
    shown.step(1.0, 2, "epochs", loss=0.25)
    assert '<progress max="1" value="0.5000">' in ipython[-1]
    assert "epoch 1/2 · loss 0.250 · 4 s left" in ipython[-1]
    shown.note("<script>alert(1)</script>")
    shown.done("50 % zeros <b>", 10.0)
    assert "<script>" not in ipython[-1]
    assert "✓ 3/7 <b>&lt;prune&gt;</b> 50 % zeros &lt;b&gt;" in ipython[-1]


def test_a_notebook_is_not_redrawn_for_every_batch(ipython):
    clock = Clock()
    shown = Notebook(clock)
    shown.stage("prune", 1, 1)
    for batch in range(1000):
        clock.now += 0.001
        shown.step(batch, 1000, "batches")
    assert len(ipython) <= 5


def test_choose(ipython, monkeypatch):
    assert isinstance(progress.choose(quiet=True), Silent)
    assert isinstance(progress.choose(), Notebook)
    monkeypatch.delitem(sys.modules, "IPython")
    assert isinstance(progress.choose(), Terminal)


def test_json_leaves_standard_output_alone(capsys, monkeypatch):
    monkeypatch.setenv("CI", "1")
    shown = progress.choose(json=True)
    run_two_epochs(shown, Clock())
    out, err = capsys.readouterr()
    assert out == ""
    assert "prune: 50 % zeros" in err


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 ms"), (0.9999, "1.0 s"), (59.96, "1 min 0 s"), (3599.6, "1 h 0 min"), (7260, "2 h 1 min")],
)
def test_duration(seconds, words):
    assert progress.duration(seconds) == words
