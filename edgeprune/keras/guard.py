"""Bounds on what a model file may ask for: a few bytes can declare terabytes, climb out of their folder, or never end.

What a file declares is compared with what it holds. A refusal is a `ModelError` that says which of the two is wrong;
it comes before memory is taken.
"""

from __future__ import annotations

import ctypes
import inspect
import io
import json
import stat
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from edgeprune.errors import EdgepruneError, ModelError

CONFIG_BYTES = 64 * 2**20  # NASNetLarge's configuration takes 1.5 MiB
NESTING = 400  # a model inside a model takes eight
EXPANSION = 32  # how far stored bytes may unfold; Keras stores plainly, and zeros gain nothing from being many
SLACK = 4 * 2**20  # bytes that anything may take
ACTIVATION = 2**26  # elements of one layer's output for one sample: 256 MiB in float32
STEPS = 4096  # of a recurrent layer that is unrolled
SECONDS, SECONDS_PER_MIB, LONGEST = 20.0, 200.0, 600.0  # to load a model; NASNetMobile's 0.7 MiB take 15 s
OBJECTS = 200_000  # groups and datasets of an HDF5 file
MEMBERS = ("metadata.json", "config.json", "model.weights.h5")
WEIGHTS_FILE = "model.weights.h5"
_CREATES = frozenset(
    ("zeros", "ones", "fill", "eye", "range", "tile", "repeat", "broadcast_to", "one_hot", "pad", "linspace")
)


@contextmanager
def named(where: Path | str) -> Iterator[None]:
    """Turn whatever a library raises over a model into a `ModelError`: KeyError, OSError, MemoryError ...

    Raises:
        ModelError: the block raised something; an `EdgepruneError` passes as it is.
    """
    try:
        yield
    except EdgepruneError:
        raise
    except Exception as error:
        raise ModelError(
            f"{where} looks like a Keras model but cannot be loaded: {first_line(error)} If it uses layers of your own, "
            "give it as module:function that returns the loaded model."
        ) from error


class _TooLongError(Exception):
    """Raised in the midst of what takes too long."""


@contextmanager
def deadline(config_bytes: int, where: Path) -> Iterator[None]:
    """End a block that does not end by itself: Keras waits forever for a layer that a damaged configuration lacks.

    Args:
        config_bytes: size of the configuration; a larger one may take longer.
        where: for the message.

    Raises:
        ModelError: the block took longer than `SECONDS` and `SECONDS_PER_MIB`.
    """
    limit = min(SECONDS + SECONDS_PER_MIB * config_bytes / 2**20, LONGEST)
    thread, over, late = threading.get_ident(), threading.Event(), threading.Event()
    watch = threading.Thread(target=_interrupt, args=(thread, limit, over, late), daemon=True)
    try:
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)  # one that has not arrived yet
    except Exception as error:
        if not late.is_set():
            raise
        raise ModelError(
            f"{where} could not be loaded within {limit:.0f} s: its configuration or its weights refer to something that is not "
            "there. Save the model again."
        ) from error


def _interrupt(thread: int, limit: float, over: threading.Event, late: threading.Event) -> None:
    """Raise in a thread when its time is up, again and again, since what runs there may catch it."""
    while not over.wait(0.2 if late.is_set() else limit):
        late.set()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLongError))


def first_line(error: BaseException) -> str:
    """An error's first line as a sentence."""
    text = str(error).strip().splitlines()
    line = text[0].strip()[:300] if text else type(error).__name__
    return line if line.endswith((".", "!", "?")) else line + "."


def parsed(text: str | bytes, where: str) -> Any:
    """JSON of bounded size and depth.

    Raises:
        ModelError: it is larger, or nested deeper, than any model's.
        ValueError, RecursionError: it is no JSON.
    """
    if len(text) > CONFIG_BYTES:
        raise ModelError(
            f"{where} has a configuration of {len(text)} bytes; at most {CONFIG_BYTES} are read. Save it again."
        )
    value = json.loads(text)
    pending = [(value, 1)]
    while pending:
        current, depth = pending.pop()
        if depth > NESTING:
            raise ModelError(
                f"{where} is damaged or not a Keras model: its configuration is nested more than {NESTING} deep. Save it again."
            )
        children = current.values() if isinstance(current, dict) else current if isinstance(current, list) else ()
        pending.extend((child, depth + 1) for child in children if isinstance(child, (dict, list)))
    return value


