"""One array, or several by name: what a model with one input sees, and what one with several does; the same for answers.

Every function here takes both forms, and so does most of what is written with them: a model with one input needs no
name for it, and nobody who has such a model should have to invent one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Columns = np.ndarray | dict[str, np.ndarray]

LONE = ""  # the name of an array that needs none


def each(function: Callable[..., Any], *columns: Any) -> Any:
    """``function`` of every array, in the form that the first of ``columns`` has; all of them have the same names.

    >>> each(len, [1, 2]), each(len, {"left": [1, 2], "right": [3, 4]})
    (2, {'left': 2, 'right': 2})
    """
    if not isinstance(columns[0], Mapping):
        return function(*columns)
    return {name: function(*(column[name] for column in columns)) for name in columns[0]}


def named(columns: Any) -> dict[str, Any]:
    """The arrays by name; a lone one is called `LONE`."""
    return dict(columns) if isinstance(columns, Mapping) else {LONE: columns}


def unnamed(arrays: Mapping[str, Any]) -> Any:
    """What ``named`` was given."""
    return arrays[LONE] if LONE in arrays else dict(arrays)


def values(columns: Any) -> tuple[Any, ...]:
    """The arrays in their order."""
    return tuple(named(columns).values())


def rows(columns: Any) -> int:
    """Number of samples, which is the same for every array."""
    return len(values(columns)[0])
