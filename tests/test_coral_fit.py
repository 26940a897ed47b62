"""The fit of the Edge TPU's constants finds what rows were made with, and judges it on networks it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
from scripts import loaded

pytest.importorskip("scipy", reason="the fit needs scipy, which comes with scikit-learn")
pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert holds the schema of .tflite")

from edgeprune.devices import _edgetpu_latency as latency

fit = loaded("benchmarks", "coral_fit")

BEFORE = fit.Before(np.array([0.8, 1.6, 2.0]), latency.Instructions(bytes_per_op=2000, bytes_per_strip=20000))
TRUE = fit.Fit(
    0.9,
    1.1,
    {"desktop-usb3": 3e-6, "rpi4-usb3": 1e-5, "rpi3-usb2": 4e-5, "devboard-pcie": 6e-6},
    {"desktop-usb3": 2.3e-6, "devboard-pcie": 2.6e-6},
)


def network(conv, depthwise, elementwise, ops, streamed=0, share=0.0):
    return fit.Network(latency.Work(conv, depthwise, elementwise, ops, 0, streamed, share, 150_000, 0, 0), 10**9)


NETWORKS = {
    "a": network(600_000, 70_000, 0, 30),
    "b": network(1_700_000, 0, 90_000, 80),
    "c": network(3_000_000, 260_000, 40_000, 84, 1_500_000, 0.15),
    "d": network(8_000_000, 0, 700_000, 74, 18_000_000, 0.7),
    "e": network(15_000_000, 100_000, 0, 23, 130_000_000, 0.95),
}


@pytest.fixture
def rows():
    made = [
        fit.Row(name, host, 0.0, host) for name in NETWORKS for host in fit.HOSTS if host in fit.STREAMING or name < "c"
    ]
    return [row._replace(ms=fit._on_chip_ms(row, NETWORKS[row.network].work, TRUE, BEFORE)) for row in made]


def test_the_constants_that_rows_were_made_with_are_found(rows):
    found = fit._fit(rows, NETWORKS, BEFORE)
    assert found.coefficients == pytest.approx(TRUE.coefficients, rel=0.06)  # the prior draws a little towards 1


def test_every_row_is_predicted_by_a_fit_that_has_not_seen_its_network(rows):
    judged = fit._left_out(rows, NETWORKS, BEFORE)
    assert judged.keys() == set(rows)
    assert max(abs(ms / row.ms - 1) for row, ms in judged.items()) < 0.15
    wrong = [row._replace(ms=row.ms * 3) if row.network == "a" else row for row in rows]
    assert all(ms < 0.6 * row.ms for row, ms in fit._left_out(wrong, NETWORKS, BEFORE).items() if row.network == "a")


def test_devices_of_the_table_are_told_apart():
    words = [
        "Coral Dev Board (Edge TPU)",
        'Coral Dev Board CPU ("Embedded CPU")',
        "Raspberry Pi 3B+ + Coral USB Accelerator",
    ]
    table = [{"device": device, "model": "VGG16", "latency_ms": "1.5"} for device in words]
    assert [(row.host, row.ms, row.network) for row in fit._rows(table)] == [
        ("devboard-pcie", 1.5, "vgg16_224"),
        ("rpi3-usb2", 1.5, "vgg16_224"),
    ]


def test_what_is_predicted_is_what_was_fitted(rows):
    """The formula of the fit and that of the prediction are the same."""
    host = latency.Host(
        title="t",
        links=("usb",),
        transfer_bytes_per_ms=1 / TRUE.transfer["desktop-usb3"],
        streaming_bytes_per_ms=1 / TRUE.streaming["desktop-usb3"],
        streaming_known=True,
        round_trip_ms=0.28,
        cpu_time=None,
        error=latency.Error(mean_pct=1.0, worst_pct=1.0, rows=1),
    )
    conv, depthwise, elementwise = BEFORE.cycles
    cycles = latency.Cycles(conv=conv * TRUE.conv, depthwise=depthwise * TRUE.rest, elementwise=elementwise * TRUE.rest)
    constants = latency.constants().model_copy(update={"cycles": cycles, "instructions": BEFORE.instructions})
    for row in rows:
        if row.host == "desktop-usb3":
            parts = latency.parts(NETWORKS[row.network].work, constants, host, fit.CLOCK_MHZ)
            assert sum(parts.values()) == pytest.approx(row.ms)