def check_zip(archive: zipfile.ZipFile, where: Path) -> None:
    """Refuse an archive with other members than Keras writes, or with one that unfolds beyond reason.

    Raises:
        ModelError: a member lies outside the archive's folder, is there twice, is a link, is none of Keras', or
            declares far more bytes than it stores.
    """
    seen = set()
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
            raise ModelError(
                f"{where} holds '{info.filename}', which points out of its folder. Expected what Keras writes. "
                "Do not use this file; save the model again."
            )
        if info.filename in seen or (info.filename not in MEMBERS and path.parts[:1] != ("assets",)):
            raise ModelError(
                f"{where} holds '{info.filename}'{' twice' if info.filename in seen else ''}; a .keras file of Keras holds "
                f"{', '.join(MEMBERS)} once each, and assets. Save the model again."
            )
        seen.add(info.filename)
        if info.file_size > EXPANSION * info.compress_size + SLACK:
            raise ModelError(
                f"{where} declares {info.file_size} bytes for '{info.filename}' and stores {info.compress_size}: it is damaged, "
                "or made to fill the memory. Save the model again."
            )


def archive_weights(archive: zipfile.ZipFile, where: Path) -> int:
    """Bytes of weights in a checked ``.keras`` archive; 0 where it has none.

    Raises:
        ModelError: as `check_h5`.
    """
    import h5py

    if WEIGHTS_FILE not in archive.namelist():
        return 0
    with h5py.File(io.BytesIO(archive.read(WEIGHTS_FILE)), "r") as file:
        return check_h5(file, where)


def check_h5(file: Any, where: Path) -> int:
    """Refuse an HDF5 file that reaches outside itself, or declares more than it holds.

    Args:
        file: open h5py file.
        where: for the message.

    Returns:
        Bytes of all its datasets.

    Raises:
        ModelError: a soft or external link, a dataset stored elsewhere, or one far larger than its storage.
    """
    import h5py

    total, pending, seen = 0, [file["/"]], set()
    while pending:
        group = pending.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                place = f"{group.name.rstrip('/')}/{name}"
                raise ModelError(
                    f"{where} has a link at '{place}' instead of data, which may point at another file. Expected the "
                    "weights themselves. Save the model again."
                )
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > OBJECTS:
                raise ModelError(
                    f"{where} holds more than {OBJECTS} groups and weights. Expected a Keras model. Save it again."
                )
            if isinstance(item, h5py.Group):
                pending.append(item)
            elif isinstance(item, h5py.Dataset):
                total += _dataset_bytes(item, where)
    return total


def _dataset_bytes(data: Any, where: Path) -> int:
    if data.is_virtual or data.external:
        raise ModelError(
            f"{where} keeps '{data.name}' in another file. Expected the weights themselves. Save the model again."
        )
    size, stored = int(data.nbytes), int(data.id.get_storage_size())
    if size > EXPANSION * stored + SLACK:
        raise ModelError(
            f"{where} declares the shape {data.shape} for '{data.name}', {size} bytes, and stores {stored}: it is damaged, or "
            "made to fill the memory. Save the model again."
        )
    return size


