"""Where a model runs: the public facts of a target, the private address of a board, and what a backend must offer.

A target is one YAML file, parsed by ``load`` into a frozen `Target`. Every number in it has a source, or the file is
refused: ``sources`` maps dotted paths (``cpu.clock_mhz``, or ``cpu`` for all below it) to where the figure comes from.

A backend is a module that satisfies `Backend`; its name is the module's name, and a target's ``backend`` names the one
that runs it when no board is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, model_validator

from edgeprune import registry, yaml_files
from edgeprune.errors import TargetError
from edgeprune.measurement import Reply, Request
from edgeprune.registry import suggestion
from edgeprune.validation import Strict, validate

Count = Annotated[int, Field(gt=0)]
Figure = Annotated[float, Field(gt=0)]
Models = Annotated[tuple[str, ...], Field(strict=False)]
Words = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class Cpu(Strict):
    """The processor that runs what no delegate takes."""

    core: str | None = Field(
        None, description="core type as compilers spell it, such as cortex-a72; null: not known before the run"
    )
    isa: str | None = Field(None, description="instruction set, such as armv8.0-a; null: any")
    cores: Count | None = Field(None, description="number of cores")
    clock_mhz: Figure | None = Field(None, description="highest clock without overclocking, MHz")
    l1i_kib: Figure | None = Field(None, description="L1 instruction cache per core, KiB")
    l1d_kib: Figure | None = Field(None, description="L1 data cache per core, KiB")
    l2_kib: Figure | None = Field(None, description="L2 cache, KiB (per core or shared: the source says)")
    l3_kib: Figure | None = Field(None, description="L3 cache, KiB")


class Memory(Strict):
    """Main memory."""

    mib: Count | None = Field(None, description="size of the smallest board that is sold, MiB")
    bandwidth_gb_s: Figure | None = Field(
        None, description="bandwidth, GB/s (10^9 bytes; peak or measured: the source says)"
    )


class Runtime(Strict):
    """The TFLite runtime that users of this target install."""

    package: Literal["tflite-runtime", "ai-edge-litert"] = Field(description="Python package")
    version: str | None = Field(None, description="its version, quoted; null: the one that is installed")
    kernels: Literal["ruy", "xnnpack"] = Field(description="what runs its int8 convolutions by default")
    threads: Count = Field(description="threads to run a model with")


class ChannelMultiple(Strict):
    """Steps in which channels fill the int8 kernels: between two steps a removed channel saves nothing."""

    out: Count = Field(description="output channels")
    in_: Count = Field(alias="in", description="input channels")
    until: Count | None = Field(None, description="output channels up to which that holds; null: for any number")
    beyond: Count | None = Field(None, description="output channels, in layers with more than `until`")

    @model_validator(mode="after")
    def _both(self) -> ChannelMultiple:
        if (self.until is None) != (self.beyond is None):
            raise ValueError("give both 'until' and 'beyond', or neither")
        return self


class Emulate(Strict):
    """How the target's CPU is emulated, or why it is not."""

    cpu: str | None = Field(None, description="QEMU's name of the core (-cpu)")
    qemu_at_least: str | None = Field(None, description="oldest QEMU that knows the core, quoted")
    reason: str | None = Field(None, description="why the target is not emulated")

    @model_validator(mode="after")
    def _one_of(self) -> Emulate:
        if (self.cpu is None) == (self.reason is None):
            raise ValueError("give either 'cpu' (QEMU's name of the core) or 'reason' (why it is not emulated)")
        return self


class Delegate(Strict):
    """An accelerator that takes a part of the model."""

    name: str = Field(description="module in devices/ that knows it")
    link: Literal["usb", "pcie"] = Field(description="how it is attached")
    clock_mhz: Figure | None = Field(None, description="clock, MHz")
    parameter_kib: Figure | None = Field(None, description="on-chip memory that caches parameters, KiB, at most")


