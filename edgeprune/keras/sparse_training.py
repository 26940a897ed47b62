"""Training with zeros on plain layers: masks that hold in every step, and are decided anew rarely, between steps.

A mask is a weight of its layer that does not train, so that checkpoints hold it. It works as a constraint of the kernel
(`edgeprune.keras.constraints`), in the graph of the training step, after the optimizer has moved the weights: under any
optimizer, compiled by whomever, with mixed precision, under ``tf.distribute`` strategies. What decides masks is NumPy
(`edgeprune.sparsifying`), in a callback, with the criteria, granularities and scopes that everything else here prunes with.

Layers have the whole gradient, also of weights that are zero: so it costs nothing to let those live on (``dense``), and the
gradient of a weight that is not there yet can be had (``grow: gradient``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import columns
from edgeprune.keras import constraints, graph, keras, kernels, tf
from edgeprune.keras.pruning import LayerPlan
from edgeprune.sparsifying import Masks

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

MOMENTUM = "m"  # what Keras' optimizers call the running mean of the gradients


class Held:
    """One kernel, and what holds it.

    Attributes:
        layer: the layer that has it.
        variable: the kernel.
        mask: 1 where it may differ from zero.
        dense: what the kernel would be without its mask, where that lives on; else None.
    """

    def __init__(self, layer: Any, kernel: kernels.Kernel, how: str) -> None:
        """Args:
        how: ``hold``: zeros stay; ``dense``: the weights behind the mask are trained on; ``soft``: nothing holds.
        """
        self.layer, self.kernel, self.variable = layer, kernel, kernel.of(layer)
        self.mask = self._extra("mask", np.ones(self.variable.shape, np.float32))
        self.dense: Any = self._extra("dense", self.variable.numpy()) if how == "dense" else None
        if how == "hold":
            constraints.mask(self.variable, lambda value: value * self.mask)
        if how == "dense":
            constraints.mask(self.variable, self._moved)

    def _extra(self, word: str, values: Array) -> Any:
        """A weight of the layer besides its own, in full precision."""
        name = f"{self.kernel.name or 'kernel'}_{word}"
        made = self.layer.add_weight(
            name=name, shape=values.shape, dtype="float32", trainable=False, experimental_autocast=False
        )
        made.assign(values)
        return made

    def _moved(self, value: Any) -> Any:
        """What the optimizer did to the masked kernel is done to the dense one (Lin et al. 2020).

        Where the mask keeps a weight the two are the same; elsewhere the kernel was 0, so its value is the step alone.
        """
        self.dense.assign(value + self.dense * (1.0 - self.mask))
        return value * self.mask

    @property
    def extras(self) -> list[Any]:
        return [self.mask] if self.dense is None else [self.mask, self.dense]

    def turned(self, values: Any) -> Any:
        """From the kernel's own layout to (..., in, out), or back."""
        return np.swapaxes(values, -1, -2) if self.kernel.outputs_first else values

    def weights(self) -> Array:
        """(..., in, out), without the mask where they live on behind it."""
        values: Array = self.turned((self.variable if self.dense is None else self.dense).numpy())
        return values

    def kept(self) -> Mask:
        """(..., in, out), True = kept."""
        mask: Mask = self.turned(self.mask.numpy()).astype(bool)
        return mask

    def put(self, mask: Mask) -> None:
        """Zero what the mask does not keep."""
        values = np.ascontiguousarray(self.turned(mask)).astype(np.float32)
        self.mask.assign(values)
        self.variable.assign((self.variable if self.dense is None else self.dense).numpy() * values)


