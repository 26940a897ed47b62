"""Prove on the artefact what the build claims: int8, zeros, patterns, metric, and that it computes what was trained.

Takes what ``convert`` left and the prune stage's ``masks``; leaves the report's ``verify``, ``candidates``, ``ops`` and
what the file holds of each pruned layer. The test split gives the metrics and nothing else: outputs are compared on
samples of the validation split (the calibration split where there is none) and on noise.

A final model that was quantized after training has no fake-quantized counterpart. It is compared with its float model;
that difference is the quantization itself, so it is reported and never an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import Field

from edgeprune import inference, parity, proof, tflite
from edgeprune.data import Split
from edgeprune.errors import ArtefactError
from edgeprune.pipeline import State
from edgeprune.validation import Strict

if TYPE_CHECKING:
    from edgeprune.keras.export import Exported

BATCH = 256
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
        ArtefactError: a pruned weight is not zero, a block keeps too many, or an op computes something else.
    """
    file = tflite.read(state.path("final"))
    proofs = _proofs(state, file)
    meter = _Meter(state, options.samples)
    metrics = _metrics(state, meter)
    found = _parity(state, options)
    meter(options.samples)
    verify = {**_claims(file, proofs, metrics), **found.facts}
    return state.add(
        verify=verify,
        candidates=_candidates(state, metrics),
        ops=tflite.inventory(file)["ops"],
        verified_layers={each.layer: _layer(each) for each in proofs},
        notes=[*_float_notes(verify["float_ops"]), *found.notes],
        summaries={state.label: _summary(state, verify, proofs)},
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


def _metrics(state: State, meter: Callable[[int], None]) -> dict[str, float]:
    """The metric on the test split, once for each model that there is."""
    from edgeprune.keras.export import Exported

    test, metric = state.run.data.test, state.run.metric
    found = {}
    for role in ("reference", "quantized"):
        if role in state.files:
            found[role] = metric(test.y, _keras_outputs(Exported(state.path(role)), test, meter))
    for role in ("final", "dense_int8"):
        if role in state.files:
            found[role] = metric(test.y, inference.outputs(inference.Runner(state.path(role)), test, meter))
    return found


def _keras_outputs(model: Exported, split: Split, meter: Callable[[int], None]) -> np.ndarray:
    """The first output for every sample, (n, ...)."""
    parts = []
    for inputs, _ in split.batches(BATCH):
        parts.append(model.outputs({model.input_names[0]: inputs})[model.output_names[0]])
        meter(len(inputs))
    return np.concatenate(parts)


class _Found(NamedTuple):
    """What the comparison of outputs adds to the report."""

    facts: dict[str, Any]
    notes: list[str]


def _parity(state: State, options: Options) -> _Found:
    """Compare the file's outputs with those of the model that it was made of.

    Raises:
        ArtefactError: an op diverges, and the options are strict.
    """
    from edgeprune.keras.export import Exported

    trained = "quantized" in state.files
    model = Exported(state.path("quantized" if trained else "exported"))
    inputs, words = _seeded(state, options.samples)
    classes = state.run.data.task == "classification"
    tolerance = options.tolerance_steps if trained else None
    result = parity.check(state.path("final"), model, {model.input_names[0]: inputs}, classes, tolerance)
    first = asdict(result.first) if result.first else None
    facts = {
        "compared_with": "fake-quantized Keras" if trained else "float Keras (quantized after training)",
        "inputs": words,
        **result.comparison._asdict(),
        "tolerance_steps": tolerance,
        "outputs_agree": result.agrees,
        "first_divergence": first,
    }
    if result.agrees is not False:
        return _Found(facts, [])
    said = _said(result)
    if result.first and options.strict:
        raise ArtefactError(
            f"{said} Report this with the recipe; --set stages.{state.label}.strict=false builds on and only says so."
        )
    return _Found(facts, [said])


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


def _seeded(state: State, samples: int) -> tuple[np.ndarray, str]:
    """(samples, ...) float32 model inputs, real ones first and then noise, and where they are from."""
    data, generator = state.run.data, np.random.Generator(np.random.PCG64(state.run.seed))
    name = "validation" if len(data.validation) else "calibration"
    split = data.splits[name]
    count = min(round(REAL_SHARE * samples), len(split))
    real = split.inputs(np.sort(generator.choice(len(split), count, replace=False)))
    noise = generator.uniform(real.min(), real.max(), (samples - count, *data.sample_shape)).astype(np.float32)
    words = f"{count} {name} samples and {samples - count} of uniform noise between their smallest and largest value"
    return np.concatenate([real, noise]), f"{words}, seed {state.run.seed}"


def _claims(file: tflite.TFLiteFile, proofs: tuple[proof.LayerProof, ...], metrics: dict[str, float]) -> dict[str, Any]:
    """What is true of the file; what a proof has shown is True here, since a failed one is an error."""
    ops = [file.ops[index] for index in tflite.float_ops(file)]
    return {
        "int8_share": tflite.int8_share(file),
        "float_ops": [{"index": op.index, "op": op.op, "layer": op.layer} for op in ops],
        "zeros_match": True if proofs else None,
        "n_of_m_match": True if any(each.n_of_m for each in proofs) else None,
        "metric": {
            "keras_float": metrics["reference"],
            "fake_quant": metrics.get("quantized"),
            "tflite": metrics["final"],
        },
    }


def _candidates(state: State, metrics: dict[str, float]) -> dict[str, Any]:
    """The float model, sized by its float32 file, the dense int8 file, and the final one."""
    return {
        candidate: {"metric": metrics[measured], **_sizes(state, role)}
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


def _float_notes(float_ops: list[dict[str, Any]]) -> list[str]:
    if not float_ops:
        return []
    named = ", ".join(f"{op['op']} ({op['layer'] or 'layer unknown'})" for op in float_ops)
    return [f"{len(float_ops)} ops stayed in float, which boards run slowly and the Edge TPU not at all: {named}."]


def _summary(state: State, verify: dict[str, Any], proofs: tuple[proof.LayerProof, ...]) -> str:
    count = len(verify["float_ops"])
    ops = f"{count} float ops" if count else "all ops int8"
    proven = f", zeros proven in {len(proofs)} layers" if proofs else ""
    return f"int8 {state.run.metric.name} {verify['metric']['tflite']:.4f}, {ops}{proven}"
