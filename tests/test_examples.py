"""The examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import edgeprune

UNCOUNTED = {"stages.profile.count": False}
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.long
def test_a_live_model_becomes_a_file_with_2_4_zeros(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build = edgeprune.build  # counting instructions has tests of its own
    monkeypatch.setattr(
        edgeprune, "build", lambda *given, overrides, **more: build(*given, overrides=overrides | UNCOUNTED, **more)
    )
    example = runpy.run_path(str(EXAMPLES / "live_model.py"))
    example["main"](epochs=6, out=str(tmp_path / "run"))
    assert "accuracy 0.9" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.tflite").stat().st_size > 0
