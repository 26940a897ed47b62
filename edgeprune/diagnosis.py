"""Which op of a .tflite file is the first to lose the signal, why it most likely does, and what to do about it.

An op is *bad* when its SNR (see `edgeprune.layerwise`) is below a threshold, or when it loses much of what it was given at
once. The cause is read from where the noise is: in values that the tensor's range cannot hold, in a kernel of which one
channel takes the whole range, in one layer alone, or in none: then it has added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeprune import tflite
from edgeprune.layerwise import Layerwise, Row

MIN_SNR_DB = 10.0  # a tenth of the energy is noise
LOW_DB = 15.0  # a sudden loss that ends above this is none to worry about
SHARP_DB = 12.0  # two bits in one op
GRADUAL_DB = 6.0  # a bit or less in one op: the noise was there before
NO_SIGNAL_DB = 3.0  # half of it is noise: that is no rounding
CLIPPED_SHARE = 0.5  # of the noise's energy
EVEN_STEPS = 16  # of 127: what the kernel's middle channel has left where another one takes the whole range

_WORDS = {
    "input": "the samples are not on the scale that the file was made for: {clipped:.0%} of the difference is cut off at the "
    "input. Give --recipe the recipe of the build (its data.preprocess), or data that is prepared as the training data was",
    "range": "{clipped:.0%} of its error is in values beyond its range, which calibration has not seen. Calibrate on more "
    "samples: --set data.calibration=N",
    "channel": "its kernel has one scale for all output channels, and one channel takes most of the range. Give each channel "
    "a scale: --set stages.convert.per_channel_dense=true",
    "accumulated": "no op loses much by itself, the noise adds up. Train longer with quantization: --set "
    "stages.quantize.epochs=N",
    "other": "it computes something else, which rounding does not explain. If the file was pruned or trained further than "
    "this model, give the run folder in the model's place; else convert again",
    "layer": "this layer alone does not bear 8 bits as it was trained. Leave it to ranges from calibration: --set "
    "'stages.quantize.skip={layer}', or build it of other layers",
}


@dataclass(frozen=True)
class Finding:
    """The first bad op.

    Attributes:
        op: its index; None for an input of the model.
        kind: the op's kind; ``"INPUT"`` for an input.
        layer: the layer that it computes.
        snr_db: of the layer's output.
        lost_db: against the worst of what the layer was given, dB; of an input, against the ceiling.
        cause: a word for programs: ``input``, ``range``, ``channel``, ``accumulated``, ``other``, ``layer``.
        advice: the cause and what to do, one sentence or two.
    """

    op: int | None
    kind: str
    layer: str
    snr_db: float
    lost_db: float
    cause: str
    advice: str


def first_bad(found: Layerwise, file: tflite.TFLiteFile, min_snr_db: float = MIN_SNR_DB) -> Finding | None:
    """The first op that loses the signal, in the file's order; None when all keep it.

    Args:
        found: from `layerwise.compare`.
        file: the file that was compared.
        min_snr_db: below it an op is bad.
    """
    for row in found.inputs:
        if row.snr_db < min_snr_db:
            return _finding(row, row.op, row.kind, 0.0, "input")
    for row in found.rows:
        inner, sources = _behind(file, row, found)
        lost = _lost(row, sources)
        if row.snr_db < min_snr_db or (row.snr_db < LOW_DB and lost >= SHARP_DB):
            first = file.ops[min(inner)]
            return _finding(row, first.index, first.op, lost, _cause(row, lost, [file.ops[i] for i in inner], file))
    return None


def of_op(found: Layerwise, file: tflite.TFLiteFile, index: int) -> Finding | None:
    """The finding for an op that is known to compute something else, however little of the signal is lost by it.

    Args:
        index: of the op.

    Returns:
        None where neither it nor an op behind it stands for a layer.
    """
    for row in found.rows:
        inner, sources = _behind(file, row, found)
        if index in inner:
            return _finding(row, index, file.ops[index].op, _lost(row, sources), "other")
    return None


def _lost(row: Row, sources: Iterable[Row]) -> float:
    """dB against the worst of what a layer was given; 0 where that is not known."""
    return min((source.snr_db for source in sources), default=row.snr_db) - row.snr_db


def _finding(row: Row, op: int | None, kind: str, lost: float, cause: str) -> Finding:
    advice = _WORDS[cause].format(clipped=row.clipped, layer=row.layer)
    return Finding(op, kind, row.layer, row.snr_db, round(lost, 2), cause, advice)


def _cause(row: Row, lost: float, ops: Iterable[tflite.Op], file: tflite.TFLiteFile) -> str:
    if row.clipped >= CLIPPED_SHARE:
        return "range"
    if lost < GRADUAL_DB:
        return "accumulated"
    if any(_uneven(op, file) for op in ops):
        return "channel"
    return "other" if row.snr_db < NO_SIGNAL_DB else "layer"


def _behind(file: tflite.TFLiteFile, row: Row, found: Layerwise) -> tuple[set[int], list[Row]]:
    """The ops that make a layer's output out of other layers' outputs, and the rows of those others."""
    makers = {output: op for op in file.ops for output in op.outputs}
    rows: Mapping[int | None, Row] = {each.op: each for each in found.rows}
    inner: set[int] = set()
    sources: list[Row] = []
    pending = [row.op]
    while pending:
        index = pending.pop()
        if index is None or index in inner:
            continue
        inner.add(index)
        for tensor in _activations(file, file.ops[index]):
            maker = makers.get(tensor)
            if maker is None:
                sources += found.inputs
            elif maker.index in rows:
                sources.append(rows[maker.index])
            else:
                pending.append(maker.index)
    return inner, sources


def _activations(file: tflite.TFLiteFile, op: tflite.Op) -> Iterator[int]:
    return (index for index in op.inputs if index >= 0 and not file.tensors[index].is_constant)


def _uneven(op: tflite.Op, file: tflite.TFLiteFile) -> bool:
    """Whether an op's kernel has one scale, and one output channel takes most of its range."""
    kernels = [kernel.tensor for kernel in tflite.kernels(file) if kernel.op.index == op.index]
    return any(
        tensor.data is not None
        and tensor.scales.size == 1
        and float(np.median(np.abs(tensor.data.astype(np.int32)).reshape(len(tensor.data), -1).max(axis=1)))
        < EVEN_STEPS
        for tensor in kernels
    )
