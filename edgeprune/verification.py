"""What ``edgeprune verify`` does: find the model, the file and the samples, and compare layer by layer.

The model is anything that `build` takes, a SavedModel folder of a run, or the run folder itself, which knows the model its
file was converted from. A model with fake quantizers computes on the file's own grid, so an op that does not is found by
its steps (`edgeprune.divergence`), however little of the signal it spoils; any other model by the signal-to-noise ratio.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune import columns, diagnosis, inference, layerwise, parity, pipeline, recipe, tflite, yaml_files
from edgeprune import data as datasets
from edgeprune.errors import ArtefactError, RunFolderError

if TYPE_CHECKING:
    from edgeprune.keras.export import Exported

SAMPLES = 32
TOLERANCE_STEPS = 2.0  # as the verify stage's
STAGES, RECIPE = "stages", "recipe.yaml"  # in a run folder
_FAKE_QUANTIZED = "quant_"


def verify(
    model: str,
    file: Path,
    data: Any,
    *,
    samples: int = SAMPLES,
    min_snr_db: float = diagnosis.MIN_SNR_DB,
    settings: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Compare a .tflite file with its model, layer by layer.

    Args:
        model: a run folder, a SavedModel folder of one, or as for ``edgeprune.keras.intake.named``.
        file: the .tflite file.
        data: as for ``edgeprune.data.load``; validation samples are taken, or calibration samples if those are too few.
        samples: how many, >= 1.
        min_snr_db: below it a layer is bad.
        settings: the recipe whose ``data`` block says how data is read; None: the run folder's own, else the defaults.
        trust: whether the user vouches for code inside the model file.

    Returns:
        JSON-ready: ``model``, ``file``, ``compared_with``, ``samples``, ``min_snr_db``, ``inputs`` and ``layers`` (fields of
        `layerwise.Row`), ``fused`` (layers inside other layers' ops), ``first_bad`` (fields of `diagnosis.Finding`, or None),
        ``holds`` (whether every output of the file keeps the signal, and no op computes something else).

    Raises:
        EdgepruneError: a model, file or data that cannot be taken, or that do not fit each other.
    """
    content = tflite.read(file)
    with _reference(model, trust) as reference:
        chosen = recipe.load(settings) if settings else _recipe_of(Path(model)) or recipe.load(recipe.DEFAULT)
        given = _samples(datasets.load(data, chosen.file.data, chosen.seed), samples, chosen.seed)
        inputs = _fitting(given, inference.Runner(file).inputs, reference.input_names)
        found = layerwise.compare(file, reference, inputs)
        if not found.rows:
            raise ArtefactError(
                f"No tensor of {file} stands for a layer of {model}. Give the model it was converted from."
            )
        trained = any(layer.name.startswith(_FAKE_QUANTIZED) for layer in reference.layers)
        bad = diagnosis.first_bad(found, content, min_snr_db)
        if trained and (bad is None or bad.cause != "input"):
            bad = _off_the_grid(file, reference, inputs, found) or bad
    return {
        "model": model,
        "file": str(file),
        "compared_with": "fake-quantized Keras" if trained else "float Keras",
        "samples": found.samples,
        "min_snr_db": min_snr_db,
        "inputs": [asdict(row) for row in found.inputs],
        "layers": [asdict(row) for row in found.rows],
        "fused": list(found.fused),
        "first_bad": asdict(bad) if bad else None,
        "holds": _outputs_hold(found, min_snr_db) and (bad is None or bad.cause not in ("input", "other")),
    }


def _outputs_hold(found: layerwise.Layerwise, min_snr_db: float) -> bool:
    return all(row.snr_db >= min_snr_db for row in found.rows if row.op in found.outputs)


def _off_the_grid(
    file: Path, reference: Exported, inputs: layerwise.Inputs, found: layerwise.Layerwise
) -> diagnosis.Finding | None:
    """The first op that is off by more than rounding, of a model with fake quantizers."""
    first = parity.check(file, reference, inputs, False, TOLERANCE_STEPS).first
    return None if first is None else diagnosis.of_op(found, tflite.read(file), first.index)


@contextmanager
def _reference(model: str, trust: bool) -> Iterator[Exported]:
    """The Keras side, exported into a temporary folder where it was not yet."""
    from edgeprune.keras import export, intake

    folder = Path(model)
    if (folder / STAGES).is_dir():
        folder = _exported_in(folder)
    if (folder / export.LAYERS_FILE).is_file():
        yield export.Exported(folder)
        return
    live, _ = intake.named(model, trust)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        yield export.Exported(export.save(live, Path(place) / "model"))


def _exported_in(run: Path) -> Path:
    """The SavedModel that a run's file was converted from.

    Raises:
        RunFolderError: no finished stage of the run has made one.
    """
    finished = (run / STAGES).glob(f"[0-9]*-*/{pipeline.STATE_FILE}")
    stages = sorted(finished, key=lambda path: int(path.parent.name.partition("-")[0]))
    if stages:
        try:
            files = json.loads(stages[-1].read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(f"{stages[-1]} is damaged: {error}. Build again with --force.") from error
        for role in ("exported", "quantized"):
            if role in files:
                return run / files[role]
    raise RunFolderError(
        f"The run in {run} has not come to its convert stage, so there is no model to compare with. Finish it: edgeprune build "
        f"--resume --out {run}"
    )


def _recipe_of(run: Path) -> recipe.Recipe | None:
    path = run / RECIPE
    return recipe.parse(yaml_files.read(path, RunFolderError), str(path)) if path.is_file() else None


def _samples(data: datasets.Data, count: int, seed: int) -> Any:
    """Model inputs of seeded samples of the validation split, or of the calibration split where it has too few."""
    split = data.validation if len(data.validation) >= min(count, len(data.calibration)) else data.calibration
    generator = np.random.Generator(np.random.PCG64(seed))
    return split.inputs(np.sort(generator.choice(len(split), min(count, len(split)), replace=False)))


def _fitting(given: Any, ports: Sequence[inference.Port], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The samples by the names of the model's inputs; an axis of 1 that data leave out is added.

    Raises:
        DataError: there are other inputs than the file has.
    """
    arrays = list(columns.values(given))
    known = inference.words(list(given)) if isinstance(given, Mapping) else names[: len(arrays)]
    by_name = dict(zip(known, arrays, strict=True))
    fitted = {}
    for port, name in zip(ports, layerwise.paired(ports, by_name), strict=True):
        array = by_name[name]
        fits = _sides(array.shape[1:]) == _sides(port.shape)
        fitted[name] = array.reshape(len(array), *port.shape) if fits else array
    return fitted


def _sides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)
