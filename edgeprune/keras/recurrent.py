"""Recurrent layers, step by step: the converter has an int8 op for the usual LSTM and crashes, or gives float, on others.

A GRU, a SimpleRNN and an LSTM that is not the usual one become plain layers: for each gate a Dense over all steps of the
input and one, without bias where it can be, over the state, then sums, activations and products for every step. Each gate
has kernels of its own because the converter leaves the split of a common product in float, and quantizes it with one
range for all gates. The outputs are the same but for the order of float32 sums::

    GRU        z = s(W_z x + U_z h)   r = s(W_r x + U_r h)   g = a(W_g x + r (U_g h))     h' = g + z (h - g)
    LSTM       i, f, o likewise       g = a(W_g x + U_g h)   c' = f c + i g               h' = o a(c')
    SimpleRNN  h' = a(W x + U h)

with ``s`` the recurrent activation, ``a`` the activation, and ``r`` before ``U_g`` where ``reset_after`` is off (Cho et al.
2014; Hochreiter & Schmidhuber 1997). At the first step the state is zero, and what it would be multiplied by is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgeprune.errors import ConversionError
from edgeprune.keras import graph, keras, tf
from edgeprune.keras.layers import Operation
from edgeprune.keras.workshop import Rewritten, Workshop

layers = keras.layers
Tensor = Any

_KINDS = (layers.GRU, layers.SimpleRNN, layers.LSTM)
STEPS = 512  # a longer sequence is not written out: its graph would have as many copies of the cell
_MERGES = {"concat": layers.Concatenate, "sum": layers.Add, "mul": layers.Multiply, "ave": layers.Average}


def unroll(model: Any) -> Rewritten:
    """Replace the recurrent layers, Bidirectional ones too, that the converter has no int8 op for.

    Args:
        model: functional or built Sequential; not changed.

    Returns:
        The model, and the names of the layers that are no longer in it. Those that ``obstacle`` names a reason for stay.
    """
    model = graph.flatten(model)
    workshop, done = Workshop(model), list[str]()

    def rewrite(call: graph.Call) -> Any:
        if _fused(call.layer, _given(call)) or _obstacle(call.layer, _given(call), call.kwargs):
            return None
        done.append(call.layer.name)
        if isinstance(call.layer, layers.Bidirectional):
            return _both_ways(workshop, call.layer, _given(call))
        steps, states = _Run(workshop, call.layer, call.layer.name).steps(_given(call))
        return _outputs(workshop, call.layer, steps, states)

    if not any(isinstance(layer, layers.RNN | layers.Bidirectional) for layer in model.layers):
        return model, []
    written = workshop.rebuild(rewrite)
    return (written if done else model), list(dict.fromkeys(done))


def obstacles(model: Any) -> dict[str, str]:
    """Recurrent layer -> why it cannot become int8: neither is there an op for it nor can it be written out."""
    found = {}
    for node in graph.nodes(graph.flatten(model)):
        if not isinstance(node.layer, (layers.RNN, layers.Bidirectional)):
            continue
        given = tf.nest.flatten(node.call_args)
        reason = _obstacle(node.layer, given, node.call_kwargs)
        if reason and not (reason == _STATEFUL and _fused(node.layer, given)):
            found[node.layer.name] = reason
    return found


def refuse_loops(model: Any) -> None:
    """Refuse a model that the converter would crash on, before hours are spent on training it.

    Raises:
        ConversionError: a recurrent layer stays a loop: `obstacles` has a reason, and it is not unrolled.
    """
    model = graph.flatten(model)
    for name, reason in obstacles(model).items():
        layer = model.get_layer(name)
        cores = (getattr(layer, "forward_layer", layer), getattr(layer, "backward_layer", layer))
        if not all(core.unroll for core in cores):
            raise ConversionError(
                f"The recurrent layer '{name}' ({type(layer).__name__}) cannot become int8: {reason}. Left as the loop that it is, "
                "it crashes TensorFlow's converter."
            )


_STATEFUL = "it keeps its state between batches (stateful=True)"


def _core(layer: Any) -> tuple[Any, ...]:
    """The recurrent layers that compute: the layer itself, or both of a Bidirectional one; none if it is another kind."""
    cores = (layer.forward_layer, layer.backward_layer) if isinstance(layer, layers.Bidirectional) else (layer,)
    return cores if all(type(core) in _KINDS for core in cores) else ()


def _fused(layer: Any, given: Sequence[Tensor]) -> bool:
    """Whether the converter makes its int8 LSTM op of the layer: Keras marks a function for it under these conditions.

    The op gives no state and takes none, so a layer that does either becomes a loop, on which the converter crashes.
    """
    cores = _core(layer)
    return len(given) == 1 and bool(cores) and all(map(_usual, cores))


def _usual(core: Any) -> bool:
    return (
        type(core) is layers.LSTM
        and core.activation in (keras.activations.tanh, tf.tanh)
        and core.recurrent_activation in (keras.activations.sigmoid, tf.sigmoid)
        and core.use_bias
        and not core.unroll
        and not core.recurrent_dropout
        and not core.return_state
    )


def _obstacle(layer: Any, inputs: Sequence[Tensor], kwargs: dict[str, Any]) -> str | None:
    """Why a layer's call cannot be unrolled, or None."""
    cores = _core(layer)
    if not cores:
        return f"{type(layer).__name__} is no LSTM, GRU or SimpleRNN"
    if inputs[0].shape[1] is None:
        return "the number of its steps is open: give keras.Input a fixed one"
    if inputs[0].shape[1] > STEPS:
        return f"{inputs[0].shape[1]} steps are more than the {STEPS} that are written out: use fewer, or an LSTM"
    if kwargs.get("mask") is not None or getattr(inputs[0], "_keras_mask", None) is not None:
        return "some of its steps are masked: drop mask_zero and the Masking layer, and pad with zeros"
    if any(core.stateful for core in cores):
        return _STATEFUL
    if any(core.time_major for core in cores):
        return "its first axis is time (time_major=True)"
    states = sum(len(tf.nest.flatten(core.cell.state_size)) for core in cores)
    if kwargs.get("initial_state") is not None or len(inputs) not in (1, 1 + states):
        return "its initial state is a constant, or it reads constants beside the sequence"
    return None