@contextmanager
def weights(held: int, where: Path, *bases: type) -> Iterator[None]:
    """While the block loads a model, refuse a weight that the file cannot hold, before it takes memory.

    Args:
        held: bytes of weights in the file.
        where: for the message.
        bases: the ``Layer`` classes whose ``add_weight`` makes weights; patched for the whole process meanwhile.

    Raises:
        ModelError: all weights together take more than twice what the file holds (half precision) and `SLACK`.
    """
    limit, taken, refusals = 2 * held + SLACK, 0, []

    def counting(original: Any) -> Any:
        signature = inspect.signature(original)

        def add_weight(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            shape = signature.bind_partial(self, *args, **kwargs).arguments.get("shape")
            count = _elements(shape)
            taken += 4 * count
            if taken > limit:
                refusals.append(
                    f"{where} declares {count} weights of the shape {_shown(shape)} in the layer '{self.name}', and holds {held} "
                    "bytes of weights in all: its configuration does not belong to its weights. Save the model again."
                )
                raise ModelError(refusals[0])
            return original(self, *args, **kwargs)

        return add_weight

    originals = [(base, base.add_weight) for base in bases]  # type: ignore[attr-defined]
    try:
        for base, original in originals:
            base.add_weight = counting(original)  # type: ignore[attr-defined]
        yield
    except Exception as error:  # Keras wraps what is raised inside
        if refusals:
            raise ModelError(refusals[0]) from error
        raise
    finally:
        for base, original in originals:
            base.add_weight = original  # type: ignore[attr-defined]
    if refusals:  # Keras tries something else instead
        raise ModelError(refusals[0])


def _elements(shape: Any) -> int:
    """How many numbers a shape takes; 0 where it is none, which Keras then says itself."""
    sides = (
        [shape] if isinstance(shape, int) else list(shape or ()) if isinstance(shape, (tuple, list)) else _sides(shape)
    )
    return prod(sides) if all(isinstance(side, int) and side >= 0 for side in sides) else 0


def _sides(shape: Any) -> list[Any]:
    try:
        return list(shape)
    except TypeError:
        return [] if shape is None else [None]
    except ValueError:  # a TensorShape of unknown rank
        return [None]


def _shown(shape: Any) -> str:
    return str(tuple(_sides(shape)) if not isinstance(shape, int) else shape)


def check_config_sizes(config: Any, where: Path) -> None:
    """Refuse calls inside a configuration that fill memory or time while Keras builds the model.

    Raises:
        ModelError: an operator makes a constant of more than `ACTIVATION` elements, or a recurrent layer is unrolled
            over more than `STEPS` steps.
    """
    pending, unrolled, longest = [config], False, 0
    while pending:
        current = pending.pop()
        if isinstance(current, list):
            pending.extend(child for child in current if isinstance(child, (dict, list)))
            continue
        if not isinstance(current, dict):
            continue
        pending.extend(child for child in current.values() if isinstance(child, (dict, list)))
        unrolled = unrolled or current.get("unroll") is True
        for key in ("batch_shape", "batch_input_shape", "target_shape"):
            sides = current.get(key)
            longest = (
                max([longest, *(side for side in sides if type(side) is int)]) if isinstance(sides, list) else longest
            )
        inside = current.get("config")
        function = inside.get("function") if isinstance(inside, dict) else None
        if isinstance(function, str) and function.rsplit(".", 1)[-1] in _CREATES:
            size = _largest_product([inside, current.get("inbound_nodes")])
            if size > ACTIVATION:
                raise ModelError(
                    f"{where} makes a constant of up to {size} elements with '{function}'; at most {ACTIVATION} are "
                    "taken. Build the model for smaller inputs."
                )
    if unrolled and longest > STEPS:
        raise ModelError(
            f"{where} unrolls a recurrent layer over up to {longest} steps; at most {STEPS} are taken. Build it with "
            "unroll=False, or for shorter inputs."
        )


def _largest_product(value: Any) -> int:
    """The product of all whole numbers above 1 inside a JSON value: no constant made of them is larger."""
    product, pending = 1, [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)
        elif type(current) is int and abs(current) > 1:
            product *= abs(current)
    return product


def check_activations(model: Any, where: Path | str) -> None:
    """Refuse a layer whose output would fill the memory, before anything runs the model.

    Args:
        model: a functional model of Keras 2 or 3, or one that holds some; others are passed over.
        where: for the message.

    Raises:
        ModelError: one layer gives more than `ACTIVATION` elements for one sample.
    """
    pending, seen = [model], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        pending.extend(_inner(current))
        for nodes in getattr(current, "_nodes_by_depth", {}).values():
            for node in nodes:
                for shape in _shapes(node):
                    count = prod(side for side in shape[1:] if isinstance(side, int))
                    if count > ACTIVATION:
                        layer = getattr(node, "operation", None) or node.layer
                        raise ModelError(
                            f"{where}: the layer '{layer.name}' gives {count} numbers for one sample (shape {tuple(shape)}); at "
                            f"most {ACTIVATION} are taken. Build the model for smaller inputs."
                        )


def _inner(model: Any) -> list[Any]:
    """The models and wrapped layers inside a model."""
    own = [getattr(model, name, None) for name in ("_functional", "layer", "forward_layer", "cell")]
    return [*(item for item in own if item is not None), *(getattr(model, "layers", None) or [])]


def _shapes(node: Any) -> list[list[Any]]:
    """The shapes of what a call gives, those of unknown rank left out."""
    outputs, found = [node.outputs], []
    while outputs:
        current = outputs.pop()
        if isinstance(current, (list, tuple)):
            outputs.extend(current)
        elif isinstance(current, dict):
            outputs.extend(current.values())
        elif getattr(current, "shape", None) is not None and getattr(current.shape, "rank", 0) is not None:
            found.append(list(current.shape))
    return found
