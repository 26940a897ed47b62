from pathlib import Path

from edgeprune import cache


def test_the_users_own_place_wins(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    assert cache.folder("log") == tmp_path / "log"


def test_then_the_desktops_then_the_homes(monkeypatch):
    monkeypatch.delenv("EDGEPRUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.folder() == Path("/xdg/edgeprune")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder("a", "b") == Path.home() / ".cache/edgeprune/a/b"


def test_free_room_is_told_for_a_folder_that_is_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "not" / "yet"))
    assert cache.free_bytes() > 0
    assert not (tmp_path / "not").exists()
