"""A TensorFlow program as one layer: what is left of a SavedModel whose layers cannot be recovered.

The layer takes part in everything that knows only layers: it is saved, digested, exported and converted like any other.
It has no weights to train or prune, so such a model becomes int8 after training only.

A program from a stranger can read and write files when it runs, so its ops are those of `PURE`, which compute. The graph
comes as text in the layer's configuration, its large constants as the layer's weights.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from edgeprune.errors import ModelError, UntrustedModel
from edgeprune.keras import guard, keras, tf

GRAPH_BYTES = 64 * 2**20  # of a graph without its large constants
LARGE = 256  # elements from which on a constant is a weight

# Ops that take tensors and give tensors: no file, network, queue, table, dataset or Python function.
PURE = re.compile(
    "Abs|Acos|Acosh|Add|AddN|AddV2|All|Angle|Any|ArgMax|ArgMin|Asin|Asinh|Assert|Atan|Atan2|Atanh|"
    "AudioSpectrogram|AvgPool|AvgPool3D|BatchMatMul|BatchMatMulV2|BatchMatMulV3|BatchToSpace|BatchToSpaceND|"
    "BiasAdd|Bitcast|BitwiseAnd|BitwiseOr|BitwiseXor|BroadcastArgs|BroadcastTo|Bucketize|Case|Cast|Ceil|"
    "CheckNumerics|ClipByValue|CombinedNonMaxSuppression|Complex|ComplexAbs|Concat|ConcatOffset|ConcatV2|Conj|"
    "Const|Conv2D|Conv2DBackpropInput|Conv3D|Conv3DBackpropInputV2|Cos|Cosh|CropAndResize|CudnnRNNBackpropV3|"
    "CudnnRNNV3|Cumprod|Cumsum|DepthToSpace|DepthwiseConv2dNative|Diag|DiagPart|Dilation2D|Div|DivNoNan|"
    "DynamicPartition|DynamicStitch|Einsum|Elu|EmptyTensorList|EnsureShape|Equal|Erf|Erfc|Erfinv|EuclideanNorm|"
    "Exp|ExpandDims|Expm1|FFT|FFT2D|FakeQuantWithMinMaxArgs|FakeQuantWithMinMaxVars|"
    "FakeQuantWithMinMaxVarsPerChannel|Fill|Floor|FloorDiv|FloorMod|FusedBatchNorm|FusedBatchNormV2|"
    "FusedBatchNormV3|Gather|GatherNd|GatherV2|Greater|GreaterEqual|HSVToRGB|IFFT|IFFT2D|IRFFT|Identity|IdentityN|"
    "If|Imag|Inv|Invert|InvertPermutation|IsFinite|IsInf|IsNan|L2Loss|LRN|LeakyRelu|LeftShift|Less|LessEqual|"
    "Lgamma|LinSpace|Log|Log1p|LogSoftmax|LogicalAnd|LogicalNot|LogicalOr|LoopCond|MatMul|MatrixBandPart|"
    "MatrixDiag|MatrixDiagPart|MatrixDiagPartV3|MatrixDiagV3|MatrixInverse|MatrixSetDiag|MatrixSetDiagV3|Max|"
    "MaxPool|MaxPool3D|MaxPoolV2|MaxPoolWithArgmax|Maximum|Mean|Mfcc|Min|Minimum|MirrorPad|Mod|Mul|MulNoNan|Neg|"
    "NoOp|NonMaxSuppression|NonMaxSuppressionV2|NonMaxSuppressionV3|NonMaxSuppressionV4|NonMaxSuppressionV5|"
    "NotEqual|OneHot|OnesLike|Pack|Pad|PadV2|PartitionedCall|Placeholder|PlaceholderWithDefault|Pow|"
    "PreventGradient|Prod|RFFT|RFFT2D|RGBToHSV|RandomStandardNormal|RandomUniform|RandomUniformInt|Range|Rank|"
    "ReadVariableOp|Real|RealDiv|Reciprocal|Relu|Relu6|Reshape|ResizeArea|ResizeBicubic|ResizeBilinear|"
    "ResizeNearestNeighbor|Reverse|ReverseSequence|ReverseV2|RightShift|Rint|Roll|Round|Rsqrt|ScatterNd|"
    "SegmentMax|SegmentMean|SegmentMin|SegmentProd|SegmentSum|Select|SelectV2|Selu|Shape|ShapeN|Sigmoid|Sign|Sin|"
    "Sinh|Size|Slice|Snapshot|Softmax|Softplus|Softsign|SpaceToBatch|SpaceToBatchND|SpaceToDepth|SparseToDense|"
    "Split|SplitV|Sqrt|Square|SquaredDifference|Squeeze|StatefulPartitionedCall|StatelessCase|StatelessIf|"
    "StatelessRandomGetKeyCounter|StatelessRandomNormalV2|StatelessRandomUniformV2|StatelessWhile|StopGradient|"
    "StridedSlice|Sub|Sum|Tan|Tanh|TensorListElementShape|TensorListFromTensor|TensorListGather|TensorListGetItem|"
    "TensorListLength|TensorListPopBack|TensorListPushBack|TensorListReserve|TensorListResize|TensorListScatter|"
    "TensorListSetItem|TensorListStack|TensorScatterAdd|TensorScatterUpdate|Tile|TopK|TopKV2|Transpose|"
    "TruncateDiv|TruncateMod|Unpack|UnravelIndex|UnsortedSegmentMax|UnsortedSegmentMin|UnsortedSegmentProd|"
    "UnsortedSegmentSum|Where|While|Xdivy|Xlogy|ZerosLike"
)


def check_ops(nodes: Iterable[Any], functions: Iterable[str], where: str) -> None:
    """Refuse a program that does anything but compute.

    Args:
        nodes: NodeDefs.
        functions: names of the program's own functions, which a node may call by name.
        where: for the message.

    Raises:
        UntrustedModel: an op is not one of `PURE`.
    """
    own = frozenset(functions)
    for node in nodes:
        if not PURE.fullmatch(node.op) and node.op not in own:
            raise UntrustedModel(
                f"{where} holds a program with the op {node.op} ('{node.name}'), which may do more than compute, such as reading "
                "files. If you know where it comes from, load it with --trust; better, give the model as a .keras file."
            )


@keras.utils.register_keras_serializable(package="edgeprune")
class Program(keras.layers.Layer):
    """A frozen graph, run as it is.

    Attributes:
        batch: samples that the graph takes at once; None: any number.
        why: the word why its layers cannot be recovered, and so cannot be trained, pruned or fake-quantized.
    """

    def __init__(
        self,
        graph: str,
        inputs: list[str],
        outputs: list[str],
        batch: int | None,
        constants: dict[str, Any],
        why: str = "",
        **options: Any,
    ) -> None:
        """Args:
            graph: the GraphDef, compressed, in base64.
            inputs, outputs: names of tensors in it, in the model's order.
            batch: 1, or None for any number of samples.
            constants: name of a node -> shape and dtype of the weight that stands in for it.
            why: see above.

        Raises:
            ModelError: the graph is damaged.
            UntrustedModel: the graph does more than compute.
        """
        super().__init__(trainable=False, **options)
        self.batch, self.why = batch, why
        self._given = (graph, tuple(inputs), tuple(outputs))
        self._constants = tuple((name, tuple(shape), dtype) for name, (shape, dtype) in sorted(constants.items()))
        self._graph = _unpacked(graph, self.name)
        self._stored: dict[str, Any] = {}
        self._traced = tf.function(self._imported, autograph=False)

    def build(self, input_shape: Any) -> None:
        for place, (name, shape, dtype) in enumerate(self._constants):
            self._stored[name] = self.add_weight(
                f"constant_{place}", shape, dtype, initializer="zeros", trainable=False
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """All samples at once where the graph takes them, else one after the other."""
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if self.batch is None or given[0].shape[0] == self.batch:
            return self._traced(*given)
        one = [tf.TensorSpec(tensor.shape[1:], tensor.dtype) for tensor in given]
        outputs = self._traced.get_concrete_function(*(tf.TensorSpec([1, *spec.shape], spec.dtype) for spec in one))
        specs = [
            tf.TensorSpec(tensor.shape[1:], tensor.dtype) for tensor in tf.nest.flatten(outputs.structured_outputs)
        ]

        def each(sample: Any) -> Any:
            made = tf.nest.flatten(self._traced(*(tensor[tf.newaxis] for tensor in sample)))
            return tuple(tensor[0] for tensor in made)

        made = tf.map_fn(each, tuple(given), fn_output_signature=tuple(specs))
        return made[0] if len(made) == 1 else list(made)

    def _imported(self, *given: Any) -> Any:
        _, inputs, outputs = self._given
        fed = dict(zip(inputs, given, strict=True))
        fed.update({f"{name}:0": tf.convert_to_tensor(weight) for name, weight in self._stored.items()})
        made = tf.graph_util.import_graph_def(self._graph, input_map=fed, return_elements=list(outputs), name="program")
        return made[0] if len(made) == 1 else list(made)

    def get_config(self) -> dict[str, Any]:
        graph, inputs, outputs = self._given
        constants = {name: [list(shape), dtype] for name, shape, dtype in self._constants}
        own = {
            "graph": graph,
            "inputs": list(inputs),
            "outputs": list(outputs),
            "batch": self.batch,
            "constants": constants,
            "why": self.why,
        }
        config = {**super().get_config(), **own}
        config.pop("trainable", None)  # never
        return config


def model_of(graph: Any, inputs: Sequence[Any], outputs: Sequence[Any], name: str, why: str) -> Any:
    """A functional model of one layer, `Program`.

    Args:
        graph: a frozen GraphDef.
        inputs, outputs: tensors of it, whose first axis is the batch.
        name: of the model.
        why: as `Program`'s.

    Raises:
        ModelError: an input has a batch of more than 1, or no known shape; an output's shape cannot be told.
        UntrustedModel: the graph does more than compute.
    """
    for tensor in inputs:
        if tensor.shape.rank in (None, 0) or None in tensor.shape.as_list()[1:] or tensor.shape[0] not in (None, 1):
            raise ModelError(
                f"The input '{tensor.op.name}' of {name} has the shape {tensor.shape}. Expected a batch of any size or 1, and every "
                "other side known: export the model with a fixed input shape."
            )
    batch = 1 if any(tensor.shape[0] == 1 for tensor in inputs) else None
    stripped, constants = _split(graph)
    packed = base64.b64encode(zlib.compress(stripped.SerializeToString(deterministic=True))).decode()
    kept = {node: [list(array.shape), array.dtype.name] for node, array in constants.items()}
    layer = Program(packed, [t.name for t in inputs], [t.name for t in outputs], batch, kept, why, name="program")
    given = [keras.Input(tensor.shape[1:], dtype=tensor.dtype, name=_word(tensor.op.name)) for tensor in inputs]
    model = keras.Model(given, layer(given if len(given) > 1 else given[0]), name=name)
    layer.set_weights([constants[node] for node in sorted(constants)])
    for tensor in model.outputs:
        if tensor.shape.rank is None or None in tensor.shape.as_list()[1:]:
            raise ModelError(
                f"An output of {name} has the shape {tensor.shape}; every side but the batch must be known."
            )
    return model


def why_not(model: Any) -> str | None:
    """The word why a model cannot be trained, pruned or fake-quantized, only quantized after training; None: it can."""
    found = [layer.why for layer in model.layers if isinstance(layer, Program)]
    return f"The model is one program, not layers: {found[0]}" if found else None


def _split(graph: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph with placeholders instead of its large constants, and these."""
    constants, stripped = {}, type(graph)()
    stripped.CopyFrom(graph)
    for node in stripped.node:
        if node.op != "Const" or prod(side.size for side in node.attr["value"].tensor.tensor_shape.dim) < LARGE:
            continue
        array = tf.make_ndarray(node.attr["value"].tensor)
        if array.dtype.name not in ("float16", "float32", "float64"):
            continue  # shapes and indices have to stay constants
        constants[node.name] = array
        node.op = "Placeholder"
        del node.attr["value"]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(array.shape).as_proto())
    return stripped, constants


