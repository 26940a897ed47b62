"""Distributions: the shapes of kernels and the sparsity of all of them together -> a sparsity for each of them.

Every public function here is a member of the family. Shapes have the layout (..., input channels, output channels). The
zeros of all kernels together are the share that was asked for, to the last rounding: `edgeprune.masks` rounds every
kernel's count down, and leaves no kernel empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

Shapes = Mapping[str, tuple[int, ...]]
Distribution = Callable[[Shapes, float], dict[str, float]]


def uniform(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """The same share of every kernel: s_l = s.

    Zhu & Gupta, "To prune, or not to prune" (2017).

    Args:
        shapes: kernel -> shape.
        sparsity: of all kernels together, 0..1 (1 excluded).

    Raises:
        ValueError: a sparsity outside its range.
    """
    _check(sparsity)
    return dict.fromkeys(shapes, sparsity)


def er(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi, larger layers sparser: 1 - s_l = e (in + out) / (in out).

    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network
    science" (2018). A kernel that would need more weights than it has stays dense, and the others give for it.

    Args:
        shapes: kernel -> shape; the places of a convolution's kernel do not count.
        sparsity: of all kernels together, 0..1 (1 excluded).

    Raises:
        ValueError: a sparsity outside its range.
    """
    return _scaled(shapes, sparsity, lambda shape: sum(shape[-2:]) / prod(shape[-2:]))


def erk(shapes: Shapes, sparsity: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel, `er` with the kernel's sides: 1 - s_l = e (in + out + w + h) / (in out w h).

    Evci et al., "Rigging the lottery: making all tickets winners" (2020). A kernel that would need more weights than it
    has stays dense, and the others give for it.

    Args:
        shapes: kernel -> shape, with all its places.
        sparsity: of all kernels together, 0..1 (1 excluded).

    Raises:
        ValueError: a sparsity outside its range.
    """
    return _scaled(shapes, sparsity, lambda shape: sum(shape) / prod(shape))


def _scaled(shapes: Shapes, sparsity: float, raw: Callable[[tuple[int, ...]], float]) -> dict[str, float]:
    """Densities in proportion to the raw ones, none above 1, so that all kernels together have the asked sparsity."""
    _check(sparsity)
    densities = {name: raw(shape) for name, shape in shapes.items()}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        free = [name for name in shapes if name not in dense]
        budget = (1.0 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        scale = budget / (sum(densities[name] * sizes[name] for name in free) or 1.0)
        full = {name for name in free if scale * densities[name] >= 1.0}
        if not full:
            return {name: 0.0 if name in dense else 1.0 - scale * densities[name] for name in shapes}
        dense |= full


def _check(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity must be from 0 to below 1, got {sparsity}")
