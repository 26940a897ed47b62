"""The generated parts of samplers.md: every sampler, from its docstring and its attributes."""

from __future__ import annotations

import re
from collections.abc import Callable

from page_parts import table

from edgeprune import catalogue, registry

JUDGES = {"cut": "the trained model, cut", "supernet": "a super-net"}


def _samplers() -> str:
    """Name, what it does, what its candidates are evaluated with, cost, papers."""
    found = [(name, catalogue.sampler(name)) for name in registry.names("samplers")]
    rows = [(f"`{name}`", one.purpose, JUDGES[one.judge], one.cost, "; ".join(one.papers)) for name, one in found]
    return table(("name", "what it does", "evaluates with", "cost", "paper"), rows)


def _sections() -> str:
    """What each docstring says beyond its first sentence."""
    parts = [(name, catalogue.sampler(name).text) for name in registry.names("samplers")]
    return "\n\n".join(f"### `{name}`\n\n{_markdown(text)}" for name, text in parts)


def _markdown(text: str) -> str:
    """A docstring's paragraphs: lines folded anew, indented ones as they are, and code with one mark."""
    return "\n\n".join(
        "```text\n{}\n```".format(re.sub(r"^    ", "", part, flags=re.MULTILINE).rstrip())
        if part.startswith("    ")
        else " ".join(part.split()).replace("``", "`")
        for part in re.split(r"\n\n+", text.strip("\n"))
    )


BLOCKS: dict[str, Callable[[], str]] = {"samplers": _samplers, "sampler-sections": _sections}
