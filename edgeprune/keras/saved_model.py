"""A SavedModel folder -> a tf_keras model: with its layers where Keras left word of them, else as one program.

A SavedModel is a TensorFlow program, and ``tf.saved_model.load`` runs parts of it. So the program is read as plain data
first: an op that does more than compute is refused, in whatever function it hides. Only what TensorFlow itself wrote for
saving and restoring may touch files, and nothing else may call that.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError, ModelError, UntrustedModel
from edgeprune.keras import guard, keras, program, tf
from edgeprune.keras.code_check import MODELS, check_config
from edgeprune.quiet import quiet

PROGRAM_FILE = "saved_model.pb"
METADATA_FILE = "keras_metadata.pb"
SIGNATURE = "serving_default"
_FILE_BYTES = 2**30
_VARIABLES = frozenset(("VarHandleOp", "ReadVariableOp", "AssignVariableOp", "DisableCopyOnRead", "VarIsInitializedOp"))
_SAVING = frozenset(
    (
        "SaveV2",
        "RestoreV2",
        "MergeV2Checkpoints",
        "ShardedFilename",
        "StringJoin",
        "StaticRegexFullMatch",
        "Select",
        "Pack",
    )
)


class _NoLayersError(Exception):
    """Why the layers of a SavedModel cannot be recovered, in words."""


def load(folder: Path, trust: bool = False) -> Any:
    """The model in a SavedModel folder, uncompiled.

    Args:
        folder: as ``model.save`` of Keras 2, ``model.export`` of Keras 3 or ``tf.saved_model.save`` writes it.
        trust: load it even though the program, or a Lambda layer in it, may do more than compute.

    Returns:
        A functional or Sequential tf_keras model; one of the single layer `program.Program`, which says why, where the
        layers cannot be recovered.

    Raises:
        ModelError: no SavedModel, a damaged one, or one without a signature that can be taken.
        UntrustedModel: the program may do more than compute, and ``trust`` is False.
    """
    with guard.named(folder):
        saved = _read(folder)
        if not trust:
            for meta_graph in saved.meta_graphs:
                check_program(meta_graph, str(folder))
        held = _variable_bytes(folder)
        try:
            return _with_layers(folder, saved, held, trust)
        except _NoLayersError as why:
            return _as_program(folder, str(why))


def _read(folder: Path) -> Any:
    """The folder's ``saved_model.pb``, parsed and not run."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / PROGRAM_FILE
    if not path.is_file():
        raise ModelError(
            f"{folder} is a folder without a {PROGRAM_FILE}. Give a .keras or .h5 file, or the folder of a SavedModel."
        )
    if path.stat().st_size > _FILE_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size} bytes; at most {_FILE_BYTES} are read. Give a .keras file.")
    try:
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError has another home in every version
        raise ModelError(
            f"{path} is damaged: {guard.first_line(error)} Copy it again, or save the model again."
        ) from error
    if not saved.meta_graphs:
        raise ModelError(f"{path} holds no program. Save the model again.")
    return saved


def check_program(meta_graph: Any, where: str) -> None:
    """Refuse a program that does more than compute, or declares constants that it does not hold.

    Args:
        meta_graph: MetaGraphDef of a SavedModel.
        where: for the message.

    Raises:
        UntrustedModel: an op outside the functions that save and restore is not one of `program.PURE`.
        ModelError: its constants are far larger than it is.
    """
    graph = meta_graph.graph_def
    functions = {function.signature.name: function for function in graph.library.function}
    callers = {meta_graph.saver_def.save_tensor_name.split(":")[0], meta_graph.saver_def.restore_op_name} - {""}
    saving = {name for node in graph.node if node.name in callers for name in _called(node) if name in functions}
    for name, function in functions.items():
        allowed = _SAVING | _VARIABLES if name in saving else _VARIABLES
        program.check_ops((node for node in function.node_def if node.op not in allowed), functions, where)
    program.check_ops((node for node in graph.node if node.op not in _VARIABLES), functions, where)
    for node in program.every_node(graph):
        if node.name not in callers and saving.intersection(_called(node)):
            raise UntrustedModel(
                f"{where} holds a program whose op '{node.name}' saves or restores files by itself. If you know where it comes "
                "from, load it with --trust; better, give the model as a .keras file."
            )
    program.check_constants(program.every_node(graph), where, meta_graph.ByteSize())


def _called(node: Any) -> Iterator[str]:
    """Names of the functions that a node calls."""
    yield node.op
    for value in node.attr.values():
        yield from (function.name for function in (value.func, *value.list.func) if function.name)


