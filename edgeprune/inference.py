"""Run a .tflite file on this machine, without TensorFlow: batched, with bounded memory, raw or in real numbers.

The figures are right here and the speed is not a board's. Kernels of another processor round otherwise, too:
:mod:`edgeprune.agreement` says by how much.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune import tflite
from edgeprune.errors import ArtefactError, DataError, MissingDependency
from edgeprune.quiet import quiet

if TYPE_CHECKING:
    from edgeprune.data import Split

Arrays = tuple[np.ndarray, ...]

BATCH = 64
ACTIVATION_BYTES = 256 * 2**20  # of one batch, at most; a batch of 1 takes what it takes
LARGEST_BYTES = 4 * 2**30  # of one sample; what a file declares beyond is no model's


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: in the file's signature, which for our files is Keras' name; else the tensor's.
        tensor: its index.
        shape: of one sample, without the batch axis.
        dtype: of the stored numbers.
        scale: real = (stored - zero_point) * scale; 0 where it is not quantized.
        zero_point: the stored number that means 0.
    """

    name: str
    tensor: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scale: float
    zero_point: int

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Real numbers -> stored ones: divide by the scale, round half away from zero, add the zero point, clip.

        The rounding is that of TFLite's QUANTIZE kernel (``std::round``; NumPy's goes from half to even). Every device
        gets its inputs from here, so that outputs differ by kernels alone.
        """
        if self.scale == 0:
            return (np.rint(values) if self.dtype.kind in "iu" else np.asarray(values)).astype(self.dtype)
        scaled = np.asarray(values, dtype=np.float32) / np.float32(self.scale)
        steps = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
        limits = np.iinfo(self.dtype)
        return np.clip(steps + self.zero_point, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers -> float32 real ones."""
        if self.scale == 0:
            return stored.astype(np.float32)
        return (stored.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


class Runner:
    """A loaded file.

    Attributes:
        inputs, outputs: its ports, in the file's order.
        batch: samples per invocation; None until the first call has found out how many the file takes.
    """

    def __init__(
        self, model: Path | str | bytes, threads: int = 2, batch: int = BATCH, keep_tensors: bool = False
    ) -> None:
        """Load a file.

        Args:
            model: the file, or its bytes.
            threads: >= 1.
            batch: samples per invocation, >= 1; fewer where the activations would not fit `ACTIVATION_BYTES`, and 1
                where the file has its batch built in or would answer otherwise.
            keep_tensors: keep what lies between the ops for `tensor`; takes batch 1.

        Raises:
            ArtefactError: the file is damaged, or the runtime here cannot run it.
            MissingDependency: ai-edge-litert is not installed.
        """
        file = tflite.read(model)
        self._name = "the model given as bytes" if isinstance(model, bytes) else str(model)
        self._content = file.content
        self._threads = threads
        self._keep = keep_tensors
        self._stateful = any(tensor.is_variable for tensor in file.tensors)
        taken = _activation_bytes(file)
        if taken > LARGEST_BYTES:
            raise ArtefactError(
                f"{self._name} declares activations of {taken} bytes for one sample; at most {LARGEST_BYTES} are run here. Convert "
                "the model again, for smaller inputs."
            )
        self._single = self._interpreter(1)
        try:
            self.inputs, self.outputs = _ports(self._single)
        except ValueError as error:  # a name that is no UTF-8, a signature of tensors that are not there
            raise ArtefactError(
                f"{self._name} is a damaged .tflite file: {error}. Copy or convert it again."
            ) from error
        self._wanted = 1 if keep_tensors else max(1, min(batch, ACTIVATION_BYTES // taken))
        self._many = self._single
        self.batch: int | None = 1 if self._wanted == 1 else None

    def in_order(self, inputs: np.ndarray | Mapping[str, np.ndarray]) -> Arrays:
        """Inputs by name, Keras' or the file's, in the file's order, which need not be the model's; one without a name.

        Raises:
            DataError: other names than the file's.
        """
        if not isinstance(inputs, Mapping):
            return (inputs,)
        given = dict(zip(words(list(inputs)), inputs.values(), strict=True))
        names = [port.name for port in self.inputs]
        if set(given) != set(names):
            raise DataError(
                f"{self._name} has the inputs {', '.join(names)}, got {', '.join(given)}. Give one array per input."
            )
        return tuple(given[name] for name in names)

    def quantize_input(self, values: np.ndarray, port: int = 0) -> np.ndarray:
        """float32 model inputs -> what `raw` takes."""
        return self.inputs[port].quantize(values)

    def raw(self, *inputs: np.ndarray) -> Arrays:
        """Stored outputs, each (n, ...), for stored inputs, each (n, ...).

        Raises:
            DataError: the inputs do not fit the file's.
            ArtefactError: the runtime fails on this file.
        """
        count = self._checked(inputs)
        if count == 0:
            return tuple(np.zeros((0, *port.shape), port.dtype) for port in self.outputs)
        if count == 1 or self.batch == 1:
            return self._one_by_one(inputs)
        if self.batch is None:
            self._choose_batch(inputs)
            return self.raw(*inputs)
        parts = [self._padded([array[i : i + self.batch] for array in inputs]) for i in range(0, count, self.batch)]
        return tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))

    def run(self, *inputs: np.ndarray) -> Arrays:
        """Outputs as float32 real numbers, each (n, ...), for float32 model inputs, each (n, ...).

        Raises:
            DataError: the inputs do not fit the file's.
            ArtefactError: the runtime fails on this file.
        """
        self._checked(inputs)
        stored = self.raw(*(port.quantize(array) for port, array in zip(self.inputs, inputs, strict=True)))
        return tuple(port.dequantize(array) for port, array in zip(self.outputs, stored, strict=True))

    def tensor(self, index: int) -> np.ndarray:
        """A tensor of the last sample, as stored; only with ``keep_tensors``."""
        values: np.ndarray = self._single.get_tensor(index)
        return values

    def _checked(self, inputs: Sequence[np.ndarray]) -> int:
        """The number of samples.

        Raises:
            DataError: other inputs than the file has.
        """
        given, wanted = [array.shape[1:] for array in inputs], [port.shape for port in self.inputs]
        counts = {len(array) for array in inputs}
        if given != wanted or len(counts) != 1:
            raise DataError(
                f"{self._name} takes samples of the shape {_shown(wanted)}, got {_shown(given)}. Give one array per "
                "input, all with as many samples."
            )
        return counts.pop()

    def _choose_batch(self, inputs: Sequence[np.ndarray]) -> None:
        """Take many samples at once if the file can, and gives the same for the first two."""
        size = min(self._wanted, len(inputs[0]))
        first = [array[:2] for array in inputs]
        try:
            self._many, self.batch = self._interpreter(size), size
            same = all(np.array_equal(*pair) for pair in zip(self._padded(first), self._one_by_one(first), strict=True))
        except (ArtefactError, ValueError):  # a Reshape with the batch built in
            same = False
        if not same:
            self._many, self.batch = self._single, 1

    def _padded(self, inputs: Sequence[np.ndarray]) -> Arrays:
        """One invocation for up to ``batch`` samples; the last one stands in for those that are missing."""
        count = len(inputs[0])
        missing = (self.batch or 1) - count
        full = [np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in inputs]
        return tuple(array[:count] for array in self._invoke(self._many, full))

    def _one_by_one(self, inputs: Sequence[np.ndarray]) -> Arrays:
        rows = [self._invoke(self._single, [a[i : i + 1] for a in inputs]) for i in range(len(inputs[0]))]
        return tuple(np.concatenate(pieces) for pieces in zip(*rows, strict=True))

    def _invoke(self, interpreter: Any, inputs: Sequence[np.ndarray]) -> Arrays:
        """One invocation on whole batches.

        Raises:
            ArtefactError: the runtime fails.
            ValueError: the outputs have another batch than the inputs.
        """
        try:
            if self._stateful:  # an LSTM remembers the last sample otherwise
                interpreter.reset_all_variables()
            for port, array in zip(self.inputs, inputs, strict=True):
                interpreter.set_tensor(port.tensor, np.ascontiguousarray(array, dtype=port.dtype))
            interpreter.invoke()
            outputs = [interpreter.get_tensor(port.tensor) for port in self.outputs]
        except RuntimeError as error:
            raise ArtefactError(
                f"The runtime on this machine cannot run {self._name}: {error}. Convert the model again; if that "
                "does not help, the installed ai-edge-litert lacks one of its kernels."
            ) from error
        return tuple(
            array.reshape(len(inputs[0]), *port.shape) for port, array in zip(self.outputs, outputs, strict=True)
        )

    def _interpreter(self, batch: int) -> Any:
        """An interpreter with its memory allocated.

        Raises:
            ArtefactError: the runtime cannot load the file, or not with this batch.
        """
        try:
            with quiet(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors")  # memory: taken on purpose
                interpreter = _runtime().Interpreter(
                    model_content=self._content,
                    num_threads=self._threads,
                    experimental_preserve_all_tensors=self._keep,
                )
                if batch > 1:
                    for port in self.inputs:
                        interpreter.resize_tensor_input(port.tensor, [batch, *port.shape])
                interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ArtefactError(
                f"The runtime on this machine cannot load {self._name}: {error}. Convert the model again; if that "
                "does not help, the installed ai-edge-litert lacks one of its kernels."
            ) from error
        return interpreter


def outputs(
    runner: Runner, split: Split, done: Callable[[int], None] | None = None, batch: int = 256
) -> np.ndarray | dict[str, np.ndarray]:
    """The output, (n, ...) float32, for all samples of a split, which are read ``batch`` at a time.

    Args:
        runner: the loaded file.
        split: its samples fit the file.
        done: told after each batch how many samples it held.
        batch: samples in memory at once, >= 1.

    Returns:
        The only output; several by their names in the file.

    Raises:
        DataError: the samples do not fit the file.
        ArtefactError: the runtime fails on this file.
    """
    parts = []
    for inputs, _ in split.batches(batch):
        given = runner.in_order(inputs)
        parts.append(runner.run(*given))
        if done is not None:
            done(len(given[0]))
    whole = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    return whole[0] if len(whole) == 1 else {port.name: w for port, w in zip(runner.outputs, whole, strict=True)}


def words(names: Sequence[str]) -> list[str]:
    """Keras names as Python words, which is what the arguments of a file's signature have to be; they stay distinct."""
    found = [re.sub(r"\W", "_", name) for name in names]
    found = [word if word.isidentifier() else f"_{word}" for word in found]
    return [word if found.count(word) == 1 else f"{word}_{place}" for place, word in enumerate(found)]


def _runtime() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise MissingDependency(
            f"Running a .tflite file needs the Python package ai-edge-litert, which cannot be imported here ({error}). "
            "Install it: python -m pip install ai-edge-litert"
        ) from error
    return interpreter


def _ports(interpreter: Any) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The file's inputs and outputs, named by its only signature where it has one."""
    names: dict[str, dict[int, str]] = {"inputs": {}, "outputs": {}}
    signatures = list(interpreter.get_signature_list())
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(signatures[0])
        names["inputs"] = {details["index"]: name for name, details in runner.get_input_details().items()}
        names["outputs"] = {details["index"]: name for name, details in runner.get_output_details().items()}
    return (
        tuple(_port(details, names["inputs"]) for details in interpreter.get_input_details()),
        tuple(_port(details, names["outputs"]) for details in interpreter.get_output_details()),
    )


def _port(details: dict[str, Any], names: dict[int, str]) -> Port:
    scale, zero_point = details["quantization"]
    return Port(
        name=names.get(details["index"], details["name"]),
        tensor=details["index"],
        shape=tuple(int(side) for side in details["shape"][1:]),
        dtype=np.dtype(details["dtype"]),
        scale=float(scale),
        zero_point=int(zero_point),
    )


def _activation_bytes(file: tflite.TFLiteFile) -> int:
    """What the activations of one sample would take if none shared memory, >= 1."""
    sizes = (prod(tensor.shape) * _ITEM_BYTES.get(tensor.dtype, 1) for tensor in file.tensors if not tensor.is_constant)
    return max(1, sum(sizes))


_ITEM_BYTES = {"float32": 4, "int32": 4, "int64": 8, "float64": 8, "int16": 2, "float16": 2}


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes)) or "nothing"
