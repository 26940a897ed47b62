"""How many damaged or random inputs the tests try: a share of them in every run, all with ``EDGEPRUNE_FUZZ=full``.

EDGEPRUNE_FUZZ=full python -m pytest tests/test_malformed.py
"""

from __future__ import annotations

import os

FULL = os.environ.get("EDGEPRUNE_FUZZ") == "full"
SHARE = 8  # one in so many is tried in every run


def tried(count: int, share: int = SHARE) -> int:
    """How many of ``count`` inputs this run tries, at least 1: one in ``share``."""
    return count if FULL else max(count // share, 1)
