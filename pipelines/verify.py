"""Prove on the artefact what the build claims: int8, zeros, patterns, metric, and that it computes what was trained.

Takes what ``convert`` left and the prune stage's ``masks``; leaves the report's ``verify``, ``candidates``, ``ops`` and
what the file holds of each pruned layer. The test split gives the metrics and nothing else: outputs are compared on
samples of the validation split (the calibration split where there is none) and on noise.

A final model that was quantized after training, in whole or in part, has no fake-quantized counterpart. It is compared
with its float model; that difference is the quantization itself, so it is reported and never an error.

How much of its signal every layer keeps is recorded on a few of the samples, unless the model is large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from edgeprune import clusters, columns, layerwise, parity, proof, tflite
from edgeprune.errors import ArtefactError
from edgeprune.inference import Runner
from edgeprune.pipeline import State
from edgeprune.validation import Strict

if TYPE_CHECKING:
    from edgeprune.keras.export import Exported

SNR_SAMPLES, SNR_OPS, SNR_MACS = 8, 400, 2 * 10**9  # layer by layer only where it takes seconds; by size, so that a
# resumed build records what an unbroken one does
REAL_SHARE = 0.75  # of the samples that outputs are compared on; the rest is noise, which reaches what data does not


class Options(Strict):
    """Options of the verify stage."""

    samples: int = Field(64, ge=8, le=100_000, description="seeded inputs on which outputs are compared")
    tolerance_steps: float = Field(
        2.0,
        gt=0,
        le=255,
        description="mean difference of an output that can be rounding, in int8 steps; 4 times it for rms",
    )
    strict: bool = Field(True, description="an op that diverges is an error; false: only said in the report")


def run(state: State, options: Options) -> State:
    """Prove, evaluate, compare.

    Raises:
        ArtefactError: a pruned weight is not zero, a block keeps too many, a kernel has more values than its clusters, or an
            op computes something else.
    """
    file = tflite.read(state.path("final"))
    proofs = _proofs(state, file)
    shared = _clusters(state, file)
    meter = _Meter(state, options.samples)
    metrics = _metrics(state, meter)
    found = _parity(state, file, options)
    meter(options.samples)
    verify = {**_claims(file, proofs, metrics), "clusters_match": True if shared else None, **found.facts}
    return state.add(
        verify=verify,
        candidates=_candidates(state, metrics),
        ops=tflite.inventory(file)["ops"],
        verified_layers={each.layer: _layer(each) for each in proofs},
        clusters=shared,
        notes=[*_notes(verify), *found.notes],
        summaries={state.label: _summary(state, verify, proofs, len(shared))},
    )


class _Meter:
    """Counts samples for the progress line."""

    def __init__(self, state: State, compared: int) -> None:
        runs = sum(role in state.files for role in ("reference", "quantized", "final", "dense_int8"))
        self._progress, self._done = state.run.progress, 0
        self._total = runs * len(state.run.data.test) + compared

    def __call__(self, samples: int) -> None:
        self._done += samples
        self._progress.step(self._done, self._total, "samples")


def _proofs(state: State, file: tflite.TFLiteFile) -> tuple[proof.LayerProof, ...]:
    """Every mask against the file; nothing to prove where nothing was pruned."""
    if "masks" not in state.files:
        return ()
    with np.load(state.path("masks"), allow_pickle=False) as stored:
        masks = {name: stored[name] for name in stored.files}
    planned = state.facts.get("pruning", {}).get("layers", {})
    return proof.prove(file, masks, {name: entry.get("pattern") for name, entry in planned.items()})


def _metrics(state: State, meter: Callable[[int], None]) -> dict[str, _Figures]:
    """The metric on the test split, once for each model that there is."""
    from edgeprune.keras import judging
    from edgeprune.keras.export import Exported

    test, metric, names = state.run.data.test, state.run.metric, tuple(state.run.data.targets)
    found = {}
    models: dict[str, Exported] = {}
    for role in ("reference", "quantized"):
        if role in state.files:
            models[role] = Exported(state.path(role))
            outputs = judging.outputs(models[role].outputs, models[role], test, names, meter)
            found[role] = _Figures(metric(test.y, outputs), metric.each(test.y, outputs))
    for role, source in (("final", _source(state)), ("dense_int8", "reference")):
        if role in state.files:
            model = models.get(source) or Exported(state.path(source))
            outputs = judging.outputs(judging.File(Runner(state.path(role))), model, test, names, meter)
            found[role] = _Figures(metric(test.y, outputs), metric.each(test.y, outputs))
    return found


def _clusters(state: State, file: tflite.TFLiteFile) -> dict[str, dict[str, Any]]:
    """Every clustered kernel against the file; beside it what the kernel takes in the file that is not compressed.

    Raises:
        ArtefactError: a kernel has more values there than it was given.
    """
    given = state.facts.get("clustering", {})
    kept = given.get("kept")
    claims = [
        clusters.Claim(name, tuple(entry["shape"]), entry["asked"], entry["scope"] if kept == "asked" else kept)
        for name, entry in given.get("layers", {}).items()
        if entry["asked"] and kept
    ]
    found = clusters.prove(file, claims)
    if not found or "dense_int8" not in state.files:
        return found
    dense = clusters.sizes(tflite.read(state.path("dense_int8")), claims)
    return {name: {**entry, "dense_gzip_bytes": dense.get(name)} for name, entry in found.items()}


class _Figures(NamedTuple):
    """The metric, and the figures of every output where there are several."""

    judged: float
    each: dict[str, float]


def _source(state: State) -> str:
    """The role of the model that the final file was converted from."""
    return "exported" if "exported" in state.files else "quantized"


class _Found(NamedTuple):
    """What the comparison of outputs adds to the report."""

    facts: dict[str, Any]
    notes: list[str]


def _parity(state: State, file: tflite.TFLiteFile, options: Options) -> _Found:
    """Compare the file's outputs with those of the model that it was made of.

    Raises:
        ArtefactError: an op diverges, and the options are strict.
    """
    from edgeprune.keras import judging
    from edgeprune.keras.export import Exported

    trained = _source(state) == "quantized"
    model = Exported(state.path(_source(state)))
    samples, words = _seeded(state, options.samples)
    inputs = judging.by_name(model, samples)
    classes = all(target.task == "classification" for target in state.run.data.targets.values())
    tolerance = options.tolerance_steps if trained else None
    result = parity.check(state.path("final"), model, inputs, classes, tolerance)
    first = asdict(result.first) if result.first else None
    facts = {
        "compared_with": "fake-quantized Keras" if trained else "float Keras (quantized after training)",
        "inputs": words,
        **result.comparison._asdict(),
        "tolerance_steps": tolerance,
        "outputs_agree": result.agrees,
        "first_divergence": first,
        "layers": _ratios(file, model, {name: array[:SNR_SAMPLES] for name, array in inputs.items()}),
    }
    if result.agrees is not False:
        return _Found(facts, [])
    said = _said(result)
    if result.first and options.strict:
        raise ArtefactError(
            f"{said} Report this with the recipe; --set stages.{state.label}.strict=false builds on and only says so."
        )
    return _Found(facts, [said])


def _ratios(file: tflite.TFLiteFile, model: Exported, inputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The signal-to-noise ratio of every layer, dB; nothing of a large model."""
    if len(file.ops) > SNR_OPS or tflite.macs(file) > SNR_MACS:
        return []
    rows = layerwise.compare(file.content, model, inputs).rows
    return [{"layer": row.layer, "snr_db": round(row.snr_db, 1), "op": row.kind} for row in rows]


