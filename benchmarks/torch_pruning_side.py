"""The side of torch_pruning.py that needs torch and torch-pruning, and nothing of edgeprune: runs in a venv of its own.

    python benchmarks/torch_pruning_side.py scores|tune FOLDER

FOLDER/given.npz holds the weights (``conv0/kernel`` (height, width, in, out), ``bn0/gamma`` ..., ``dense/kernel``), and what the job
asks for; FOLDER/answer.npz is what came out. `build` is ResNet-8 as models/resnet8.py has it, with Keras' padding.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional
from torch_pruning.pruner import importance

HALVINGS = 12  # of the interval that the pruning ratio is searched in
KERAS_BN = {"eps": 1e-3, "momentum": 0.1}  # as torch has it by default, but for the constant
L2 = 1e-4  # of every convolution's kernel, as in models/resnet8.py
Arrays = Mapping[str, np.ndarray]


class Conv(nn.Module):
    """A convolution with Keras' ``same``: with stride 2 only the right and the lower border are padded."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, stride: int) -> None:
        super().__init__()
        height, _, read, made = kernel.shape
        whole = height // 2
        self.pad = nn.ZeroPad2d((0, whole, 0, whole) if stride == 2 else (whole,) * 4) if whole else nn.Identity()
        self.conv = nn.Conv2d(read, made, height, stride)
        self.conv.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        self.conv.bias.data = torch.tensor(bias)

    def forward(self, x: Any) -> Any:
        return self.conv(self.pad(x))


class ResNet8(nn.Module):
    """Three stages of one block; the second and third halve the image and have a convolution beside the block."""

    def __init__(self, given: Arrays) -> None:
        super().__init__()
        strides = (1, 1, 1, 2, 1, 2, 2, 1, 2)
        self.convs = nn.ModuleList(
            Conv(given[f"conv{number}/kernel"], given[f"conv{number}/bias"], stride)
            for number, stride in enumerate(strides)
        )
        self.norms = nn.ModuleList(_norm(given, number) for number in range(7))
        kernel = given["dense/kernel"]
        self.dense = nn.Linear(*kernel.shape)
        self.dense.weight.data, self.dense.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(given["dense/bias"])

    def forward(self, x: Any) -> Any:
        convs, norms = self.convs, self.norms
        x = functional.relu(norms[0](convs[0](x)))
        y = functional.relu(norms[1](convs[1](x)))
        x = functional.relu(x + norms[2](convs[2](y)))
        for first in (3, 6):
            norm = norms[first if first == 3 else 5]
            y = functional.relu(norm(convs[first](x)))
            y = norms[4 if first == 3 else 6](convs[first + 1](y))
            x = functional.relu(convs[first + 2](x) + y)
        return self.dense(x.mean((2, 3)))


def _norm(given: Arrays, number: int) -> Any:
    layer = nn.BatchNorm2d(len(given[f"bn{number}/gamma"]), **KERAS_BN)
    names = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "variance"}
    for ours, theirs in names.items():
        getattr(layer, ours).data = torch.tensor(given[f"bn{number}/{theirs}"])
    return layer


def build(given: Arrays) -> ResNet8:
    """The network with the given weights, for inference."""
    return ResNet8(given).eval()


def scores(given: Arrays) -> dict[str, np.ndarray]:
    """``criterion/number of the group's root convolution`` -> a score per channel, by torch-pruning's own classes.

    ``first/...``: only of the root's kernel; else the mean over all kernels that make or read the channels. Nothing
    is normalised. ``outputs``: of the network, for the given ``x``.
    """
    model = build(given)
    with torch.no_grad():
        found = {"outputs": model(torch.tensor(given["x"])).numpy()}
    types = [nn.Conv2d, nn.Linear]
    plain = {"normalizer": None, "target_types": types}
    taylor = {"l1": False, "whole": True}
    makers: dict[str, Callable[[str], Any]] = {
        "magnitude_p1": lambda how: importance.GroupMagnitudeImportance(p=1, group_reduction=how, **plain),
        "magnitude_p2": lambda how: importance.GroupMagnitudeImportance(p=2, group_reduction=how, **plain),
        **{
            f"taylor_{word}": lambda how, joint=joint: importance.GroupTaylorImportance(
                group_reduction=how, multivariable=joint, **plain
            )
            for word, joint in taylor.items()
        },
        "hessian": lambda how: importance.GroupHessianImportance(group_reduction=how, **plain),
        "fpgm_p1": lambda how: importance.FPGMImportance(p=1, group_reduction=how, normalizer=None),
        "fpgm_p2": lambda how: importance.FPGMImportance(p=2, group_reduction=how, normalizer=None),
        "bn_scale": lambda how: importance.BNScaleImportance(group_reduction=how, normalizer=None),
        "lamp": lambda how: importance.LAMPImportance(group_reduction=how),
    }
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=torch.tensor(given["x"][:1]))
    numbers = {conv.conv: number for number, conv in enumerate(model.convs)}
    for name, make in makers.items():
        _set_gradients(model, given, "square" if name == "hessian" else "gradient")
        for group in graph.get_all_groups(ignored_layers=[model.dense], root_module_types=[nn.Conv2d]):
            number = numbers[group[0].dep.target.module]
            for word, how in (("first/", "first"), ("", "mean")):
                made = make(how)(group)
                if made is not None:
                    found[f"{word}{name}/{number}"] = made.detach().numpy()
    found["overwritten"] = np.array(_overwritten(model))
    return found


