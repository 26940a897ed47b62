"""Some samples of a file as a file of their own, drawn once: what a benchmark takes where all of them would last too long."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from edgeprune import files


def subset(source: Path, train: int, test: int, folder: Path) -> Path:
    """The file of the samples; written if it is not there yet.

    Args:
        source: npz with x_train, y_train, x_test, y_test.
        train, test: how many of each split, in the order of the source; the same ones every time.
        folder: where the file goes.
    """
    path = folder / f"{source.stem}-{train}-{test}.npz"
    if not path.exists():
        random, arrays = np.random.Generator(np.random.PCG64(0)), {}
        with np.load(source) as stored:
            for part, count in (("train", train), ("test", test)):
                chosen = np.sort(random.permutation(len(stored[f"y_{part}"]))[:count])
                arrays |= {f"{axis}_{part}": stored[f"{axis}_{part}"][chosen] for axis in "xy"}
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes_atomic(path, stream.getvalue())
    return path
