"""Recipes: a YAML file -> a validated, frozen ``Recipe``; unknown keys are errors.

A recipe says which stages run, in which order, with which options. It names no model, no data and no board: those
come from the command line or the project's ``edgeprune.yaml``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from edgeprune import registry, yaml_files
from edgeprune.data import DataOptions
from edgeprune.errors import NameUnknown, RecipeError
from edgeprune.training_options import Distillation, Penalty
from edgeprune.validation import Strict, validate

EXAMPLE = """\
name: example
description: 50 % unstructured zeros by polynomial decay, then prune-preserving QAT
seed: 0
data:
  validation: 0.1            # share of the training samples that is only watched
  calibration: 256           # training samples that set the int8 ranges
stages:
  train:                     # skipped (only evaluated) when the model comes trained
    epochs: 10
    learning_rate: 0.001
  prune:
    granularity: weight      # weight | block | n:m
    schedule: polynomial     # polynomial | constant
    final: 0.5               # sparsity, 0..1
    epochs: 4
  quantize:
    epochs: 2
    learning_rate: 0.0003
  convert: {}
  verify: {}
  profile: {}
  report: {}
"""

DEFAULT = "poly50"


Paper = Annotated[str, Field(pattern=r'^[^"]+, "[^"]+" \(\d{4}\)$')]


class FitOptions(Strict):
    """Options that every training stage has."""

    epochs: int = Field(4, ge=0, le=10_000, description="passes over the training split")
    batch_size: int = Field(32, ge=1, le=65_536, description="samples per step")
    optimizer: Literal["adam", "sgd"] = Field("adam", description="adam, or sgd with Nesterov momentum 0.9")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="of the first step")
    decay: Literal["cosine", "constant"] = Field(
        "cosine", description="how the learning rate goes on: to 0 by the half cosine, or as it is"
    )
    penalty: Penalty | None = Field(
        None, description="what pulls weights to zero: `{}` or the keys in docs/penalties.md; null: nothing"
    )
    distill: Distillation | None = Field(
        None, description="learn from a teacher too: `{}` or the keys in docs/penalties.md; null: from the labels alone"
    )


class Budget(Strict):
    """What the final model must keep; a missed one gives exit code 4. A recipe with a shrink stage removes what they ask for."""

    max_drop: float | None = Field(
        None, ge=0, description="largest loss of the metric against the float model, in its own unit"
    )
    max_size_kib: float | None = Field(None, gt=0, description="largest .tflite file, KiB")
    max_latency_ms: float | None = Field(None, gt=0, description="largest latency on the target, ms")
    max_macs: float | None = Field(None, gt=0, description="most multiply-accumulates for one sample")
    max_arena_kib: float | None = Field(
        None, gt=0, description="largest memory of everything that is not weights while the model runs, KiB"
    )
    attempts: int = Field(
        5,
        ge=1,
        le=100,
        description="models that are trained at most to meet the limits; 1: the recipe as it is, and the limits only judge it",
    )


class Method(Strict):
    """What a recipe of the literature says of itself, so that it can be listed, and compared with others on equal terms."""

    title: str = Field(min_length=1, description="how the field calls it")
    papers: list[Paper] = Field(min_length=1, description='where it comes from: Author et al., "Title" (year)')
    acts: Literal["before", "during", "after"] = Field(description="when it removes: before, during or after training")
    removes: Literal["weights", "channels", "bytes", "nothing"] = Field(
        description="zeros in the weights, whole channels, bytes of the compressed file (clustering), or nothing (a baseline)"
    )
    cost: str = Field(min_length=1, description="beyond plain training, in words")
    aim: str | None = Field(
        None,
        description="dotted path of the option that says how much goes; null: the method has a share of its own, like 2:4",
    )
    stays: bool = Field(False, description="whether that option is the share that stays, not the share that goes")
    besides: float = Field(
        0.0, ge=0, lt=1, description="share that other stages of the recipe take of what the aim leaves, 0..1"
    )

    def asked(self, share: float) -> float | None:
        """What the aim's option must be for a share to go in the end.

        Args:
            share: of the weights (or multiply-accumulates) that goes, 0..1.

        Returns:
            The option's value, 0..1; None when the other stages alone take as much or more.

        >>> words = {"title": "t", "papers": ['A et al., "B" (2000)'], "acts": "after", "removes": "channels", "cost": "c"}
        >>> Method(**words, stays=True, besides=0.5).asked(0.75)
        0.5
        """
        left = (1 - share) / (1 - self.besides)
        if left >= 1:
            return None
        return round(left if self.stays else 1 - left, 12)


class StageSpec(NamedTuple):
    """One entry of ``stages``: its label, the stage module's name, and that module's validated ``Options``."""

    label: str
    stage: str
    options: Any


class RecipeFile(Strict):
    """The keys of a recipe file."""

    name: str = Field("recipe", min_length=1, description="how reports call it")
    description: str = Field("", description="one line for `edgeprune list recipes`")
    method: Method | None = Field(None, description="of a method of the literature: what it is, and how others compare")
    seed: int = Field(0, ge=0, lt=2**31, description="of every random choice in the build")
    distribute: Literal["mirrored"] | None = Field(
        None,
        description="mirrored: training shares every batch out over the GPUs of this machine (tf.distribute.MirroredStrategy); null: "
        "one device",
    )
    metric: str | None = Field(None, description="accuracy, auc, mse ... or module:function; default: by the task")
    metric_output: str | None = Field(
        None, description="several outputs: the one that the metric is of, the others are only told; null: the first"
    )
    data: DataOptions = Field(
        default_factory=lambda: DataOptions.model_validate({}), description="splits, calibration and preprocessing"
    )
    budget: Budget = Field(
        default_factory=lambda: Budget.model_validate({}), description="limits that the final model must keep"
    )
    stages: dict[str, dict[str, Any] | None] = Field(description="label -> options, in the order they run")

    @model_validator(mode="after")
    def _some_stage(self) -> RecipeFile:
        if not self.stages:
            raise ValueError("a recipe needs at least one stage")
        return self


class Recipe(NamedTuple):
    """A validated recipe: every option present, every stage known."""

    file: RecipeFile
    stages: tuple[StageSpec, ...]

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def seed(self) -> int:
        return self.file.seed

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data with every default written out; loading it gives an equal recipe."""
        data = self.file.model_dump(mode="json")
        data["stages"] = {spec.label: _stage_data(spec) for spec in self.stages}
        return data


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name, by path, or given as a mapping.

    Args:
        source: a name of ``edgeprune list recipes`` or ``methods``, a ``.yaml`` path, or plain data with the same keys.
        overrides: dotted path -> value, as ``--set`` gives them: ``{"stages.prune.final": 0.6}``.

    Raises:
        RecipeError: something does not validate (file, path inside it, what was given, what is known, nearest name).
        NameUnknown: no such recipe.
    """
    if isinstance(source, Mapping):
        data, where = copy.deepcopy(dict(source)), "recipe"
    else:
        path = find(str(source))
        data, where = yaml_files.read(path), path.name
    for key, value in (overrides or {}).items():
        _override(data, key, value)
    return parse(data, where)


def find(name: str) -> Path:
    """The file of a recipe or a method by its name, or the path that is given.

    Raises:
        NameUnknown: there is none; the nearest of both families.
    """
    family = "methods" if name in registry.names("methods") else "recipes"
    known = {*registry.names("recipes"), *registry.names("methods")}
    if name not in known and not name.endswith((".yaml", ".yml")):
        raise registry.unknown("recipe", name, known)
    return registry.file(family, name)


def parse(data: Any, where: str) -> Recipe:
    """Plain data -> ``Recipe``. ``where`` names the file in messages."""
    parsed = validate(RecipeFile, data, where, RecipeError)
    stages = tuple(_stage(label, options, where) for label, options in parsed.stages.items())
    _check_order(stages, where)
    _check_distributed(parsed, stages, where)
    loaded = Recipe(parsed, stages)
    _check_aim(loaded, where)
    return loaded


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe file with every stage's options, for editors (``edgeprune list recipes --schema``)."""
    schema = RecipeFile.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    properties = {}
    for name in registry.names("stages"):
        options = registry.module("stages", name).Options.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(options.pop("$defs", {}))
        definitions[f"stage-{name}"] = {**options, "title": name}
        properties[name] = {"anyOf": [{"$ref": f"#/$defs/stage-{name}"}, {"type": "null"}]}
    schema["properties"]["stages"] = {
        "type": "object",
        "description": "label -> options, in the order they run; a label of your own has a key 'stage'",
        "properties": properties,
        "additionalProperties": {"type": "object", "required": ["stage"]},
        "minProperties": 1,
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "edgeprune recipe"}