def _given(call: graph.Call) -> list[Tensor]:
    """The sequence, and after it the initial states where there are any."""
    given: list[Tensor] = tf.nest.flatten(call.args[0])
    return given


def _both_ways(workshop: Workshop, layer: Any, given: Sequence[Tensor]) -> Any:
    """A Bidirectional layer's outputs."""
    half, name = (len(given) - 1) // 2, layer.name
    ways = (
        (layer.forward_layer, "forward", given[1 : 1 + half]),
        (layer.backward_layer, "backward", given[1 + half :]),
    )
    ends, states = [], []
    for core, suffix, initial in ways:
        run = _Run(workshop, core, workshop.derived(name, suffix))
        steps, last = run.steps([given[0], *initial])
        steps = steps[::-1] if core.return_sequences and core.go_backwards else steps
        ends.append(_sequence(workshop, core, steps))
        states += last
    merged = ends
    if layer.merge_mode is not None:
        merged = [_MERGES[layer.merge_mode](name=workshop.another(f"{name}_merge"))(ends)]
    found = [*merged, *(states if layer.return_state else [])]
    return found if len(found) > 1 else found[0]


def _outputs(workshop: Workshop, layer: Any, steps: Sequence[Tensor], states: Sequence[Tensor]) -> Any:
    sequence = _sequence(workshop, layer, steps)
    return [sequence, *states] if layer.return_state else sequence


