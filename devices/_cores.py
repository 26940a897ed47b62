"""Facts about the cores that are counted: what the guest's system files say, the caches' ways, llvm-mca's name for them.

A library that looks for the fastest kernels asks the system which core it runs on. Under qemu-user it would be told
about the host, and would choose otherwise on every host. So the guest finds what the board's own system says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import TargetError
from edgeprune.registry import suggestion
from edgeprune.target import Cpu

LINE_BYTES = 64  # a cache line of each of these cores


@dataclass(frozen=True)
class Core:
    """One core type.

    Args:
        name: as compilers spell it.
        part: the main ID register's part number.
        variant, revision: of the boards' chips.
        features: what Linux lists for it on these boards.
        l1d_ways, l2_ways: associativity (Arm's Technical Reference Manuals, memory system).
        extensions: what llvm needs to be told so that it can read its code.
        dispatch: instructions per cycle that enter the core, where llvm's tables are another core's; None: llvm's.
        stand_in: what to know about llvm's tables for it; None: they are its own.
    """

    name: str
    part: int
    variant: int
    revision: int
    features: str
    l1d_ways: int
    l2_ways: int
    extensions: str
    dispatch: int | None = None
    stand_in: str | None = None

    def cpuinfo(self, cores: int) -> str:
        """What /proc/cpuinfo says."""
        lines = (
            "BogoMIPS\t: 108.00",
            f"Features\t: {self.features}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
            f"CPU variant\t: {self.variant:#x}",
            f"CPU part\t: {self.part:#x}",
            f"CPU revision\t: {self.revision}",
        )
        return "".join("\n".join((f"processor\t: {index}", *lines, "\n")) for index in range(cores))


_V8 = "fp asimd evtstrm crc32 cpuid"
_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_DOT = "+v8.2a,+dotprod,+fullfp16,+rcpc"

CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", 0xD03, 0, 4, _V8, l1d_ways=4, l2_ways=16, extensions="+v8a,+crc"),
        Core("cortex-a55", 0xD05, 2, 0, _V82, l1d_ways=4, l2_ways=4, extensions=_DOT),
        Core("cortex-a72", 0xD08, 0, 3, _V8, l1d_ways=2, l2_ways=16, extensions="+v8a,+crc"),
        Core(
            "cortex-a76",
            0xD0B,
            4,
            1,
            _V82,
            l1d_ways=4,
            l2_ways=8,
            extensions=_DOT,
            dispatch=4,
            stand_in="llvm 14 has Cortex-A57's tables for Cortex-A76; with four instructions dispatched per cycle",
        ),
    )
}


def find(name: str | None) -> Core:
    """The core of that name.

    Raises:
        TargetError: it is none that is known here.
    """
    if name in CORES:
        return CORES[name]
    raise TargetError(
        f"Cycles are counted for the cores {', '.join(CORES)}, and the target's core is '{name}'."
        f"{suggestion(name or '', CORES)} Use another target, or measure on the board with --board."
    )


def system_files(core: Core, cpu: Cpu) -> dict[str, str]:
    """What the guest reads about its processor: path below the root -> content.

    Args:
        cpu: of the target: its number of cores and its clock.
    """
    count = cpu.cores or 1
    every = f"0-{count - 1}" if count > 1 else "0"
    folder = "sys/devices/system/cpu"
    found = {"proc/cpuinfo": core.cpuinfo(count), f"{folder}/kernel_max": f"{count - 1}\n"}
    found |= {f"{folder}/{name}": f"{every}\n" for name in ("possible", "present", "online")}
    clock_khz = f"{round((cpu.clock_mhz or 1000) * 1000)}\n"
    for index in range(count):
        own = f"{folder}/cpu{index}"
        found |= {f"{own}/cpufreq/cpuinfo_{end}_freq": clock_khz for end in ("min", "max")}
        found |= {f"{own}/topology/{name}": f"{every}\n" for name in ("cluster_cpus_list", "core_siblings_list")}
        found |= {f"{own}/topology/package_cpus_list": f"{every}\n", f"{own}/topology/core_id": f"{index}\n"}
        found |= {f"{own}/topology/{name}": "0\n" for name in ("physical_package_id", "cluster_id")}
        found[f"{own}/topology/thread_siblings_list"] = f"{index}\n"
    return found


def lay_system_files(folder: Path, root: Path, core: Core, cpu: Cpu) -> None:
    """Make ``folder`` a root like ``root``, whose system files are the board's.

    Args:
        folder: to be made.
        root: of the emulator's installation; it is linked to, not changed.
    """
    folder.mkdir()
    for entry in sorted(root.iterdir()):
        if entry.name not in ("proc", "sys"):
            (folder / entry.name).symlink_to(entry)
    for name, content in system_files(core, cpu).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