def _said(result: parity.Parity) -> str:
    """The disagreement in words."""
    by = result.comparison
    how = (
        f"The .tflite file's outputs differ from the fake-quantized model's by {by.systematic_difference_steps:.1f} "
        f"steps on average where it is most, {by.rms_difference_steps:.1f} rms and {by.largest_difference_steps} at "
        "most."
    )
    if result.first is None:
        return f"{how} No op diverges by itself: roundings have added up, as they do behind a softmax."
    layer = f" of the layer '{result.first.layer}'" if result.first.layer else ""
    return f"{how} The first op that computes something else is number {result.first.index}, {result.first.op}{layer}."


def _seeded(state: State, samples: int) -> tuple[Any, str]:
    """(samples, ...) model inputs, real ones first and then noise, and where they are from; for several by their names."""
    data, generator = state.run.data, np.random.Generator(np.random.PCG64(state.run.seed))
    name = "validation" if len(data.validation) else "calibration"
    split = data.splits[name]
    count = min(round(REAL_SHARE * samples), len(split))
    real = split.inputs(np.sort(generator.choice(len(split), count, replace=False)))
    mixed = columns.each(lambda array: np.concatenate([array, _noise(generator, array, samples - count)]), real)
    words = f"{count} {name} samples and {samples - count} of uniform noise between their smallest and largest value"
    return mixed, f"{words}, seed {state.run.seed}"


