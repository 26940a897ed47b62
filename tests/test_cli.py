"""The command line's own part: words in, one call, what is printed where, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import samples
from tflite_files import build as tflite_bytes
from tflite_files import conv

import edgeprune
from edgeprune import cli, registry, report, search_setup, shrink_options
from edgeprune.errors import DataError


def commands(command=cli.cli, path=()):
    """Every command with its words, groups included."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands())


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    """A current folder and a cache of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def built(monkeypatch, somewhere):
    """Stands for ``edgeprune.api.build``: records its arguments; ``outcome`` is returned, or raised."""
    seen = SimpleNamespace(words=None, outcome=None, missed=())

    def build(**words):
        seen.words = words
        if isinstance(seen.outcome, BaseException):
            raise seen.outcome
        return SimpleNamespace(
            folder=somewhere, report=samples.sample(), tflite=somewhere / "model.tflite", missed=seen.missed
        )

    monkeypatch.setattr(edgeprune, "api", SimpleNamespace(build=build), raising=False)
    return seen


@pytest.fixture
def run_folder(somewhere):
    report.write(somewhere / "run", samples.sample())
    return "run"


# --- every command


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help(path, capsys):
    assert cli.run([*path, "--help"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"Usage: {' '.join(['edgeprune', *path])}")
    assert not err


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_has_a_help_text(path):
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"edgeprune {edgeprune.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["build", "--frob"],
        ["profile"],
        ["verify", "m.keras", "m.tflite"],
        ["list", "modles"],
        ["list", "--schema"],
        ["compare", "one"],
        ["build", "--set", "a"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_so_on_stderr(arguments, capsys):
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("Usage: edgeprune")


def test_wrong_values_name_what_is_known(capsys):
    cli.run(["list", "modles"])
    assert "models" in capsys.readouterr().err


# --- build


def test_build_hands_on_every_word(built):
    words = ["net.h5", "--data", "d.npz", "--target", "rpi5", "--recipe", "nm24", "--out", "o", "--max-drop", "0.01"]
    more = [
        "--max-size-kib",
        "90",
        "--max-latency-ms",
        "8",
        "--board",
        "pi@board",
        "--resume",
        "--force",
        "--trust",
        "--quiet",
    ]
    assert cli.run(["build", *words, *more, "--set", "seed=3", "--set", "stages.prune.pattern=2:4"]) == 0
    progress, command = built.words.pop("progress"), built.words.pop("command")
    assert type(progress).__name__ == "Silent"
    assert command.startswith("edgeprune build net.h5 --data d.npz")
    assert built.words == {
        **{"model": "net.h5", "data": "d.npz", "target": "rpi5", "recipe": "nm24", "out": "o", "board": ("pi@board",)},
        **{"max_drop": 0.01, "max_size_kib": 90.0, "max_latency_ms": 8.0, "resume": True, "force": True, "trust": True},
        "overrides": {"seed": 3, "stages.prune.pattern": "2:4"},
    }


def test_build_takes_the_folders_project(built, somewhere):
    (somewhere / "edgeprune.yaml").write_text("model: own:net\ntarget: rpi5\n")
    assert cli.run(["build", "--target", "rpi3", "--quiet"]) == 0
    assert (built.words["model"], built.words["target"]) == ("own:net", "rpi3")


def test_build_prints_the_closing_table(built, capsys):
    assert cli.run(["build", "--quiet"]) == 0
    assert "dense int8" in capsys.readouterr().out


def test_build_json_is_the_report_and_nothing_else(built, capsys):
    assert cli.run(["build", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == samples.sample()


def test_a_missed_budget_is_4_and_the_model_is_there(built, capsys):
    built.missed = ("max_drop", "max_size_kib")
    assert cli.run(["build", "--quiet"]) == 4
    out, err = capsys.readouterr()
    assert "dense int8" in out
    assert "max_drop, max_size_kib" in err and "model.tflite" in err


def test_a_named_error_is_1_and_one_paragraph(built, capsys):
    built.outcome = DataError("data.npz has no x_train. Expected x_train and y_train.")
    assert cli.run(["build", "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err == "Error: data.npz has no x_train. Expected x_train and y_train.\n"


def test_an_interruption_is_130_and_says_how_to_go_on(built, capsys):
    built.outcome = KeyboardInterrupt()
    assert cli.run(["build", "net.h5", "--force", "--out", "my runs/a", "--quiet"]) == 130
    assert capsys.readouterr().err == "Interrupted; resume with: edgeprune build --resume --out 'my runs/a'\n"
    assert cli.run(["build", "net.h5", "--quiet"]) == 130
    assert capsys.readouterr().err == "Interrupted; resume with: edgeprune build --resume\n"


def test_anything_else_is_3_with_a_log(built, capsys, somewhere):
    built.outcome = ZeroDivisionError("by zero")
    assert cli.run(["build", "--quiet"]) == 3
    err = capsys.readouterr().err
    (log,) = (somewhere / "cache" / "log").iterdir()
    assert str(log) in err and "Traceback" not in err
    text = log.read_text()
    assert "ZeroDivisionError: by zero" in text and "Traceback" in text
    assert (
        "command: edgeprune build --quiet" in text
        and f"edgeprune {edgeprune.__version__}" in text
        and "tensorflow" in text
    )


def test_a_log_finds_another_place_when_the_cache_cannot_be_written(built, capsys, somewhere, monkeypatch):
    (somewhere / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr("tempfile.tempdir", str(somewhere))
    built.outcome = ZeroDivisionError()
    assert cli.run(["build", "--quiet"]) == 3
    assert list(somewhere.glob("edgeprune-*.log"))


# --- the other commands


def test_report(run_folder, capsys):
    assert cli.run(["report", run_folder]) == 0
    shown = capsys.readouterr().out
    assert "dense int8" in shown and "report.html" in shown
    assert cli.run(["report", f"{run_folder}/report.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report.load(run_folder)


def test_report_draws_the_page_anew(run_folder, somewhere):
    assert cli.run(["report", run_folder, "--page", "again.html"]) == 0
    assert "<html" in (somewhere / "again.html").read_text()


def test_compare(run_folder, capsys, somewhere):
    assert cli.run(["compare", run_folder, run_folder, "--page", "both.html"]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert "<html" in (somewhere / "both.html").read_text()
    assert cli.run(["compare", run_folder, run_folder, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


def test_inspect_a_tflite(somewhere, capsys):
    (somewhere / "m.tflite").write_bytes(tflite_bytes(*conv(), inputs=[0], outputs=[3]))
    assert cli.run(["inspect", "m.tflite"]) == 0
    assert "CONV_2D" in capsys.readouterr().out
    assert cli.run(["inspect", "m.tflite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ops"][0]["op"] == "CONV_2D"


def test_inspect_the_channel_groups_of_a_model(somewhere, capsys):
    assert cli.run(["inspect", "digits-resnet", "--groups"]) == 0
    shown = capsys.readouterr().out
    assert "stem_conv, block1_b_conv" in shown and "removable whole, at 'block1_add'" in shown
    assert cli.run(["inspect", "digits-resnet", "--groups", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {group["name"]: group["cuttable"] for group in found["groups"]}["classes"] is False
    assert cli.run(["inspect", "m.tflite", "--groups"]) == 2


def test_check_a_tflite(somewhere, capsys):
    (somewhere / "m.tflite").write_bytes(tflite_bytes(*conv(), inputs=[0], outputs=[3]))
    assert cli.run(["check", "m.tflite", "--target", "coral-usb"]) == 0
    assert "CONV_2D" in capsys.readouterr().out
    assert cli.run(["check", "m.tflite", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"file", "target", "ops", "violations", "notes", "summary"}


@pytest.mark.parametrize("family", registry.families())
def test_list(family, capsys):
    assert cli.run(["list", family]) == 0
    shown = capsys.readouterr().out
    assert cli.run(["list", family, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert list(listed) == registry.names(family)
    assert all(name in shown for name in listed)


def test_list_everything(capsys):
    assert cli.run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == set(registry.families())
    assert cli.run(["list"]) == 0
    assert "targets:" in capsys.readouterr().out


def test_list_recipes_schema(capsys):
    assert cli.run(["list", "recipes", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "edgeprune recipe"


def test_doctor(capsys):
    assert cli.run(["doctor"]) == 0
    assert "Ready to build." in capsys.readouterr().out
    assert cli.run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_doctor_is_1_when_something_is_missing(monkeypatch):
    from edgeprune import doctor

    monkeypatch.setattr(
        doctor, "run", lambda: [doctor.Check("tensorflow", False, True, "not installed", "pip install it")]
    )
    assert cli.run(["doctor"]) == 1


def test_init(somewhere, capsys):
    assert cli.run(["init", "--target", "rpi5"]) == 0
    assert "target: rpi5" in (somewhere / "edgeprune.yaml").read_text()
    assert cli.run(["init"]) == 1
    assert "--force" in capsys.readouterr().err


def test_emulator_status_of_an_empty_cache(capsys):
    assert cli.run(["emulator", "status"]) == 1
    assert "edgeprune emulator install" in capsys.readouterr().out
    assert cli.run(["emulator", "status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["installed"] is False


def test_emulator_remove_of_an_empty_cache(capsys):
    assert cli.run(["emulator", "remove"]) == 0
    assert "not installed" in capsys.readouterr().out


def test_emulator_install_hands_on_force(monkeypatch, capsys):
    asked = []
    backend = registry.module("backends", "qemu")
    monkeypatch.setattr(
        backend, "install", lambda progress, force: asked.append(force) or SimpleNamespace(folder=Path("there"))
    )
    assert cli.run(["emulator", "install", "--force"]) == 0
    assert asked == [True]
    assert "there" in capsys.readouterr().out


def test_profile_hands_on_every_word(monkeypatch, capsys):
    seen = {}

    def profile(path, target, connection, threads, progress, resolver):
        seen.update(path=path, target=target.name, connection=connection, threads=threads, resolver=resolver)
        return {
            "latency": {"ms": None, "reason": "times under emulation are not a board's"},
            "runtime": "tflite-runtime 2.14.0",
        }

    monkeypatch.setattr(edgeprune, "profiling", SimpleNamespace(profile=profile), raising=False)
    assert cli.run(["profile", "m.tflite", "--target", "rpi4", "--board", "pi@board", "--threads", "2"]) == 0
    assert (seen["path"], seen["target"], seen["connection"].address, seen["threads"]) == (
        Path("m.tflite"),
        "rpi4",
        "pi@board",
        2,
    )
    assert seen["resolver"] == "default"
    assert "not a board's" in capsys.readouterr().out
    assert cli.run(["profile", "m.tflite", "--json", "--built-in"]) == 0
    assert seen["resolver"] == "without_delegates"
    assert json.loads(capsys.readouterr().out)["latency"]["ms"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "absent.tflite"], "absent.tflite"),
        (["check", "absent.tflite"], "absent.tflite"),
        (["check", "absent.tflite", "--target", "rpi44"], "Did you mean 'rpi4'?"),
        (["verify", "absent.keras", "absent.tflite", "--data", "d.npz"], "absent.tflite"),
        (["report", "absent"], "absent"),
        (["compare", "absent", "absent"], "absent"),
        (["profile", "absent.tflite", "--target", "rpi44"], "Did you mean 'rpi4'?"),
        (["build", "--set", "a=[", "--quiet"], "not valid YAML"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_1_and_one_paragraph(arguments, message, built, capsys):
    assert cli.run(arguments) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("Error: ") and message in err
    assert "Traceback" not in err and err.count("\n") == 1


# --- as a program


def imported(arguments, modules):
    """Which of the modules a process of its own has imported when the command is done; "" for none."""
    code = f"import sys; from edgeprune import cli; cli.run({arguments!r}); sys.exit(str(sorted({modules!r} & sys.modules.keys()) or ''))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["build", "--help"],
        ["list"],
        ["list", "recipes", "--schema"],
        ["report", "run"],
        ["inspect", "m.tflite"],
        ["check", "m.tflite"],
        ["verify", "--help"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_starts_without_tensorflow(arguments, run_folder, somewhere):
    (somewhere / "m.tflite").write_bytes(tflite_bytes(*conv(), inputs=[0], outputs=[3]))
    heavy = {"tensorflow", "tf_keras", "keras", "tensorflow_model_optimization", "sklearn", "matplotlib"}
    assert imported(arguments, heavy) == ""


def test_help_needs_neither_numpy_nor_pydantic():
    assert imported(["--help"], {"numpy", "pydantic", "rich"}) == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_interrupt(number, somewhere):
    """The console script's own main, waiting where a build would."""
    code = """
import sys, time
from types import SimpleNamespace
import edgeprune
from edgeprune import cli
def build(**words):
    print("building", flush=True)
    time.sleep(60)
edgeprune.api = SimpleNamespace(build=build)
sys.argv = ["edgeprune", "build", "--quiet"]
cli.main()
"""
    process = subprocess.Popen(
        [*samples.HEARING_INTERRUPTS, sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "building\n"
    time.sleep(0.2)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "edgeprune build --resume" in err and "Traceback" not in err


def test_defaults_are_those_of_what_is_called():
    """They are written twice, so that the command line imports nothing to show them."""
    shown = {
        path: {word.name: word.default for word in COMMANDS[path].params} for path in (("search",), ("sensitivity",))
    }
    asked = search_setup.Asked("model")
    assert shown["sensitivity",]["criterion"] == shrink_options.CRITERION
    assert shown["search",]["criteria"] == ",".join(asked.criteria)
    assert [shown["search",][name] for name in ("sampler", "trials", "top")] == [asked.sampler, asked.trials, asked.top]
