"""Counting: the plugin and its output, llvm's reports, the guest's system files, parts of models, and real counts."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import flatbuffers
import numpy as np
import pytest

from edgeprune import registry, target, tflite
from edgeprune.devices import _cores, _count_probe, _counting, _emulator, _llvm, _mca, _plugin
from edgeprune.errors import ArtefactError, DeviceError, MissingDependency, TargetError
from edgeprune.tflite_parts import Part, split

RPI4 = target.load(registry.file("targets", "rpi4"))
NOTHING = (0,) * 7


def dense_model(*widths: int) -> bytes:
    """A .tflite of int8 dense layers, one after the other, with seeded weights."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    generator = np.random.default_rng(0)

    def tensor(name, shape, dtype, buffer, scale):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, list(shape), dtype, buffer
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = np.float32([scale]), np.int64([0])
        return made

    def buffer(array):
        made = schema.BufferT()
        made.data = np.frombuffer(array.tobytes(), np.uint8)
        return made

    kinds, graph, buffers = schema.TensorType, schema.SubGraphT(), [schema.BufferT()]
    graph.tensors, graph.operators = [tensor("x", (1, widths[0]), kinds.INT8, 0, 0.1)], []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        kernel = generator.integers(-127, 128, (outputs, inputs), np.int8)
        buffers += [buffer(kernel), buffer(np.zeros(outputs, np.int32))]
        graph.tensors += [
            tensor(f"kernel{index}", (outputs, inputs), kinds.INT8, len(buffers) - 2, 0.01),
            tensor(f"bias{index}", (outputs,), kinds.INT32, len(buffers) - 1, 0.001),
            tensor(f"y{index}", (1, outputs), kinds.INT8, 0, 0.1),
        ]
        op = schema.OperatorT()
        op.opcodeIndex, op.builtinOptionsType = 0, schema.BuiltinOptions.FullyConnectedOptions
        op.builtinOptions = schema.FullyConnectedOptionsT()
        op.inputs, op.outputs = [3 * index, 3 * index + 1, 3 * index + 2], [3 * index + 3]
        graph.operators.append(op)
    graph.inputs, graph.outputs = [0], [len(graph.tensors) - 1]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [code], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


# --- the plugin

OUTPUT = """\
edgeprune-blocks 1
b 0 4000 d503201fd65f03c0
b 1 5000 8b010000
r 0 1 2 3 4 5 6 7
c 0 3
c 1 2
b 2 6000 8b010000
r 1 0 0 0 0 0 0 0
c 2 10
end
"""


def test_the_plugins_output_is_read():
    first, second = _plugin.read(OUTPUT.splitlines())
    nop, ret = bytes.fromhex("1f2003d5"), bytes.fromhex("c0035fd6")
    assert {block.code: count for block, count in first.executions.items()} == {nop + ret: 3, bytes([0, 0, 1, 0x8B]): 2}
    assert (first.instructions, first.traffic, second.instructions) == (8, (1, 2, 3, 4, 5, 6, 7), 10)


@pytest.mark.parametrize("lines", [0, 1, 3, 5, 9])
def test_output_that_ends_too_early_is_refused(lines):
    with pytest.raises(DeviceError, match=r"ends too early|cannot be read"):
        _plugin.read(OUTPUT.splitlines()[:lines])


@pytest.mark.parametrize(
    "bad", ["something else\n", OUTPUT.replace("c 0 3", "c 9 3"), OUTPUT.replace("d503201f", "zz03201f")]
)
def test_what_is_not_the_plugins_output_is_refused(bad):
    with pytest.raises(DeviceError, match="cannot be read"):
        _plugin.read(bad.splitlines())


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.skipif(_plugin.compiler() is None, reason="no C compiler")
def test_the_plugin_is_built_once(own_cache):
    built = _plugin.build()
    changed = built.stat().st_mtime_ns
    assert _plugin.build() == built
    assert built.stat().st_mtime_ns == changed
    assert [path.name for path in built.parent.iterdir()] == [built.name]  # no scratch is left


