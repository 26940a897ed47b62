"""What `check` asks of an accelerator: which ops it takes and why not the others, what memory that takes, and how long.

A target's ``delegate`` names its accelerator; the module in devices/ of that name knows it and satisfies `Accelerator`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgeprune import registry
from edgeprune.target import Target
from edgeprune.tflite_objects import TFLiteFile


@dataclass(frozen=True)
class Placed:
    """What becomes of one op.

    Args:
        index: in the file.
        mapped: whether the accelerator runs it.
        reason: why not, in plain words; None for a mapped op.
        advice: what to change; None for a mapped op.
        after: the op that keeps it off the accelerator; None: it is mapped, or the reason is its own.
    """

    index: int
    mapped: bool
    reason: str | None = None
    advice: str | None = None
    after: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What an accelerator does with a file.

    Args:
        title: the accelerator's full name.
        ops: one per op, in the file's order.
        on_chip_bytes, off_chip_bytes: parameters that are cached, and that are streamed in every inference.
        activation_bytes, activation_limit_bytes: memory that activations need at once, and that there is, in one part of the
            chip.
        instruction_bytes: sent in every inference.
        latency: the block of report.json, predicted.
        culprits: ops that keep others off the accelerator: ``index``, ``op``, ``reason``, ``advice``, ``keeps_off`` (how many
            others) and ``frees`` (how many ops more are mapped when it alone is mended), in the file's order.
        compiler: what the vendor's compiler said, where it is installed.
        notes: what else there is to know, one sentence each.
    """

    title: str
    ops: tuple[Placed, ...]
    on_chip_bytes: int
    off_chip_bytes: int
    activation_bytes: int
    activation_limit_bytes: int
    instruction_bytes: int
    latency: Mapping[str, Any]
    culprits: tuple[Mapping[str, Any], ...] = ()
    compiler: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def mapped(self) -> int:
        """Number of ops that the accelerator runs."""
        return sum(op.mapped for op in self.ops)


class Accelerator(Protocol):
    """What a module in devices/ offers for a target's delegate."""

    def check(self, file: TFLiteFile, target: Target) -> Verdict:
        """What the accelerator does with a file; the vendor's compiler is run where it is installed.

        Raises:
            ArtefactError: nothing of the file can run on it.
        """

    def compiled(self, model: Path | bytes) -> bytes:
        """A model as the accelerator runs it: compiled by the vendor's compiler, unless it is compiled already.

        Raises:
            MissingDependency: it is not, and the compiler is not installed.
            DeviceError: the compiler refuses it.
        """

    def library(self) -> str:
        """The shared library of the delegate, as a board has it."""

    def predict(self, file: TFLiteFile, target: Target) -> Mapping[str, Any]:
        """The ``latency`` block of report.json for a file, predicted.

        Raises:
            ArtefactError: nothing of the file can run on it.
        """


def of(target: Target) -> Accelerator | None:
    """The accelerator of a target; None where it has none."""
    if target.delegate is None:
        return None
    found: Accelerator = registry.module("backends", target.delegate.name)
    return found
