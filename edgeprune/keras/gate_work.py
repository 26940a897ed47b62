"""What the gate stage does to a model: gates on its weights or channels, and what becomes of them in the end.

`Weights` ends with plain layers and masks, `Channels` with a smaller network. Neither writes anything: the stage does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from edgeprune import columns, granularity, masks, scoring, shrinking
from edgeprune.analytic import Layer
from edgeprune.data import Data
from edgeprune.errors import CutError, RecipeError
from edgeprune.gate_options import Options
from edgeprune.keras import constraints, costs, gate_costs, gated, kernels, latency, pruning, surgery
from edgeprune.keras.gated import Course, Wrapped
from edgeprune.keras.gates import Gate
from edgeprune.target import ChannelMultiple


class Settled(NamedTuple):
    """What is left when the gates are gone.

    Attributes:
        model: plain layers.
        masks: of its kernels, True = kept; None where channels went for good.
        facts: plain data, for the report.
    """

    model: Any
    masks: dict[str, np.ndarray] | None
    facts: dict[str, Any]


class Work(Protocol):
    """Gates of one granularity on one model."""

    def gated(self, course: Course) -> Wrapped:
        """The model with gates."""

    def settled(self, wrapped: Wrapped) -> Settled:
        """The model without them, as they and ``final`` decide."""

    def size(self) -> int:
        """Weights that are behind gates."""


def course(options: Options, kind: Gate, work: Work, steps: int, samples: int, stakes: float, seed: int) -> Course:
    """What the options ask of the gates.

    Args:
        steps: with gates.
        samples: in the training split.
        stakes: see ``stakes``.
    """
    own = options.final is None or kind.HELD == "prior"
    strength = options.strength or (kind.STRENGTH if own else None)
    return Course(
        steps=steps,
        final=options.final,
        begin=options.begin,
        end=options.end,
        power=options.power,
        strength=strength * work.size() / samples if strength else None,
        stakes=stakes,
        rate=options.rate or kind.TRAVEL / (options.learning_rate * steps),
        seed=seed,
    )


def check(options: Options, kind: Gate, label: str) -> None:
    """Raises:
    RecipeError: the gate cannot do what is asked.
    """
    where = f"stages.{label}"
    if options.granularity not in kind.GRANULARITIES:
        raise RecipeError(
            f"{where}.granularity: '{options.gate}' gates have the granularity {' or '.join(kind.GRANULARITIES)}, got "
            f"{options.granularity}. Change it, or the gate."
        )
    if kind.HELD == "schedule":
        if options.strength is not None:
            raise RecipeError(
                f"{where}.strength: '{options.gate}' follows the schedule and has no penalty. Leave it out."
            )
        if options.final is None:
            raise RecipeError(f"{where}.final: '{options.gate}' follows the schedule, so it needs a share, 0..1.")


def stakes(data: Data) -> float:
    """The loss of always giving the same answer: the entropy of the classes in nats, the variance of numbers; their sum.

    >>> stakes(digits)                                         # doctest: +SKIP
    2.302
    """
    found = 0.0
    for name, answers in columns.named(data.train.y).items():
        values = np.asarray(answers)
        task = data.tasks if isinstance(data.tasks, str) else data.tasks[name]
        if task == "regression":
            found += float(np.mean(np.var(values, axis=0, dtype=np.float64)))
        else:
            shares = np.unique(values, return_counts=True)[1] / values.size
            found += float(-(shares * np.log(shares)).sum())
    return found or 1.0


class Weights:
    """A gate on every weight of the planned kernels.

    Attributes:
        plans: of every layer, as `edgeprune.keras.pruning.plan` gives them.
    """

    def __init__(self, model: Any, kind: Gate, options: Options, label: str, earlier: Mapping[str, np.ndarray]) -> None:
        """Args:
        earlier: masks of an earlier stage, True = kept.

        Raises:
            RecipeError: no layer is left to gate.
        """
        self.model, self.kind, self.options, self.earlier = model, kind, options, dict(earlier)
        self.plans = plans(model, options)
        if not any(plan.prunable for plan in self.plans):
            why = "; ".join(f"{plan.name}: {plan.reason}" for plan in self.plans) or "it has no layer with weights"
            raise RecipeError(f"stages.{label} found no layer that it can gate ({why}). Change include.")
        names = [kernels.key(plan.name, kernel) for plan in self.plans for kernel in plan.kernels]
        self._costs = dict.fromkeys(names, 1.0)
        if options.counted == "macs":
            self._costs = gate_costs.multiplied(model, names)

    def gated(self, course: Course) -> Wrapped:
        cost = gate_costs.weights(self._costs)
        return gated.on_weights(self.model, self.plans, self.kind, course, cost, self.earlier)

    def settled(self, wrapped: Wrapped) -> Settled:
        found = {name: own.opened().numpy() > 0 for name, own in wrapped.gates.items()}
        kept = self._kept(wrapped, found)
        facts = {**_facts(wrapped), "open": {name: float(mask.mean()) for name, mask in found.items()}}
        return Settled(gated.with_masks(self.model, wrapped, kept), kept, facts)

    def size(self) -> int:
        return sum(int(np.prod(kernels.find(self.model, name).shape)) for name in self._costs)

    def _kept(self, wrapped: Wrapped, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The masks: the best of every kernel or of all, or what the gates found; never none of a kernel."""
        scores = {name: own.scores() for name, own in wrapped.gates.items()}
        if self.options.final is None:
            shares = {name: min(1.0 - mask.mean(), 1.0 - 1.0 / mask.size) for name, mask in found.items()}
            kept = masks.masks(scores, shares, granularity.weight())
        else:
            kept = masks.masks(scores, self.options.final, granularity.weight(), self.options.scope or self.kind.SCOPE)
        return {name: mask & self.earlier.get(name, True) for name, mask in kept.items()}


