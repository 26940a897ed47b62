"""What is said after a profile: true of the file, tied to its layers, and a next step that pays."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from samples import sample
from tflite_files import build, operator, tensor

from edgeprune import advice, analytic, profiling, progress, registry, report, report_html, tables, tflite
from edgeprune import target as targets
from edgeprune.devices import qemu

NAMES = ("first", "depth", "second", "last")


def load(name):
    return targets.load(registry.file("targets", name))


def network(wide=16, silent=0, zeros=0.0, dtype="INT8"):
    """The bytes of: image of 3 channels -> pointwise ``first`` -> ``depth`` 3x3 -> pointwise ``second`` (16) -> ``last`` (10).

    Args:
        wide: channels of ``first`` and ``depth``.
        silent: output channels of ``second`` that are all zeros.
        zeros: share of zeros in ``first`` and ``second``, row by row the same.
    """
    kind = {"INT8": np.int8, "FLOAT32": np.float32}[dtype]
    quantized = {"scale": [0.1], "zero": [0]} if dtype == "INT8" else {}
    shapes = {"first": (wide, 1, 1, 3), "depth": (1, 3, 3, wide), "second": (16, 1, 1, wide), "last": (10, 1, 1, 16)}
    values = {name: np.ones(shape, kind) for name, shape in shapes.items()}
    for name in ("first", "second"):
        values[name][..., : round(zeros * values[name].shape[-1])] = 0
    values["second"][:silent] = 0
    sizes = {"image": 3, "a": wide, "b": wide, "c": 16, "d": 10}
    tensors = [tensor(name, (1, 8, 8, size), dtype, **quantized) for name, size in sizes.items()]
    words = {name: "depthwise" if name == "depth" else "Conv2D" for name in NAMES}
    tensors += [
        tensor(f"model/{name}/{words[name]}", shapes[name], dtype, data=values[name], **quantized) for name in NAMES
    ]
    once = {"strideH": 1, "strideW": 1}
    ops = [operator("CONV_2D", [place, place + 5], [place + 1], "Conv2DOptions", **once) for place in range(4)]
    ops[1] = operator("DEPTHWISE_CONV_2D", [1, 6], [2], "DepthwiseConv2DOptions", depthMultiplier=1, **once)
    return build(tensors, ops, inputs=[0], outputs=[4])


def said(content, ms=(1.0, 1.0, 1.0, 1.0), board="rpi4", **figures):
    """Kind -> what was advised of it."""
    file = tflite.read(content)
    ops = [{"index": op.index, "op": op.op, "ms": None if ms is None else ms[op.index]} for op in file.ops]
    found = advice.advise(file, load(board), {"ops": ops, **figures})
    found = json.loads(json.dumps(found))
    assert found[-1]["kind"] == "next" and len({one["kind"] for one in found}) == len(found)
    assert all(0 <= index < len(file.ops) for one in found for index in one["ops"])
    return {one["kind"]: one for one in found}


def bytes_ms(content, index):
    """What moving an op's data takes on a Pi 4."""
    return analytic.layers(tflite.read(content))[index].bytes / 4.8e6


def test_arithmetic_is_told_from_memory():
    content = network()
    moving = [bytes_ms(content, index) for index in range(4)]
    found = said(content, [10 * moving[0], 10 * moving[1], 10 * moving[2], 1.25 * moving[3]])["bound"]
    assert found["words"].startswith("Compute-bound: ") and "Memory-bound are last, " not in found["words"]
    found = said(content, [4 * moving[0], 4 * moving[1], 1.25 * moving[2], 4 * moving[3]])["bound"]
    assert "Compute-bound" in found["words"] and "Memory-bound are second, " in found["words"]
    assert (found["layers"], found["ops"]) == (["second"], [2])
    found = said(content, [1.25 * one for one in moving])
    assert found["bound"]["words"].startswith("Memory-bound: 80 % of the time of the ops")
    assert "stages.shrink.params=0.5" in found["next"]["words"]


def test_depthwise_convolutions_are_told_with_both_shares():
    found = said(network(), (1.0, 6.0, 1.0, 2.0))["depthwise"]
    macs = 9 * 16 / (9 * 16 + 3 * 16 + 16 * 16 + 16 * 10)
    assert f"are {100 * macs:.1f} % of the multiply-accumulates and 60 % of the time" in found["words"]
    assert found["share"] == pytest.approx(0.6) and found["layers"] == ["depth"]
    assert "60 %" not in said(network(), None, "coral-usb")["depthwise"]["words"]


