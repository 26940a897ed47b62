"""``edgeprune.yaml``: what a folder builds when the command line does not say.

Words on the command line win over the file, key by key; ``edgeprune init`` writes a commented one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from edgeprune import files, recipe, target, yaml_files
from edgeprune.errors import RecipeError, RunFolderError
from edgeprune.validation import Strict, validate

NAME = "edgeprune.yaml"
TARGET = "rpi4"  # what `init` writes


class ProjectFile(Strict):
    """The keys of ``edgeprune.yaml``."""

    model: str | None = Field(None, min_length=1, description=".keras, .h5, module:function, or a built-in name")
    data: str | None = Field(
        None, min_length=1, description=".npz, image folder, keras:name, tfds:name, or module:function"
    )
    target: str | None = Field(None, min_length=1, description="a name of `edgeprune list targets`, or a .yaml file")
    recipe: str | dict[str, Any] | None = Field(
        None, description="a name of `edgeprune list recipes`, a .yaml file, or a recipe"
    )
    set: dict[str, Any] = Field(default_factory=dict, description="dotted path in the recipe -> value, as --set")
    out: str | None = Field(None, min_length=1, description="run folder")


class Project(NamedTuple):
    """A validated project file and the folder that it lies in, which its paths are relative to."""

    folder: Path
    file: ProjectFile

    def settings(self) -> dict[str, Any]:
        """The keys that the file gives, as ``edgeprune.build`` takes them; files in the folder as paths."""
        given = self.file.model_dump(exclude_none=True)
        overrides = given.pop("set")
        settled = {key: self._settled(key, value) for key, value in given.items()}
        return settled | ({"overrides": overrides} if overrides else {})

    def _settled(self, key: str, value: Any) -> Any:
        """A word that names something in the folder (``out``: that will) becomes its path; others stay words."""
        if not isinstance(value, str):
            return value
        path = self.folder / value
        return str(path) if key == "out" or path.exists() else value


def find(folder: Path) -> Project | None:
    """The project that a folder holds, if any; the folders above it are not asked.

    Raises:
        RecipeError: its ``edgeprune.yaml`` does not validate.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    data = yaml_files.read(path)
    return Project(folder, validate(ProjectFile, {} if data is None else data, str(path), RecipeError))


def settle(folder: Path, words: Mapping[str, Any]) -> dict[str, Any]:
    """What to build: the command line's words over the folder's project.

    A resumed build has its own model, recipe and target in the run folder, so the project only says which folder.

    Args:
        folder: the current folder.
        words: arguments of ``edgeprune.build``; None or an empty mapping means not given. ``overrides`` are merged.

    Returns:
        The same arguments with the project's in the place of those not given.
    """
    project = find(folder)
    settings = project.settings() if project else {}
    if words.get("resume"):
        settings = {key: value for key, value in settings.items() if key == "out"}
    given = {key: value for key, value in words.items() if value is not None}
    overrides = {**settings.get("overrides", {}), **given.get("overrides", {})}
    return {**settings, **given, "overrides": overrides}


def init(folder: Path, words: Mapping[str, str | None] | None = None, force: bool = False) -> Path:
    """Write a commented ``edgeprune.yaml``.

    Args:
        folder: where to; made if it is not there.
        words: ``model``, ``data``, ``target``, ``recipe``; one that is None is found in the folder (its only model file,
            its only ``.npz``) or left for the user.
        force: whether an existing file may be overwritten.

    Returns:
        The path written.

    Raises:
        RunFolderError: the file is there already, or cannot be written.
    """
    path = folder / NAME
    if path.exists() and not force:
        raise RunFolderError(f"{path} is there already. Edit it, or write it anew with: edgeprune init --force")
    given = {key: value for key, value in (words or {}).items() if value is not None}
    lines = [
        "# What `edgeprune build` builds in this folder. Words on the command line win over this file.",
        *_entry(
            "model",
            "A .keras or .h5 file, module:function, or a name of `edgeprune list models`.",
            given,
            _found(folder, (".keras", ".h5")),
        ),
        *_entry(
            "data",
            "An .npz file, an image folder, keras:name, tfds:name, or module:function.",
            given,
            _found(folder, (".npz",)),
        ),
        *_entry("target", "Where it will run: `edgeprune list targets`.", {"target": TARGET, **given}),
        *_entry(
            "recipe",
            "How: a name of `edgeprune list recipes`, a .yaml file, or a recipe written here.",
            {"recipe": target.recipe_for(given.get("target", TARGET)) or recipe.DEFAULT, **given},
        ),
        *("", "# Changes to the recipe, as --set on the command line.", "# set:", "#   stages.prune.final: 0.6"),
        *("", "# The run folder.", "# out: runs/first"),
    ]
    return files.write_text_atomic(path, "\n".join(lines) + "\n")


def _entry(key: str, comment: str, given: Mapping[str, str], found: Sequence[str] = ()) -> list[str]:
    """A key with its comment; commented out when it is neither given nor the only one of its kind in the folder."""
    value = given.get(key) or (found[0] if len(found) == 1 else None)
    if value is not None:
        return ["", f"# {comment}", yaml_files.dump({key: value}).strip()]
    if found:
        return ["", f"# {comment} One of these?", *(f"# {yaml_files.dump({key: name}).strip()}" for name in found)]
    return ["", f"# {comment} Without it: the built-in demo.", f"# {key}:"]


def _found(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.suffix.lower() in suffixes and path.is_file())
