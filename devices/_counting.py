r"""What one inference costs on the target's core: the instructions that the real Arm runtime executes, and their cycles.

The model runs under qemu-user on the target's core, as the board's own system describes it (`_cores`). A plugin counts
how often every translated block runs between the marks that `_count_probe` sets around ``invoke()``, after warm-up and with
Python left out; llvm-mca tells what each block takes (`_mca`):

.. math:: \text{cycles} = \sum_{\text{blocks}} \text{executions} \cdot \text{cycles per execution}.

So a count depends on the file, the runtime and the core: it is the same every time. (Where this machine's folders have longer
names, the guest's heap begins elsewhere, and malloc takes some instructions more or less: below one in 10,000.)

These are the cycles of one thread whose data lie in the first cache. What the memory adds, and what more threads save, is
for the model of latency to say; the cache model here tells it how much crosses to the memory.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeprune import tflite
from edgeprune.devices import _cores, _count_probe, _emulator, _llvm, _mca, _plugin, _qemu, _scripts, _wheels, qemu
from edgeprune.devices._session import read_model, start
from edgeprune.errors import DeviceError
from edgeprune.target import Connection, Target
from edgeprune.tflite_parts import Part, split

WARMUPS = 2  # the first invocation lays out what the kernels keep; the second finds it
WHOLE = 0  # label of the whole model; its parts follow
TIMEOUT_S = 1800.0
SEED = "0"  # of the guest's random numbers

Resolver = Literal["default", "without_delegates", "reference"]


@dataclass(frozen=True)
class OpCounts:
    """What one op of the model costs.

    Args:
        index, op: position and name in the file.
        instructions, cycles: its share of the whole; see `Counts.residual`.
        alone: whether the op was run by itself; else it stands for what the others leave.
    """

    index: int
    op: str
    instructions: float
    cycles: float
    alone: bool


@dataclass(frozen=True)
class Traffic:
    """What the caches make of an inference's memory accesses, in a state that the inference before has left.

    Args:
        loads, stores: accesses; a load of a pair is two.
        l1d_read_misses, l1d_write_misses: lines that the first data cache did not have.
        l2_read_misses, l2_write_misses: lines that the second did not have either.
        writebacks: changed lines that went from the second cache to the memory.
        line_bytes: size of a line.
    """

    loads: int
    stores: int
    l1d_read_misses: int
    l1d_write_misses: int
    l2_read_misses: int
    l2_write_misses: int
    writebacks: int
    line_bytes: int = _cores.LINE_BYTES

    @property
    def l1d_misses(self) -> int:
        """Lines that the first data cache did not have."""
        return self.l1d_read_misses + self.l1d_write_misses

    @property
    def l2_misses(self) -> int:
        """Lines that no cache had."""
        return self.l2_read_misses + self.l2_write_misses

    @property
    def memory_bytes(self) -> int:
        """Bytes between the caches and the memory, both ways."""
        return (self.l2_misses + self.writebacks) * self.line_bytes


@dataclass(frozen=True)
class Counts:
    """One inference, one thread, warmed up.

    Args:
        instructions: executed by the runtime and the libraries it calls.
        cycles: of ``core``, every load a hit.
        ops: one entry per op; empty when not asked for. With ``entry_cycles``, their cycles make up ``cycles``.
        entry_instructions, entry_cycles: of entering the runtime, whatever the model; 0 without ``ops``.
        residual: by how much the ops alone cost more than the whole, as a share of the whole, before entries are taken
            off and the rest is scaled to the whole; None without ``ops``, or where an op could not run alone.
        memory: None when not asked for.
        arena_bytes, arena_how: memory of everything that is not weights, and how it was counted.
        package, version: of the runtime.
        resolver: which of its kernels.
        core: whose cycles.
        llvm: version of the tables.
        notes: what to know about the cycles; a sentence each.
        seconds: wall time that counting took.
    """

    instructions: int
    cycles: float
    ops: tuple[OpCounts, ...]
    entry_instructions: float
    entry_cycles: float
    residual: float | None
    memory: Traffic | None
    arena_bytes: int | None
    arena_how: str | None
    package: str
    version: str
    resolver: Resolver
    core: str
    llvm: str
    notes: tuple[str, ...]
    seconds: float

    @property
    def runtime(self) -> str:
        """Such as ``tflite-runtime 2.14.0``."""
        return f"{self.package} {self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **asdict(self),
            "runtime": self.runtime,
            "ops": [asdict(op) for op in self.ops],
            "notes": list(self.notes),
        }


class Cost(NamedTuple):
    """Instructions and cycles of a region."""

    instructions: float
    cycles: float


def unavailable(target: Target, runtime: str | None = None) -> str | None:
    """None, or why nothing can be counted for a target here, and what to do about it."""
    if target.cpu.core not in _cores.CORES:
        return f"cycles are counted for {', '.join(_cores.CORES)}, not for {target.cpu.core or 'an unknown core'}"
    reason = qemu.unavailable(target, Connection("qemu")) or _plugin.unavailable()
    if reason:
        return reason
    installation = _emulator.find()
    if installation is None or (runtime and runtime not in installation.runtimes):
        return f"the emulator does not have the runtime '{runtime}'"
    if not _qemu.takes_plugins(installation.folder):
        return f"this qemu-aarch64 takes no plugins; take it off PATH and run {_emulator.HOW} --force"
    if _llvm.find(installation.folder) is None:
        return f"llvm-mca {_llvm.VERSION} is neither on PATH nor in the emulator; run {_emulator.HOW} --force"
    return None


def count(
    model: Path | bytes,
    target: Target,
    runtime: str | None = None,
    resolver: Resolver = "default",
    invocations: int = 1,
    per_op: bool = False,
    caches: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Counts:
    """Count one inference on a target's core.

    Args:
        model: a .tflite file, or its bytes.
        runtime: package; None: the target's.
        resolver: which of its kernels.
        invocations: counted ones; the last is taken.
        per_op: run every op alone as well, to share the cycles out.
        caches: feed a model of the target's caches.
        timeout_s: longest wait for the emulator.

    Raises:
        ArtefactError: the file cannot be read, or the runtime refuses it.
        DeviceError: counting is ``unavailable``, or something of it failed.
    """
    started = time.monotonic()
    content = model if isinstance(model, bytes) else read_model(model)
    file = tflite.read(content)
    reason = unavailable(target, runtime)
    installation = _emulator.find()
    llvm = _llvm.find(installation.folder) if installation else None
    if reason or installation is None or llvm is None:
        raise DeviceError(f"Nothing can be counted for '{target.name}': {reason}.")
    core = _cores.find(target.cpu.core)
    parts = split(content) if per_op else ()
    job = _Job(target, runtime or target.runtime.package, resolver, invocations, caches, timeout_s)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        reply, found = _run(Path(folder), installation, job, content, parts)
    regions = _last_by_label(found)
    blocks = {block.code for region in regions.values() for block in region.executions}
    known = _mca.cycles(blocks, core, llvm)
    costs = {label: _cost(region, known) for label, region in regions.items()}
    shares = share_out(costs, parts, [op.op for op in file.ops]) if per_op else Shares((), 0.0, 0.0, None)
    return Counts(
        instructions=regions[WHOLE].instructions,
        cycles=costs[WHOLE].cycles,
        **shares._asdict(),
        memory=Traffic(*regions[WHOLE].traffic) if caches else None,
        arena_bytes=reply["arena"]["bytes"],
        arena_how=reply["arena"]["how"],
        package=reply["runtime"]["package"],
        version=reply["runtime"]["version"],
        resolver=resolver,
        core=core.name,
        llvm=llvm.version,
        notes=(core.stand_in,) if core.stand_in else (),
        seconds=time.monotonic() - started,
    )


class _Job(NamedTuple):
    """What is to be run."""

    target: Target
    runtime: str
    resolver: Resolver
    invocations: int
    caches: bool
    timeout_s: float


def _run(
    folder: Path, installation: _emulator.Installation, job: _Job, content: bytes, parts: Sequence[Part]
) -> tuple[dict[str, Any], list[_plugin.Region]]:
    """The probe's reply, and the plugin's regions.

    All that the guest sees has the same name on every host (links in the working folder, which it is told by relative
    paths), so that its memory is laid out alike.
    """
    core = _cores.find(job.target.cpu.core)
    _cores.lay_system_files(folder / "root", installation.folder / "root", core, job.target.cpu)
    launcher = installation.launcher(str(job.target.emulate.cpu), job.runtime)
    runtime = f"{job.runtime}-{installation.runtimes[job.runtime]}"
    packages = {
        name: installation.folder / "packages" / package
        for name, package in (("runtime", runtime), ("numpy", _wheels.NUMPY.folder))
    }
    packages["scripts"] = _scripts.folder(installation, launcher)
    for name, package in packages.items():
        (folder / name).symlink_to(package)
    _write_request(folder, job, content, parts)
    plugin = _plugin.option(_plugin.build(), "blocks.txt", _cache_sizes(job) if job.caches else {})
    command = [*_qemu.command(installation.folder), "-cpu", str(job.target.emulate.cpu), "-seed", SEED, "-L", "root"]
    command += [
        "-plugin",
        plugin,
        f"root/{installation.python}",
        "-S",
        "-s",
        *_scripts.start("_count_probe"),
        "request.json",
    ]
    environment = {**launcher.environment, "PYTHONPATH": ":".join(packages)}
    with start(command, environment, folder, "words.txt") as child:
        reply = child.answer(job.timeout_s)
        child.process.wait(job.timeout_s)
    with (folder / "blocks.txt").open(encoding="ascii") as stream:
        return reply, _plugin.read(stream)


def _write_request(folder: Path, job: _Job, content: bytes, parts: Sequence[Part]) -> None:
    (folder / "model.tflite").write_bytes(content)
    (folder / "parts").mkdir()  # out of Python's sight, which lists the working folder
    for part in parts:
        (folder / f"parts/op{part.index}.tflite").write_bytes(part.content)
    entries = [{"file": f"parts/op{part.index}.tflite", "tensors": list(part.inputs)} for part in parts]
    (folder / "parts/parts.json").write_text(json.dumps(entries), encoding="utf-8")
    request = {
        "schema": _count_probe.SCHEMA,
        "runtime": job.runtime,
        "resolver": job.resolver,
        "warmups": WARMUPS,
        "invocations": job.invocations,
        "model": "model.tflite",
        "parts": "parts/parts.json",
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")


def _cache_sizes(job: _Job) -> dict[str, str]:
    """``l1d`` and ``l2`` -> what the plugin takes.

    Raises:
        DeviceError: the target does not say how large they are.
    """
    core, cpu = _cores.find(job.target.cpu.core), job.target.cpu
    if cpu.l1d_kib is None or cpu.l2_kib is None:
        raise DeviceError(
            f"The target '{job.target.name}' does not say cpu.l1d_kib and cpu.l2_kib, which its caches are modelled with. "
            "Add them to its file, with their source, or count without caches."
        )
    sizes = {"l1d": (cpu.l1d_kib, core.l1d_ways), "l2": (cpu.l2_kib, core.l2_ways)}
    return {name: f"{round(kib * 1024)}:{ways}:{_cores.LINE_BYTES}" for name, (kib, ways) in sizes.items()}


def _last_by_label(regions: Iterable[_plugin.Region]) -> dict[int, _plugin.Region]:
    return {region.label: region for region in regions}


def _cost(region: _plugin.Region, cycles: Mapping[bytes, float]) -> Cost:
    """What a region costs; summed up in a fixed order, so that the last bit is the same every time."""
    by_code: defaultdict[bytes, int] = defaultdict(int)
    for block, executions in region.executions.items():
        by_code[block.code] += executions
    return Cost(region.instructions, sum(by_code[code] * cycles[code] for code in sorted(by_code)))


class Shares(NamedTuple):
    """`Counts`, by op."""

    ops: tuple[OpCounts, ...]
    entry_instructions: float
    entry_cycles: float
    residual: float | None


def share_out(costs: Mapping[int, Cost], parts: Sequence[Part], names: Sequence[str]) -> Shares:
    """Share the whole's cost out among its ops, by what each costs alone.

    An op alone costs what it costs in the whole and once more the way into the runtime. That entry is the same for all, so
    n of them are in the sum of the parts where the whole has one: entry = (sum − whole) / (n − 1), between nothing and the
    cheapest part. What then is left is scaled away. An op that could not run alone gets what the others leave.

    Args:
        costs: label -> cost; `WHOLE`, and 1, 2, … for the parts that ran.
        parts: in the order of their labels.
        names: of all ops of the model.
    """
    whole = costs[WHOLE]
    alone = {part.index: costs[label] for label, part in enumerate(parts, 1) if label in costs}
    columns = [_column([cost[field] for cost in alone.values()], whole[field], len(names)) for field in range(2)]
    (instructions, entry_instructions, _), (cycles, entry_cycles, residual) = columns
    rest = [max(0.0, (whole[field] - sum(columns[field][0]) - columns[field][1])) for field in range(2)]
    absent = len(names) - len(alone)
    shares = {index: (instructions[place], cycles[place]) for place, index in enumerate(alone)}
    ops = tuple(
        OpCounts(index, name, *shares[index], True)
        if index in shares
        else OpCounts(index, name, rest[0] / absent, rest[1] / absent, False)
        for index, name in enumerate(names)
    )
    return Shares(ops, entry_instructions, entry_cycles, residual)


def _column(alone: Sequence[float], whole: float, count: int) -> tuple[list[float], float, float | None]:
    """One figure of all parts, their entry taken off and scaled; the entry; by how much they cost more."""
    complete, over = len(alone) == count, sum(alone) - whole
    entry = min(max(over / (len(alone) - 1), 0.0), *alone) if complete and len(alone) > 1 else 0.0
    bare = [figure - entry for figure in alone]
    if not sum(bare):
        return bare, entry, None
    if not complete:
        factor = min(1.0, whole / sum(bare))
        return [figure * factor for figure in bare], entry, None
    return [figure * (whole - entry) / sum(bare) for figure in bare], entry, over / whole