class Channels:
    """A gate on every unit of the groups that can be cut.

    Attributes:
        whole: every group -> None if its units have gates, else why it is left whole.
    """

    def __init__(
        self,
        model: Any,
        kind: Gate,
        options: Options,
        label: str,
        multiple: ChannelMultiple | None,
        milliseconds: Callable[[Sequence[Layer]], float] | None,
    ) -> None:
        """Args:
        model: flat functional.
        multiple: of channels, that pays on the target.
        milliseconds: what a list of ops takes there; None: latency is of no account.

        Raises:
            RecipeError, CutError: no group is left to gate.
        """
        self.model, self.kind, self.options, self.label = model, kind, options, label
        self._multiple, self._milliseconds = multiple, milliseconds
        self.meter = costs.Meter(model, milliseconds)
        groups = self.meter.coupling.groups
        self.whole = shrinking.left_whole(self.meter.coupling, options.include, options.exclude)
        if kind.SEES:
            for group in groups:
                self.whole[group.name] = self.whole[group.name] or gated.unseen(model, group)
        self.names = [name for name, why in self.whole.items() if why is None]
        if not self.names:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.whole.items()) or "it has no channels"
            raise CutError(f"stages.{label} found no channels that it can gate ({why}).")

    def foresee(self) -> None:
        """Whether so much can go, whatever the gates will find.

        Raises:
            RecipeError, CutError: as ``settled``.
        """
        if self.options.final is not None:
            self._cut({name: np.ones(self.meter.coupling.group(name).units) for name in self.names}, {})

    def gated(self, course: Course) -> Wrapped:
        if self._milliseconds:
            watch = latency.Stopwatch(self.model, self._milliseconds)
            cost = gate_costs.latency(watch, self.names, self._milliseconds)
        else:
            cost = (gate_costs.params if self.options.counted == "weights" else gate_costs.macs)(self.meter, self.names)
        return gated.on_channels(self.model, self.meter.coupling, self.names, self.kind, course, cost)

    def settled(self, wrapped: Wrapped) -> Settled:
        found = {name: own.opened().numpy() > 0 for name, own in wrapped.gates.items()}
        scores = {name: own.scores().astype(np.float64) for name, own in wrapped.gates.items()}
        least = min(float(values.min()) for values in scores.values())
        scores = {name: values - least for name, values in scores.items()}  # a cut wants them >= 0
        ratio, cut = self._cut(scores, found)
        folded = gated.with_factors(self.model, wrapped, self.meter.coupling, cut)
        small = surgery.shrink(folded, cut) if cut else folded
        facts = {
            **_facts(wrapped),
            "open": {name: float(mask.mean()) for name, mask in found.items()},
            "ratio": ratio,
            "uncut": self.meter({})._asdict(),
            "left": self._cost(cut)._asdict(),
            "groups": [
                shrinking.entry(group, self.whole[group.name], cut, scores) for group in self.meter.coupling.groups
            ],
        }
        return Settled(small, None, facts)

    def size(self) -> int:
        return int(self.meter({}).params)

    def nothing_pays(self) -> bool:
        """Whether the target's own multiple of channels is more than any group has; one that the user gives would be an error."""
        least = shrinking.smallest(shrinking.stair(self._multiple))
        groups = [self.meter.coupling.group(name) for name in self.names]
        return self.options.multiples is None and all(group.units * group.step <= least for group in groups)

    def _cut(self, scores: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> tuple[float, dict[str, Any]]:
        """The ratio and the units that stay: as few as cost what may stay, or those that the gates found."""
        rules = self._rules()
        if self.nothing_pays():
            return 0.0, {}
        if self.options.final is None:
            ranked = {name: np.where(found[name], 1.0 + values, values * 0.0) for name, values in scores.items()}
            gone = sum(int((~mask).sum()) for mask in found.values()) / sum(mask.size for mask in found.values())
            return gone, rules.cut(scoring.inhabited(self.meter.coupling, ranked), gone)
        cost = {"weights": "params", "macs": "macs", "latency": "latency_ms"}[self.options.counted]
        whole = float(getattr(self.meter({}), cost) or 0.0)
        where = f"stages.{self.label}.final"
        if not whole:
            raise RecipeError(f"{where}: this model has no {cost} that are counted. Give another cost.")
        left = 1.0 - self.options.final
        ranked = scoring.inhabited(self.meter.coupling, scores)
        return rules.reach(ranked, lambda cut: float(getattr(self._cost(cut), cost)) / whole, left, where)

    def _cost(self, cut: Mapping[str, Any]) -> costs.Cost:
        return self.meter(cut)

    def _rules(self) -> shrinking.Rules:
        groups = [self.meter.coupling.group(name) for name in self.names]
        own, given = shrinking.stair(self._multiple), self.options.multiples
        multiples = {**given, ".*": given.get(".*", own)} if isinstance(given, dict) else given or own
        return shrinking.Rules(
            units={group.name: group.units for group in groups},
            scope="network",
            floors=self.options.floors,
            multiples=multiples,
            steps={group.name: group.step for group in groups},
        )


def plans(model: Any, options: Options) -> list[pruning.LayerPlan]:
    """What happens to every layer when single weights have gates."""
    return pruning.plan(model, pruning.Pattern(), options.include, options.exclude)


def hold(model: Any, kept: Mapping[str, np.ndarray] | None) -> None:
    """Keep the zeros of a plain model while it trains."""
    for name, mask in (kept or {}).items():
        constraints.hold(kernels.find(model, name), mask)


def _facts(wrapped: Wrapped) -> dict[str, Any]:
    """What the gates found: the share of the cost that they have closed by themselves, and the last strength."""
    closed = 1.0 - float(wrapped.controller.opened())
    strength = float(wrapped.controller.strength()) if wrapped.controller.kind.HELD != "schedule" else None
    return {"closed": round(closed, 6), "strength": strength}
