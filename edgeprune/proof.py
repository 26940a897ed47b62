"""Proof on the artefact that pruning survived: every weight that a mask took is zero in the .tflite file itself.

Masks come in Keras' layouts, True where a weight is kept; the file has the output channels first::

    Conv2D           (height, width, in, out)          -> (out, height, width, in)
    DepthwiseConv2D  (height, width, in, multiplier)   -> (1, height, width, in x multiplier)
    Conv2DTranspose  (height, width, out, in)          -> (out, height, width, in)
    Conv1D           (width, in, out)                  -> (out, 1, width, in), or (out, width, 1, in) after a rewrite
    Dense            (in, out)                         -> (out, in), or (out, 1, 1, in)
    LSTM, GRU        (in, gates x units)               -> (units, in) for every gate, or (gates x units, in)
    Embedding        (rows, columns)                   -> as it is

The file names the layer of most kernels. Those that it does not (an LSTM's, an Embedding's, what a rewrite has split) are
known by their values: of the tensors of that shape, the one that is zero wherever the mask is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgeprune import tflite
from edgeprune.errors import ArtefactError
from edgeprune.tflite_layers import without_prefix

GATES = (4, 3)  # of an LSTM, of a GRU
TABLES = ("GATHER", "EMBEDDING_LOOKUP")  # ops that look rows up; no other reads a kernel as Keras stores it


@dataclass(frozen=True)
class LayerProof:
    """What the file holds of one pruned kernel.

    Attributes:
        layer: Keras' name of the layer; of a kernel that is not its main one with the kernel's name behind a colon.
        tensor: the kernel's name in the file; the names of all, where it is split there.
        sparsity_keras: share of weights that the mask took, 0..1.
        sparsity: share of zeros in the file, 0..1; never less.
        extra_zeros: kept weights that int8 rounds to zero.
        n_of_m: ``{"n", "m", "share"}``, the share of blocks that keep at most n of m; None without such a pattern.
    """

    layer: str
    tensor: str
    sparsity_keras: float
    sparsity: float
    extra_zeros: int
    n_of_m: dict[str, float] | None


def prove(
    file: tflite.TFLiteFile, masks: Mapping[str, np.ndarray], patterns: Mapping[str, str | None]
) -> tuple[LayerProof, ...]:
    """Compare every mask with its kernel in the file.

    Args:
        file: the artefact.
        masks: Keras layer name, or ``layer:kernel`` -> True where a weight is kept.
        patterns: Keras layer name -> ``"2:4"`` for layers that keep 2 of 4 consecutive input channels; others are left.

    Raises:
        ArtefactError: a kernel is not in the file, a pruned weight is not zero there, or a block keeps too many.
    """
    stored = _stored(file)
    return tuple(
        _prove(stored, name, mask.astype(bool), patterns.get(name, patterns.get(_layer(name))))
        for name, mask in masks.items()
    )


def kernels(file: tflite.TFLiteFile, name: str, shape: tuple[int, ...]) -> tuple[tflite.Tensor, ...]:
    """The constants that may be a layer's kernel: those of its name where the file names it, else those without a name.

    Args:
        file: the artefact.
        name: Keras' name of the layer, or ``layer:kernel``.
        shape: of the kernel in Keras; one that the file holds in one piece.

    Returns:
        Tensors with numbers, of a shape that the kernel can have in a file; at least one.

    Raises:
        ArtefactError: there is none.
    """
    shapes = {form[0].shape for form in _forms(np.ones(shape, bool)) if len(form) == 1}
    stored = [entry for entry in _stored(file) if entry.tensor.data is not None]
    fitting = [entry for entry in stored if entry.tensor.shape in ({shape} if entry.table else shapes)]
    own = [entry.tensor for entry in fitting if any(_is_of(path, _layer(name)) for path in entry.layers)]
    found = own or [entry.tensor for entry in fitting if None in entry.layers]
    if not found:
        raise ArtefactError(
            f"The file has no kernel for the layer '{name}' of the shape {shape}. Convert the model again, and report this "
            "with the recipe."
        )
    return tuple(found)


class _Stored(NamedTuple):
    """A constant of the file: the layers that the file names for the ops that read it, and whether these look rows up."""

    tensor: tflite.Tensor
    layers: frozenset[str | None]
    table: bool

    @property
    def zero(self) -> np.ndarray:
        return tflite.zeros(self.tensor)


class _Match(NamedTuple):
    """A mask in the layout of the file, and the constant that fits it best."""

    kept: np.ndarray
    stored: _Stored

    @property
    def alive(self) -> int:
        """Weights that should be zero and are not."""
        return int((~self.kept & ~self.stored.zero).sum())

    @property
    def extra(self) -> int:
        """Weights that are zero and need not be: int8 rounds small ones to zero."""
        return int((self.kept & self.stored.zero).sum())


def _layer(name: str) -> str:
    return name.partition(":")[0]


def _stored(file: tflite.TFLiteFile) -> list[_Stored]:
    readers: dict[int, list[tflite.Op]] = {}
    for op in file.ops:
        for index in op.inputs:
            if index >= 0 and file.tensors[index].is_constant and len(file.tensors[index].shape) > 1:
                readers.setdefault(index, []).append(op)
    return [
        _Stored(file.tensors[index], frozenset(op.layer for op in ops), all(op.op in TABLES for op in ops))
        for index, ops in readers.items()
    ]


def _prove(stored: Sequence[_Stored], name: str, mask: np.ndarray, pattern: str | None) -> LayerProof:
    matches = _found(stored, name, mask)
    alive = sum(match.alive for match in matches)
    tensors = ", ".join(dict.fromkeys(match.stored.tensor.name for match in matches))
    if alive:
        raise ArtefactError(
            f"The layer '{name}' has {alive} of {int((~mask).sum())} pruned weights that are not zero in "
            f"the file (tensor '{tensors}'): the zeros were lost after pruning. Quantize with a scheme that "
            "keeps them, and report this with the recipe."
        )
    return LayerProof(
        layer=name,
        tensor=tensors,
        sparsity_keras=float((~mask).mean()),
        sparsity=sum(int(match.stored.zero.sum()) for match in matches) / mask.size,
        extra_zeros=sum(match.extra for match in matches),
        n_of_m=_n_of_m(name, [match.stored.zero for match in matches], pattern),
    )


def _found(stored: Sequence[_Stored], name: str, mask: np.ndarray) -> list[_Match]:
    """The constants that hold a kernel: those that the file names after the layer, else those with its zeros.

    Raises:
        ArtefactError: there is none of a shape that the layer could have.
    """
    own = [entry for entry in stored if any(_is_of(path, _layer(name)) for path in entry.layers)]
    if best := _best(own, mask):
        return best
    best = _best(stored, mask)
    nameless = [entry for entry in stored if None in entry.layers]
    if best and not any(match.alive for match in best):
        return best
    if best := _best(nameless, mask):
        return best
    named = sorted({str(path) for entry in stored for path in entry.layers if path})
    raise ArtefactError(
        f"The file has no kernel for the pruned layer '{name}', whose mask has the shape {mask.shape}: nothing "
        f"there has a fitting name and shape. The kernels are: {', '.join(named)}. Convert the pruned model again."
    )


def _is_of(path: str | None, layer: str) -> bool:
    """Whether the file's path is the layer's, or that of a cell inside it; an outer model's name may come before."""
    if path is None:
        return False
    bare = without_prefix(path)
    return f"/{without_prefix(layer)}/" in f"/{bare}/"


