"""``edgeprune sensitivity``: find the model, its data and its settings, measure, and write what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import edgeprune
from edgeprune import (
    data_sources,
    files,
    forecast,
    pipeline,
    recipe,
    registry,
    sensitivity,
    sensitivity_ratios,
    sensitivity_view,
    shrinking,
)
from edgeprune import target as targets
from edgeprune.errors import DataError, ModelError, RunFolderError
from edgeprune.progress import Progress
from edgeprune.sensitivity import RATIOS
from edgeprune.shrink_options import CRITERION

SAMPLES = 1024
JSON_NAME, HTML_NAME, RATIOS_NAME, CACHE = "sensitivity.json", "sensitivity.html", "ratios.yaml", "cache"
STAGES, RUN_FILE, RECIPE_FILE = "stages", "run.json", "recipe.yaml"  # in a run folder


def run(
    model: str,
    data: Any = None,
    *,
    target: str = "rpi4",
    criterion: str = CRITERION,
    ratios: Sequence[float] = RATIOS,
    samples: int = SAMPLES,
    include: str = ".*",
    exclude: str | None = None,
    multiple: int | None = None,
    max_drop: float | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    settings: str | None = None,
    trust: bool = False,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """What ``edgeprune sensitivity`` does.

    Args:
        model: a run folder (its float model is taken), or as for ``edgeprune.keras.intake.named``, trained.
        data: as for ``edgeprune.data.load``; None: what the run in the folder was built on.
        target: whose steps of channels the cuts are rounded to, and which the costs are of.
        criterion, ratios, include, exclude, max_drop: as in `sensitivity.Question`.
        samples: held-out samples that the metric is taken on, at most.
        multiple: steps of channels in the place of the target's; 1: any count.
        seed: of the splits; None: the recipe's.
        out: where everything is written; None: ``runs/MODEL-sensitivity``.
        settings: the recipe whose ``data``, ``metric`` and ``seed`` hold; None: the run folder's own, else the defaults.
        trust: whether the user vouches for code inside the model file.
        progress: who is told.

    Returns:
        The folder, which holds ``sensitivity.json`` and ``sensitivity.html``, and with ``max_drop`` ``ratios.yaml``; and what
        ``sensitivity.json`` holds, as ``sensitivity.analyse`` returns it.

    Raises:
        EdgepruneError: something cannot be taken, or there is nothing to cut.
    """
    from edgeprune.keras import trials

    facts = targets.load(registry.file("targets", target))
    steps = shrinking.stair(facts.channel_multiple) if multiple is None else multiple
    question = sensitivity.Question(criterion, tuple(sorted(set(ratios))), include, exclude, steps, max_drop)
    given = settled(model, data, settings, seed)
    folder = Path(out) if out else Path("runs") / f"{Path(model).stem}-sensitivity"
    told = (samples, trust, progress, forecast.predictor(facts))
    subject = trials.load(given.file, given.data, given.recipe, given.seed, *told)
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with pipeline.lock(folder):
        files.sweep(folder)
        store = sensitivity.Store(folder / CACHE, subject.key)
        about = {
            "model": model,
            "origin": given.origin,
            "data": given.word,
            "target": facts.name,
            "target_title": facts.title,
            "multiple": multiple,
        }
        found = {**about, **subject.about(), **sensitivity.analyse(subject, question, store, progress)}
        result = {"schema": sensitivity.SCHEMA, "edgeprune": edgeprune.__version__, **found}
        files.write_text_atomic(folder / JSON_NAME, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        files.write_text_atomic(folder / HTML_NAME, sensitivity_view.html(result))
        if max_drop is not None:
            files.write_text_atomic(folder / RATIOS_NAME, sensitivity_ratios.fragment(result))
    return folder, result


class Settled(NamedTuple):
    """What the user's words name.

    Attributes:
        file: the model, as for ``intake.named``.
        data: as for ``data.load``.
        word: what the data is called.
        origin: what ``build`` calls the model.
    """

    file: str
    data: Any
    word: str
    origin: str
    recipe: recipe.Recipe
    seed: int


def settled(model: str, data: Any, settings: str | None, seed: int | None) -> Settled:
    folder = Path(model)
    own: dict[str, Any] = {}
    if (folder / STAGES).is_dir():
        file, own = str(_float_of(folder)), _stored(folder / RUN_FILE)
        settings = settings or str(folder / RECIPE_FILE)
    elif model in registry.names("models"):
        raise ModelError(
            f"'{model}' is built without trained weights, so there is nothing to lose yet. Train it (edgeprune build {model}), and "
            "give the run folder in its place."
        )
    else:
        file = model
    source = own.get("data") if data is None else data
    if source is None:
        raise DataError(
            f"What '{model}' can lose shows on samples with labels only. Give them: --data FILE.npz (see docs/data.md)."
        )
    chosen = recipe.load(settings or recipe.DEFAULT)
    return Settled(
        file,
        source,
        data_sources.described(source),
        str(own.get("model", model)),
        chosen,
        chosen.seed if seed is None else seed,
    )


def _float_of(run: Path) -> Path:
    """The uncompressed model of a build, trained.

    Raises:
        RunFolderError: the build has not come that far.
    """
    finished = (run / STAGES).glob(f"[0-9]*-*/{pipeline.STATE_FILE}")
    last = max(finished, key=lambda path: int(path.parent.name.partition("-")[0]), default=None)
    role = _stored(last)["files"].get("float") if last else None
    if role is None:
        raise RunFolderError(
            f"The build in {run} has no trained model yet. Finish it: edgeprune build --resume --out {run}"
        )
    return run / str(role)


def _stored(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is gone or damaged: {error}. Build again with --force.") from error
    return found
