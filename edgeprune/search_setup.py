"""What a search is asked for, and what a worker needs before its first trial: the trained model, the space, the study.

Everything that was given is checked here, so that nothing is evaluated in vain.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edgeprune import (
    api,
    files,
    forecast,
    recipe,
    registry,
    search,
    search_recipes,
    search_storage,
    search_study,
    sensitivity_run,
    shrinking,
    yaml_files,
)
from edgeprune import search_space as spaces
from edgeprune import target as targets
from edgeprune.errors import DataError, DeviceError, StudyError
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.search_recipes import NONE
from edgeprune.search_space import Space
from edgeprune.search_study import Study
from edgeprune.shrink_options import CRITERION

SAMPLER, TRIALS, TOP, SAMPLES = "tpe", 200, 4, 1024
DENSE = "dense"  # the folder of the run that trained the network
SUFFIX = "-trained"  # of the study of those that are trained
LIMITS = {
    "max_drop": spaces.DROP,
    "max_latency_ms": spaces.LATENCY,
    "max_size_kib": spaces.SIZE,
    "max_macs": spaces.MACS,
}
BY_THE_WAY = ("sampler", "seed", "limits")  # of a study, for somebody who only reads it
KIB = 1024.0


class Asked(NamedTuple):
    """What a search is asked for, in plain words.

    Attributes:
        model, data: as for ``edgeprune.build``.
        recipe: what the best are trained with; None: `search_recipes.DEFAULT`.
        sampler: a name of ``edgeprune list samplers``.
        trials: that the proxy evaluates, by all workers together.
        top: candidates that are trained in the end.
        limits: ``max_drop``, ``max_latency_ms``, ``max_size_kib``, ``max_macs`` -> the most that is allowed.
        criteria, zeros: words for the choices of a candidate.
        quantize: ways that each of the best is quantized in; (): as the recipe says.
        samples: held-out samples that the proxy judges by, at most.
        multiple: steps of channels in the place of the target's.
        floor: share of every group's units that stays, 0..1.
        include, exclude: regular expressions over groups and layers.
        overrides: dotted path in the recipe -> value.
    """

    model: str
    data: Any = None
    target: str = api.DEFAULT_TARGET
    recipe: str | None = None
    sampler: str = SAMPLER
    trials: int = TRIALS
    top: int = TOP
    limits: Mapping[str, float] = {}
    criteria: tuple[str, ...] = (CRITERION, "l2")
    zeros: tuple[str, ...] = (NONE,)
    quantize: tuple[str, ...] = ()
    samples: int = SAMPLES
    multiple: int | None = None
    floor: float = 0.0
    include: str = ".*"
    exclude: str | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] = {}


class Display(Protocol):
    """Who is told while a search runs; also a `Progress` for what is built."""

    def begin(self, result: Mapping[str, Any]) -> None:
        """The study is open; what it holds."""

    def trial(self, result: Mapping[str, Any]) -> None:
        """Another trial is finished, by whichever worker."""

    def evaluating(self, done: int, total: int) -> None:
        """So many of the samples are through."""

    def building(self) -> Progress:
        """Who is told while a network is trained."""

    def note(self, message: str) -> None:
        """Something the user should know."""

    def close(self) -> None:
        """Give the screen back. Harmless when called twice."""


class Ready(NamedTuple):
    """Everything that a worker needs.

    Attributes:
        file: the trained model's.
        subject: the model with its samples (`edgeprune.keras.trials.Trials`).
        source: the data, as it was given.
        judge: what evaluates candidates.
        box: what the front is judged in.
        study, trained: of the trials, and of those that are trained.
        about: plain data on the model, the metric and the samples, for the report.
    """

    asked: Asked
    folder: Path
    file: str
    source: Any
    base: Recipe
    facts: targets.Target
    subject: Any
    space: Space
    judge: Any
    box: search.Box
    study: Study
    trained: Study
    about: Mapping[str, Any]


def prepared(
    asked: Asked,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    name: str | None = None,
    clone: str | None = None,
    trust: bool = False,
    display: Display,
    reading: bool = False,
) -> Ready:
    """Check everything that was given, and open the study; raises as ``run``.

    Args:
        reading: whether nothing will be searched: then the study's sampler, seed and limits may be others than those asked for.
    """
    facts = targets.load(registry.file("targets", asked.target))
    base = _base(asked)
    search_recipes.checked(base, asked.zeros, asked.quantize)
    sampler = search_study.sampler(asked.sampler)
    folder = Path(out) if out else Path("runs") / f"{Path(asked.model).stem}-search"
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    url = search_storage.storage_url(storage, folder)
    opened = search_storage.opened(url)  # before anything that takes long
    given = _settled(asked, base, folder, trust, display)

    from edgeprune.keras import candidates, trials

    seed = given.seed
    milliseconds = forecast.predictor(facts)
    subject = trials.load(
        given.file, given.data, given.recipe, seed, asked.samples, trust, display.building(), milliseconds
    )
    space = candidates.space(
        subject,
        milliseconds,
        multiple=shrinking.stair(facts.channel_multiple) if asked.multiple is None else asked.multiple,
        floor=asked.floor,
        include=asked.include,
        exclude=asked.exclude,
        choices={spaces.CRITERION: asked.criteria, spaces.ZEROS: asked.zeros},
        limits=_limits(asked, facts, milliseconds is not None),
    )
    space.check()
    title = name or f"{Path(asked.model).stem}-{facts.name}"
    terms = _terms(asked, facts, subject, space, seed)
    study = Study(opened, url, title, space, seed, sampler)
    study.agree(terms, BY_THE_WAY if reading else ())
    if clone:
        _cloned(opened, url, clone, study, space, terms)
    trained = Study(opened, url, title + SUFFIX, _with_ways(space, asked.quantize), seed, None)
    judge = _judge(search_study.judge(sampler), subject, space, seed, folder, display)
    about = _about(study, judge, space, subject)
    box = search.box(space, float(about["worst_drop"]))
    told = {"origin": given.origin, "data": given.word, "target_title": facts.title, **about}
    return Ready(asked, folder, given.file, given.data, base, facts, subject, space, judge, box, study, trained, told)


# What was given


def _base(asked: Asked) -> Recipe:
    """The recipe that the best are trained with; the limits are what they are judged by."""
    given = recipe.load(asked.recipe or search_recipes.DEFAULT, asked.overrides)
    judged = given.file.budget.model_copy(update={**asked.limits, "attempts": 1})
    seed = given.seed if asked.seed is None else asked.seed
    return given._replace(file=given.file.model_copy(update={"budget": judged, "seed": seed}))


def _settled(asked: Asked, base: Recipe, folder: Path, trust: bool, display: Display) -> sensitivity_run.Settled:
    """The trained model: what the words name, or what a build makes of a model that comes without weights."""
    model, source = asked.model, asked.data
    if model in registry.names("models"):
        source = registry.module("models", model).DATA if source is None else source
        model = str(_dense(model, source, asked, base, folder, trust, display))
    elif source is None and not (Path(model) / sensitivity_run.STAGES).is_dir():
        raise DataError(f"'{model}' needs data to be judged on. Give it: --data FILE.npz (see docs/data.md).")
    found = sensitivity_run.settled(model, source, None, base.seed)
    return replace_recipe(found, base)


def replace_recipe(found: sensitivity_run.Settled, base: Recipe) -> sensitivity_run.Settled:
    """The same with another recipe's data, metric and seed."""
    return found._replace(recipe=base, seed=base.seed)