def _unpacked(packed: str, name: str) -> Any:
    """The GraphDef in a layer's configuration, checked."""
    try:
        unfolding = zlib.decompressobj()
        content = unfolding.decompress(base64.b64decode(packed), GRAPH_BYTES)
        graph = tf.compat.v1.GraphDef()
        graph.ParseFromString(content)
    except Exception as error:  # binascii, zlib and protobuf raise their own
        raise ModelError(
            f"The graph in the layer '{name}' is damaged: {guard.first_line(error)} Save the model again."
        ) from error
    check_graph(graph, f"The layer '{name}'", len(content))
    return graph


def check_graph(graph: Any, where: str, held: int) -> None:
    """Refuse a GraphDef that does more than compute, or that declares constants far larger than it.

    Args:
        graph: GraphDef.
        where: for the message.
        held: bytes that it was read from.

    Raises:
        UntrustedModel, ModelError: as said.
    """
    functions = [function.signature.name for function in graph.library.function]
    check_ops(every_node(graph), functions, where)
    check_constants(every_node(graph), where, held)


def check_constants(nodes: Iterable[Any], where: str, held: int) -> None:
    """Refuse constants that unfold beyond reason: one number may stand for a tensor of any shape.

    Raises:
        ModelError: together they take more than `guard.EXPANSION` times ``held`` bytes and `guard.SLACK`.
    """
    total = 0
    for node in nodes:
        if node.op == "Const":
            total += 8 * prod(max(side.size, 0) for side in node.attr["value"].tensor.tensor_shape.dim)
    if total > guard.EXPANSION * held + guard.SLACK:
        raise ModelError(
            f"{where} declares constants of {total} bytes and holds {held}: it is damaged, or made to fill the memory. "
            "Save the model again."
        )


def every_node(graph: Any) -> Iterator[Any]:
    """The nodes of a GraphDef and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _word(name: str) -> str:
    """An input's name without what TensorFlow puts around it: ``serving_default_image`` is ``image``."""
    return name.rsplit("/", 1)[-1].removeprefix("serving_default_") or "input"
