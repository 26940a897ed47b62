"""The parts of the pages that show what ``benchmarks/`` measured, from benchmarks/results/*.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from page_parts import beside, measured, results, table

from edgeprune import sensitivity_view
from edgeprune.devices import _edgetpu_latency


def _zoo() -> str:
    """The networks of keras.applications; those that were trained stand last."""
    record = results("zoo")
    rows = [
        _zoo_row(name + note, row)
        for part, note in (("random", ""), ("trained", ", trained"))
        for name, row in record.get(part, {}).items()
    ]
    head = (
        "network",
        "parameters",
        "2:4 in the file",
        "trained for int8",
        "ops",
        "float ops",
        "int8",
        "as Keras",
        "on Arm",
        "KiB",
    )
    return table(head, rows)


def _zoo_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return (name, row["error"], *[""] * 8)
    left = len(row["post_training_layers"])
    trained = "no" if not row["trained_with_fake_quantizers"] else f"all but {left}" if left else "all"
    return (
        name,
        f"{row['params']:,}",
        f"{row['pruned_layers']} layers" if row["proven"] else "lost",
        trained,
        str(row["ops"]),
        str(row["float_ops"]),
        "yes" if row["int8"]["holds"] else "no",
        f"{row['agreement']:.3f}",
        f"{row['arm']['agreement']:.3f}" if "agreement" in row["arm"] else "not run",
        f"{row['size_bytes'] / 1024:,.0f}",
    )


def _mlperf_tiny() -> str:
    """MLPerf Tiny's networks beside their authors' files."""
    rows = []
    for name, row in results("mlperf_tiny")["networks"].items():
        ours, theirs = row["ptq"], row["authors"]
        known = "metric" in theirs
        rows.append(
            (
                name,
                f"{theirs['size_bytes'] / 1024:.0f}",
                f"{ours['size_bytes'] / 1024:.0f}",
                f"{row['nm24']['size_bytes'] / 1024:.0f}",
                str(ours["float_ops"] + row["nm24"]["float_ops"]),
                f"{theirs['metric']:.4f}" if known else "",
                f"{ours['metric']:.4f}" if known else "",
            )
        )
    head = (
        "network",
        "authors' KiB",
        "after training, KiB",
        "2:4 and QAT, KiB",
        "float ops",
        "authors' quality",
        "ours",
    )
    return table(head, rows)


def _clustering(record: Mapping[str, Any]) -> str:
    """What shared values save and cost, row by row."""
    if "sizes" not in record:
        return "Not measured yet: `python benchmarks/clustering.py sizes` does.\n"
    found = record["sizes"]
    rows = [("quantized after training", found["dense_int8"]), *found["rows"].items()]
    head = ("after the same training", f"{found['metric']}", "zeros", "values of a kernel", "KiB", "KiB with gzip")
    words = (
        f"`{found['model']}` on `{found['data']}`, {found['epochs']} epochs in every row but the first, "
        f"{found['test_samples']} test samples, seed {found['seed']}.\n\n"
    )
    return words + table(head, [_clustering_row(name, row) for name, row in rows])


def _clustering_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{row['metric']:.4f}",
        f"{row['sparsity']:.3f}",
        "" if row["distinct"] is None else f"{row['distinct']} at most",
        f"{row['size_bytes'] / 1024:.1f}",
        f"{row['size_gzip_bytes'] / 1024:.1f}",
    )


def _clustering_overhead(record: Mapping[str, Any]) -> str:
    """What a training step takes, and how much more than without the method."""
    if "overhead" not in record:
        return "Not measured yet: `python benchmarks/clustering.py overhead` does.\n"
    found = record["overhead"]
    names = {
        "float": ("plain training", None),
        "cluster": ("`cluster`", "plain training"),
        "qat": ("`quantize`", None),
        "cqat": ("`quantize` that keeps clusters", "`quantize`"),
        "prune_while_qat": ("`quantize` with `prune`", "`quantize`"),
    }
    rows = []
    for key, (name, plain) in names.items():
        more = found["more"].get(key)
        against = "" if more is None else f"{100 * more['cpu']:+.0f} % against {plain}"
        rows.append((name, f"{found['step'][key]['cpu_ms']:.1f}", f"{found['step'][key]['wall_ms']:.1f}", against))
    words = (
        f"`{found['model']}`, {found['batch']} samples a step, the fastest of {found['repeats']} turns of {found['steps']} steps, "
        f"{found['cpus']} cores of which others wanted some (load {found['load']:.1f}).\n\n"
    )
    return words + table(("a step of", "processor, ms", "wall, ms", "more processor time"), rows)


def _penalties_overhead(record: Mapping[str, Any]) -> str:
    """What a penalty takes of a training step."""
    networks = record["networks"]
    kinds = list(dict.fromkeys(kind for found in networks.values() for kind in found["more"]))
    rows = [
        (
            f"`{kind}`",
            *(
                f"{100 * found['more'][kind]['cpu']:+.0f} %" if kind in found["more"] else ""
                for found in networks.values()
            ),
        )
        for kind in kinds
    ]
    plain = "; ".join(
        f"`{name}` ({found['params']:,} parameters): {found['plain']['cpu_ms']:.1f} ms of the processor per step without a penalty, load "
        f"{found['load']:.0f} on {record['cpus']} cores"
        for name, found in networks.items()
    )
    words = f"{record['batch']} samples a step, Adam, the fastest of {record['repeats']} turns of {record['steps']} steps. {plain}.\n\n"
    return words + table(("penalty", *(f"`{name}`, more processor time" for name in networks)), rows)


def _methods_overhead(record: Mapping[str, Any]) -> str:
    """What a method takes of a training step, and an update of its masks."""
    networks = record["networks"]
    rows = [
        (f"`{method}`", *(cell for found in networks.values() for cell in _overhead_cells(found["methods"][method])))
        for method in next(iter(networks.values()))["methods"]
    ]
    terms = " ".join(map(_overhead_terms, networks, networks.values()))
    words = (
        f"{record['batch']} samples a step, Adam, {record['threads']} thread. {terms} What is below zero is noise, too. "
        "`prune-while-qat` is compared with training with fake quantizers.\n\n"
    )
    head = ("method", *(word for name in networks for word in (f"`{name}`, a step", "an update of the masks")))
    return words + table(head, rows)


def _overhead_terms(name: str, found: Mapping[str, Any]) -> str:
    apart = [100 * copy["wall"] for copy in found["copies"]]
    return (
        f"`{name}` ({found['params']:,} parameters): {found['plain']['wall_ms']:.0f} ms a plain step, the fastest of {found['turns']} "
        f"turns of {found['steps']}; copies of the plain network came to {min(apart):+.0f} to {max(apart):+.0f} %."
    )


def _overhead_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    if "cannot" in row:
        return "not possible", ""
    update = f"{row['update_steps']:.1f} steps" if "update_steps" in row else ""
    more = round(100 * row["wall"])
    return f"{more:+d} %" if more else "0 %", update


def _surgery_cost(record: Mapping[str, Any]) -> str:
    """Seconds and memory of the analysis and the surgery at full size."""
    rows = [
        (
            name,
            f"{row['params'] / 1e6:.1f} M",
            f"{row['params_after'] / 1e6:.1f} M",
            f"{row['groups_cut']} of {row['groups']}",
            f"{row['seconds']['analysis']:.2f}",
            f"{row['seconds']['surgery']:.1f}",
            f"{row['cpu_seconds']['total']:.1f}",
            f"{row['peak_above_gib']:.2f}",
            f"{row['peak_gib']:.2f}",
            f"{row['load']:.1f}",
        )
        for name, row in record["networks"].items()
    ]
    head = ("network", "parameters", "after", "groups cut", "analysis, s", "surgery and proof, s", "processor, s")
    return table((*head, "memory more, GiB", "memory, GiB", "load before"), rows)


def _torch_pruning(record: Mapping[str, Any]) -> str:
    """The criteria's numbers and the accuracy beside torch-pruning's."""
    head = (
        "ours",
        "torch-pruning's",
        "compared after",
        "ranks agree",
        "differ by",
        "with what couples them",
        "why they differ",
    )
    rows = [
        (
            f"`{row['ours']}`",
            f"`{row['theirs']}`",
            f"{row['change']} of ours" if row["change"] else "",
            f"{row['kernels']['rank_correlation']:.3f}",
            f"{row['kernels']['largest_difference']:.0e}",
            f"{row['groups']['rank_correlation']:.3f}",
            row["why"],
        )
        for row in record.get("criteria", [])
    ]
    accuracy = [
        (
            f"`{criterion}`",
            side,
            ", ".join(f"{row['metric']:.4f}" for row in rows.values()),
            f"{sum(row['metric'] for row in rows.values()) / len(rows):.4f}",
            ", ".join(f"{row['after_cut']:.3f}" for row in rows.values()),
            ", ".join(f"{row['macs_share']:.3f}" for row in rows.values()),
        )
        for criterion, sides in record.get("accuracy", {}).items()
        for side, rows in sides.items()
        if rows
    ]
    words = ("criterion", "cut by", "accuracy of each seed", "mean", "before fine-tuning", "share of MACs left")
    runs = table(words, accuracy) if accuracy else "No network has been cut and fine-tuned on both sides yet.\n"
    return f"{table(head, rows)}\n{runs}"


def _shrink_curves(record: Mapping[str, Any]) -> str:
    """Accuracy and cost of every share of every network, over the seeds that are there."""
    head = ("network", "MACs asked", "seeds", "base", "float", "int8, shrunk", "drop, each seed")
    rows = [
        (name, f"{float(share):g}", str(len(seeds)), *_curve_point(cells, found["float"], seeds))
        for name, found in record["networks"].items()
        for share, cells in sorted(found["cells"].items(), key=lambda item: -float(item[0]))
        if (seeds := sorted(set(cells) & set(found["float"]), key=int))
    ]
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in record["settings"].items())
    cells = table((*head, "MACs", "raw", "gzip", "arena"), rows) if rows else "No cell has a reference yet.\n"
    return f"{cells}\nSettings: {settings}; data: {record['data']}.\n"


def _curve_point(
    cells: Mapping[str, Mapping[str, Any]], floats: Mapping[str, Mapping[str, Any]], seeds: list[str]
) -> tuple[str, ...]:
    """Mean metrics, the drops, and how many times less the cut file costs than the uncompressed int8 file."""
    costs = ("macs", "size_bytes", "size_gzip_bytes", "arena_bytes")
    times = [sum(floats[seed][cost] / cells[seed][cost] for seed in seeds) / len(seeds) for cost in costs]
    bases = [cells[seed]["base_metric"] for seed in seeds]
    means = [
        sum(bases) / len(seeds),
        *(sum(rows[seed]["metric"] for seed in seeds) / len(seeds) for rows in (floats, cells)),
    ]
    drops = ", ".join(f"{floats[seed]['metric'] - cells[seed]['metric']:+.4f}" for seed in seeds)
    return (*(f"{mean:.4f}" for mean in means), drops, *(f"{factor:.2f}x" for factor in times))


def _sensitivity(record: Mapping[str, Any]) -> str:
    """The demo's groups against ratios, and what the chosen ratios do at once."""
    rows = [
        (
            f"`{row.name}`",
            row.channels,
            *(f"{cell.metric}, saves {cell.saved}" if cell else "" for cell in row.cells),
            f"{record['chosen'].get(row.name, 0.0):g}",
        )
        for row in sensitivity_view.rows(record)
    ]
    head = ("group", "channels", *(f"{ratio:g}" for ratio in record["ratios"]), f"within {record['max_drop']:g}")
    words = [sensitivity_view.summary(record), sensitivity_view.resolution(record), sensitivity_view.together(record)]
    cells = "In each cell the accuracy, and the share of all MACs that the cut saves."
    return f"{table(head, rows)}\n{cells} {' '.join(filter(None, words))}\n"


