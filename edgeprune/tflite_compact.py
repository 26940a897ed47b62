"""Write a .tflite file anew with equal vectors stored once.

The converter stores a scale and a 64-bit zero point for every output channel of every kernel, and once more for its bias:
24 bytes a channel, two thirds of them zeros of which a few lengths would do. In a MobileNetV2 they are 12 % of the file.
FlatBuffers lets any number of tables point to one vector, and no reader can tell.
"""

from __future__ import annotations

from typing import Any

import flatbuffers

from edgeprune.errors import ArtefactError, MissingDependency

IDENTIFIER = b"TFL3"
ALIGNMENT = 16  # of a buffer's bytes: kernels load them in vectors (schema.fbs, `force_align: 16`)


def compact(content: bytes) -> bytes:
    """The same model in fewer bytes; never more.

    Args:
        content: a .tflite file.

    Returns:
        A file with the same tables and values, or ``content`` itself where nothing is gained or the file holds what lies
        outside of its tables (models over 2 GiB).

    Raises:
        ArtefactError: the file cannot be read.
        MissingDependency: the schema package is not installed.
    """
    schema = _schema()
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    except Exception as error:  # whatever a damaged file makes the reader meet
        raise ArtefactError(f"The .tflite file cannot be read: {error}. Convert the model again.") from error
    if any(buffer.offset or buffer.size for buffer in model.buffers or ()):
        return content
    builder = _SharingBuilder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    written = bytes(builder.Output())
    return written if len(written) < len(content) else content


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise MissingDependency(
            f"Writing a .tflite file needs the Python package ai-edge-litert, which cannot be imported here ({error}). "
            "Install it: python -m pip install ai-edge-litert"
        ) from error
    return schema_py_generated


class _SharingBuilder(flatbuffers.Builder):
    """A builder that gives a vector of numbers back that it has written before.

    A file is written from its end and offsets point forwards, so whatever is written can be pointed to later. The schema's
    classes hand numbers over as arrays; vectors of offsets, whose bytes mean something else in every place, come as lists.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:  # noqa: N802, N803 - flatbuffers' names
        return super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment)

    def CreateNumpyVector(self, x: Any) -> int:  # noqa: N802
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]
