"""Pictures for the docs: SVG files that are the same for the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def panels(path: Path, height: float, **options: Any) -> Iterator[Any]:
    """Two panels side by side to draw on; the file is written when the block ends. Needs matplotlib (the extra ``bench``).

    Args:
        path: of the .svg file.
        height: inches; the width is 9.
        options: of ``pyplot.subplots``.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "edgeprune"  # the same results, the same file
    from matplotlib import pyplot

    figure, found = pyplot.subplots(1, 2, figsize=(9, height), layout="constrained", **options)
    yield found
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
