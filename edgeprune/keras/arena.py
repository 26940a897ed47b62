"""How much memory a model's activations will take after a cut, without making it: what must be kept at once, at the most."""

from __future__ import annotations

from math import prod

from edgeprune import channels
from edgeprune.channel_rules import Shape
from edgeprune.keras.latency import OPS, Stopwatch


class Arena:
    """Counts the bytes of int8 activations that are alive at once in the worst moment, for cuts of one model.

    An op's inputs and outputs are alive while it runs, and what a later op reads lives on; layers that are folded, fused or
    only rename hand on the tensor that they get. This is a lower bound of any planner's arena, and what is told of a runtime
    that hides its own.
    """

    def __init__(self, stopwatch: Stopwatch) -> None:
        """Args:
        stopwatch: of the model.
        """
        self._stopwatch = stopwatch
        graph = stopwatch.coupling.graph
        self._tensors = graph.tensors
        stands_for: dict[str, str] = {}
        steps: list[tuple[set[str], set[str]]] = []
        for node in graph.nodes:
            given = {stands_for.get(name, name) for name in node.inputs}
            if node.kind in OPS or not given:
                steps.append((given, set(node.outputs)))
            else:
                stands_for |= dict.fromkeys(node.outputs, min(given))
        outputs = {stands_for.get(name, name) for name in graph.outputs}
        self._alive = _alive(steps, set(graph.inputs), outputs)

    def __call__(self, cut: channels.Cut) -> int:
        """Bytes, for one sample."""
        shapes = {**self._tensors, **self._stopwatch.smaller(cut)}
        sizes = {name: _size(shapes[name]) for name in shapes}
        return max((sum(sizes[name] for name in names) for names in self._alive), default=0)


def _alive(steps: list[tuple[set[str], set[str]]], inputs: set[str], outputs: set[str]) -> list[set[str]]:
    """For every step the tensors that are there while it runs."""
    born = dict.fromkeys(inputs, 0)
    died = dict.fromkeys(outputs, len(steps))
    for place, (given, made) in enumerate(steps):
        for name in made:
            born.setdefault(name, place)
        for name in given:
            died[name] = max(place, died.get(name, 0))
    return [
        {name for name, start in born.items() if start <= place <= died.get(name, start)} for place in range(len(steps))
    ]


def _size(shape: Shape) -> int:
    return prod(size or 1 for size in shape)
