"""Every layer of a Keras model against its tensor in a .tflite file: how much of the signal the file keeps. No TensorFlow.

::

    SNR = 10 log10( sum(ref^2) / sum((ref - got)^2) )   dB, over all values of a layer's output and all samples

where ``ref`` is what the Keras layer gives and ``got`` the real value that the file's tensor stands for. 6 dB are one bit.
A fresh int8 tensor has 30 to 45 dB; below 10 dB a tenth of what is passed on is noise.

Which layer a tensor stands for: an output of the file the layer of its name; any other the layer whose output is nearest
to it, since the converter fuses layers and renames what is left; of equally near ones the layer that its names tell. Where
no layer is near, the names alone decide, for the last op that bears them: what lies inside a layer (the product before a
fused softmax) has no counterpart in Keras.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log10, prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeprune import tflite
from edgeprune.errors import DataError
from edgeprune.inference import Port, Runner
from edgeprune.tflite_layers import without_prefix

Inputs = Mapping[str, np.ndarray]  # by name, each (n, ...)

CEILING_DB = 120.0  # what an exact copy is said to have, and (negative) what has nothing of the signal
NEAR_DB = 10.0  # from here on a value is taken for a layer's output
ALIKE_DB = 1.0  # layers whose outputs are this alike (Dropout, Reshape) are told apart by name
FIRST_SAMPLES = 2  # compared with every layer of a tensor's size; later ones only with those that are still near
STILL_NEAR_DB = 20.0
BATCH_BYTES = 128 * 2**20  # of layer outputs in memory at once; a batch of 1 takes what it takes
LARGEST_BATCH = 16
_QUANTIZERS = frozenset({"QuantizeLayer"})  # TFMOT's own, no layer of the user's


class Named(Protocol):
    """A layer's call: its name and its class."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...


class Reference(Protocol):
    """The Keras side: what `edgeprune.keras.export.Exported` is."""

    @property
    def layers(self) -> Sequence[Named]: ...

    def layer_outputs(self, inputs: Inputs) -> Sequence[np.ndarray]:
        """What every layer gives, real numbers, each (n, ...), in the order of ``layers``."""


@dataclass(frozen=True)
class Row:
    """One tensor of the file against one layer.

    Attributes:
        op: the index of the op that makes the tensor; None for an input of the model.
        kind: the op's kind; ``"INPUT"`` for an input.
        layer: the layer the op computes, by its names, or else ``output_of``.
        output_of: the Keras layer whose output the tensor is compared with; a fused op gives the last of its layers.
        snr_db: see above, -120..120.
        cosine: of the angle between the two as vectors, -1..1.
        largest_steps: largest difference in steps of the tensor's scale, >= 0; None for a float tensor.
        saturated: share of the stored values at an end of their type (-128 or 127), 0..1.
        clipped: share of the noise's energy in values that the tensor's range cannot hold, 0..1.
    """

    op: int | None
    kind: str
    layer: str
    output_of: str
    snr_db: float
    cosine: float
    largest_steps: float | None
    saturated: float
    clipped: float


@dataclass(frozen=True)
class Layerwise:
    """All rows.

    Attributes:
        inputs: one row per quantized input of the file.
        rows: one per op that stands for a layer, in the file's order.
        outputs: the ops that make the file's outputs.
        fused: layers that have no tensor of their own: they are computed inside an op of another layer.
        samples: how many were compared.
    """

    inputs: tuple[Row, ...]
    rows: tuple[Row, ...]
    outputs: tuple[int, ...]
    fused: tuple[str, ...]
    samples: int


def compare(model: Path | bytes, reference: Reference, inputs: Inputs) -> Layerwise:
    """Compare every layer.

    Layer outputs are held for one batch at a time; only sums are kept.

    Args:
        model: the .tflite file.
        reference: the Keras model, float or with fake quantizers.
        inputs: samples for each of the file's inputs, (n, ...), n >= 1.

    Raises:
        ArtefactError: the file cannot be run.
        DataError: the samples do not fit it.
    """
    file = tflite.read(model)
    runner = Runner(model, keep_tensors=True)
    given = paired(runner.inputs, inputs)
    tensors = {op.index: _port(file, op) for op in file.ops if _comparable(file, op)}
    named = _families({index: _named(file, file.ops[index], reference.layers) for index in tensors}, reference.layers)
    fixed = _fixed(runner, reference.layers)
    named.update({index: [fixed[port.tensor]] for index, port in tensors.items() if port.tensor in fixed})
    sums: dict[int, dict[int, _Sums]] = {index: {} for index in tensors}
    done, count = 0, len(next(iter(inputs.values())))
    size = 1
    while done < count:
        batch = {name: array[done : done + size] for name, array in inputs.items()}
        expected = reference.layer_outputs(batch)
        size = _batch_size(expected)
        for row in range(len(next(iter(batch.values())))):
            runner.run(*(batch[name][row : row + 1] for name in given))
            for index, port in tensors.items():
                _add(sums[index], port, runner.tensor(port.tensor), expected, row, done == 0, fixed)
            done += 1
            if done == FIRST_SAMPLES:
                for index in tensors:
                    sums[index] = _still_near(sums[index], named[index])
    chosen = {index: _chosen(found, named[index]) for index, found in sums.items()}
    chosen = _without_inner(chosen, sums)
    rows = tuple(
        _row(file.ops[index], reference.layers[place], sums[index][place], tensors[index])
        for index, place in chosen.items()
        if place is not None
    )
    return Layerwise(
        _input_rows(runner, [inputs[name] for name in given]),
        rows,
        _makers(file),
        _fused(reference.layers, chosen),
        count,
    )


