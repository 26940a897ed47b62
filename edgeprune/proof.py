"""Proof on the artefact that pruning survived: every weight that a mask took is zero in the .tflite file itself.

Masks come in Keras' layouts, True where a weight is kept; the file has the output channels first::

    Conv2D           (height, width, in, out)          -> (out, height, width, in)
    DepthwiseConv2D  (height, width, in, multiplier)   -> (1, height, width, in x multiplier)
    Conv2DTranspose  (height, width, out, in)          -> (out, height, width, in)
    Conv1D           (width, in, out)                  -> (out, 1, width, in)
    Dense            (in, out)                         -> (out, in)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeprune import tflite
from edgeprune.errors import ArtefactError


@dataclass(frozen=True)
class LayerProof:
    """What the file holds of one pruned layer.

    Attributes:
        layer: Keras' name.
        tensor: the kernel's name in the file.
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
        masks: Keras layer name -> True where a weight is kept.
        patterns: Keras layer name -> ``"2:4"`` for layers that keep 2 of 4 consecutive input channels; others are left.

    Raises:
        ArtefactError: a kernel is not in the file, a pruned weight is not zero there, or a block keeps too many.
    """
    return tuple(_prove(file, layer, mask, patterns.get(layer)) for layer, mask in masks.items())


def _prove(file: tflite.TFLiteFile, layer: str, mask: np.ndarray, pattern: str | None) -> LayerProof:
    tensor, kept = _kernel(file, layer, mask.astype(bool))
    zero = tflite.zeros(tensor)
    alive = ~kept & ~zero
    if alive.any():
        raise ArtefactError(
            f"The layer '{layer}' has {int(alive.sum())} of {int((~kept).sum())} pruned weights that are not zero in "
            f"the file (tensor '{tensor.name}'): the zeros were lost after pruning. Quantize with a scheme that "
            "keeps them, and report this with the recipe."
        )
    return LayerProof(
        layer=layer,
        tensor=tensor.name,
        sparsity_keras=float((~kept).mean()),
        sparsity=float(zero.mean()),
        extra_zeros=int((kept & zero).sum()),
        n_of_m=_n_of_m(layer, zero, pattern),
    )


def _kernel(file: tflite.TFLiteFile, layer: str, mask: np.ndarray) -> tuple[tflite.Tensor, np.ndarray]:
    """The layer's kernel in the file and its mask in the file's layout.

    Raises:
        ArtefactError: there is none of a shape that the layer could have.
    """
    for kept in _layouts(mask):
        tensor = tflite.kernel_for(file, layer, kept.shape)
        if tensor is not None:
            return tensor, kept
    raise ArtefactError(
        f"The file has no kernel for the pruned layer '{layer}', whose mask has the shape {mask.shape}: nothing "
        "there has a fitting name and shape. The kernels are: "
        f"{', '.join(sorted(map(str, tflite.weights_by_layer(file))))}. Convert the pruned model again."
    )


def _layouts(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The layouts that a kernel of this rank can have in a file, the usual one first.

    Where sides are equal the first layout fits them all; a transposed convolution is then looked up as a plain one.
    edgeprune itself never prunes those.
    """
    if mask.ndim == 2:
        yield mask.T
    if mask.ndim == 3:
        yield mask.transpose(2, 0, 1)[:, None]
    if mask.ndim == 4:
        yield mask.transpose(3, 0, 1, 2)
        yield mask.reshape(1, *mask.shape[:2], -1)
        yield mask.transpose(2, 0, 1, 3)


def _n_of_m(layer: str, zero: np.ndarray, pattern: str | None) -> dict[str, float] | None:
    """The pattern's share in the file.

    Raises:
        ArtefactError: a block keeps more than it may.
    """
    if pattern is None or ":" not in pattern:
        return None
    n, m = (int(number) for number in pattern.split(":"))
    share = tflite.n_of_m(~zero, n, m)
    if share != 1.0:
        broken = "its input channels are no multiple of it" if share is None else f"only {share:.1%} of its blocks do"
        raise ArtefactError(
            f"The layer '{layer}' must keep at most {n} of every {m} consecutive input channels in the file, but "
            f"{broken}. Quantize with a scheme that keeps the zeros, or leave the layer out of the pattern."
        )
    return {"n": n, "m": m, "share": share}