def _sequence(workshop: Workshop, layer: Any, steps: Sequence[Tensor]) -> Tensor:
    """All steps along a new axis 1, or the last one."""
    if not layer.return_sequences:
        return steps[-1]
    places = [{"tensor": place} for place in range(len(steps))]
    stack = Operation("stack", [places], {"axis": 1}, name=workshop.another(f"{layer.name}_stack"))
    return stack(list(steps))


class _Gate(NamedTuple):
    """One gate's weights.

    Attributes:
        kernel: (inputs, units).
        recurrent: (units, units).
        bias: (units,), added to the input's product.
        recurrent_bias: (units,), added to the state's product; None: not there.
    """

    kernel: np.ndarray
    recurrent: np.ndarray
    bias: np.ndarray
    recurrent_bias: np.ndarray | None = None


class _Run:
    """One call of one recurrent layer, being written out."""

    def __init__(self, workshop: Workshop, layer: Any, name: str) -> None:
        self._workshop = workshop
        self._layer = layer
        self._name = name
        self._gates = _gates(layer)
        self._step = 0

    def steps(self, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The output of every step, in the order in which they are computed, and the last states."""
        sequence, states = given[0], list(given[1:])
        length = int(sequence.shape[1])
        order = list(reversed(range(length)) if self._layer.go_backwards else range(length))
        products = {
            gate: self._unstacked(gate, sequence, order[1:] if not states and self._waits(gate) else order)
            for gate in self._gates
        }
        advance: Callable[[dict[str, Tensor], list[Tensor]], list[Tensor]] = {
            layers.GRU: self._gru,
            layers.LSTM: self._lstm,
            layers.SimpleRNN: self._simple,
        }[type(self._layer)]
        outputs = []
        for step in order:
            self._step = step
            states = advance({gate: product[step] for gate, product in products.items() if step in product}, states)
            outputs.append(states[0])
        return outputs, states

    def _simple(self, x: dict[str, Tensor], states: list[Tensor]) -> list[Tensor]:
        return [self._activated(self._layer.activation, "state", self._summed("state", x["state"], states))]

    def _gru(self, x: dict[str, Tensor], states: list[Tensor]) -> list[Tensor]:
        inner = self._layer.recurrent_activation
        update = self._activated(inner, "update", self._summed("update", x["update"], states))
        candidate = self._activated(self._layer.activation, "candidate", self._candidate(x, states))
        if not states:  # g + z (0 - g)
            kept = self._of(layers.Multiply, "forgotten", update, candidate)
            return [self._of(layers.Subtract, "output", candidate, kept)]
        change = self._of(layers.Subtract, "change", states[0], candidate)
        kept = self._of(layers.Multiply, "kept", update, change)
        return [self._of(layers.Add, "output", candidate, kept)]

    def _candidate(self, x: dict[str, Tensor], states: list[Tensor]) -> Tensor:
        """A GRU's new state before its activation."""
        bias = self._gates["candidate"].recurrent_bias
        if "reset" not in x:
            return x["candidate"]
        reset = self._summed("reset", x["reset"], states)
        reset = self._activated(self._layer.recurrent_activation, "reset", reset)
        if bias is None:  # reset_after=False
            past = self._product("candidate", self._of(layers.Multiply, "past", reset, states[0]))
        elif states:
            past = self._of(layers.Multiply, "past", reset, self._product("candidate", states[0]))
        else:  # U_g 0 + b = b
            constant = {"array": bias.tolist(), "dtype": "float32"}
            past = Operation("math.multiply", [{"tensor": 0}, constant], name=self._named("past"))(reset)
        return self._of(layers.Add, "candidate_sum", x["candidate"], past)

    def _lstm(self, x: dict[str, Tensor], states: list[Tensor]) -> list[Tensor]:
        inner, outer = self._layer.recurrent_activation, self._layer.activation
        gates = {
            gate: self._activated(
                outer if gate == "candidate" else inner, gate, self._summed(gate, x[gate], states[:1])
            )
            for gate in self._gates
            if gate in x
        }
        cell = self._of(layers.Multiply, "new", gates["input"], gates["candidate"])
        if states:
            cell = self._of(layers.Add, "cell", self._of(layers.Multiply, "kept", gates["forget"], states[1]), cell)
        return [self._of(layers.Multiply, "state", gates["output"], self._activated(outer, "cell_out", cell)), cell]

    def _waits(self, gate: str) -> bool:
        """Whether a gate has no use for the first step where no state is given: there is nothing that it lets through."""
        if gate != "reset":
            return gate == "forget"
        bias = self._gates["candidate"].recurrent_bias
        return bias is None or not bias.any()

    def _unstacked(self, gate: str, sequence: Tensor, steps: Sequence[int]) -> dict[int, Tensor]:
        """What the input gives to a gate at each of these steps.

        No others are made: the converter may leave an UNPACK in float for one output that nothing reads.
        """
        if not steps:
            return {}
        weights, first, last = self._gates[gate], min(steps), max(steps)
        if len(steps) < int(sequence.shape[1]):
            places = [{"slice": [None] * 3}, {"slice": [first, last + 1, None]}]
            name = self._workshop.another(f"{self._name}_{gate}_read")
            sequence = Operation("__operators__.getitem", [{"tensor": 0}, places], name=name)(sequence)
        products = self._dense(gate, weights.kernel, weights.bias)(sequence)
        name = self._workshop.another(f"{self._name}_{gate}_steps")
        options = {"axis": 1, "num": len(steps)}
        return dict(
            zip(
                range(first, last + 1), Operation("unstack", [{"tensor": 0}], options, name=name)(products), strict=True
            )
        )

    def _product(self, gate: str, state: Tensor) -> Tensor:
        weights = self._gates[gate]
        return self._dense(f"{gate}_recurrent", weights.recurrent, weights.recurrent_bias)(state)

    def _summed(self, gate: str, product: Tensor, states: list[Tensor]) -> Tensor:
        """The input's product and the state's, which is 0 where there is no state yet."""
        return self._of(layers.Add, f"{gate}_sum", product, self._product(gate, states[0])) if states else product

    def _dense(self, part: str, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
        return self._workshop.make(
            layers.Dense,
            self._workshop.derived(self._name, part),
            [kernel] if bias is None else [kernel, bias],
            units=kernel.shape[1],
            use_bias=bias is not None,
        )

    def _activated(self, function: Any, part: str, tensor: Tensor) -> Tensor:
        if function is keras.activations.linear:
            return tensor
        return layers.Activation(function, name=self._named(part))(tensor)

    def _of(self, kind: Any, part: str, *tensors: Tensor) -> Tensor:
        return kind(name=self._named(part))(list(tensors))

    def _named(self, part: str) -> str:
        return self._workshop.another(f"{self._name}_{part}_{self._step}")


def _gates(layer: Any) -> dict[str, _Gate]:
    """A layer's weights, gate by gate."""
    words = {
        layers.GRU: ("update", "reset", "candidate"),
        layers.LSTM: ("input", "forget", "candidate", "output"),
        layers.SimpleRNN: ("state",),
    }[type(layer)]
    kernel, recurrent, *rest = layer.get_weights()
    after = type(layer) is layers.GRU and layer.reset_after
    bias = rest[0] if rest else np.zeros((2, kernel.shape[1]) if after else kernel.shape[1], "float32")
    parts = [np.split(array, len(words), axis=-1) for array in (kernel, recurrent, bias)]
    return {word: _gate(word, *arrays) for word, *arrays in zip(words, *parts, strict=True)}


def _gate(word: str, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> _Gate:
    if bias.ndim == 1:
        return _Gate(kernel, recurrent, bias)
    if word != "candidate":  # one sum: both biases are constants of it
        return _Gate(kernel, recurrent, bias.sum(axis=0))
    return _Gate(kernel, recurrent, bias[0], bias[1])