def _best(candidates: Sequence[_Stored], mask: np.ndarray) -> list[_Match]:
    """For one of the forms that the kernel can have in a file, a constant for each of its parts; [] where none fits."""
    found = []
    for parts in (*_forms(mask), [mask]):
        fitting = [entry for entry in candidates if entry.table == (parts[0] is mask)]
        matches = [_closest(fitting, kept) for kept in parts]
        if all(match is not None for match in matches):
            found.append([match for match in matches if match is not None])
    return min(found, key=lambda matches: sum(match.alive for match in matches), default=[])


def _closest(candidates: Iterable[_Stored], kept: np.ndarray) -> _Match | None:
    fitting = [_Match(kept, entry) for entry in candidates if entry.tensor.shape == kept.shape]
    return min(fitting, key=lambda match: (match.alive, match.extra), default=None)


def _forms(mask: np.ndarray) -> Iterator[list[np.ndarray]]:
    """What a kernel of this rank can look like in a file, as a whole or by gates, the usual form first; no table's."""
    if mask.ndim == 2:
        yield [mask.T]
        yield [mask.T[:, None, None]]
        yield from (np.split(mask.T, gates) for gates in GATES if mask.shape[1] % gates == 0)
    if mask.ndim == 3:
        for outputs_first in (mask.transpose(2, 0, 1), mask.transpose(1, 0, 2)):
            yield [outputs_first[:, None]]
            yield [outputs_first[:, :, None]]
    if mask.ndim == 4:
        yield [mask.transpose(3, 0, 1, 2)]
        yield [mask.reshape(1, *mask.shape[:2], -1)]
        yield [mask.transpose(2, 0, 1, 3)]
    if mask.ndim > 2 and set(mask.shape[:-2]) == {1}:
        yield [mask.reshape(mask.shape[-2:]).T]


def _n_of_m(layer: str, zeros: Sequence[np.ndarray], pattern: str | None) -> dict[str, float] | None:
    """The pattern's share in the file.

    Raises:
        ArtefactError: a block keeps more than it may.
    """
    if pattern is None or ":" not in pattern:
        return None
    n, m = (int(number) for number in pattern.split(":"))
    shares = [tflite.n_of_m(~zero, n, m) for zero in zeros]
    broken = [share for share in shares if share != 1.0]
    if broken:
        how = (
            "its input channels are no multiple of it"
            if broken[0] is None
            else f"only {broken[0]:.1%} of its blocks do"
        )
        raise ArtefactError(
            f"The layer '{layer}' must keep at most {n} of every {m} consecutive input channels in the file, but "
            f"{how}. Quantize with a scheme that keeps the zeros, or leave the layer out of the pattern."
        )
    return {"n": n, "m": m, "share": 1.0}
