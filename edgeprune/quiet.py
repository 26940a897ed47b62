"""Keep C++ libraries off the user's terminal while they start."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Turn file descriptor 2 away while the block runs.

    TensorFlow and its runtime say which CPU features they use and which GPU is missing; they write past Python, and
    before they have read their own log level. What goes wrong comes as an exception all the same.
    """
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
