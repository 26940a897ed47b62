"""How many damaged inputs the tests try: one in eight in every run, all of them with ``EDGEPRUNE_FUZZ=full``.

EDGEPRUNE_FUZZ=full python -m pytest tests/test_malformed.py
"""

from __future__ import annotations

import os

FULL = os.environ.get("EDGEPRUNE_FUZZ") == "full"
SHARE = 8  # one in so many is tried in every run


def tried(count: int) -> int:
    """How many of ``count`` inputs this run tries, at least 1."""
    return count if FULL else max(count // SHARE, 1)
