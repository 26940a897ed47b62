"""What becomes of every layer of a Keras model on the way to int8, before anything is trained: and why, where it does not.

Four questions per layer, each asked of the code that will do it: can it be pruned (`pruning.plan`), can it lose channels
(`edgeprune.channels`), is it trained with fake quantizers (`quantization.plan`), and is it int8 in the file. The last has
one honest answer: the prepared model is converted, in a child process, with ranges from a few samples, and the file's float
ops are traced back to their layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeprune import channels, columns, inference, tflite
from edgeprune import data as datasets
from edgeprune.errors import ConversionError
from edgeprune.keras import (
    channel_graph,
    conversion,
    export,
    inspect,
    intake,
    keras,
    preparation,
    quantization,
)
from edgeprune.target import Target
from edgeprune.tflite_layers import without_prefix

SAMPLES = 4  # which ops the file has does not depend on how good its ranges are
REWRITTEN, POST_TRAINING = "rewritten", "post-training"
NO_KERNEL, NO_CHANNELS = "no kernel", "no output channels of its own"
GRANULARITIES = tuple(str(pattern) for pattern in inspect.PATTERNS)


def check(source: str, target: Target, trust: bool = False, data: Any = None) -> dict[str, Any]:
    """Everything that ``edgeprune check MODEL --json`` prints, as plain data.

    Args:
        source: as for ``intake.named``.
        target: where it will run.
        trust: whether the user vouches for code inside the model file.
        data: as for ``edgeprune.data.load``; some of it sets the ranges. None: seeded noise does.

    Returns:
        ``model``, ``target``, ``layers`` (``name``, ``kind``, ``params``, ``macs``, ``prunable``: granularity -> None or the reason why
        not, ``shrinkable``: None or the reason why not, ``qat``: ``how`` and ``reason``, ``int8``: True, False or, where the
        converter fails, None, and its ``reason``), ``rewrites`` (``name``, ``layers``), ``notes`` and ``summary``.

    Raises:
        ModelError: the model cannot be taken.
    """
    notes: list[str] = []
    model, _ = intake.named(source, trust, notes.append)
    found = inspect.describe(model)
    prepared = preparation.prepare(model)
    names = [layer.name for layer in prepared.model.layers] + [name for done in prepared.done for name in done.layers]
    origins = _origins(model, names)
    rewrites = [
        {"name": done.name, "layers": list(dict.fromkeys(origins[name] for name in done.layers))}
        for done in prepared.done
    ]
    trained = _trained(prepared.model, origins, rewrites)
    shrinkable = _shrinkable(model)
    file = _converted(prepared.model, origins, data)
    inputs = {layer.name for layer in model.layers if isinstance(layer, keras.layers.InputLayer)}
    layers = [
        {
            "name": layer["name"],
            "kind": layer["class"],
            "params": layer["params"],
            "macs": layer["macs"],
            "prunable": layer["pruning"] or dict.fromkeys(GRANULARITIES, NO_KERNEL),
            "shrinkable": shrinkable.get(layer["name"], NO_CHANNELS),
            "qat": trained.get(layer["name"], {"how": REWRITTEN, "reason": "dropped: it does nothing at inference"}),
            "int8": None if file.error else layer["name"] not in file.floats,
            "reason": "the converter failed" if file.error else _stays_float(file.floats.get(layer["name"], [])),
        }
        for layer in found["layers"]
        if layer["name"] not in inputs
    ]
    return {
        "model": model.name,
        "target": target.name,
        "layers": layers,
        "rewrites": rewrites,
        "notes": notes,
        "summary": _summary(layers, file),
    }


def _origins(model: Any, made: Iterable[str]) -> dict[str, str]:
    """Layer of the prepared model -> the user's layer: a rewrite that makes several of one appends to its name."""
    own = {layer.name for layer in model.layers}
    origins = {}
    for name in made:
        before = [user for user in own if name.startswith(f"{user}_")]
        origins[name] = name if name in own else max(before, key=len, default=name)
    return origins


def _trained(
    prepared: Any, origins: Mapping[str, str], rewrites: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, str | None]]:
    """Layer -> how quantization-aware training takes it, the worst of its parts; of one that is gone the rewrite."""
    reasons = {rewrite.name: rewrite.reason for rewrite in preparation.REWRITES}
    found: dict[str, dict[str, str | None]] = {
        name: {"how": REWRITTEN, "reason": f"{rewrite['name']}: {reasons[rewrite['name']]}"}
        for rewrite in rewrites
        for name in rewrite["layers"]
    }
    planned: dict[str, dict[str, str | None]] = {}
    for entry in quantization.plan(prepared):
        name = origins.get(entry.name, entry.name)
        if (
            name not in planned
            or entry.how == POST_TRAINING
            or (entry.how == "trained" and not planned[name]["reason"])
        ):
            planned[name] = {"how": entry.how, "reason": entry.reason}
    return {**found, **planned}


