"""From the curves of a sensitivity analysis to ``stages.shrink.ratios`` of a recipe, and from a file to them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune import yaml_files
from edgeprune.errors import RecipeError

EVERYTHING_ELSE = ".*"


def gentle(points: Sequence[Mapping[str, Any]], most: float) -> float:
    """The largest ratio up to which no point drops by more than ``most``; 0 if already the first one does.

    >>> gentle([{"ratio": 0.1, "drop": 0.0}, {"ratio": 0.5, "drop": 0.03}, {"ratio": 0.9, "drop": 0.01}], 0.01)
    0.1
    """
    best = 0.0
    for point in points:
        if point["drop"] > most:
            break
        best = float(point["ratio"])
    return best


def fragment(result: Mapping[str, Any]) -> str:
    """The chosen ratios as a part of a recipe, YAML.

    What is not named keeps all its channels. Names that are no regular expressions are escaped.
    """
    ratios = {literal(name): ratio for name, ratio in result["chosen"].items()}
    stage = {"criterion": result["criterion"], "scope": "layer", "ratios": {**ratios, EVERYTHING_ELSE: 0.0}}
    head = (
        f"# For each group of channels the largest ratio that alone costs at most {result['max_drop']:g} of {result['metric']['name']},\n"
        f"# without fine-tuning. Of {result['model']}, by edgeprune sensitivity.\n"
    )
    return head + yaml_files.dump({"stages": {"shrink": stage}})


def literal(name: str) -> str:
    """The name as a word of ``stages.shrink.ratios``: a name comes before an expression, but must be one too."""
    try:
        re.compile(name)
    except re.error:
        return re.escape(name)
    return name


def read(path: str) -> dict[str, Any]:
    """Name -> ratio from a file of ours, or from any YAML or JSON mapping.

    Args:
        path: ``ratios.yaml``, ``sensitivity.json``, a recipe with ``stages.shrink.ratios``, or names -> ratios alone.

    Raises:
        RecipeError: there is no such file, or no ratios in it.
    """
    file = Path(path)
    if not file.is_file():
        raise RecipeError(
            f"there is no file '{path}'. Give names -> ratios, or the ratios.yaml of edgeprune sensitivity."
        )
    found = yaml_files.read(file)
    if isinstance(found, dict) and "groups" in found and "schema" in found:
        if found.get("chosen") is None:
            raise RecipeError(f"{path} holds no choice of ratios. Run edgeprune sensitivity again with --max-drop.")
        return {**{literal(name): ratio for name, ratio in found["chosen"].items()}, EVERYTHING_ELSE: 0.0}
    for key in ("stages", "shrink", "ratios"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise RecipeError(f"{path} holds no mapping of names to ratios. Expected lines such as 'conv1: 0.5'.")
    return found
