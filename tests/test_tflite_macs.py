"""The MAC formulas, each worked by hand on a shape small enough to count."""

from __future__ import annotations

import pytest

from edgeprune.tflite_macs import ROLES, macs


@pytest.mark.parametrize(
    ("op", "inputs", "output", "expected"),
    [
        # 4×4 output positions, 8 filters of 3×3 on 2 channels: 16 · (8 · 9 · 2)
        ("CONV_2D", [(1, 6, 6, 2), (8, 3, 3, 2), (8,)], (1, 4, 4, 8), 2304),
        # two groups: each of 8 filters sees 2 of the 4 channels, and the kernel is stored that way
        ("CONV_2D", [(1, 6, 6, 4), (8, 3, 3, 2), (8,)], (1, 4, 4, 8), 2304),
        # 4×4 positions, 6 channels, 3×3 each: 16 · 6 · 9; the depth multiplier is in the 6 already
        ("DEPTHWISE_CONV_2D", [(1, 6, 6, 3), (1, 3, 3, 6), (6,)], (1, 4, 4, 6), 864),
        ("FULLY_CONNECTED", [(1, 12), (5, 12), (5,)], (1, 5), 60),
        ("FULLY_CONNECTED", [(1, 7, 12), (5, 12), (5,)], (1, 7, 5), 420),  # applied to each of 7 steps
        # every one of 4×4 inputs on 2 channels spreads over 3×3 of 8 filters: 16 · (8 · 9 · 2)
        ("TRANSPOSE_CONV", [(4,), (8, 3, 3, 2), (1, 4, 4, 2)], (1, 8, 8, 8), 2304),
        # 2×2×2 positions, 8 filters of 3×3×3 on 4 channels: 8 · (27 · 4 · 8)
        ("CONV_3D", [(1, 4, 4, 4, 4), (3, 3, 3, 4, 8), (8,)], (1, 2, 2, 2, 8), 6912),
        ("BATCH_MATMUL", [(2, 3, 4), (2, 4, 5)], (2, 3, 5), 120),  # 2 · 3 · 5 products of 4
        # 3 steps; gates (5, 6) four times and (5, 5) four times: 3 · (4 · 30 + 4 · 25)
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", [(1, 3, 6), *[(5, 6)] * 4, *[(5, 5)] * 4, *[(5,)] * 7], (1, 3, 5), 660),
        ("ADD", [(1, 4, 4, 8), (1, 4, 4, 8)], (1, 4, 4, 8), 0),
        ("my-custom-op", [(1, 4)], (1, 4), 0),
    ],
)
def test_macs_by_hand(op, inputs, output, expected):
    assert macs(op, inputs, output, {}) == expected


def test_a_transposed_left_factor_sums_over_its_rows():
    assert macs("BATCH_MATMUL", [(2, 4, 3), (2, 4, 5)], (2, 3, 5), {"adj_x": True}) == 120


def test_an_lstm_with_coupled_gates_lacks_the_input_gate_and_may_project():
    inputs = [(1, 3, 6), None, *[(5, 6)] * 3, None, *[(5, 2)] * 3, *[(5,)] * 7, (2, 5)]
    assert macs("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (1, 3, 2), {}) == 3 * (3 * 30 + 3 * 10 + 10)


def test_a_missing_kernel_is_an_error_not_a_zero():
    with pytest.raises(TypeError):
        macs("CONV_2D", [(1, 4, 4, 2), None], (1, 4, 4, 8), {})
    with pytest.raises(IndexError):
        macs("CONV_2D", [(1, 4, 4, 2)], (1, 4, 4, 8), {})


@pytest.mark.parametrize("op", sorted(ROLES))
def test_kernels_and_biases_do_not_overlap(op):
    assert not set(ROLES[op].kernels) & set(ROLES[op].biases)