def _noise(generator: np.random.Generator, real: np.ndarray, count: int) -> np.ndarray:
    """Uniform between the smallest and the largest value, (count, ...); whole numbers for an input of whole numbers."""
    shape = (count, *real.shape[1:])
    if np.issubdtype(real.dtype, np.integer):
        return generator.integers(real.min(), real.max() + 1, shape).astype(real.dtype)
    return generator.uniform(real.min(), real.max(), shape).astype(np.float32)


def _claims(
    file: tflite.TFLiteFile, proofs: tuple[proof.LayerProof, ...], metrics: dict[str, _Figures]
) -> dict[str, Any]:
    """What is true of the file; what a proof has shown is True here, since a failed one is an error."""
    ops = [file.ops[index] for index in tflite.float_ops(file)]
    return {
        "int8_share": tflite.int8_share(file),
        "float_ops": [{"index": op.index, "op": op.op, "layer": op.layer} for op in ops],
        "zeros_match": True if proofs else None,
        "n_of_m_match": True if any(each.n_of_m for each in proofs) else None,
        "int8": _guarantee(file),
        "metric": {
            "keras_float": metrics["reference"].judged,
            "fake_quant": metrics["quantized"].judged if "quantized" in metrics else None,
            "tflite": metrics["final"].judged,
        },
        **({"outputs": {role: figures.each for role, figures in metrics.items()}} if metrics["final"].each else {}),
    }


def _guarantee(file: tflite.TFLiteFile) -> dict[str, Any]:
    """Whether the file is a true int8 model, and what keeps it from being one."""
    violations = tflite.int8_violations(file)
    return {
        "holds": not violations,
        "violations": [violation._asdict() for violation in violations],
        "size_bytes": file.size_bytes,
        "allowed_bytes": tflite.allowed_bytes(file),
    }


def _candidates(state: State, metrics: dict[str, _Figures]) -> dict[str, Any]:
    """The float model, sized by its float32 file, the dense int8 file, and the final one."""
    return {
        candidate: {"metric": metrics[measured].judged, **_sizes(state, role)}
        for candidate, role, measured in (
            ("float", "float_tflite", "reference"),
            ("dense_int8", "dense_int8", "dense_int8"),
            ("final", "final", "final"),
        )
        if measured in metrics
    }


def _sizes(state: State, role: str) -> dict[str, Any]:
    if role not in state.files:
        absent = dict.fromkeys(("file", "size_bytes", "size_gzip_bytes", "params", "macs", "sparsity"))
        return {**absent, "reason": "the converter made no float32 file of it (see the notes)"}
    file = tflite.read(state.path(role))
    return {
        "file": state.files[role],
        "size_bytes": file.size_bytes,
        "size_gzip_bytes": file.size_gzip_bytes,
        "params": tflite.params(file),
        "macs": tflite.macs(file),
        "sparsity": tflite.sparsity(file),
    }


def _layer(found: proof.LayerProof) -> dict[str, Any]:
    return {
        "tensor": found.tensor,
        "sparsity_keras": found.sparsity_keras,
        "sparsity": found.sparsity,
        "extra_zeros": found.extra_zeros,
        "n_of_m": found.n_of_m,
    }


def _notes(verify: dict[str, Any]) -> list[str]:
    """What keeps the file from being a true int8 model; float ops, which come in numbers, in one sentence."""
    notes = [entry["message"] for entry in verify["int8"]["violations"] if entry["kind"] != "float_op"]
    if verify["float_ops"]:
        named = ", ".join(f"{op['op']} ({op['layer'] or 'layer unknown'})" for op in verify["float_ops"])
        count = len(verify["float_ops"])
        notes.append(
            f"{count} ops stayed in float, which boards run slowly and the Edge TPU not at all: {named}. `edgeprune check "
            "MODEL` says why."
        )
    return notes


def _summary(state: State, verify: dict[str, Any], proofs: tuple[proof.LayerProof, ...], shared: int) -> str:
    count = len(verify["float_ops"])
    ops = f"{count} float ops" if count else "all ops int8"
    proven = f", zeros proven in {len(proofs)} layers" if proofs else ""
    clustered = f", clusters proven in {shared} layers" if shared else ""
    return f"int8 {state.run.metric.name} {verify['metric']['tflite']:.4f}, {ops}{proven}{clustered}"
