"""Inputs that are nothing but indices become integers: an index has no scale, and rounding it would find another row."""

from __future__ import annotations

from typing import Any

from edgeprune.keras import graph, keras
from edgeprune.keras.workshop import Rewritten


def integer_inputs(model: Any) -> Rewritten:
    """Make float inputs that Embeddings alone read int32, as Embedding itself would cast them.

    Else the converter quantizes the input and leaves a float cast behind it. Samples may stay whole numbers in float32.

    Args:
        model: functional or built Sequential; not changed.

    Returns:
        The model, and the names of the inputs that were float.
    """
    model = graph.flatten(model)
    readers = graph.consumers(model)
    found = [
        name
        for tensor, name in zip(model.inputs, model.input_names, strict=True)
        if tensor.dtype.is_floating and _all_embeddings(readers.get(str(id(tensor)), []))
    ]
    return (graph.rebuild(model, dtypes=dict.fromkeys(found, "int32")) if found else model), found


def _all_embeddings(readers: list[Any]) -> bool:
    return bool(readers) and all(
        node is not None and isinstance(node.layer, keras.layers.Embedding) for node in readers
    )
