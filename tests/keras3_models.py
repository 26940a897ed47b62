# ruff: noqa: E501
"""Tiny Keras 3 models for the tests of the conversion: for every line of the table at least one."""

from __future__ import annotations

import numpy as np

from edgeprune.keras import keras3, keras3_layers

k3 = keras3.keras3()
layers, ops = k3.layers, k3.ops
IMAGE, SERIES, VOLUME, FRAMES = (6, 6, 4), (6, 4), (4, 4, 4, 2), (3, 5, 5, 2)


def chain(shape, *calls, dtype="float32"):
    """A functional model of layers or functions, one after the other."""
    x = inputs = k3.Input(shape, dtype=dtype)
    for call in calls:
        x = call(x)
    return k3.Model(inputs, x)


def shaken(model, seed=1):
    """The model with every weight moved off its initial value, statistics included."""
    random = np.random.Generator(np.random.PCG64(seed))
    for weight in model.weights:
        if "float" in str(weight.dtype):
            sign = 1.0 if "variance" in weight.path else random.choice([-1.0, 1.0], weight.shape)
            weight.assign(random.uniform(0.2, 1.0, weight.shape) * sign)
    return model


def from_convnext(name, *arguments):
    from keras.src.applications import convnext

    return getattr(convnext, name)(*arguments)


def merged():
    one, other = k3.Input((5,)), k3.Input((5,))
    kinds = ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"]
    outputs = [getattr(layers, kind)()([one, other]) for kind in kinds]
    return k3.Model([one, other], [*outputs, layers.Dot(1, normalize=True)([one, other])])


def attention():
    one, other = k3.Input((5, 4)), k3.Input((6, 4))
    causal = layers.MultiHeadAttention(2, 3, dropout=0.1)(one, other, use_causal_mask=True)
    output, scores = layers.MultiHeadAttention(2, 3)(one, value=other, return_attention_scores=True)
    plain = [layers.Attention(use_scale=True)([one, other]), layers.AdditiveAttention()([one, other])]
    return k3.Model([one, other], [causal, output, scores, *plain])


def recurrent(kind, **keywords):
    return chain(SERIES, getattr(layers, kind)(3, return_sequences=True, **keywords), getattr(layers, kind)(2))


def states():
    inputs = k3.Input(SERIES)
    outputs, hidden, cell = layers.LSTM(3, return_state=True)(inputs)
    return k3.Model(inputs, [layers.LSTM(3)(inputs, initial_state=[hidden, cell]), outputs])


def bidirectional():
    hard = layers.LSTM(3, return_sequences=True, recurrent_activation="hard_sigmoid")
    backward = layers.GRU(3, go_backwards=True, activation="relu")
    return chain(
        SERIES,
        layers.Bidirectional(hard),
        layers.Bidirectional(layers.GRU(3), merge_mode="sum", backward_layer=backward),
    )


def adapted():
    layer = layers.Normalization()
    layer.adapt(np.random.Generator(np.random.PCG64(0)).normal(3, 2, (20, *IMAGE)).astype("float32"))
    return k3.Model(inputs := k3.Input(IMAGE), layer(inputs))