def _overwritten(model: Any) -> bool:
    """Whether ``GroupHessianImportance.accumulate_grad`` keeps the last sample's squares alone, instead of the mean."""
    scorer = importance.GroupHessianImportance()
    weight = model.convs[0].conv.weight
    for value in (2.0, 1.0):
        weight.grad = torch.full_like(weight, value)
        scorer.accumulate_grad(model)
    return bool(scorer._counter[weight] == 1)


def _set_gradients(model: Any, given: Arrays, what: str) -> None:
    """Every parameter's ``grad``: the given one of kernels, else 0."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for number, conv in enumerate(model.convs):
        conv.conv.weight.grad = torch.tensor(given[f"conv{number}/{what}"].transpose(3, 2, 0, 1).copy())
    model.dense.weight.grad = torch.tensor(given[f"dense/{what}"].T.copy())


def tune(given: Arrays, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Cut by torch-pruning to the share of MACs, then fine-tune; test accuracies, MACs and channels."""
    model = build(given)
    before, uncut = _accuracy(model, given), macs(model)
    gradients = _gradients(model, given) if settings["criterion"] == "taylor" else None
    model = _cut(model, gradients, settings, uncut)
    after_cut = _accuracy(model, given)
    _fit(model, given, settings)
    return {
        "before": np.array(before),
        "after_cut": np.array(after_cut),
        "metric": np.array(_accuracy(model, given)),
        "macs_share": np.array(macs(model) / uncut),
        "params": np.array(sum(parameter.numel() for parameter in model.parameters())),
        "channels": np.array([conv.conv.out_channels for conv in model.convs]),
    }


def macs(model: Any) -> int:
    """Multiply-accumulates of convolutions and the dense layer for one image."""
    counts: list[int] = []

    def count(layer: Any, _: Any, made: Any) -> None:
        counts.append(layer.weight.numel() * (made.shape[2] * made.shape[3] if made.dim() == 4 else 1))

    kernels = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in kernels]
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def _cut(model: Any, gradients: list[Any] | None, settings: Mapping[str, Any], uncut: int) -> Any:
    """The gentlest cut that leaves at most the share of MACs: one ratio over the whole network, found by bisection."""
    low, high, best = 0.0, 1.0, None
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        tried = copy.deepcopy(model)
        for place, parameter in enumerate(tried.parameters()):
            parameter.grad = None if gradients is None else gradients[place].clone()
        tp.pruner.BasePruner(
            tried,
            torch.zeros(1, 3, 32, 32),
            importance=_importance(settings["criterion"]),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=[tried.dense],
        ).step()
        if macs(tried) <= settings["macs"] * uncut:
            high, best = ratio, tried
        else:
            low = ratio
    if best is None:
        raise SystemExit(f"torch-pruning reaches no {settings['macs']} of the MACs")
    return best


def _importance(criterion: str) -> Any:
    """As torch-pruning's users have it: its own defaults."""
    if criterion == "taylor":
        return importance.GroupTaylorImportance()
    return importance.GroupMagnitudeImportance(p=1 if criterion == "magnitude" else 2)


def _gradients(model: Any, given: Arrays) -> list[Any]:
    model.zero_grad()
    rows = given["scored"]
    x, y = torch.tensor(_images(given["x_train"][rows])), torch.tensor(given["y_train"][rows])
    functional.cross_entropy(model(x), y).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def _fit(model: Any, given: Arrays, settings: Mapping[str, Any]) -> None:
    """Adam with a half cosine, in the given order of samples; Keras' constants."""
    torch.manual_seed(settings["seed"])
    size, orders = settings["batch_size"], given["orders"]
    steps = len(orders) * -(-len(orders[0]) // size)
    optimizer = torch.optim.Adam(model.parameters(), settings["learning_rate"], eps=1e-7)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for order in orders:
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            x, y = torch.tensor(_images(given["x_train"][rows])), torch.tensor(given["y_train"][rows])
            penalty = sum(conv.conv.weight.square().sum() for conv in model.convs)
            loss = functional.cross_entropy(model(x), y) + L2 * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _images(x: np.ndarray) -> np.ndarray:
    """Channels first, float32."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)


def _accuracy(model: Any, given: Arrays) -> float:
    hits = 0
    with torch.no_grad():
        for start in range(0, len(given["x_test"]), 500):
            rows = slice(start, start + 500)
            answers = model(torch.tensor(_images(given["x_test"][rows]))).argmax(1).numpy()
            hits += int((answers == given["y_test"][rows]).sum())
    return hits / len(given["x_test"])


def main() -> None:
    job, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with np.load(folder / "given.npz") as stored:
        given = {name: stored[name] for name in stored.files}
    settings = json.loads(str(given.pop("settings", "{}")))
    answer = scores(given) if job == "scores" else tune(given, settings)
    versions = {name: metadata.version(name) for name in ("torch", "torch-pruning")}
    np.savez(folder / "answer.npz", versions=np.array(json.dumps(versions)), **answer)


if __name__ == "__main__":
    main()
