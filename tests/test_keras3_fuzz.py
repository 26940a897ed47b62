"""Random functional graphs over the supported layers: each converts with equal outputs, and the way back is tried on some.

All 200: EDGEPRUNE_FUZZ=full python -m pytest tests/test_keras3_fuzz.py
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras", minversion="3", reason="Keras 3 is not installed")

import fuzzing
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras3_models import k3, layers, ops, shaken

from edgeprune.keras import keras3, keras3_proof, keras3_save

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy's, over Keras 3 itself

ACTIVATIONS = ["linear", "relu", "silu", "hard_silu", "hard_sigmoid", "gelu", "elu", "tanh", "leaky_relu"]
# Each takes and gives feature maps of 4 x 4 x 4, so that any may follow any.
ONE = {
    "conv": lambda a: layers.Conv2D(4, 3, padding="same", activation=a),
    "pointwise": lambda a: layers.Conv2D(4, 1, groups=2, use_bias=False, activation=a),
    "depthwise": lambda a: layers.DepthwiseConv2D(3, padding="same", activation=a),
    "separable": lambda a: layers.SeparableConv2D(4, 3, padding="same", activation=a),
    "dense": lambda a: layers.Dense(4, activation=a),
    "norm": lambda a: layers.BatchNormalization(),
    "layer norm": lambda a: layers.LayerNormalization(),
    "group norm": lambda a: layers.GroupNormalization(2),
    "activation": lambda a: layers.Activation(a),
    "prelu": lambda a: layers.PReLU(shared_axes=[1, 2]),
    "leaky": lambda a: layers.LeakyReLU(0.1),
    "max pool": lambda a: layers.MaxPooling2D(3, 1, "same"),
    "average pool": lambda a: layers.AveragePooling2D(2, 1, "same"),
    "dropout": lambda a: layers.Dropout(0.3),
    "flip": lambda a: layers.RandomFlip(),
    "rescaling": lambda a: layers.Rescaling(0.5, 0.1),
    "pad and crop": lambda a: lambda x: layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x)),
    "up and down": lambda a: lambda x: layers.AveragePooling2D(2)(layers.UpSampling2D(2)(x)),
    "permute": lambda a: layers.Permute((2, 1, 3)),
    "reshape": lambda a: lambda x: ops.reshape(layers.Conv1D(4, 3, padding="same")(layers.Reshape((16, 4))(x)), (-1, 4, 4, 4)),
    "constants": lambda a: lambda x: (x * 0.5 + 1.0) / 2.0 - 0.25,
    "slice": lambda a: lambda x: ops.concatenate([x[..., 2:], x[..., :2]], axis=-1),
    "squeeze and excite": lambda a: lambda x: x * layers.Dense(4, activation="hard_sigmoid")(ops.mean(x, (1, 2), keepdims=True)),
    "mean": lambda a: lambda x: x - ops.mean(x, axis=(1, 2), keepdims=True),
    "lstm": lambda a: lambda x: ops.reshape(layers.SimpleRNN(4, return_sequences=True)(layers.Reshape((16, 4))(x)), (-1, 4, 4, 4)),
    "nested": lambda a: k3.Sequential([k3.Input((4, 4, 4)), layers.Conv2D(4, 1, activation=a), layers.BatchNormalization()]),
}  # fmt: skip
TWO = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: layers.Multiply()([x, ops.sigmoid(y)]),
    "maximum": lambda x, y: layers.Maximum()([x, y]),
    "average": lambda x, y: layers.Average()([x, y]),
    "concatenate": lambda x, y: layers.Conv2D(4, 1)(layers.Concatenate()([x, y])),
}
STEPS = st.tuples(
    st.sampled_from([*ONE, *TWO]), st.sampled_from(ACTIVATIONS), st.integers(0, 99), st.integers(0, 99), st.booleans()
)


def built(steps, inputs, outputs):
    """A model of these steps: each reads one or two of the tensors so far, and may call a layer that was called before."""
    given = [k3.Input((4, 4, 4)) for _ in range(inputs)]
    tensors, shared = list(given), []
    for kind, activation, first, second, again in steps:
        x, y = tensors[-1 - first % min(3, len(tensors))], tensors[second % len(tensors)]
        if kind in TWO:
            tensors.append(TWO[kind](x, y))
            continue
        layer = shared[second % len(shared)] if again and shared else ONE[kind](activation)
        if isinstance(layer, layers.Layer):
            shared.append(layer)
        tensors.append(layer(x))
    ends = [tensors[-1], *tensors[len(given) : -1][: outputs - 1]]
    return shaken(k3.Model(given, [layers.GlobalAveragePooling2D()(x) if i else x for i, x in enumerate(ends)]))


def worst(model, converted):
    """The largest difference of the outputs as a share of their range, on inputs of this test's own."""
    random = np.random.Generator(np.random.PCG64(5))
    inputs = [[random.standard_normal((4, 4, 4, 4)).astype("float32") for _ in model.inputs]]
    pairs = zip(*(keras3_proof.run(one, inputs)[0] for one in (model, converted)), strict=True)
    return max(float(np.abs(one - other).max()) / (float(np.ptp(one)) or 1.0) for one, other in pairs)


TRIED = {"examples": fuzzing.tried(200, 5), "back": fuzzing.tried(20, 5)}


@pytest.mark.slow
def test_random_graphs():
    count = {"graphs": 0, "back": 0}

    @settings(
        max_examples=TRIED["examples"],
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEPS, min_size=2, max_size=8), st.integers(1, 2), st.integers(1, 2))
    def check(steps, inputs, outputs):
        k3.backend.clear_session(free_memory=False)  # collecting garbage each time takes longer than all the rest
        model = built(steps, inputs, outputs)
        converted = keras3.convert(model)
        assert worst(model, converted) <= 1e-5
        count["graphs"] += 1
        if count["graphs"] % (TRIED["examples"] // TRIED["back"]) == 0:
            assert worst(converted, keras3_save.convert(converted)) <= 1e-5
            count["back"] += 1

    check()
    assert count["graphs"] >= TRIED["examples"] and count["back"] >= TRIED["back"]