def _coral_latency() -> str:
    """What the published networks take, and what was predicted without them."""
    fitted = _edgetpu_latency.constants()
    rows = [
        (name, row["device"], f"{row['published_ms']:g}", f"{row['left_out_ms']:.3g}", _off(row))
        for name, judged in fitted.networks.items()
        for row in judged
        if row["left_out_ms"] is not None
    ]
    per_host = ", ".join(f"{host.title}: {host.error.mean_pct:.3g} %" for host in fitted.hosts.values())
    words = f"Mean error {fitted.error.mean_pct:.3g} %, worst {fitted.error.worst_pct:.3g} % ({per_host})."
    return f"{table(('network', 'on', 'published, ms', 'predicted, ms', 'error'), rows)}\n\n{words}"


def _latency(record: Mapping[str, Any]) -> str:
    """Published latencies of the CPU, predicted by constants that were fitted on other families."""
    fits = record["constants"]["fits"]
    judged = [
        (precision, family, str(error["figures"]), f"{error['mape_pct']:.1f} %", f"{error['worst_pct']:.1f} %")
        for precision, fit in fits.items()
        for family, error in [*fit["families"].items(), ("**all**", fit["error"])]
    ]
    rows = [
        (
            f"`{row['name']}`",
            f"{row['cycles'] / 1e6:.1f} M",
            f"{row['published_ms']:g}",
            f"{row['left_out_ms']:.3g}",
            _off(row),
        )
        for row in record["rows"]
    ]
    terms = "; ".join(
        f"{precision}: compute {fit['terms']['compute']:.3g}, fixed {fit['terms']['fixed_ms']:.2g} ms, rank correlation "
        f"{fit['error']['rank_correlation']:.3f}, from shapes alone {fit['analytic_error']['mape_pct']:.1f} %"
        for precision, fit in fits.items()
    )
    others = "; ".join(
        f"{name}: "
        + ", ".join(f"{kind} {tried[name]['mape_pct']:.1f} %" for kind, tried in record["other_models"].items())
        for name in next(iter(record["other_models"].values()))
    )
    first = table(("precision", "left out", "figures", "mean error", "worst"), judged)
    second = table(("network", "cycles", "published, ms", "predicted, ms", "error"), rows)
    return f"{first}\n{terms}. Tried instead, in the same way: {others}.\n\n{second}"