@pytest.mark.skipif(_plugin.compiler() is None, reason="no C compiler")
def test_the_plugin_compiles_without_a_warning(tmp_path):
    command = [*_plugin.compiler(), *_plugin.FLAGS, "-Wall", "-Wextra", "-Werror", "-o", str(tmp_path / "p.so")]
    finished = subprocess.run([*command, str(_plugin.SOURCE)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_without_a_compiler_the_reason_says_what_to_install(own_cache, monkeypatch):
    monkeypatch.setattr(_plugin, "compiler", lambda: None)
    assert "ziglang" in _plugin.unavailable()
    with pytest.raises(MissingDependency, match="pip install ziglang"):
        _plugin.build()


def test_a_compiler_that_fails_is_quoted(own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(_plugin, "compiler", lambda: (sys.executable, "-c", "import sys; sys.exit('no such flag')"))
    with pytest.raises(DeviceError, match="no such flag"):
        _plugin.build()
    assert not list((own_cache / "plugin").iterdir())


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    if _plugin.compiler() is None:
        pytest.skip("no C compiler")
    with pytest.raises(DeviceError, match="cannot be written"):
        _plugin.build()


def test_the_option_for_qemu():
    assert _plugin.option(Path("/p.so"), "out.txt", {"l1d": "1:2:3"}) == "/p.so,out=out.txt,l1d=1:2:3"
    with pytest.raises(DeviceError, match="comma"):
        _plugin.option(Path("/a,b/p.so"), "out.txt", {})


# --- llvm

LISTING = """\
\t.text
\tadd\tx0, x0, x1                     // encoding: [0x00,0x00,0x01,0x8b]
\tbl\t#16                             // encoding: [0x04,0x00,0x00,0x94]
\tldr\tq0, [x1], #16                  // encoding: [0x20,0x04,0xc1,0x3c]
"""
ADD, CALL, LOAD = bytes.fromhex("0000018b"), bytes.fromhex("04000094"), bytes.fromhex("2004c13c")

REPORT = """\

[0] Code Region - 0

Iterations:        100
Instructions:      300
Total Cycles:      153
Total uOps:        300

[1] Code Region - 1

Iterations:        100
Instructions:      100
Total Cycles:      503
Total uOps:        100
"""


def test_a_listing_is_read():
    assert _mca.encoded(LISTING) == {ADD: "add\tx0, x0, x1", CALL: "bl\t#16", LOAD: "ldr\tq0, [x1], #16"}


def test_a_region_per_block_with_calls_as_branches_and_the_unknown_as_nop():
    text = _mca.assembler([ADD + CALL, LOAD + b"????"], _mca.encoded(LISTING), unknown={"ldr"})
    assert text == (
        "# LLVM-MCA-BEGIN 0\nadd\tx0, x0, x1\nb\t#16\n# LLVM-MCA-END\n# LLVM-MCA-BEGIN 1\nnop\nnop\n# LLVM-MCA-END\n"
    )


def test_a_report_is_read():
    assert _mca.regions(REPORT, 2) == [1.53, 5.03]
    with pytest.raises(DeviceError, match="2 of 3"):
        _mca.regions(REPORT, 3)


def fake(folder: Path, report: str) -> _llvm.Llvm:
    """llvm-mc that knows `LISTING`, and llvm-mca that gives a report and notes that it was asked."""
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(
        f"import sys\nopen({str(folder / 'asked')!r}, 'a').write('x')\nsys.stdin.read()\n"
        f"print({LISTING!r} if '--disassemble' in sys.argv else {report!r})\n"
    )
    return _llvm.Llvm((sys.executable, str(script)), (sys.executable, str(script)), "14.0.6", "test")


def test_cycles_are_remembered_by_content(own_cache, tmp_path):
    llvm = fake(tmp_path / "llvm", REPORT)
    core, codes = _cores.find("cortex-a72"), [ADD + LOAD, CALL]
    expected = {ADD + LOAD: 1.53, CALL: 5.03}
    assert _mca.cycles(codes, core, llvm) == expected
    asked = (tmp_path / "llvm/asked").read_text()
    assert _mca.cycles(codes[::-1], core, llvm) == expected
    assert (tmp_path / "llvm/asked").read_text() == asked  # nothing was run
    _mca.cycles(codes, _cores.find("cortex-a53"), llvm)
    assert (tmp_path / "llvm/asked").read_text() != asked  # another core is another question


def test_a_damaged_memory_is_made_anew(own_cache, tmp_path):
    own_cache.mkdir()
    (own_cache / "cycles.sqlite").write_bytes(b"not a database" * 100)
    found = _mca.cycles([ADD, CALL], _cores.find("cortex-a72"), fake(tmp_path / "llvm", REPORT))
    assert found == {ADD: 1.53, CALL: 5.03}
    asked = (tmp_path / "llvm/asked").read_text()
    _mca.cycles([ADD, CALL], _cores.find("cortex-a72"), fake(tmp_path / "llvm", REPORT))
    assert (tmp_path / "llvm/asked").read_text() == asked  # it was made anew


def test_llvm_of_another_version_is_not_taken(tmp_path, monkeypatch):
    for tool in _llvm.TOOLS:
        path = tmp_path / tool
        path.write_text("#!/bin/sh\necho 'Debian LLVM version 19.1.7'\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _llvm.on_path() is None
    for tool in _llvm.TOOLS:
        (tmp_path / tool).write_text("#!/bin/sh\necho 'Debian LLVM version 14.0.6'\n")
    assert _llvm.on_path().version == "14.0.6"


def test_the_emulators_status_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(_llvm, "find", lambda folder: None)
    missing = _emulator._llvm_status(_emulator.Installation(tmp_path, {"llvm_missing": "no mirror has it"}))
    assert missing["llvm"] is None
    assert "no mirror has it" in missing["llvm_missing"]


# --- cores


def test_the_guest_sees_the_boards_processor(tmp_path):
    (tmp_path / "root/usr").mkdir(parents=True)
    (tmp_path / "root/proc").mkdir()
    _cores.lay_system_files(tmp_path / "guest", tmp_path / "root", _cores.find("cortex-a72"), RPI4.cpu)
    text = (tmp_path / "guest/proc/cpuinfo").read_text()
    assert text.count("CPU part\t: 0xd08") == RPI4.cpu.cores
    assert (tmp_path / "guest/sys/devices/system/cpu/possible").read_text() == "0-3\n"
    assert (tmp_path / "guest/sys/devices/system/cpu/cpu3/cpufreq/cpuinfo_max_freq").read_text() == "1500000\n"
    assert (tmp_path / "guest/usr").is_symlink()
    assert not (tmp_path / "root/proc/cpuinfo").exists()


@pytest.mark.parametrize("name", registry.names("targets"))
def test_every_emulated_target_has_a_core_that_is_known(name):
    facts = target.load(registry.file("targets", name))
    if facts.emulate.cpu:
        core = _cores.find(facts.cpu.core)
        assert (facts.cpu.l1d_kib * 1024) % (core.l1d_ways * _cores.LINE_BYTES) == 0
        assert (facts.cpu.l2_kib * 1024) % (core.l2_ways * _cores.LINE_BYTES) == 0


def test_an_unknown_core_is_refused():
    with pytest.raises(TargetError, match="Did you mean"):
        _cores.find("cortex-a75")


# --- the guest's script

MAPS = f"""\
5500000000-5500001000 r-xp 00000000 08:01 1 {Path(sys.executable).resolve()}
5500002000-5500003000 r--p 00000000 08:01 1 {Path(sys.executable).resolve()}
5500004000-5500008000 r-xp 00000000 08:01 2 /nowhere/packages/runtime/inner/kernels.so
5500009000-550000a000 r-xp 00000000 08:01 3 /nowhere/lib/libm.so.6
550000b000-550000c000 r-xp 00000000 00:00 0
"""


def test_code_is_pythons_the_runtimes_or_nobodys():
    assert _count_probe.images(Path("/nowhere/packages/runtime"), MAPS) == [
        (_count_probe.OUTSIDE, 0x5500000000, 0x1000),
        (_count_probe.RUNTIME, 0x5500004000, 0x4000),
    ]


def test_marks_do_nothing_without_a_plugin():
    _count_probe.tell(_count_probe.BEGIN, 1)


def test_the_script_and_the_plugin_mean_the_same():
    source = _plugin.SOURCE.read_text()
    assert f"#define MAGIC {_count_probe.MAGIC:#x}" in source
    commands = ["RUNTIME", "OUTSIDE", "BEGIN", "END", "START"]
    assert [getattr(_count_probe, name) for name in commands] == [1, 2, 3, 4, 5]
    assert f"enum command {{ RUNTIME = 1, {', '.join(commands[1:])} }};" in source


def test_inputs_that_may_be_indices_are_zeros():
    details = [{"shape": [2, 3], "dtype": dtype} for dtype in (np.int8, np.float32, np.int32, np.bool_)]
    small, real, index, flag = _count_probe.random_inputs(details)
    assert small.min() < 0 < small.max()
    assert (real.dtype, real.std() > 0) == (np.float32, True)
    assert not index.any()
    assert not flag.any()
    assert np.array_equal(small, _count_probe.random_inputs(details)[0])


# --- parts


def test_every_op_becomes_a_model_of_its_own():
    content = dense_model(16, 8, 4)
    whole, parts = tflite.read(content), split(content)
    assert [part.index for part in parts] == [0, 1]
    assert [part.inputs for part in parts] == [(0,), (3,)]
    for part in parts:
        file = tflite.read(part.content)
        kernel = file.tensors[file.ops[0].inputs[1]]
        assert np.array_equal(kernel.data, whole.tensors[whole.ops[part.index].inputs[1]].data)
        assert (len(file.ops), len(file.inputs), len(file.outputs)) == (1, 1, 1)


def test_the_parts_in_turn_give_what_the_whole_gives():
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter
    content = dense_model(16, 8, 4)
    x = np.random.default_rng(1).integers(-128, 128, (1, 16), np.int8)

    def run(model: bytes, value):
        runner = interpreter(model_content=model, num_threads=1)
        runner.allocate_tensors()
        runner.set_tensor(runner.get_input_details()[0]["index"], value)
        runner.invoke()
        return runner.get_tensor(runner.get_output_details()[0]["index"])

    y = x
    for part in split(content):
        y = run(part.content, y)
    assert np.array_equal(y, run(content, x))


def test_a_file_that_is_none_cannot_be_taken_apart():
    with pytest.raises(ArtefactError, match="cannot be taken apart"):
        split(dense_model(4, 4)[:40])


# --- sharing the cost out


def parts(*indices: int) -> list[Part]:
    return [Part(index, b"", ()) for index in indices]


def test_the_entry_that_every_op_alone_pays_is_taken_off():
    costs = {0: _counting.Cost(110, 1010), 1: _counting.Cost(60, 610), 2: _counting.Cost(60, 410)}  # 100 + 10; entry 10
    shares = _counting.share_out(costs, parts(0, 1), ["CONV_2D", "ADD"])
    assert [(op.op, op.instructions, op.cycles, op.alone) for op in shares.ops] == [
        ("CONV_2D", 50, 600, True),
        ("ADD", 50, 400, True),
    ]
    assert (shares.entry_instructions, shares.entry_cycles) == (10, 10)
    assert shares.residual == pytest.approx(10 / 1010)


def test_shares_add_up_to_the_whole_whatever_the_parts_cost():
    costs = {0: _counting.Cost(500, 900.0), 1: _counting.Cost(100, 300.0), 2: _counting.Cost(50, 100.0)}
    shares = _counting.share_out(costs, parts(0, 1), ["CONV_2D", "ADD"])
    assert sum(op.cycles for op in shares.ops) + shares.entry_cycles == pytest.approx(900)
    assert shares.residual == pytest.approx(-500 / 900)
    assert shares.ops[0].cycles == pytest.approx(3 * shares.ops[1].cycles)


def test_an_op_that_cannot_run_alone_gets_what_the_others_leave():
    costs = {0: _counting.Cost(100, 1000.0), 1: _counting.Cost(60, 600.0)}
    shares = _counting.share_out(costs, parts(0, 1), ["CONV_2D", "WHILE"])
    assert [(op.cycles, op.alone) for op in shares.ops] == [(600, True), (400, False)]
    assert shares.residual is None


# --- real counts


@pytest.fixture
def counted():
    reason = _counting.unavailable(RPI4)
    if reason:
        pytest.skip(f"qemu: {reason}")
    return _counting.count


@pytest.mark.qemu
def test_the_same_file_costs_the_same_every_time(counted):
    model = dense_model(64, 32, 16)
    first, again = counted(model, RPI4), counted(model, RPI4, per_op=True, caches=True)
    assert (first.instructions, first.cycles) == (again.instructions, again.cycles)
    assert (first.runtime, first.core) == ("tflite-runtime 2.14.0", "cortex-a72")
    assert sum(op.cycles for op in again.ops) + again.entry_cycles == pytest.approx(again.cycles)
    assert abs(again.residual) < 0.5  # two small ops, each with an entry
    assert again.ops[0].cycles > again.ops[1].cycles > 0
    assert again.memory.loads > 64 * 32 / 16
    assert again.memory.l2_misses <= again.memory.l1d_misses
    assert json.loads(json.dumps(again.to_dict()))["memory"]["loads"] == again.memory.loads


@pytest.mark.qemu
def test_twice_the_width_takes_about_twice_the_cycles(counted):
    narrow, wide = (counted(dense_model(256, width), RPI4).cycles for width in (256, 512))
    assert 1.7 < wide / narrow < 2.3


@pytest.mark.qemu
def test_the_other_runtime_is_counted_too(counted):
    counts = counted(dense_model(128, 128), RPI4, runtime="ai-edge-litert", per_op=True)
    assert counts.package == "ai-edge-litert"
    assert counts.cycles > 128 * 128 / 8  # a Cortex-A72 multiplies at most 8 int8 in a cycle
    assert [op.alone for op in counts.ops] == [True]


@pytest.mark.qemu
def test_what_cannot_be_counted_is_refused(counted):
    with pytest.raises(DeviceError, match="no-runtime"):
        counted(dense_model(8, 8), RPI4, runtime="no-runtime")
    small = RPI4.model_copy(update={"cpu": RPI4.cpu.model_copy(update={"l2_kib": None})})
    with pytest.raises(DeviceError, match=r"cpu\.l2_kib"):
        counted(dense_model(8, 8), small, caches=True)
    with pytest.raises(ArtefactError):
        counted(b"not a model", RPI4)


def test_a_target_without_a_known_core_says_so():
    host = target.load(registry.file("targets", "host"))
    assert "cortex-a72" in _counting.unavailable(host)


def test_missing_llvm_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(_counting.qemu, "unavailable", lambda target, connection: None)
    monkeypatch.setattr(_plugin, "unavailable", lambda: None)
    monkeypatch.setattr(_emulator, "find", lambda: _emulator.Installation(Path("/none"), {"runtimes": {}}))
    monkeypatch.setattr(_counting._qemu, "takes_plugins", lambda folder: True)
    monkeypatch.setattr(_llvm, "find", lambda folder: None)
    assert "edgeprune emulator install" in _counting.unavailable(RPI4)


def test_counts_are_plain_data():
    counts = _counting.Counts(
        1,
        2.0,
        (_counting.OpCounts(0, "ADD", 1, 2, True),),
        0,
        0,
        0.1,
        _counting.Traffic(*NOTHING),
        9,
        "how",
        "tflite-runtime",
        "2.14.0",
        "default",
        "cortex-a72",
        "14.0.6",
        (),
        1.0,
    )
    data = json.loads(json.dumps(counts.to_dict()))
    assert (data["runtime"], data["ops"][0]["op"]) == ("tflite-runtime 2.14.0", "ADD")
    assert dataclasses.replace(counts, memory=None).to_dict()["memory"] is None
