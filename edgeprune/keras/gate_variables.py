"""The gates of one kernel or of one group of channels: their variables, and the clock that their noise is a function of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeprune.keras import keras, tf
from edgeprune.keras.gates import Gate, Moment

Tensor = Any

LEAST = 1e-6  # of uniform noise, whose logarithm is taken
# Every replica has such a variable of its own and moves it alike, so that none has to wait for the others; a checkpoint takes
# the first, or of what depends on a replica's samples the mean.
EACH = {
    "synchronization": tf.VariableSynchronization.ON_READ,
    "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
}
MEAN = {"synchronization": tf.VariableSynchronization.ON_READ, "aggregation": tf.VariableAggregation.MEAN}


def rated(variable: Tensor, rate: float) -> Tensor:
    """``rate`` times a variable, with the gradient of the variable itself: it learns ``rate`` times as fast, in all optimizers."""
    value = tf.convert_to_tensor(variable)
    return value + tf.stop_gradient((rate - 1.0) * value)


def either(flag: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """One of both; a flag that is a tensor decides in the graph."""
    if tf.is_tensor(flag):
        return tf.cond(tf.cast(flag, tf.bool), yes, no)
    return yes() if flag else no()


class Clock(keras.layers.Layer):
    """How many training steps are done, and the noise of this one."""

    def __init__(self, seed: int) -> None:
        super().__init__(name="clock", dtype="float32")
        self.seed = seed
        self.step = self.add_weight(name="step", dtype="int32", initializer="zeros", trainable=False, **EACH)
        self.built = True

    def uniform(self, salt: int) -> Callable[[Tensor], Tensor]:
        """Of a tensor's shape, uniform in (0, 1)."""
        return lambda like: tf.random.stateless_uniform(
            tf.shape(like), self._seed(salt), LEAST, 1.0 - LEAST, alg="philox"
        )

    def normal(self, salt: int) -> Callable[[Tensor], Tensor]:
        """Of a tensor's shape, standard normal."""
        return lambda like: tf.random.stateless_normal(tf.shape(like), self._seed(salt), alg="philox")

    def _seed(self, salt: int) -> Tensor:
        """Both numbers: of the gates, and of the step."""
        return tf.stack([tf.constant((self.seed * 10_007 + salt) % 2**31, tf.int32), tf.convert_to_tensor(self.step)])


class Gates(keras.layers.Layer):
    """The gates of one kernel or of one group: their variables, which live in float32 whatever the policy."""

    def __init__(
        self,
        kind: Gate,
        name: str,
        values: np.ndarray,
        rate: float,
        clock: Clock,
        salt: int,
        kept: np.ndarray | None = None,
    ) -> None:
        """Args:
        kind: a module of ``edgeprune.keras.gates``.
        name: of the kernel or group.
        values: of the kernel; ones for a group's units.
        rate: how many times as fast as weights they learn.
        clock: of the model.
        salt: a number of its own, for the noise.
        kept: what an earlier stage has left, True = kept; None: all.
        """
        super().__init__(name="gates", dtype="float32")
        self.kind, self.key, self.rate, self.clock, self.salt = kind, name, rate, clock, salt
        self._kept = None if kept is None else tf.constant(kept, tf.float32)
        self.ones = np.ones(values.shape, np.float32)
        starts = kind.start(values, clock.seed + salt)
        self._rates = {key: rate if first.trained and first.travels else 1.0 for key, first in starts.items()}
        self._own = {
            key: self.add_weight(
                name=key,
                shape=first.values.shape,
                initializer=keras.initializers.Constant(first.values / self._rates[key]),
                trainable=first.trained,
                **({} if first.trained else MEAN if kind.SEES else EACH),
            )
            for key, first in starts.items()
        }
        self.built = True

    def connect(self, kernel: Any, sizes: Callable[[], Tensor] | None = None) -> None:
        """Once the model is built: the variable that is gated (None: ones), and how large each gate's weights are."""
        self._values: Callable[[], Tensor] = lambda: tf.convert_to_tensor(self.ones if kernel is None else kernel)
        self._magnitudes: Callable[[], Tensor] = sizes or (lambda: tf.abs(self._values()))

    def own(self) -> dict[str, Tensor]:
        """The variables as the kind knows them."""
        return {key: rated(variable, self._rates[key]) for key, variable in self._own.items()}

    def effective(self, values: Tensor, training: Any, seen: Tensor | None = None) -> Tensor:
        """What takes the values' place in this step."""
        own, kind = self.own(), self.kind

        def gated() -> Tensor:
            moment = Moment(self.clock.uniform(self.salt), self.clock.normal(self.salt), seen)
            if seen is not None:
                self._own["seen"].assign(kind.remembered(seen, own))  # type: ignore[attr-defined]
            return kind.gated(values, own, moment)

        def decided() -> Tensor:
            found = kind.decided(values, own)
            return found if seen is None else tf.broadcast_to(found, tf.shape(seen))

        found = either(training, gated, decided)
        return found if self._kept is None else found * self._kept

    def decided(self) -> Tensor:
        """What takes the values' place at inference, (their shape)."""
        found = self.kind.decided(self._values(), self.own())
        return found if self._kept is None else found * self._kept

    def opened(self) -> Tensor:
        """Which gates are open at inference, 0 or 1."""
        return tf.cast(self.decided() != 0.0, tf.float32)

    def expected(self) -> Tensor:
        """What the open gates cost, differentiable: the chance to be open where the kind knows one."""
        found = self.kind.penalty(self._magnitudes(), self.own())
        return found if self._kept is None else found * self._kept

    def scores(self) -> np.ndarray:
        """What is kept first, higher = keep; what an earlier stage has closed comes last of all."""
        found: np.ndarray = self.kind.score(self._magnitudes(), self.own()).numpy()
        return found if self._kept is None else np.where(self._kept.numpy() > 0, found, found.min() - 1.0)

    def refresh(self, sparsity: Tensor, progress: Tensor) -> None:
        """Move what the optimizer does not."""
        for key, value in self.kind.moved(self._magnitudes(), self.own(), sparsity, progress).items():
            self._own[key].assign(value)
