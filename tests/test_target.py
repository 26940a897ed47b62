"""The contract of devices/targets/*.yaml, and what a wrong file is told."""

from __future__ import annotations

import copy

import pytest

from edgeprune import registry, target, yaml_files
from edgeprune.errors import TargetError

NAMES = registry.names("targets")
MINIMAL = {
    "name": "my-board",
    "title": "My board",
    "cpu": {"core": "cortex-a55", "cores": 2},
    "memory": {},
    "runtime": {"package": "tflite-runtime", "version": "2.14.0", "kernels": "ruy", "threads": 2},
    "emulate": {"cpu": "cortex-a55"},
    "zeros": {"latency": "none", "download": True, "words": ["Zeros make downloads smaller."]},
    "sources": {"cpu.cores": "data sheet", "runtime": "one per core"},
}


def changed(**changes):
    """MINIMAL with dotted paths set (``cpu__cores=3``) or removed (``None``)."""
    data = copy.deepcopy(MINIMAL)
    for path, value in changes.items():
        *blocks, last = path.split("__")
        block = data
        for name in blocks:
            block = block[name]
        if value is None:
            del block[last]
        else:
            block[last] = value
    return data


def load(name):
    return target.load(registry.file("targets", name))


def test_the_targets_of_the_project():
    assert NAMES == ["coral-devboard", "coral-usb", "host", "rpi3", "rpi4", "rpi5", "rpizero2w"]


@pytest.mark.parametrize("name", NAMES)
def test_a_target_bears_its_file_name(name):
    assert load(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source(name):
    facts = load(name)
    assert {path: facts.source(path) for path in facts.figures() if not facts.source(path)} == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_target_names_a_backend_that_satisfies_the_protocol(name):
    facts = load(name)
    backend = registry.module("backends", facts.backend)
    reason = backend.unavailable(facts, target.connection(facts))
    assert reason is None or len(reason.split()) > 3
    assert callable(backend.session)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_is_emulated_or_says_why_not(name):
    emulate = load(name).emulate
    assert (emulate.cpu is None) != (emulate.reason is None)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_says_in_words_what_zeros_buy(name):
    zeros = load(name).zeros
    assert all(paragraph.endswith(".") for paragraph in zeros.words)


def test_the_pi_4_is_emulated_without_dot_product_and_runs_ruy():
    pi = load("rpi4")
    assert (pi.cpu.core, pi.cpu.cores, pi.emulate.cpu) == ("cortex-a72", 4, "cortex-a72")
    assert (pi.runtime.package, pi.runtime.version, pi.runtime.kernels) == ("tflite-runtime", "2.14.0", "ruy")
    assert (pi.channel_multiple.out, pi.channel_multiple.in_) == (8, 8)


@pytest.mark.parametrize("name", ["coral-usb", "coral-devboard"])
def test_channels_of_the_edge_tpu_come_in_wider_steps_above_64(name):
    steps = load(name).channel_multiple
    assert (steps.out, steps.until, steps.beyond, steps.in_) == (16, 64, 64, 4)


def test_a_minimal_file_of_the_users_own(tmp_path):
    path = tmp_path / "my-board.yaml"
    path.write_text(yaml_files.dump(MINIMAL))
    facts = target.load(registry.file("targets", str(path)))
    assert (facts.name, facts.backend, facts.delegate, facts.channel_multiple) == ("my-board", "qemu", None, None)
    assert facts.figures() == {"cpu.cores": 2, "runtime.threads": 2}


def test_the_source_of_the_nearest_block_counts():
    facts = target.parse(
        changed(sources__runtime=None, sources={"cpu": "far", "cpu.cores": "near", "runtime": "r"}), "f"
    )
    assert facts.source("cpu.cores") == "near"
    assert facts.source("cpu.clock_mhz") == "far"
    assert facts.source("memory.mib") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": {"runtime": "r"}}, ["cpu.cores = 2", "no source", "add 'cpu.cores:"]),
        ({"sources__cpu.coress": "x"}, ["'cpu.coress'", "Did you mean 'cpu.cores'"]),
        ({"cpu__coress": 4}, ["unknown key 'cpu.coress'", "Did you mean 'cores'", "clock_mhz"]),
        ({"cpu__cores": "four"}, ["cpu.cores", "'four'", "integer"]),
        ({"cpu__cores": 0}, ["cpu.cores", "greater than 0"]),
        ({"cpu__cores": True}, ["cpu.cores", "True"]),
        ({"runtime__package": "tflite"}, ["runtime.package", "'tflite'", "ai-edge-litert"]),
        ({"runtime__version": 2.14}, ["runtime.version", "2.14", "string"]),
        ({"channel_multiple": {"out": 16, "in": 4, "until": 64}}, ["channel_multiple", "both 'until' and 'beyond'"]),
        ({"zeros": None}, ["'zeros' is missing"]),
        ({"zeros__words": []}, ["zeros.words", "at least 1"]),
        ({"emulate": {}}, ["emulate", "either 'cpu'", "'reason'"]),
        ({"emulate": {"cpu": "cortex-a55", "reason": "no"}}, ["emulate", "either 'cpu'"]),
        ({"name": "My Board"}, ["name", "'My Board'"]),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(changes, words):
    with pytest.raises(TargetError) as caught:
        target.parse(changed(**changes), "board.yaml")
    message = str(caught.value)
    assert message.startswith("board.yaml")
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "name: [unclosed\n"])
def test_a_file_that_holds_no_target(tmp_path, text):
    path = tmp_path / "board.yaml"
    path.write_text(text)
    with pytest.raises(TargetError, match=r"board\.yaml"):
        target.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TargetError, match="cannot be read"):
        target.load(tmp_path / "gone.yaml")


def test_a_target_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        target.parse(MINIMAL, "f").title = "other"


def test_a_board_is_reached_by_ssh_and_otherwise_the_target_names_its_backend():
    facts = target.parse(MINIMAL, "f")
    assert target.connection(facts, "pi@raspberrypi.local") == target.Connection("ssh", "pi@raspberrypi.local")
    assert target.connection(facts) == target.Connection("qemu")
    assert target.connection(load("host")) == target.Connection("local")


def test_an_accelerator_cannot_be_emulated_or_run_on_the_host():
    facts = load("coral-usb")
    assert "Edge TPU" in registry.module("backends", "qemu").unavailable(facts, target.connection(facts))
    assert "--board" in registry.module("backends", "local").unavailable(facts, target.connection(facts))
