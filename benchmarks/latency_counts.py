"""Counts of many .tflite files, kept in a folder outside the repository, so that nothing is counted twice.

A count takes from seconds to a minute. It is kept under the file's digest, the runtime, its kernels, the core, and what was
counted of it, and is taken anew when any of these is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from edgeprune import files
from edgeprune.devices import _counting
from edgeprune.errors import ArtefactError
from edgeprune.target import Target


class Job(NamedTuple):
    """What is counted, and how."""

    file: Path
    package: str
    resolver: str
    per_op: bool = False
    caches: bool = False

    def kept(self, folder: Path, target: Target) -> Path:
        """Where the count is, or will be."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()[:12]
        what = "+".join(word for word, there in (("ops", self.per_op), ("caches", self.caches)) if there) or "whole"
        return folder / f"{self.file.stem}.{digest}.{self.package}.{self.resolver}.{target.cpu.core}.{what}.json"


def counts(jobs: Sequence[Job], folder: Path, target: Target, parallel: int = 1) -> list[dict[str, Any]]:
    """One count for every job, in their order; what is not kept yet is counted, ``parallel`` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda job: _count(job, folder, target), jobs))


def taken(jobs: Sequence[Job], folder: Path, target: Target, parallel: int = 1) -> list[tuple[Job, dict[str, Any]]]:
    """The jobs that the runtime takes, each with its count; a model that it refuses is named."""

    def count(job: Job) -> tuple[Job, dict[str, Any]] | None:
        try:
            return job, _count(job, folder, target)
        except ArtefactError as error:
            print(f"left out: {job.package} refuses {job.file.stem}: {error}", flush=True)
            return None

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(parallel) as pool:
        return [found for found in pool.map(count, jobs) if found is not None]


def _count(job: Job, folder: Path, target: Target) -> dict[str, Any]:
    kept = job.kept(folder, target)
    if not kept.exists():
        found = _counting.count(
            job.file,
            target,
            runtime=job.package,
            resolver=job.resolver,  # type: ignore[arg-type]
            per_op=job.per_op,
            caches=job.caches,
        )
        files.write_text_atomic(kept, json.dumps(found.to_dict()) + "\n")
        print(f"counted {kept.stem}: {found.cycles / 1e6:.2f} M cycles in {found.seconds:.0f} s", flush=True)
    counted: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return counted