def _shrinkable(model: Any) -> dict[str, str | None]:
    """Layer -> None where some of its output channels can be removed for good, else why not."""
    found: dict[str, str | None] = {}
    for group in channels.couple(channel_graph.describe(model)).groups:
        for member in group.producers:
            if found.get(member.layer, "") is not None:
                found[member.layer] = None if group.cuttable else f"its channels {'; '.join(group.reasons)}"
    return found


class _File(NamedTuple):
    """What the converter made.

    Attributes:
        error: why there is no file; then the rest is empty.
        floats: layer -> its ops that stay in float.
        unknown: float ops of which the file does not say the layer.
    """

    error: str | None
    floats: dict[str, list[str]]
    unknown: list[str]
    size_bytes: int | None


def _converted(prepared: Any, origins: Mapping[str, str], data: Any) -> _File:
    """Quantize after training, as a build does it with what cannot be trained, and look at the file."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        folder = export.save(prepared, Path(place) / "model")
        try:
            path = conversion.convert(
                folder, Path(place) / "model.tflite", representative=_representative(prepared, folder, data)
            )
        except ConversionError as error:
            return _File(str(error), {}, [], None)
        file = tflite.read(path)
    floats: dict[str, list[str]] = {}
    unknown = []
    for index in tflite.float_ops(file):
        op = file.ops[index]
        layer = _layer(op.layer, origins)
        if layer is None:
            unknown.append(op.op)
        else:
            floats.setdefault(layer, []).append(op.op)
    return _File(None, floats, unknown, file.size_bytes)


def _layer(path: str | None, origins: Mapping[str, str]) -> str | None:
    """The user's layer that a path in the file means."""
    steps = without_prefix(path or "").split("/")
    return next((origins[step] for step in reversed(steps) if step in origins), None)


def _representative(model: Any, folder: Path, data: Any) -> dict[str, np.ndarray]:
    """Samples by the exported model's input names."""
    names = export.Exported(folder).input_names
    if data is not None:
        given = datasets.load(data).calibration.inputs(slice(0, SAMPLES))
        known = inference.words(list(given)) if isinstance(given, Mapping) else names
        return dict(zip(known, columns.values(given), strict=True))
    generator = np.random.Generator(np.random.PCG64(0))
    return {name: _noise(generator, tensor) for name, tensor in zip(names, model.inputs, strict=True)}


def _noise(generator: np.random.Generator, tensor: Any) -> np.ndarray:
    """Seeded values of an input's type: 0..1, or the integers 0 and 1, which every vocabulary holds."""
    shape = (SAMPLES, *tensor.shape[1:])
    if tensor.dtype.is_integer:
        return generator.integers(0, 2, shape).astype(tensor.dtype.as_numpy_dtype)
    return generator.random(shape, dtype=np.float32)


def _stays_float(ops: list[str]) -> str | None:
    return f"stays in float: {', '.join(dict.fromkeys(ops))}" if ops else None


def _summary(layers: list[dict[str, Any]], file: _File) -> dict[str, Any]:
    """Counts, and the same in one line of words."""
    weighty = [layer for layer in layers if NO_KERNEL not in layer["prunable"].values()]
    prunable = {name: sum(layer["prunable"][name] is None for layer in weighty) for name in GRANULARITIES}
    untrained = [layer["name"] for layer in layers if layer["qat"]["how"] == POST_TRAINING]
    int8 = None if file.error else not (file.floats or file.unknown)
    shrinkable = sum(layer["shrinkable"] is None for layer in layers)
    words = [
        f"{prunable['2:4']} of {len(weighty)} layers with a kernel prunable 2:4",
        f"{shrinkable} shrinkable",
        f"{len(untrained)} quantized after training" if untrained else "all trained",
        {
            True: "fully int8",
            False: f"{sum(map(len, file.floats.values())) + len(file.unknown)} float ops",
            None: "not converted",
        }[int8],
    ]
    return {
        "layers": len(layers),
        "with_kernel": len(weighty),
        "prunable": prunable,
        "shrinkable": shrinkable,
        "post_training": untrained,
        "int8": int8,
        "float_ops": {**file.floats, **({"": file.unknown} if file.unknown else {})},
        "size_bytes": file.size_bytes,
        "error": file.error,
        "words": ", ".join(words),
    }
