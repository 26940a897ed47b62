"""Image folders: one sub-folder per class, decoded once into a uint8 array in the user's cache that later runs map."""

from __future__ import annotations

import hashlib
import importlib
import os
import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeprune import cache
from edgeprune.data_arrays import Source
from edgeprune.errors import DataError, MissingDependency
from edgeprune.files import TEMPORARY

if TYPE_CHECKING:
    from edgeprune.data_options import DataOptions
    from edgeprune.progress import Progress

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DECODER = 1  # part of the cache's key: raise it when the same file would give other pixels
_AT_ONCE = 256  # images decoded ahead of the writer; bounds the memory, whatever the number of images
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow's plug-ins raise on a damaged file
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})  # 8 bits a channel at most


class Listing(NamedTuple):
    """The images of one split, in a fixed order: by class, then by path.

    Attributes:
        files: every image.
        y: (n,) int64 class number of each.
        ignored: files that are no images.
    """

    files: list[Path]
    y: np.ndarray
    ignored: list[Path]


class Decoding(NamedTuple):
    """What every image becomes: (height, width, channels) uint8; ``resize`` says whether other sizes are accepted."""

    shape: tuple[int, int, int]
    resize: bool


def read(folder: Path, options: DataOptions, progress: Progress | None = None) -> Source:
    """Class sub-folders, or ``train``, ``val`` and ``test`` with class sub-folders each.

    Colours are converted to RGB or grey; sizes only when ``image_size`` says so (bilinear, as Pillow's antialiased
    resize does it). The orientation tag of a photograph is not applied, as in TensorFlow's own decoders.

    Raises:
        DataError: no images, images of unequal size, a file that cannot be decoded, a cache that cannot be written.
        MissingDependency: Pillow is not installed.
    """
    parts = _parts(folder)
    labels = _classes(parts)
    listings = {part: _listing(path, labels) for part, path in parts.items()}
    decoding = _decoding(next(iter(listings.values())).files[0], options)
    ignored = [path for listing in listings.values() for path in listing.ignored]
    notes = (
        (f"{len(ignored)} files that are no images were left out, such as {ignored[0].relative_to(folder)}",)
        if ignored
        else ()
    )
    arrays = {
        part: (_decoded(listing.files, parts[part], decoding, progress), listing.y)
        for part, listing in listings.items()
    }
    return Source(arrays, labels, notes)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _parts(folder: Path) -> dict[str, Path]:
    """Split name -> folder of class folders."""
    folders = _folders(folder)
    splits = {SPLIT_FOLDERS[path.name]: path for path in folders if path.name in SPLIT_FOLDERS}
    if "train" not in splits or (len(splits) == 1 and len(folders) > 1):  # a class may well be called "train"
        return {"all": folder}
    strange = [path.name for path in folders if path.name not in SPLIT_FOLDERS]
    if strange or len(splits) < len(folders):
        raise DataError(
            f"{folder} holds {', '.join(path.name for path in folders)}: expected either class folders, or only train "
            "with val and test, one of each. Move the others out."
        )
    return {part: splits[part] for part in ("train", "val", "test") if part in splits}


def _classes(parts: dict[str, Path]) -> tuple[str, ...]:
    """The class names, which the first split defines; the other splits may lack some but not add any."""
    first, *others = parts.values()
    names = tuple(path.name for path in _folders(first))
    if len(names) < 2:
        raise DataError(
            f"{first} holds {len(names)} class folders ({', '.join(names) or 'none'}): expected one sub-folder of "
            "images per class, at least two."
        )
    for other in others:
        if strange := sorted({path.name for path in _folders(other)} - set(names)):
            raise DataError(
                f"{other} holds the class '{strange[0]}', which {first} does not: {', '.join(names)}. Add it there, or "
                "move it out."
            )
    return names


def _listing(folder: Path, labels: tuple[str, ...]) -> Listing:
    files: list[Path] = []
    y: list[int] = []
    ignored: list[Path] = []
    for number, label in enumerate(labels):
        found = sorted(path for path in (folder / label).rglob("*") if path.is_file() and not path.name.startswith("."))
        images = [path for path in found if path.suffix.lower() in SUFFIXES]
        files += images
        y += [number] * len(images)
        ignored += [path for path in found if path.suffix.lower() not in SUFFIXES]
    if not files:
        raise DataError(
            f"{folder} holds no images in its class folders. Expected files named {', '.join(sorted(SUFFIXES))}."
        )
    return Listing(files, np.array(y, dtype=np.int64), ignored)


