"""Hard-swish and hard-sigmoid chains -> the layers of that name, which become one int8 op or a few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.keras import graph, keras
from edgeprune.keras import layers as own
from edgeprune.keras.rewrites_affine import Linear, linear
from edgeprune.keras.rewrites_operations import function_of
from edgeprune.keras.workshop import Rewritten, Workshop


def hard_swish(model: Any) -> Rewritten:
    """x * relu6(x + 3) / 6 -> `HardSwish`, relu6(x + 3) / 6 -> `HardSigmoid`, however they were written.

    The sum and the quotient may be functions, `Operation`s or Rescaling layers, the relu6 any layer that computes it, and
    the product may come before or after the division (Howard et al. 2019, Searching for MobileNetV3).
    """
    found = _Chains(model).found
    if not found:
        return model, []
    shop = Workshop(model)

    def rewrite(call: graph.Call) -> Any:
        match = found.get(id(call.node))
        if match is None:
            return None
        kind, source = match
        return shop.make(kind, call.layer.name)(call.made[source])

    rewritten = shop.rebuild(rewrite)
    kept = {layer.name for layer in rewritten.layers}  # a hard-sigmoid that was a part of a hard-swish is gone
    ends = graph.names_of(node for node in graph.nodes(model) if id(node) in found)
    return rewritten, [name for name in ends if name in kept]


class _Chains:
    """The ends of the hard-swish and hard-sigmoid chains in a model.

    Attributes:
        found: id of a chain's last node -> the layer that does the same, and the id of the tensor it reads.
    """

    def __init__(self, model: Any) -> None:
        self._makers = graph.producers(model)
        self.found: dict[int, tuple[type, str]] = {}
        for node in graph.nodes(model):
            sigmoid, swish = self._sigmoid(node), self._swish(node)
            if sigmoid is not None:
                self.found[id(node)] = (own.HardSigmoid, sigmoid)
            elif swish is not None:
                self.found[id(node)] = (own.HardSwish, swish)

    def _sigmoid(self, node: Any) -> str | None:
        """The x of relu6(x + 3) / 6."""
        scaled = linear(node)
        if isinstance(node.layer, own.HardSigmoid) or scaled is None or not _close(scaled, 1 / 6, 0.0):
            return None
        return self._shifted_relu6(self._makers.get(scaled.source))

    def _swish(self, node: Any) -> str | None:
        """The x of x * (relu6(x + 3) / 6), or of (x * relu6(x + 3)) / 6."""
        scaled = linear(node)
        if scaled is not None and _close(scaled, 1 / 6, 0.0):
            product = self._makers.get(scaled.source)
            return self._product(product, self._shifted_relu6) if product is not None else None
        return self._product(node, self._gate)

    def _gate(self, node: Any | None) -> str | None:
        if node is None:
            return None
        return str(node.flat_input_ids[0]) if isinstance(node.layer, own.HardSigmoid) else self._sigmoid(node)

    def _product(self, node: Any, factor: Callable[[Any], str | None]) -> str | None:
        if type(node.layer) is not keras.layers.Multiply and not _multiplies(node):
            return None
        sources = [str(tensor) for tensor in node.flat_input_ids]
        if len(sources) != 2:
            return None
        for x, other in (sources, sources[::-1]):
            if factor(self._makers.get(other)) == x:
                return x
        return None

    def _shifted_relu6(self, node: Any | None) -> str | None:
        """The x of relu6(x + 3)."""
        if node is None or not _is_relu6(node):
            return None
        maker = self._makers.get(str(node.flat_input_ids[0]))
        shifted = linear(maker) if maker is not None else None
        return shifted.source if shifted is not None and _close(shifted, 1.0, 3.0) else None


def _close(found: Linear, scale: float, shift: float) -> bool:
    same = np.size(found.scale) == 1 and np.size(found.shift) == 1
    return bool(same and np.allclose([found.scale, found.shift], [scale, shift], rtol=1e-6, atol=1e-9))


def _multiplies(node: Any) -> bool:
    called = function_of(node.layer, node.call_args, node.call_kwargs)
    return called is not None and called[0] == "math.multiply"


def _is_relu6(node: Any) -> bool:
    layer = node.layer
    if isinstance(layer, keras.layers.ReLU):
        given = (layer.max_value, float(layer.negative_slope), float(layer.threshold))
        return given == (6.0, 0.0, 0.0)
    if type(layer) is keras.layers.Activation:
        return graph.activation_of(layer) == "relu6"
    called = function_of(layer, node.call_args, node.call_kwargs)
    return called is not None and called[0] == "nn.relu6"
