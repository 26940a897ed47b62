"""The one model that serves for all cuts: what it reads, and how often."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from keras_models import cnn, loaded

from edgeprune.keras import feeding, runner, training


@pytest.fixture
def read(monkeypatch):
    """Which splits were read from where they are stored."""
    found = []

    def ordered(split, *given):
        found.append(len(split))
        return genuine(split, *given)

    genuine = feeding.ordered
    monkeypatch.setattr(feeding, "ordered", ordered)
    return found


def test_samples_are_read_once_however_often_the_weights_change(read):
    data = loaded()
    subject = runner.Runner(cnn(), data)
    first = subject.outputs(data.validation)
    subject.settle()
    before = list(read)
    kernel = subject.model.get_layer("classes").kernel
    kernel.assign(-kernel)
    subject.settle()
    again = subject.outputs(data.validation)
    assert read == before == [len(data.validation), len(data.train)]
    assert np.abs(again - first).max() > 0.01
    assert again.tobytes() == training.outputs(subject.model, data.validation).tobytes()


def test_samples_that_fill_the_memory_are_read_every_time(read, monkeypatch):
    monkeypatch.setattr(runner, "IN_MEMORY_BYTES", 1)
    data = loaded()
    subject = runner.Runner(cnn(), data)
    assert subject.outputs(data.validation).tobytes() == subject.outputs(data.validation).tobytes()
    assert read == [len(data.validation)] * 2