def _decoding(first: Path, options: DataOptions) -> Decoding:
    """What every image must become; without ``image_size`` the first image sets the size."""
    height, width = options.image_size or _size(first)
    return Decoding((height, width, options.channels), resize=options.image_size is not None)


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "Image folders are decoded with Pillow, which is not installed. Install it: pip install pillow"
        ) from error


def _undecodable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be decoded as an image ({error or type(error).__name__}). Replace it, or move it out of the "
        "folder."
    )


def _size(path: Path) -> tuple[int, int]:
    pillow = _pillow()
    try:
        with pillow.open(path) as image:
            return image.height, image.width
    except (*_DAMAGE, pillow.DecompressionBombError) as error:
        raise _undecodable(path, error) from error


def _pixels(path: Path, decoding: Decoding) -> np.ndarray:
    """One image as (height, width, channels) uint8."""
    pillow = _pillow()
    height, width, channels = decoding.shape
    try:
        with pillow.open(path) as image:
            if image.mode not in _MODES:
                raise DataError(
                    f"{path} has more than 8 bits a channel (mode {image.mode}). Convert it to 8 bits, or give such "
                    "data as .npz."
                )
            if (image.height, image.width) != (height, width) and not decoding.resize:
                raise DataError(
                    f"{path} is {image.height} x {image.width} pixels (height x width), the first image {height} x "
                    f"{width}. Set data.image_size: [height, width] to resize all of them, or make them one size."
                )
            converted = image.convert("RGB" if channels == 3 else "L")
            if converted.size != (width, height):
                converted = converted.resize((width, height), pillow.Resampling.BILINEAR)
            return np.asarray(converted, dtype=np.uint8).reshape(decoding.shape)
    except (*_DAMAGE, pillow.DecompressionBombError) as error:
        raise _undecodable(path, error) from error


def _decoded(files: list[Path], folder: Path, decoding: Decoding, progress: Progress | None) -> np.ndarray:
    """All images as one read-only (n, height, width, channels) uint8 map of a file in the cache."""
    shape = (len(files), *decoding.shape)
    cached = cache.folder("data") / f"{_key(files, folder, decoding)}.npy"
    try:
        if (found := _mapped(cached, shape)) is not None:
            return found
        cached.parent.mkdir(parents=True, exist_ok=True)
        _write(cached, _decode_all(files, decoding, progress), shape)
    except OSError as error:
        raise DataError(
            f"The decoded images ({np.prod(shape) / 2**20:.0f} MiB) cannot be kept in {cached.parent} "
            f"({error.strerror or error}). Free some space there, or set {cache.VARIABLE} to a folder that can be "
            "written."
        ) from error
    return np.load(cached, mmap_mode="r", allow_pickle=False)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached array, or None when there is none or it is not what it must be."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _key(files: list[Path], folder: Path, decoding: Decoding) -> str:
    """Hash of what the pixels depend on: every file's path in the folder, size and time of change, and the decoding."""
    digest = hashlib.sha256(repr((DECODER, decoding, str(folder.resolve()))).encode())
    for path in files:
        status = path.stat()
        digest.update(
            f"\0{path.relative_to(folder).as_posix()}\0{status.st_size}\0{status.st_mtime_ns}".encode(
                "utf-8", "surrogateescape"
            )
        )
    return digest.hexdigest()[:32]


def _decode_all(files: list[Path], decoding: Decoding, progress: Progress | None) -> Iterator[np.ndarray]:
    """The images in order, decoded on all cores (Pillow lets go of Python's lock while it decodes)."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for start in range(0, len(files), _AT_ONCE):
            yield from pool.map(lambda path: _pixels(path, decoding), files[start : start + _AT_ONCE])
            if progress:
                progress.step(min(start + _AT_ONCE, len(files)), len(files), "images")


def _write(path: Path, images: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write an .npy row by row and rename it into place: a full disk is an error here, not a crash of a memory map."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for image in images:
                stream.write(image.tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