def paired(ports: Sequence[Port], names: Iterable[str]) -> list[str]:
    """For each input of a file the model's input that it is: by name; a lone one needs none, as files of others show.

    Raises:
        DataError: there are several, and of other names.
    """
    known = list(names)
    if len(ports) == len(known) == 1:
        return known
    if sorted(port.name for port in ports) != sorted(known):
        raise DataError(
            f"The file has the inputs {', '.join(port.name for port in ports)}, the samples are for {', '.join(known)}. Give one "
            "array for each input of the file, under its name."
        )
    return [port.name for port in ports]


class _Sums:
    """What is kept of one tensor against one layer."""

    def __init__(self) -> None:
        self.signal = self.noise = self.got = self.product = self.clipped = 0.0
        self.largest, self.ends, self.count = 0.0, 0, 0

    def add(self, reference: np.ndarray, stored: np.ndarray, port: Port) -> None:
        """Take in one sample; both flat and of one length."""
        got = port.dequantize(stored)
        difference = reference - got
        self.signal += float(np.vdot(reference, reference))
        self.noise += float(np.vdot(difference, difference))
        self.got += float(np.vdot(got, got))
        self.product += float(np.vdot(reference, got))
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.count += stored.size
        if port.scale:
            limits = np.iinfo(port.dtype)
            self.ends += int(np.count_nonzero((stored == limits.min) | (stored == limits.max)))
            low, high = ((end - port.zero_point) * port.scale for end in (limits.min, limits.max))
            under, over = reference < low - port.scale / 2, reference > high + port.scale / 2
            outside = difference[(under & (stored == limits.min)) | (over & (stored == limits.max))]
            self.clipped += float(np.vdot(outside, outside))

    @property
    def snr_db(self) -> float:
        if not np.isfinite(self.noise + self.signal):
            return -CEILING_DB
        if self.noise == 0:
            return CEILING_DB
        ratio = self.signal / self.noise
        return CEILING_DB if ratio > 1e12 else -CEILING_DB if ratio < 1e-12 else 10 * log10(ratio)

    @property
    def cosine(self) -> float:
        lengths = (self.signal * self.got) ** 0.5
        return self.product / lengths if lengths else float(self.signal == self.got)


def _add(
    sums: dict[int, _Sums],
    port: Port,
    stored: np.ndarray,
    expected: Sequence[np.ndarray],
    row: int,
    first: bool,
    fixed: Mapping[int, int],
) -> None:
    """Add one sample of one tensor; with the first batch every layer of its size comes into question."""
    if first and not sums:
        known = fixed.get(port.tensor)
        places = range(len(expected)) if known is None else [known]
        sums.update({place: _Sums() for place in places if prod(expected[place].shape[1:]) == stored.size})
    flat = stored.reshape(-1)
    for place, found in sums.items():
        found.add(expected[place][row].reshape(-1), flat, port)


def _still_near(sums: dict[int, _Sums], named: Sequence[int]) -> dict[int, _Sums]:
    best = max((found.snr_db for found in sums.values()), default=0.0)
    return {place: found for place, found in sums.items() if place in named or found.snr_db >= best - STILL_NEAR_DB}


def _chosen(sums: Mapping[int, _Sums], named: Sequence[int]) -> int | None:
    """The layer that a tensor stands for, by place; None when neither values nor names tell."""
    best = max((found.snr_db for found in sums.values()), default=-CEILING_DB)
    if best >= NEAR_DB:
        near = [place for place, found in sums.items() if found.snr_db >= best - ALIKE_DB]
        return next((place for place in near if place in named), near[0])
    return max((place for place in named if place in sums), key=lambda place: sums[place].snr_db, default=None)


