"""Writes that a killed process cannot leave half done.

A reader sees the old content or the new content, never a mixture: everything is written beside its destination, flushed
to the disk, and then renamed over it, which POSIX and Windows both do in one step for a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgeprune.errors import RunFolderError

TEMPORARY = ".edgeprune-"  # prefix of everything that a kill may leave behind; safe to delete at any time

_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space, or write elsewhere with --out",
    errno.EDQUOT: "your disk quota is used up: free some space, or write elsewhere with --out",
    errno.EACCES: "you may not write there: change its permissions, or write elsewhere with --out",
    errno.EPERM: "you may not write there: change its permissions, or write elsewhere with --out",
    errno.EROFS: "that file system is read-only: write elsewhere with --out",
    errno.ENOTDIR: "a part of that path is a file, not a folder: write elsewhere with --out",
    errno.EEXIST: "a file of that name is where the folder should be: move it, or write elsewhere with --out",
    errno.EISDIR: "a folder of that name is where the file should be: move it, or write elsewhere with --out",
    errno.ENAMETOOLONG: "the name is too long for this file system: choose a shorter --out",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a `RunFolderError` that names ``path`` and says how to mend it.

    Raises:
        RunFolderError: The block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check that path, or write elsewhere with --out")
        raise RunFolderError(f"cannot write {path} ({error.strerror or error}); {advice}.") from error


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file so that a kill at any moment leaves the old content or the new; makes the folder above it.

    Args:
        path: The file. A symbolic link is followed, so that what it points at changes, not the link.
        data: All of its new content.

    Returns:
        The path written.

    Raises:
        RunFolderError: The file cannot be written (disk full, no permission, a folder there); the old one is whole.
    """
    file = Path(path)
    with writing(file):
        real = Path(os.path.realpath(file))
        if real.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(real))
        real.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=real.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(_mode(real))
            temporary.replace(real)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(real.parent)
    return file


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """`write_bytes_atomic` for text: UTF-8, line ends as given."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def replace_folder_atomic(path: str | os.PathLike[str], new: str | os.PathLike[str]) -> Path:
    """Put the finished folder ``new`` in the place of ``path``; a reader never sees a half-filled ``path``.

    A folder cannot be renamed over a full one, so the old one steps aside first. A kill between the two renames leaves
    *no* folder at ``path``, which callers treat like a stage that never ran, and the old one under a `TEMPORARY` name.

    Args:
        path: The folder to appear or to be replaced.
        new: A folder on the same file system, best made by `temporary_folder`; it is gone afterwards.

    Returns:
        The path replaced.

    Raises:
        RunFolderError: The folders cannot be renamed; the old one is put back.
    """
    folder, source = Path(path), Path(new)
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        _sync_tree(source)
        aside = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent)) / "old"
        try:
            if folder.exists():
                folder.rename(aside)
            try:
                source.rename(folder)
            except OSError:
                if aside.exists():
                    aside.rename(folder)
                raise
        finally:
            shutil.rmtree(aside.parent, ignore_errors=True)
        _sync_folder(folder.parent)
    return folder


@contextlib.contextmanager
def temporary_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill the folder that is yielded; it becomes ``path`` when the block ends well, and vanishes when it does not.

    >>> with temporary_folder(run / "prune") as folder:             # doctest: +SKIP
    ...     (folder / "weights.npz").write_bytes(data)

    Raises:
        RunFolderError: An ``OSError`` in the block or in the renaming.
    """
    destination = Path(path)
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=destination.parent))
    try:
        with writing(destination):
            folder.chmod(0o777 & ~_umask())
            yield folder
        replace_folder_atomic(destination, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete what killed writers left directly in ``folder``; call it only while nobody else writes there.

    Returns:
        The paths deleted.
    """
    left = sorted(Path(folder).glob(TEMPORARY + "*"))
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return left


def _mode(file: Path) -> int:
    """The permissions of the file to be replaced, or those that a plain ``open`` would give (mkstemp gives 0600)."""
    try:
        return file.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o666 & ~_umask()


def _umask() -> int:
    """This process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut; where folders cannot be synced, it is left to the system."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network and FUSE file systems
            raise
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    """Flush every file below ``folder`` and the folders themselves, so that the rename cannot overtake the content."""
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root) / name
            if file.is_file() and not file.is_symlink():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        _sync_folder(Path(root))