OF_LAYERS = {
    "conv1d": lambda: chain(SERIES, layers.Conv1D(3, 3, padding="causal", activation="hard_silu", dilation_rate=2)),
    "conv2d": lambda: chain(IMAGE, layers.Conv2D(4, 3, 2, "same", groups=2, kernel_regularizer="l2", activation="silu")),
    "conv3d": lambda: chain(VOLUME, layers.Conv3D(2, 2), layers.Conv3DTranspose(2, 2)),
    "conv1d transposed": lambda: chain(SERIES, layers.Conv1DTranspose(3, 3, strides=2, padding="same")),
    "conv2d transposed": lambda: chain(IMAGE, layers.Conv2DTranspose(3, 3, 2, "same", output_padding=1)),
    "depthwise": lambda: chain(IMAGE, layers.DepthwiseConv2D(3, depth_multiplier=2, activation="hard_sigmoid")),
    "depthwise 1d": lambda: chain(SERIES, layers.DepthwiseConv1D(3), layers.SeparableConv1D(5, 3)),
    "separable": lambda: chain(IMAGE, layers.SeparableConv2D(5, 3, depth_multiplier=2)),
    "dense": lambda: chain(SERIES, layers.Dense(3, kernel_initializer=k3.initializers.HeNormal(1), kernel_constraint="max_norm")),
    "dense with a layer as activation": lambda: chain(SERIES, layers.Dense(3, activation=layers.LeakyReLU(0.3))),
    "einsum": lambda: chain(SERIES, layers.EinsumDense("abc,cd->abd", output_shape=(None, 5), bias_axes="d")),
    "embedding": lambda: chain((5,), layers.Embedding(7, 3, mask_zero=True), layers.LSTM(4), dtype="int32"),
    "embedding of floats": lambda: chain((5,), layers.Embedding(7, 3), layers.GlobalAveragePooling1D()),
    "layer scale": lambda: chain(IMAGE, from_convnext("LayerScale", 0.1, 4), from_convnext("StochasticDepth", 0.3)),
    "batch normalization": lambda: chain(IMAGE, layers.BatchNormalization(epsilon=0.1, scale=False)),
    "batch normalization of rows": lambda: chain(IMAGE, layers.BatchNormalization(axis=2, center=False)),
    "normalizations": lambda: chain(IMAGE, layers.LayerNormalization(), layers.GroupNormalization(2), layers.UnitNormalization()),
    "preprocessing": lambda: chain(IMAGE, layers.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 2, 3, 4]), layers.Rescaling([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4])),
    "normalization of all": lambda: chain(IMAGE, layers.Normalization(mean=3.0, variance=2.0, invert=True, axis=None)),
    "normalization adapted": adapted,
    "activation layers": lambda: chain(IMAGE, layers.ReLU(6.0, 0.1, 0.05), layers.LeakyReLU(0.2), layers.ELU(0.5), layers.PReLU(shared_axes=[1, 2]), layers.Softmax(1)),
    "shapes": lambda: chain(IMAGE, layers.Permute((2, 1, 3)), layers.Reshape((12, 12)), layers.Flatten(), layers.RepeatVector(3), layers.Identity(), layers.Masking()),
    "sizes": lambda: chain(IMAGE, layers.ZeroPadding2D(1), layers.Cropping2D(1), layers.UpSampling2D(2, interpolation="bilinear"), layers.Resizing(9, 7), layers.CenterCrop(4, 4)),
    "sizes 1d": lambda: chain(SERIES, layers.ZeroPadding1D(1), layers.Cropping1D(1), layers.UpSampling1D(2)),
    "sizes 3d": lambda: chain(VOLUME, layers.ZeroPadding3D(1), layers.Cropping3D(1), layers.UpSampling3D(2)),
    "pooling 1d": lambda: chain(SERIES, layers.MaxPooling1D(2, 1), layers.AveragePooling1D(2), layers.GlobalMaxPooling1D()),
    "pooling": lambda: chain(IMAGE, layers.MaxPooling2D(2, padding="same"), layers.AveragePooling2D(3, 1, "same"), layers.GlobalMaxPooling2D(keepdims=True), layers.GlobalAveragePooling2D()),
    "pooling 3d": lambda: chain(VOLUME, layers.MaxPooling3D(2, 1), layers.AveragePooling3D(2), layers.GlobalAveragePooling3D(keepdims=True), layers.GlobalMaxPooling3D()),
    "merged": merged,
    "attention": attention,
    "training only": lambda: chain(IMAGE, layers.Dropout(0.2), layers.SpatialDropout2D(0.2), layers.GaussianDropout(0.2), layers.GaussianNoise(0.2), layers.AlphaDropout(0.2), layers.ActivityRegularization(0.1)),
    "training only 1d and 3d": lambda: chain(VOLUME, layers.SpatialDropout3D(0.2), layers.Reshape((16, 8)), layers.SpatialDropout1D(0.2)),
    "lstm": lambda: recurrent("LSTM", recurrent_activation="hard_sigmoid", activation="hard_silu"),
    "gru": lambda: recurrent("GRU", recurrent_activation="hard_sigmoid", reset_after=False, unroll=True),
    "simple rnn": lambda: recurrent("SimpleRNN", go_backwards=True),
    "states": states,
    "convolutional lstm": lambda: chain(FRAMES, layers.ConvLSTM2D(2, 2, recurrent_activation="hard_sigmoid")),
    "convolutional lstm 1d and 3d": lambda: k3.Model(x := k3.Input((2, 3, 3, 3, 1)), [layers.ConvLSTM3D(1, 2)(x), layers.ConvLSTM1D(1, 2)(layers.Reshape((2, 27, 1))(x))]),
    "bidirectional": bidirectional,
    "time distributed": lambda: chain(FRAMES, layers.TimeDistributed(layers.Conv2D(2, 3, activation="hard_sigmoid")), layers.TimeDistributed(layers.BatchNormalization())),
}  # fmt: skip
OF_LAYERS |= {
    f"activation {name}": lambda name=name: chain(IMAGE, layers.Conv2D(3, 1, activation=name), layers.Activation(name))
    for name in keras3_layers.ACTIVATIONS
    if name != "gelu_approximate"
}