def _analytic(record: Mapping[str, Any]) -> str:
    """Cycles from shapes against counted ones."""
    rows = [
        (name, str(error["figures"]), f"{error['mape_pct']:.1f} %", f"{error['worst_pct']:.1f} %")
        for name, error in record["errors"].items()
    ]
    return table(("kernels", "networks", "mean error of the cycles", "worst"), rows)


def _analytic_shrunk(record: Mapping[str, Any]) -> str:
    """Cycles from shapes against counted ones, of networks that were shrunk."""
    kernels = list(dict.fromkeys(row["kernels"] for row in record["networks"]))
    found = {(row["name"], row["kernels"]): row for row in record["networks"]}
    rows = [(name, *_apart(found, name, kernels)) for name in dict.fromkeys(row["name"] for row in record["networks"])]
    words = "; ".join(
        f"{name}: mean {error['mape_pct']:.1f} %, worst {error['worst_pct']:.1f} %"
        for name, error in record["errors"].items()
    )
    head = [word for kind in kernels for word in (f"cycles, {kind}", "off by")]
    return f"{table(('network', *head), rows)}\n{words}.\n"


def _apart(found: Mapping[tuple[str, str], Mapping[str, Any]], name: str, kernels: list[str]) -> list[str]:
    """Counted cycles and the error of those from shapes, for every kind of kernels."""
    rows = [found[name, kind] for kind in kernels]
    return [
        word
        for row in rows
        for word in (f"{row['counted'] / 1e6:.2f} M", f"{100 * (row['from_shapes'] / row['counted'] - 1):+.1f} %")
    ]


