"""From a candidate of a search to the recipe that makes a model of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from edgeprune import recipe
from edgeprune import search_space as spaces
from edgeprune.errors import RecipeError
from edgeprune.recipe import Recipe
from edgeprune.search_space import Candidate, Space
from edgeprune.shrink_options import AIMS

NONE = "none"  # the word for no zeros
PTQ, QAT = "ptq", "qat"
DEFAULT = "shrink50"
PRUNE = {"epochs": 8, "learning_rate": 0.001}  # of a prune stage that the recipe does not have
QUANTIZE = {"epochs": 5, "learning_rate": 0.0003}


class Zeros(NamedTuple):
    """Zeros that are laid among the weights that stay.

    Attributes:
        share: of the weights, 0..1.
        pattern: (n, m) for n:m; None: weight by weight.
    """

    share: float
    pattern: tuple[int, int] | None = None

    def options(self) -> dict[str, Any]:
        """Of a prune stage."""
        if self.pattern is None:
            return {"granularity": "weight", "final": self.share}
        return {"granularity": "n:m", "pattern": f"{self.pattern[0]}:{self.pattern[1]}"}


def zeros_of(word: str) -> Zeros | None:
    """What a word for the choice ``zeros`` means.

    >>> zeros_of("weight 0.5"), zeros_of("2:4"), zeros_of("none")
    (Zeros(share=0.5, pattern=None), Zeros(share=0.5, pattern=(2, 4)), None)

    Raises:
        RecipeError: it means nothing.
    """
    if word == NONE:
        return None
    kind, _, share = word.partition(" ")
    n, colon, m = kind.partition(":")
    try:
        if colon and not share and 0 < int(n) < int(m):
            return Zeros(1 - int(n) / int(m), (int(n), int(m)))
        if kind == "weight" and 0 < float(share) < 1:
            return Zeros(float(share))
    except ValueError:
        pass
    raise RecipeError(
        f"'{word}' says nothing of zeros. Give none, a share such as 'weight 0.5', or a pattern such as 2:4."
    )


def checked(base: Recipe, zeros: Sequence[str], quantize: Sequence[str]) -> None:
    """Refuse what no candidate could be made with.

    Raises:
        RecipeError: the recipe has no shrink stage, or a word means nothing.
    """
    if not any(spec.stage == "shrink" for spec in base.stages):
        raise RecipeError(
            f"A search trains its best candidates with the recipe's shrink stage, and '{base.name}' has none. Give another with "
            f"--recipe, such as {DEFAULT}."
        )
    for word in zeros:
        zeros_of(word)
    unknown = [word for word in quantize if word not in (PTQ, QAT)]
    if unknown:
        raise RecipeError(f"'{unknown[0]}' is no way to quantize. Give {PTQ}, {QAT}, or both.")


def of(candidate: Candidate, space: Space, base: Recipe, name: str, quantize: str | None = None) -> dict[str, Any]:
    """The recipe of one candidate, as plain data with every option written out.

    Args:
        candidate: of the space.
        space: says how many units there are.
        base: what is taken but for what the candidate says; has a shrink stage.
        name: of the new recipe.
        quantize: ``ptq`` or ``qat``; None: as ``base`` does.
    """
    data = copy.deepcopy(base.resolved())
    data |= {"name": name, "description": described(candidate, space), "method": None}
    stages: dict[str, Any] = data["stages"]
    label = _labels(stages, "shrink")[0]
    stages[label] |= {
        **dict.fromkeys(AIMS),
        "ratio": 0.0,
        "ratios": spaces.ratios(candidate, space.knobs),
        "criterion": candidate.get(spaces.CRITERION, stages[label]["criterion"]),
        "scope": "layer",
        "rounds": 1,
        "blocks": 0,
        "zeros": False,
        "floors": None,
        "multiples": 1,  # the counts are those of the space, which knows what pays
        "include": ".*",
        "exclude": None,
    }
    for extra in _labels(stages, "shrink")[1:]:
        del stages[extra]
    if spaces.ZEROS in space.choices:
        stages = _with_zeros(stages, label, zeros_of(str(candidate[spaces.ZEROS])))
    if quantize is not None:
        stages = _quantized(stages, quantize)
    data["stages"] = stages
    return recipe.load(data).resolved()


def described(candidate: Candidate, space: Space) -> str:
    """In one line: ``conv1 8/16, conv2 24/32, taylor``."""
    counts = [f"{knob.name} {candidate[knob.name]}/{knob.units}" for knob in space.knobs]
    return ", ".join([*counts, *(str(candidate[name]) for name in space.choices)])


def dense(base: Recipe) -> dict[str, Any]:
    """What trains the network that is searched, of a model that comes without weights: the stages before the first shrink stage."""
    data = copy.deepcopy(base.resolved())
    labels = list(data["stages"])
    first = labels.index(_labels(data["stages"], "shrink")[0])
    data |= {
        "name": f"{base.name}-dense",
        "method": None,
        "stages": {name: data["stages"][name] for name in labels[:first]},
    }
    if not data["stages"]:
        raise RecipeError(
            f"The model comes without trained weights, and '{base.name}' has no stage before {labels[first]} that trains it. Give a "
            "recipe with a train stage."
        )
    return recipe.load(data).resolved()


def _labels(stages: Mapping[str, Any], stage: str) -> list[str]:
    return [label for label, options in stages.items() if (options or {}).get("stage", label) == stage]


def _with_zeros(stages: Mapping[str, Any], shrink: str, zeros: Zeros | None) -> dict[str, Any]:
    """The stages with one that prunes behind the cut, or without any."""
    present = _labels(stages, "prune")
    kept = {label: options for label, options in stages.items() if label not in present}
    if zeros is None:
        return kept
    options = {**PRUNE, **(stages[present[0]] if present else {}), **zeros.options()}
    return _after(kept, shrink, "prune", options)


def _quantized(stages: Mapping[str, Any], word: str) -> dict[str, Any]:
    present = _labels(stages, "quantize")
    if word == PTQ:
        return {label: options for label, options in stages.items() if label not in present}
    if present:
        return dict(stages)
    last = [label for label in stages if label not in _labels(stages, "convert")]
    before = last[: list(stages).index(_labels(stages, "convert")[0])] if _labels(stages, "convert") else last
    return _after(stages, before[-1], "quantize", QUANTIZE)


def _after(stages: Mapping[str, Any], label: str, new: str, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, given in stages.items():
        found[name] = given
        if name == label:
            found[new] = dict(options)
    return found