def _stage(label: str, options: dict[str, Any] | None, where: str) -> StageSpec:
    options = dict(options or {})
    name = options.pop("stage", label)
    try:
        module = registry.module("stages", name)
    except NameUnknown as error:
        raise RecipeError(f"{where}: stages.{label}: {error}") from error
    return StageSpec(label, name, validate(module.Options, options, where, RecipeError, f"stages.{label}"))


def _check_order(stages: Sequence[StageSpec], where: str) -> None:
    """Refuse what would undo, or be undone, before anything is trained in vain.

    A stage's ``LAST_OF`` names those that may not come after it; where its options decide that, ``barred(options)`` does.

    Raises:
        RecipeError: one does.
    """
    for place, first in enumerate(stages):
        module = registry.module("stages", first.stage)
        barred = module.barred(first.options) if hasattr(module, "barred") else getattr(module, "LAST_OF", ())
        for later in stages[place + 1 :]:
            if later.stage in barred:
                raise RecipeError(
                    f"{where}: stages.{later.label} ({later.stage}) comes after stages.{first.label} ({first.stage}), but no "
                    f"{later.stage} stage may come after a {first.stage} stage: move {later.label} before {first.label}, or remove one "
                    "of them."
                )


def _check_distributed(parsed: RecipeFile, stages: Sequence[StageSpec], where: str) -> None:
    """Every stage that trains can be spread over devices (its module says ``SPREADS``), if the recipe asks for that.

    Raises:
        RecipeError: one cannot.
    """
    if parsed.distribute is None:
        return
    for spec in stages:
        if isinstance(spec.options, FitOptions) and not getattr(
            registry.module("stages", spec.stage), "SPREADS", False
        ):
            raise RecipeError(
                f"{where}: distribute: a {spec.stage} stage (stages.{spec.label}) decides about its weights on one device while it "
                "trains. Leave distribute out, or the stage."
            )