def test_channels_that_fill_no_step_are_told_where_they_can_be_chosen():
    assert "lanes" not in said(network(wide=16))  # 3 inputs and 10 outputs are what they are
    found = said(network(wide=20), (1.0, 1.0, 6.0, 2.0))
    assert found["lanes"]["layers"] == ["second", "first", "depth"]
    assert "second: 20 input channels cost as many as 24" in found["lanes"]["words"]
    assert "first: 20 output channels cost as many as 24" in found["lanes"]["words"]
    assert "At most 13.3 % of the time of the ops goes into nothing" in found["lanes"]["words"]  # a sixth of 8 of 10
    assert "fill the kernels' steps in second, first, depth" in found["next"]["words"]


def test_zeros_are_told_where_they_buy_nothing():
    found = said(network(zeros=0.5))["zeros"]
    assert "Zeros buy no time on Raspberry Pi 4" in found["words"] and "second (50 %)" in found["words"]
    assert "smaller download" in found["words"] and "zeros" not in said(network())


def test_channels_of_zeros_are_found_and_come_first():
    found = said(network(silent=4), (1.0, 1.0, 6.0, 2.0))
    assert "second (4 of 16)" in found["silent"]["words"] and found["silent"]["ops"] == [2]
    assert "hold nothing but zeros, in second: 15 % of the time" in found["next"]["words"]


@pytest.mark.parametrize(
    ("content", "ms", "more", "words"),
    [
        (network(dtype="FLOAT32"), (1.0,) * 4, {}, "Next: quantize it."),
        (network(), (0.1,) * 4, {"fixed_ms": 0.6}, "without any op at all it would be 1.67 times as fast"),
        (network(), (1.0, 1.0, 6.0, 2.0), {}, "in second, first, depth (80 % of the time of the ops)"),
        (network(), None, {}, "of the multiply-accumulates)"),
    ],
    ids=["float", "enough", "channels", "untimed"],
)
def test_the_next_step(content, ms, more, words):
    assert words in said(content, ms, **more)["next"]["words"]


def test_a_faster_runtime_costs_nothing_and_is_tried_before_anything_is_cut():
    runtimes = [{"runtime": name, "latency": {"ms": ms}} for name, ms in (("slow 1", 3.0), ("quick 2", 2.0))]
    assert "under quick 2: 1.50 times as fast as under slow 1" in said(network(), runtimes=runtimes)["next"]["words"]
    assert "remove channels" in said(network(), runtimes=runtimes[::-1])["next"]["words"]


def test_an_accelerator_that_leaves_ops_to_the_cpu():
    tensors = [tensor(name, (1, 8, 8, 16), scale=[0.1], zero=[0]) for name in ("image", "a")]
    content = build(tensors, [operator("HARD_SWISH", [0], [1])], inputs=[0], outputs=[1])
    assert "mapped" not in said(content, (1.0,))
    mixed = build(
        [*tensors, tensor("b", (1, 8, 8, 16), scale=[0.1], zero=[0])],
        [operator("ADD", [0, 0], [1], "AddOptions"), operator("HARD_SWISH", [1], [2])],
        inputs=[0],
        outputs=[2],
    )
    found = said(mixed, None, "coral-usb")
    assert (
        "1 of 2 ops stay on the CPU" in found["mapped"]["words"] and "HARD_SWISH (op 1): " in found["mapped"]["words"]
    )
    assert "edgeprune check FILE.tflite --target coral-usb" in found["next"]["words"]


def test_a_profile_has_it_in_the_json_and_prints_it(tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(network(zeros=0.5))
    for name in ("unavailable", "uncountable"):
        monkeypatch.setattr(qemu, name, lambda *_, **__: "the Arm emulator is not installed")
    board = load("rpi4")
    figures = profiling.profile(path, board, targets.connection(board), None, progress.choose(quiet=True))
    assert [one["kind"] for one in figures["advice"]] == ["bound", "depthwise", "zeros", "next"]
    console = Console(file=io.StringIO(), width=400)
    console.print(tables.profile(figures))
    assert all(one["words"] in console.file.getvalue() for one in figures["advice"])


def test_a_measurement_knows_no_op_and_the_shapes_say_whose_time_it_is(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(network())
    ops = [{"index": index, "op": "CONV_2D", "ms": None} for index in range(4)]
    found = profiling.advised(path, load("rpi4"), {"ops": ops, "latency": {"ms": 3.0, "kind": "measured"}})
    assert {one["kind"] for one in found["advice"]} >= {"bound", "next"} and found["ops"] == ops


def test_a_report_has_it_on_the_page_and_in_the_terminal():
    record = {**sample(), "advice": [{"kind": "next", "words": "Next: <try> this.", "ops": [], "layers": []}]}
    console = Console(file=io.StringIO(), width=200)
    report.terminal(record, console)
    assert "Next: <try> this." in console.file.getvalue()
    assert "<li>Next: &lt;try&gt; this.</li>" in report_html.html(record)