def _dense(model: str, source: Any, asked: Asked, base: Recipe, folder: Path, trust: bool, display: Display) -> Path:
    """The run folder of the network without weights, trained once for all workers of this machine."""
    run, how = folder / DENSE, search_recipes.dense(base)
    with _only_one(folder / f".{DENSE}.lock"):
        words: dict[str, Any] = {"trust": trust, "progress": display.building(), "out": run}
        if (run / api.RUN_FILE).exists() and yaml_files.read(run / api.RECIPE_FILE) == how:
            api.build(resume=True, **words)
        else:
            api.build(model, source, target=asked.target, recipe=how, force=True, **words)
    return run


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the others wait."""
    with files.writing(path):
        handle = path.open("a")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _limits(asked: Asked, facts: targets.Target, predicted: bool) -> dict[str, float]:
    """Limits as the space has them.

    Raises:
        DeviceError: a latency is limited that nobody can predict.
    """
    if "max_latency_ms" in asked.limits and not predicted:
        raise DeviceError(
            f"--max-latency-ms: the latency on '{facts.name}' cannot be predicted, so no candidate could be chosen by it. Give --max-macs "
            "in its place."
        )
    scale = {"max_size_kib": KIB}
    return {LIMITS[name]: most * scale.get(name, 1.0) for name, most in asked.limits.items()}


def _terms(asked: Asked, facts: targets.Target, subject: Any, space: Space, seed: int) -> dict[str, Any]:
    """What all workers of a study have in common."""
    return {
        "schema": search.SCHEMA,
        "model": subject.key["model"],
        "data": subject.key["data"],
        "samples": subject.key["samples"],
        "metric": subject.key["metric"],
        "target": facts.name,
        "space": replace(space, limits={}).digest(),
        "limits": dict(space.limits),
        "sampler": asked.sampler,
        "seed": seed,
    }


def _cloned(storage: Any, url: str, clone: str, study: Study, space: Space, terms: Mapping[str, Any]) -> None:
    """Begin with what another study found, as far as it keeps this one's limits.

    Raises:
        StudyError: there is no such study, or it is of another model, other samples or another space.
    """
    if study.attribute("cloned") == clone or study.finished():
        return
    names = search_storage.optuna().study.get_all_study_names(storage)
    if clone not in names:
        raise StudyError(
            f"There is no study '{clone}' in {study.url}.{registry.suggestion(clone, names)} Known: "
            f"{', '.join(sorted(one for one in names if not one.endswith(SUFFIX))) or 'none'}."
        )
    other = Study(storage, url, clone, space, 0, None)
    stored = other.attribute(search_study.TERMS) or {}
    for key in ("model", "data", "samples", "metric", "target", "space"):
        if stored.get(key) != terms[key]:
            raise StudyError(
                f"The study '{clone}' cannot be cloned: it is of another {key}, so that what it found does not hold here. Leave --clone "
                "out."
            )
    study.add([one for one in other.finished() if not space.over(one.costs)])
    study.note("cloned", clone)


def _with_ways(space: Space, ways: tuple[str, ...]) -> Space:
    """The space of what is trained: each in every way to quantize it, where there are several."""
    return replace(space, choices={**space.choices, spaces.QUANTIZE: ways or ("recipe",)})


def _judge(kind: str, subject: Any, space: Space, seed: int, folder: Path, display: Display) -> Any:
    """What evaluates candidates."""
    from edgeprune.keras import candidates

    if kind == "supernet":
        from edgeprune.keras import supernet

        return supernet.judge(subject, space, seed, folder / "supernet", display.building())
    return candidates.Proxy(subject, space, seed)


def _about(study: Study, judge: Any, space: Space, subject: Any) -> dict[str, Any]:
    """What is computed once for all workers: the uncut network's metric, and the drop of the smallest."""
    stored = study.attribute(search_study.ABOUT)
    if stored is None:
        smallest = judge(space.smallest())
        stored = {
            "reference": judge.reference,
            "worst_drop": max(float(smallest.drop), 1e-6),
            "metric": {
                "name": subject.metric.title,
                "higher_is_better": subject.metric.higher_is_better,
                "split": subject.split_name,
                "samples": len(subject.split),
            },
        }
        study.note(search_study.ABOUT, stored)
    return dict(stored)