class Zeros(Strict):
    """What zero weights buy on this target, and what they do not."""

    latency: Literal["none", "some"] = Field(description="do the int8 kernels skip zeros?")
    download: bool = Field(description="does the compressed file shrink?")
    words: Words = Field(description="the same for people: paragraphs of the report")


class Target(Strict):
    """One kind of board, as one YAML file describes it."""

    name: str = Field(description="the word for --target", pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str = Field(description="its full name")
    cpu: Cpu = Field(description="the processor")
    memory: Memory = Field(description="main memory")
    runtime: Runtime = Field(description="the TFLite runtime")
    channel_multiple: ChannelMultiple | None = Field(None, description="steps in which channels pay; null: not known")
    board_models: Models = Field(
        (),
        description="how such a board begins to name itself in its device tree (/proc/device-tree/model); none: any board",
    )
    recipe: str | None = Field(
        None, description="the recipe that suits it, taken when none is named; null: the one that suits any"
    )
    backend: str = Field("qemu", description="module in devices/ that runs it when no board is given")
    emulate: Emulate = Field(description="how it is emulated, or why not")
    delegate: Delegate | None = Field(None, description="its accelerator; null: none")
    zeros: Zeros = Field(description="what zeros buy here")
    sources: dict[str, str] = Field(
        description="dotted path of a figure, or of the block it stands in -> where it comes from"
    )

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Target:
        for path, figure in self.figures().items():
            if not self.source(path):
                raise ValueError(
                    f"the figure {path} = {figure} has no source; add '{path}: where it is from' to sources"
                )
        known = [path for path, _ in _paths(self._facts())]
        for path in self.sources:
            if path not in known:
                raise ValueError(f"sources names '{path}', which is not in the file.{suggestion(path, known)}")
        return self

    def source(self, path: str) -> str | None:
        """Where the figure at a dotted path comes from: its own source, else that of the nearest block around it."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            found = self.sources.get(".".join(parts[:length]))
            if found:
                return found
        return None

    def figures(self) -> dict[str, float]:
        """Every number in the file, by dotted path."""
        return {path: value for path, value in _paths(self._facts()) if _is_number(value)}

    def _facts(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude={"sources"})


def load(path: Path) -> Target:
    """The target that a YAML file describes: one of ours, or the user's own.

    Raises:
        TargetError: the file is unreadable, no YAML, or does not validate; the message has the file, the path inside
            it, what was given, what is known, and the nearest name.
    """
    return parse(yaml_files.read(path, TargetError), str(path))


def recipe_for(word: str) -> str | None:
    """The recipe that suits a target, given by its name or file; None if it names none."""
    return load(registry.file("targets", word)).recipe


def parse(data: Any, where: str) -> Target:
    """The target that plain data describes; ``where`` names its origin in errors."""
    return validate(Target, data, where, TargetError)


def _paths(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        yield prefix + key, value
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Connection:
    """How one target is reached: a private address, never committed.

    Args:
        kind: the backend, a module in devices/ or a dotted path.
        address: what that backend connects to, such as ``pi@raspberrypi.local``; None where it needs none.
    """

    kind: str
    address: str | None = None


def connection(target: Target, board: str | None = None) -> Connection:
    """The connection for ``--board``: an address is reached by ssh; without one, the target names its backend."""
    return Connection("ssh", board) if board else Connection(target.backend)


class Session(Protocol):
    """A target that is ready to run models."""

    def run(self, model: Path | bytes, request: Request) -> Reply:
        """Run a .tflite as the request says.

        Raises:
            ArtefactError: the runtime refuses the model.
            DeviceError: the target did not do what was asked; the message has its last words.
        """


class Backend(Protocol):
    """What a module in devices/ offers."""

    def unavailable(self, target: Target, connection: Connection) -> str | None:
        """None, or the reason why this backend cannot run this target, and what to do about it."""

    def session(self, target: Target, connection: Connection) -> AbstractContextManager[Session]:
        """Connect for the duration of a ``with`` block.

        Raises:
            DeviceError: the backend is ``unavailable``, for that reason.
        """