def _off(row: Mapping[str, Any]) -> str:
    return f"{100 * (row['left_out_ms'] / row['published_ms'] - 1):+.0f} %"


BLOCKS: dict[str, Callable[[], str]] = {
    "analytic-shrunk": measured("analytic_shrunk", _analytic_shrunk, "analytic_shrunk.py"),
    "analytic": measured("analytic", _analytic, "analytic_fit.py --table rpi4_latency.csv"),
    "budget": measured("budget", beside("budgets", "table"), "budget.py"),
    "clustering": measured("clustering", _clustering, "clustering.py sizes"),
    "clustering-overhead": measured("clustering", _clustering_overhead, "clustering.py overhead"),
    "coral-latency": _coral_latency,
    "criteria-league": measured(
        "criteria_league", beside("league", "tables"), "criteria_league.py mnist.npz cifar10.npz"
    ),
    "latency": measured("latency", _latency, "latency_fit.py rpi4_latency.csv"),
    "methods-league": measured(
        "methods", beside("methods_league", "tables"), "methods_league.py mnist.npz cifar10.npz"
    ),
    "methods-overhead": measured("overhead", _methods_overhead, "overhead.py"),
    "mlperf-tiny": _mlperf_tiny,
    "penalties-overhead": measured("penalties", _penalties_overhead, "penalties.py"),
    "search-samplers": measured(
        "search_samplers", beside("searches", "tables"), "search_samplers.py mnist.npz cifar10.npz"
    ),
    "search-scaling": measured("search_scaling", beside("searches", "scaling"), "search_scaling.py RUN"),
    "sensitivity": measured("sensitivity", _sensitivity, "sensitivity.py"),
    "shrink-curves": measured("shrink_curves", _shrink_curves, "shrink_curves.py"),
    "surgery-cost": measured("surgery_cost", _surgery_cost, "surgery_cost.py"),
    "surgery-proof": measured("surgery_proof", beside("surgery_proof", "table"), "surgery_proof.py"),
    "torch-pruning": measured("torch_pruning", _torch_pruning, "torch_pruning.py"),
    "zoo": _zoo,
}