def _variable_bytes(folder: Path) -> int:
    """Bytes of the variables beside the program.

    Raises:
        ModelError: they declare more than their files hold.
    """
    files = list((folder / "variables").glob("variables.*"))
    stored = sum(path.stat().st_size for path in files)
    if not files:
        return 0
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    declared = sum(prod(shape) * types[name].size for name, shape in reader.get_variable_to_shape_map().items())
    if declared > stored + guard.SLACK:
        raise ModelError(
            f"{folder} declares variables of {declared} bytes and stores {stored}: it is damaged, or made to fill the memory. Save "
            "the model again."
        )
    return stored


def _with_layers(folder: Path, saved: Any, held: int, trust: bool) -> Any:
    """The model that Keras rebuilds from its metadata.

    Raises:
        _NoLayersError: it cannot be.
    """
    entries = list(_metadata(folder, saved))
    if not entries:
        raise _NoLayersError("it was saved without Keras' layers, as tf.saved_model.save and model.export do")
    root = entries[0]
    if not root.get("config") or not (root.get("class_name") in MODELS or root.get("is_graph_network")):
        raise _NoLayersError(
            f"its class {root.get('class_name')!r} is a subclass of Model, whose calls only its code knows"
        )
    for entry in entries:
        if not trust:
            try:
                check_config(entry, str(folder))
            except UntrustedModel as error:
                raise _NoLayersError(str(error).removeprefix(f"{folder} ").split(". ")[0]) from error
        guard.check_config_sizes(entry, folder)
    try:
        size = sum(len(str(entry)) for entry in entries)
        with guard.deadline(size, folder), guard.weights(held, folder, keras.layers.Layer), quiet():
            model = keras.models.load_model(folder, compile=False)
    except EdgepruneError:
        raise
    except Exception as error:  # whatever Keras meets inside
        raise _NoLayersError(f"Keras cannot rebuild its layers ({guard.first_line(error).rstrip('.')})") from error
    revived = [
        layer.name for layer in getattr(model, "layers", ()) if type(layer).__module__.endswith("saved_model.load")
    ]
    if not getattr(model, "_is_graph_network", False) or revived:
        raise _NoLayersError(
            f"it holds layers that only their own code knows ({', '.join(revived) or 'the model itself'})"
        )
    return model


def _metadata(folder: Path, saved: Any) -> Iterator[dict[str, Any]]:
    """What Keras wrote about each of its objects, the model first: beside the program, or in it before TensorFlow 2.5."""
    from tf_keras.protobuf import saved_metadata_pb2

    path = folder / METADATA_FILE
    if path.is_file():
        nodes = saved_metadata_pb2.SavedMetadata.FromString(path.read_bytes()).nodes
        texts = [node.metadata for node in sorted(nodes, key=lambda node: node.node_id)]
    else:
        objects = (node.user_object for node in saved.meta_graphs[0].object_graph_def.nodes)
        texts = [found.metadata for found in objects if found.identifier.startswith("_tf_keras_") and found.metadata]
    for text in texts:
        entry = guard.parsed(text, str(folder))
        if isinstance(entry, dict):
            yield entry


def _as_program(folder: Path, why: str) -> Any:
    """The signature that serves, frozen, as a model of one layer."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    with quiet():
        loaded = tf.saved_model.load(str(folder))  # its variables live no longer than it does
    names = list(loaded.signatures)
    chosen = SIGNATURE if SIGNATURE in names else names[0] if len(names) == 1 else None
    if chosen is None:
        raise ModelError(
            f"{folder} has the signatures {', '.join(names) or 'none'}. Expected one, or '{SIGNATURE}': save it with "
            "signatures=model.call.get_concrete_function(...), or give a .keras file."
        )
    frozen = convert_variables_to_constants_v2(loaded.signatures[chosen], lower_control_flow=False)
    _check_sizes(frozen.graph, folder)
    definition = frozen.graph.as_graph_def()
    try:
        return program.model_of(definition, frozen.inputs, frozen.outputs, folder.name, why)
    except UntrustedModel as error:  # trusted or not: it is nothing that int8 could compute
        raise ModelError(f"{error} As int8 it cannot be run either way.") from error


def _check_sizes(graph: Any, folder: Path) -> None:
    for operation in graph.get_operations():
        for tensor in operation.outputs:
            count = prod(side or 1 for side in tensor.shape.as_list()) if tensor.shape.rank is not None else 0
            if count > guard.ACTIVATION:
                raise ModelError(
                    f"{folder}: the op '{operation.name}' gives {count} numbers for one sample; at most {guard.ACTIVATION} are "
                    "taken. Build the model for smaller inputs."
                )
