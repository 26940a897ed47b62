"""Every op of a .tflite file as a model of its own, so that it can be run and counted alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers

from edgeprune.errors import ArtefactError
from edgeprune.tflite_compact import IDENTIFIER, _schema

NO_TENSOR = -1  # stands for an optional input that is left out


@dataclass(frozen=True, eq=False)
class Part:
    """One op of a model as a model.

    Attributes:
        index: the op's position in the whole model.
        content: a .tflite file whose only op it is; its constants are the op's.
        inputs: tensors of the whole model that the part's inputs stand for, in their order.
    """

    index: int
    content: bytes
    inputs: tuple[int, ...]


def split(content: bytes) -> tuple[Part, ...]:
    """The ops of the main subgraph, one by one.

    An op that runs other subgraphs (a loop, a branch) cannot stand alone and is left out.

    Args:
        content: a .tflite file.

    Raises:
        ArtefactError: the file cannot be read.
        MissingDependency: the schema package is not installed.
    """
    schema = _schema()
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
        return tuple(_parts(model, schema))
    except Exception as error:  # whatever a damaged file makes the reader meet
        raise ArtefactError(f"The .tflite file cannot be taken apart: {error}. Convert the model again.") from error


def _parts(model: Any, schema: Any) -> Iterator[Part]:
    graph = model.subgraphs[0]
    for index, op in enumerate(graph.operators):
        if not _has_subgraph(op):
            part, inputs = _part(model, graph, op, schema)
            builder = flatbuffers.Builder(1024)
            builder.Finish(part.Pack(builder), IDENTIFIER)
            yield Part(index, bytes(builder.Output()), inputs)


def _has_subgraph(op: Any) -> bool:
    options = [vars(part) for part in (op.builtinOptions, op.builtinOptions2) if part is not None]
    return any("ubgraph" in name for names in options for name in names)


def _part(model: Any, graph: Any, op: Any, schema: Any) -> tuple[Any, tuple[int, ...]]:
    """The model that holds one op alone, and which tensors are its inputs."""
    used = _unique(op.inputs, op.outputs, op.intermediates)
    places = {tensor: place for place, tensor in enumerate(used)} | {NO_TENSOR: NO_TENSOR}
    stored = {tensor for tensor in used if _is_stored(model, graph.tensors[tensor])}
    fed = [tensor for tensor in _unique(op.inputs) if tensor not in stored and not graph.tensors[tensor].isVariable]
    alone = copy.copy(op)
    alone.opcodeIndex = 0
    alone.inputs, alone.outputs, alone.intermediates = (
        [places[int(tensor)] for tensor in _given(tensors)] for tensors in (op.inputs, op.outputs, op.intermediates)
    )
    small = schema.SubGraphT()
    small.tensors, small.operators = [], [alone]
    small.inputs, small.outputs = [places[tensor] for tensor in fed], [places[tensor] for tensor in _unique(op.outputs)]
    buffers = [schema.BufferT()]
    for tensor in used:
        own = copy.copy(graph.tensors[tensor])
        own.buffer = len(buffers) if tensor in stored else 0
        if tensor in stored:
            buffers.append(model.buffers[graph.tensors[tensor].buffer])
        small.tensors.append(own)
    whole = schema.ModelT()
    whole.version, whole.buffers, whole.subgraphs = model.version, buffers, [small]
    whole.operatorCodes = [model.operatorCodes[op.opcodeIndex]]
    return whole, tuple(fed)


def _unique(*lists: Sequence[int] | None) -> list[int]:
    """The tensors of all lists, each once, in order."""
    return list(dict.fromkeys(int(tensor) for tensors in lists for tensor in _given(tensors) if tensor != NO_TENSOR))


def _given(tensors: Sequence[int] | None) -> Sequence[int]:
    return [] if tensors is None else tensors


def _is_stored(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0