class Sparse:
    """A copy of a model whose kernels have masks.

    Attributes:
        plain: the model that it is a copy of.
        model: plain layers with masks; to be compiled and fitted by whomever.
        kernels: name (`kernels.key`) -> what holds it, in the model's order.
    """

    def __init__(self, plain: Any, plans: Iterable[LayerPlan], how: str = "hold", found: Masks | None = None) -> None:
        """Args:
        plain: functional; not changed.
        plans: from `pruning.plan`.
        how: as for `Held`.
        found: masks to begin with, (..., in, out), of all kernels or some.
        """
        self.plain = plain
        self.model = graph.rebuild(plain)
        self.kernels = {
            kernels.key(plan.name, kernel): Held(self.model.get_layer(plan.name), kernel, how)
            for plan in plans
            for kernel in plan.kernels
        }
        self._extras = {id(extra) for held in self.kernels.values() for extra in held.extras}
        self.put(found or {})

    def weights(self) -> dict[str, Array]:
        """Name -> (..., in, out), those that live on behind masks too."""
        return {name: held.weights() for name, held in self.kernels.items()}

    def masks(self) -> dict[str, Mask]:
        """Name -> (..., in, out), True = kept."""
        return {name: held.kept() for name, held in self.kernels.items()}

    def put(self, found: Masks) -> None:
        """Zero what the masks do not keep."""
        for name, mask in found.items():
            self.kernels[name].put(mask)

    def stored(self) -> dict[str, Mask]:
        """The masks in the layout of their kernels, as `pruning.save_masks` takes them."""
        return {name: held.mask.numpy().astype(bool) for name, held in self.kernels.items()}

    def turned(self, stored: Masks) -> dict[str, Mask]:
        """Masks from a file as (..., in, out); of kernels that are not here none."""
        return {name: self.kernels[name].turned(mask) for name, mask in stored.items() if name in self.kernels}

    def give(self, model: Any) -> Any:
        """Set the weights of a plain model of the same layers to those that the layers have now."""
        for layer in model.layers:
            own = self.model.get_layer(layer.name).weights
            layer.set_weights([weight.numpy() for weight in own if id(weight) not in self._extras])
        return model

    def strip(self) -> Any:
        """A plain model with the zeros."""
        return self.give(graph.rebuild(self.plain))


class Updates(keras.callbacks.Callback):
    """Calls a function between two steps, whenever so many steps are done.

    With Keras' own ``steps_per_execution`` above 1 a call comes at the next step at which Keras comes up for air;
    `training.fit` sees to it, by ``room``, that this is at once.
    """

    def __init__(self, due: Iterable[int], decide: Callable[[int, Any], None]) -> None:
        """Args:
        due: counts of optimizer steps.
        decide: is given the count and the optimizer.
        """
        super().__init__()
        self._supports_tf_logs = True  # or Keras would wait for the loss after every call
        self._due, self._decide = sorted(set(due)), decide
        self._before = self._passed = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._before = int(self.model.optimizer.iterations.numpy())
        self._passed = self._before - 1

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        done = self._before + batch
        pending = [count for count in self._due if self._passed < count <= done]
        self._passed = done
        if pending:
            self._decide(pending[-1], self.model.optimizer)

    def room(self, done: int) -> int:
        """Steps until the next update."""
        return next((count - done for count in self._due if count > done), 1 << 30)


def still(optimizer: Any, variable: Any, where: Mask) -> None:
    """Forget the running mean of the gradients of some weights, as of weights that have only come (Evci et al. 2020).

    Args:
        optimizer: built for the variable.
        where: of the variable's layout, True = forget.
    """
    name = f"{MOMENTUM}/{variable.name.partition(':')[0]}"
    for slot in tf.nest.flatten(optimizer.variables):
        if slot.name.partition(":")[0].endswith(name) and slot.shape == variable.shape:
            slot.assign(np.where(where, 0.0, slot.numpy()))


def redrawn(model: Any, seed: int) -> Any:
    """The same layers with weights drawn anew by their initializers; layers that train nothing keep what they hold.

    Args:
        model: functional; not changed.
        seed: of all weights, also of those whose initializer has a seed of its own; the same gives the same.
    """
    keras.utils.set_random_seed(seed)
    return graph.rebuild(
        model, copy=lambda layer: layer.__class__.from_config(_unseeded(layer.get_config())), drawn=True
    )


def _unseeded(config: Any, initializer: bool = False) -> Any:
    """A layer's configuration without the seeds of its initializers."""
    if not isinstance(config, dict):
        return config
    return {
        key: None if initializer and key == "seed" else _unseeded(value, initializer or key.endswith("_initializer"))
        for key, value in config.items()
    }


def batches(split: Any, count: int, size: int, seed: int | None = None) -> list[Any]:
    """(x, y) of some samples of a split.

    Args:
        split: `data.Split`.
        count: samples, at most as many as there are.
        size: samples per batch.
        seed: of a random choice; None: evenly out of the split.
    """
    if seed is None:
        few = split.evenly(count)
    else:
        generator = np.random.Generator(np.random.PCG64(seed))
        few = split.select(generator.choice(len(split), min(count, len(split)), replace=False))
    return [(_ordered(x), _ordered(y)) for x, y in few.batches(size)]


def _ordered(given: Any) -> Any:
    """The only array, or all of them in the model's order."""
    values = tuple(columns.values(given))
    return values[0] if len(values) == 1 else values
