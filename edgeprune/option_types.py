"""Types of options that several stages have: what they take, and what is said of what they do not take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from edgeprune import registry


def expressions(value: Any) -> Any:
    """Refuse what is no regular expression: one, a list of them, or the names of a mapping. Anything else as it is.

    Raises:
        ValueError: one does not compile.
    """
    for expression in [value] if isinstance(value, str) else value if isinstance(value, (list, dict)) else []:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"'{expression}' is not a regular expression: {error}") from error
    return value


def member(family: str) -> Callable[[str], str]:
    """A check that a word names a member of a family (`edgeprune list FAMILY`); raises ValueError with the nearest if not."""

    def known(word: str) -> str:
        names = registry.names(family)
        if word not in names:
            raise ValueError(
                f"there is no such {registry.singular(family)}.{registry.suggestion(word, names)} Known: {', '.join(names)}"
            )
        return word

    return known


def _keeps_fewer(pattern: str) -> str:
    n, m = n_of_m(pattern)
    if not n < m:
        raise ValueError(f"n:m keeps n of m, so n must be smaller than m; got {pattern}")
    return pattern


def _positive(block: list[int]) -> list[int]:
    if min(block) < 1:
        raise ValueError("both sides of a block must be at least 1")
    return block


def n_of_m(pattern: str) -> tuple[int, int]:
    """The numbers of a pattern.

    >>> n_of_m("2:4")
    (2, 4)
    """
    n, m = pattern.split(":")
    return int(n), int(m)


Expression = Annotated[str, AfterValidator(expressions)]
NofM = Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$"), AfterValidator(_keeps_fewer)]
Block = Annotated[list[int], Field(min_length=2, max_length=2), AfterValidator(_positive)]
Step = Annotated[int, Field(ge=1)]  # a multiple of channels
Floor = Annotated[int, Field(ge=1)] | Annotated[float, Field(ge=0, le=1)]  # a count of units, or a share
Criterion = Annotated[str, AfterValidator(member("criteria"))]
