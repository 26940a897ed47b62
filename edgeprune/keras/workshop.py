"""What a rewrite of a model makes its new layers with: each once, under a name of its own, with its weights.

A rewrite is a function from a flat functional model to an equal one and the names of the layers it touched. It gives
`Workshop.rebuild` what to do with each call, and makes layers with `make`: the layer of one name is made once, so that
what was shared stays shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeprune.keras import graph

Layer = Any
Tensor = Any
Rewritten = tuple[Any, list[str]]  # the model, and the names of the layers that were touched


class Workshop:
    """The new layers of one rewrite of one model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._taken = {layer.name for layer in model.layers}
        self._made: dict[str, Layer] = {}
        self._derived: dict[tuple[str, str], str] = {}
        self._weights: list[tuple[Layer, Sequence[np.ndarray]]] = []

    def make(self, kind: Any, name: str, weights: Sequence[np.ndarray] | None = None, /, **config: Any) -> Layer:
        """The layer of that name; made at the first call, its weights set once it is built."""
        if name not in self._made:
            self._made[name] = layer = kind(name=name, **config)
            if weights is not None:
                self._weights.append((layer, weights))
        return self._made[name]

    def copy(
        self, layer: Layer, weights: Sequence[np.ndarray] | None = None, kind: Any = None, /, **changes: Any
    ) -> Layer:
        """A layer's copy with its configuration changed, or of another kind that takes the same one; made once.

        Args:
            layer: the original.
            weights: of the copy; None: the original's.
            kind: its class; None: the original's.
            changes: of the configuration.
        """
        config = {**layer.get_config(), **changes}
        name = config["name"]
        if name not in self._made:
            self._made[name] = (kind or type(layer)).from_config(config)
            self._weights.append((self._made[name], layer.get_weights() if weights is None else weights))
        return self._made[name]

    def derived(self, name: str, suffix: str) -> str:
        """A name for a layer that is made beside the one of that name; the same one whenever it is asked for."""
        if (name, suffix) not in self._derived:
            self._derived[name, suffix] = self.another(f"{name}_{suffix}")
        return self._derived[name, suffix]

    def another(self, name: str) -> str:
        """A name that no layer has yet."""
        free = graph.free_name(name, self._taken)
        self._taken.add(free)
        return free

    def rebuild(self, rewrite: graph.Rewrite) -> Any:
        """The model with its calls rewritten; calls for which ``rewrite`` gives None are copied."""
        result = graph.rebuild(self.model, rewrite)
        for layer, values in self._weights:
            layer.set_weights(values)
        return result