def _check_aim(loaded: Recipe, where: str) -> None:
    """A method's aim is an option that is there.

    Raises:
        RecipeError: it is not.
    """
    if loaded.file.method is None or loaded.file.method.aim is None:
        return
    aim = loaded.file.method.aim
    found: Any = loaded.resolved()
    for part in aim.split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = list(found) if isinstance(found, Mapping) else []
            raise RecipeError(
                f"{where}: method.aim is '{aim}', but there is no '{part}' in this recipe.{registry.suggestion(part, known)} Known "
                f"there: {', '.join(sorted(known)) or 'none'}."
            )
        found = found[part]


def _stage_data(spec: StageSpec) -> dict[str, Any]:
    options: dict[str, Any] = spec.options.model_dump(mode="json")
    return options if spec.stage == spec.label else {"stage": spec.stage, **options}


def _override(data: Any, dotted: str, value: Any) -> None:
    """Set one value; parents are made, so that ``stages.prune.final`` works on ``prune: null`` too."""
    *parents, last = dotted.split(".")
    for depth, part in enumerate(parents):
        if not isinstance(data, dict):
            raise RecipeError(
                f"--set {dotted}: '{'.'.join(parents[:depth])}' is no mapping, so it has no key '{part}'."
            )
        if depth == 1 and parents[0] == "stages" and part not in data:
            raise RecipeError(
                f"--set {dotted}: this recipe has no stage '{part}'.{registry.suggestion(part, data)} It has: {', '.join(data)}."
            )
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
    if not isinstance(data, dict):
        raise RecipeError(f"--set {dotted}: '{'.'.join(parents)}' is no mapping, so it has no key '{last}'.")
    data[last] = value
