"""What a Keras model consists of: layers, shapes, parameters, multiply-accumulates, zeros.

A multiply-accumulate (MAC) is counted as in ``edgeprune.tflite_macs``: one multiplication with its addition; biases,
normalizations and activations count 0. For a layer whose kernels slide over positions

    MACs = positions * |kernel|

where the positions are the layer's outputs without batch and channels (a transposed convolution: its inputs).
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from edgeprune.keras import graph, intake, keras, pruning

KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")
PATTERNS = (pruning.Pattern("weight"), pruning.Pattern("n:m", n=2, m=4))


def inventory(source: str, trust: bool = False) -> dict[str, Any]:
    """Everything that ``edgeprune inspect MODEL --json`` prints, as plain data.

    Args:
        source: as for ``intake.named``.
        trust: whether the user vouches for code inside the model file.

    Returns:
        ``name``, ``inputs``, ``outputs`` (name and shape without the batch), ``layers`` and the totals ``params``, ``macs``
        and ``sparsity`` (share of exact zeros among the kernels' weights, 0..1; None without kernels). Each layer with a
        kernel has ``pruning``: granularity -> None where it can carry that, else the reason why not.
    """
    return describe(intake.named(source, trust)[0])


def describe(model: Any) -> dict[str, Any]:
    """`inventory` of a live functional or built Sequential model."""
    macs = macs_by_layer(model)
    pruned = _pruning_by_layer(model)
    layers = [{**_layer(layer, macs.get(layer.name, 0)), "pruning": pruned.get(layer.name)} for layer in model.layers]
    kernels = [weights for layer in model.layers for weights in _kernels(layer)]
    return {
        "name": model.name,
        "inputs": [{"name": tensor.name, "shape": list(tensor.shape[1:])} for tensor in model.inputs],
        "outputs": [{"name": tensor.name, "shape": list(tensor.shape[1:])} for tensor in model.outputs],
        "layers": layers,
        "params": model.count_params(),
        "macs": sum(macs.values()),
        "sparsity": _sparsity(kernels),
    }


def _layer(layer: Any, macs: int) -> dict[str, Any]:
    activation = getattr(layer, "activation", None)
    return {
        "name": layer.name,
        "class": type(layer).__name__,
        "output_shape": _shape(layer.output_shape),
        "params": layer.count_params(),
        "macs": macs,
        "activation": None if activation is None else keras.activations.serialize(activation),
        "sparsity": _sparsity(_kernels(layer)),
    }


def _pruning_by_layer(model: Any) -> dict[str, dict[str, str | None]]:
    found: dict[str, dict[str, str | None]] = {}
    for pattern in PATTERNS:
        for plan in pruning.plan(model, pattern):
            if plan.kernel:
                found.setdefault(plan.name, {})[str(pattern)] = plan.reason
    return found


def _shape(shape: Any) -> Any:
    """A Keras shape, or a list of several, without the batch; an axis of any length is None."""
    if not isinstance(shape, list):
        return list(shape[1:])
    return [_shape(inner) for inner in shape] if len(shape) > 1 else _shape(shape[0])


def _kernels(layer: Any) -> list[np.ndarray]:
    found = (getattr(layer, name, None) for name in KERNELS)
    return [np.asarray(kernel) for kernel in found if kernel is not None]


def _sparsity(kernels: list[np.ndarray]) -> float | None:
    size = sum(kernel.size for kernel in kernels)
    return 1 - sum(int(np.count_nonzero(kernel)) for kernel in kernels) / size if size else None


def macs_by_layer(model: Any) -> dict[str, int]:
    """Layer name -> MACs of all its calls for one sample; a shared layer counts once per call."""
    found: dict[str, int] = {}
    for node in graph.nodes(graph.functional(model)):
        found[node.layer.name] = found.get(node.layer.name, 0) + _macs(node)
    return found


def _macs(node: Any) -> int:
    layer = node.layer
    transposed = isinstance(
        layer, (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    )
    shape = node.input_shapes if transposed else node.output_shapes
    kernels = _kernels(layer)
    if not kernels or isinstance(shape, list):
        return 0
    inner = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    positions = prod(size or 1 for size in inner)  # an axis of any length counts as 1
    return positions * sum(kernel.size for kernel in kernels)
