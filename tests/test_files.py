"""Atomic writes: old or new, never a mixture; and errors that say how to fix them."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from edgeprune import files
from edgeprune.errors import RunFolderError


def test_text_is_written_and_nothing_else_is_left(tmp_path):
    path = files.write_text_atomic(tmp_path / "a" / "b.txt", "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_new_file_gets_the_permissions_of_open_and_an_old_one_keeps_its_own(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    new = files.write_bytes_atomic(tmp_path / "new", b"")
    assert new.stat().st_mode == plain.stat().st_mode
    new.chmod(0o640)
    files.write_bytes_atomic(new, b"again")
    assert new.stat().st_mode & 0o777 == 0o640


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_text_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_failed_write_keeps_the_old_file_and_says_how_to_fix_it(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        RunFolderError, match=r"cannot write .*report\.json \(No space left on device\); .*free some space"
    ):
        files.write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("below", ["report.json", "deeper/report.json"])
def test_a_file_in_the_place_of_a_folder_above_is_a_named_error(tmp_path, below):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match="a file"):
        files.write_text_atomic(tmp_path / "run" / below, "x")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_in_the_place_of_the_file_is_a_named_error(tmp_path):
    (tmp_path / "report.json").mkdir()
    with pytest.raises(RunFolderError, match="a folder of that name"):
        files.write_text_atomic(tmp_path / "report.json", "x")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_named_error(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunFolderError, match="you may not write there"):
            files.write_text_atomic(tmp_path / "x", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    stage = tmp_path / "prune"
    for content in ("first", "second"):
        with files.temporary_folder(stage) as folder:
            (folder / f"{content}.txt").write_text(content)
            assert not (stage / f"{content}.txt").exists()
        assert [p.name for p in stage.iterdir()] == [f"{content}.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["prune"]


def test_a_block_that_fails_leaves_the_old_folder(tmp_path):
    stage = tmp_path / "prune"
    stage.mkdir()
    (stage / "old.txt").write_text("old")
    with pytest.raises(KeyError), files.temporary_folder(stage) as folder:
        (folder / "half.txt").write_text("half")
        raise KeyError("stage failed")
    assert [p.name for p in tmp_path.rglob("*")] == ["prune", "old.txt"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path):
    stage = tmp_path / "prune"
    stage.mkdir()
    (stage / "old.txt").write_text("old")
    with pytest.raises(RunFolderError, match="cannot write"):
        files.replace_folder_atomic(stage, tmp_path / "never-made")
    assert [p.name for p in tmp_path.rglob("*")] == ["prune", "old.txt"]


def test_a_file_in_the_place_of_the_folder_is_a_named_error(tmp_path):
    (tmp_path / "prune").write_text("mine")
    with pytest.raises(RunFolderError, match="a file of that name"), files.temporary_folder(tmp_path / "prune"):
        pass
    assert (tmp_path / "prune").read_text() == "mine"


def test_sweep_deletes_what_a_kill_left_and_nothing_else(tmp_path):
    (tmp_path / f"{files.TEMPORARY}x").mkdir()
    (tmp_path / f"{files.TEMPORARY}y").write_text("half")
    (tmp_path / "report.json").write_text("{}")
    assert len(files.sweep(tmp_path)) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_sigkill_leaves_old_or_new(tmp_path):
    """A writer that alternates two contents of different length is killed; the file is one of them."""
    path = tmp_path / "state.json"
    code = """
        import itertools, sys
        from edgeprune.files import write_text_atomic
        for letter in itertools.cycle("ab"):
            write_text_atomic(sys.argv[1], letter * (1_000_000 if letter == "a" else 10))
    """
    for wait_s in (0.0, 0.003, 0.011):
        writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path)])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.001)
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert path.read_text() in ("a" * 1_000_000, "b" * 10)
        path.unlink()