def _unary(x):
    near = ops.abs(x) + 1.0
    several = [ops.log(near), ops.log1p(near), ops.sqrt(near), ops.rsqrt(near), ops.reciprocal(near), ops.square(x)]
    several += [ops.exp(x * 0.01), ops.expm1(x * 0.01), ops.sinh(x * 0.01), ops.cosh(x * 0.01), ops.arctan(x)]
    several += [ops.sin(x), ops.cos(x), ops.tan(x * 0.001), ops.erf(x), ops.sign(x), ops.floor(x), ops.ceil(x)]
    return [*several, ops.stop_gradient(x) + ops.zeros_like(x) + ops.ones_like(x), ops.copy(x), ops.absolute(x)]


def _activations(x):
    names = "relu relu6 sigmoid tanh silu selu softplus softsign hard_sigmoid hard_silu hard_tanh log_sigmoid gelu elu leaky_relu"
    several = [getattr(ops, name)(x) for name in names.split()]
    several += [ops.gelu(x, approximate=False), ops.softmax(x), ops.log_softmax(x, axis=1)]
    return [*several, k3.activations.relu(x, max_value=3.0)]


def _reduced(x):
    names = ["mean", "sum", "max", "min", "var", "std", "logsumexp"]
    several = [getattr(ops, name)(x, axis=(1, 2), keepdims=True) for name in names]
    truths = [ops.cast(ops.all(x > -1.0, axis=1), "float32"), ops.cast(ops.any(x > 1.0, axis=1), "float32")]
    return [*several, *truths, ops.prod(x * 0.1, axis=-1), ops.amax(x, axis=1), ops.amin(x, axis=1), ops.cumsum(x, 1)]


def _compared(x):
    y = ops.flip(x, 1)
    truths = [x > y, x >= 0.5, x < y, x <= 1, ops.equal(x, y), ops.not_equal(x, y)]
    both = [ops.logical_and(truths[0], truths[3]), ops.logical_or(*truths[:2]), ops.logical_xor(*truths[1:3])]
    return [ops.where(truth, x, -1.0) for truth in [*truths, *both, ops.logical_not(truths[0])]]


def _places(x):
    cut = [x[:, 1:5:2, ..., 0], x[..., None, :2], x[:, -1], ops.take(x, [0, 2], 3), ops.split(x, [1, 3], -1)[1]]
    moved = [
        ops.transpose(x, (0, 3, 1, 2)),
        ops.transpose(x, (1, 0, 2, 3)),
        ops.swapaxes(x, 1, 3),
        ops.moveaxis(x, 1, -1),
    ]
    shaped = [
        ops.reshape(x, (-1, 36, 4)),
        ops.reshape(x, (-1, 4)),
        ops.squeeze(ops.expand_dims(x, 1), 1),
        *ops.split(x, 2, -1),
    ]
    grown = [
        ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)), constant_values=2.0),
        ops.repeat(x, 2, 1),
        ops.tile(x, (1, 2, 1, 1)),
    ]
    grown += [ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)), mode="reflect"), ops.broadcast_to(x[:, :1], (2, 6, 6, 4))]
    joined = [ops.concatenate([x, x * 2], -1), ops.stack([x, x + 1], 1), ops.flip(x, 2), ops.roll(x, 1, 2)]
    return [
        *cut,
        *moved,
        *shaped,
        *grown,
        *joined,
        ops.unstack(x, axis=-1)[0],
        ops.depth_to_space(x, 2),
        ops.space_to_depth(x, 2),
    ]


OF_OPERATIONS = {
    "arithmetic": lambda x: (x + x * 0.5 - 1.0) / 3.0 + 2 - (1 - x) + x**2 - (-x) + ops.divide(x, 2.0),
    "integer division": lambda x: ops.floor_divide(x, 2.0) + ops.mod(x, 3.0),
    "constants": lambda x: x * np.array([1.0, 2, 3, 4]) + ops.maximum(x, 0.0) + ops.minimum(x, x * 2),
    "products": lambda x: [x @ ops.swapaxes(x, 2, 3), ops.einsum("bhwc,bhwd->bcd", x, x)],
    "broadcast": lambda x: x * ops.mean(x, (1, 2))[:, None, None, :] + ops.mean(x, (1, 2), keepdims=True),
    "types": lambda x: [
        ops.cast(ops.cast(x, "int32"), "float32") * 2,
        ops.one_hot(ops.argmax(x, -1), 4),
        ops.argmin(x, 1),
    ],
    "clip": lambda x: ops.clip(x, -1, 1),
    "value by value": _unary,
    "activations": _activations,
    "reduced": _reduced,
    "compared": _compared,
    "places": _places,
}