def _without_inner(chosen: Mapping[int, int | None], sums: Mapping[int, dict[int, _Sums]]) -> dict[int, int | None]:
    """Of several ops that only their names give to one layer, the last stays; none where the layer is found by value."""
    near = {place for index, place in chosen.items() if place is not None and sums[index][place].snr_db >= NEAR_DB}
    last = {place: index for index, place in chosen.items() if place is not None}
    return {
        index: place
        if place is None or sums[index][place].snr_db >= NEAR_DB or (place not in near and last[place] == index)
        else None
        for index, place in chosen.items()
    }


def _comparable(file: tflite.TFLiteFile, op: tflite.Op) -> bool:
    """Whether an op gives real numbers: floats, or integers with one scale."""
    if not op.outputs or op.outputs[0] < 0:
        return False
    tensor = file.tensors[op.outputs[0]]
    return tensor.dtype == "float32" or (tensor.scales.size == 1 and tensor.dtype in ("int8", "uint8", "int16"))


def _port(file: tflite.TFLiteFile, op: tflite.Op) -> Port:
    """The op's first output as something that turns stored numbers to real ones."""
    tensor = file.tensors[op.outputs[0]]
    scale = float(tensor.scales[0]) if tensor.scales.size else 0.0
    zero = int(tensor.zero_points[0]) if tensor.zero_points.size else 0
    return Port(tensor.name, tensor.index, tensor.shape[1:], np.dtype(tensor.dtype), scale, zero)


def _named(file: tflite.TFLiteFile, op: tflite.Op, layers: Sequence[Named]) -> list[int]:
    """The layers, by place, that the names of an op and of its output tell."""
    steps = {step for part in file.tensors[op.outputs[0]].name.split(";") for step in part.split("/")[:-1]}
    words = {_bare(step) for step in steps} | ({_bare(op.layer)} if op.layer else set())
    return [place for place, layer in enumerate(layers) if _bare(layer.name) in words]


def _families(named: Mapping[int, list[int]], layers: Sequence[Named]) -> dict[int, list[int]]:
    """With each op's layers those behind them that no op bears the name of: what the converter has fused into it."""
    taken = {place for places in named.values() for place in places}
    families = {}
    for index, places in named.items():
        family = list(places)
        following = max(places) + 1 if places else len(layers)
        while following < len(layers) and following not in taken:
            family.append(following)
            following += 1
        families[index] = family
    return families


def _bare(name: str) -> str:
    """A layer's name without nested models before it and TFMOT's prefix."""
    return without_prefix(name).rpartition("/")[2]


def _fixed(runner: Runner, layers: Sequence[Named]) -> dict[int, int]:
    """Tensor -> place of the layer, for the outputs of the file that bear a layer's name."""
    words = {re.sub(r"\W", "_", _bare(layer.name)): place for place, layer in enumerate(layers)}
    names = {port.tensor: re.sub(r"\W", "_", _bare(port.name)) for port in runner.outputs}
    return {tensor: words[name] for tensor, name in names.items() if name in words}


def _batch_size(expected: Sequence[np.ndarray]) -> int:
    """How many samples' layer outputs fit into memory."""
    per_sample = sum(array.nbytes // max(1, len(array)) for array in expected)
    return int(np.clip(BATCH_BYTES // max(1, per_sample), 1, LARGEST_BATCH))


def _row(op: tflite.Op, layer: Named, found: _Sums, port: Port) -> Row:
    output_of = without_prefix(layer.name)
    return Row(op.index, op.op, op.layer or output_of, output_of, **_figures(found, port))


def _input_rows(runner: Runner, inputs: Sequence[np.ndarray]) -> tuple[Row, ...]:
    """What quantizing does to the inputs: little, unless their range is another than the file was made for."""
    rows = []
    for port, samples in zip(runner.inputs, inputs, strict=True):
        if port.scale:
            found = _Sums()
            for sample in samples:
                found.add(np.asarray(sample, np.float32).reshape(-1), port.quantize(sample).reshape(-1), port)
            rows.append(Row(None, "INPUT", port.name, port.name, **_figures(found, port)))
    return tuple(rows)


def _figures(found: _Sums, port: Port) -> dict[str, Any]:
    return {
        "snr_db": round(found.snr_db, 2),
        "cosine": round(found.cosine, 6),
        "largest_steps": round(found.largest / port.scale, 2) if port.scale else None,
        "saturated": round(found.ends / max(1, found.count), 6),
        "clipped": round(found.clipped / found.noise, 4) if found.noise else 0.0,
    }


def _makers(file: tflite.TFLiteFile) -> tuple[int, ...]:
    return tuple(op.index for op in file.ops if set(op.outputs) & set(file.outputs))


def _fused(layers: Sequence[Named], chosen: Mapping[int, int | None]) -> tuple[str, ...]:
    own = {without_prefix(layers[place].name) for place in chosen.values() if place is not None}
    names = (without_prefix(layer.name) for layer in layers if layer.kind not in _QUANTIZERS)
    return tuple(dict.fromkeys(name for name in names if name not in own))
