"""How many workers a search can use: trials per hour with one and two, and by simulation with up to 256.

    python benchmarks/search_scaling.py RUN [--storage postgresql+psycopg://...]

Three figures, each of which goes on where a killed run left it:

``workers``: RUN, the run folder of a trained network, is searched by one worker and by two, each a process of its own, with a new
study in the storage. Trials are counted while all workers are at work, from the first trial that all of them have finished to the last.

``storage``: how many trials a second the storage takes, with 1, 2, 4 ... clients that evaluate nothing. A trial is what it is in a
search: a look at what is finished, a proposal at random, the trial's begin, a sign of life, what came out, and its end. The clients
share the machine with the storage and take most of it, so there are two limits: what was reached (``together``), and, for PostgreSQL on
this machine, as many trials as its processes alone would fill all cores with (``alone``: cores / processor seconds of a trial), as
when clients have machines of their own. Processor time hardly depends on what else a machine does; what was reached does.

``simulated``: workers that draw their times from those of the ``workers`` trials, with the processor time of a client besides, each between
two turns at the storage, which serves one trial at a time, in order of arrival, each for 1 / limit seconds; for both limits. Efficiency is
the trials per hour over so many times those of one worker.

Writes benchmarks/results/search_scaling.json.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune import files, hiding, search_storage, search_study
from edgeprune.search_space import Knob, Space

RESULTS = Path(__file__).parent / "results" / "search_scaling.json"
WORKERS = (1, 2)
CLIENTS = (1, 2, 4, 8, 16)
SIMULATED = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIMULATED_TRIALS = 400  # of every simulated worker
GROUPS = 12  # of the space that empty trials are of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder of a trained network")
    parser.add_argument(
        "--storage", default=os.environ.get("EDGEPRUNE_STORAGE"), help="default: SQLite in a folder of its own"
    )
    parser.add_argument("--trials", type=int, default=120, help="of every search")
    parser.add_argument("--empty", type=int, default=400, help="trials of the storage's measurement, of every client")
    parser.add_argument("--multiple", default="1")
    parser.add_argument("--samples", default="1024")
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--client", help=argparse.SUPPRESS)  # a process of the storage's measurement
    given = parser.parse_args()
    if given.client:
        _client(given.storage, given.client, given.empty)
        return
    record = json.loads(given.results.read_text()) if given.results.exists() else {"workers": {}, "storage": {}}
    with tempfile.TemporaryDirectory() as folder:
        url = given.storage or f"sqlite:///{folder}/study.db"
        record |= {"kind": url.partition(":")[0], "cores": os.cpu_count()}
        for count in WORKERS:
            _once(
                record, "workers", count, lambda count=count: _searched(count, given, url, Path(folder)), given.results
            )
        for count in CLIENTS:
            _once(record, "storage", count, lambda count=count: _served(count, given, url), given.results)
    rows = record["storage"].values()
    limits = {"together": max(row["trials_per_s"] for row in rows)}
    if all(row["server_cpu_ms"] for row in rows):
        limits["alone"] = round(1000 * record["cores"] / max(row["server_cpu_ms"] for row in rows), 2)
    client_s = min(row["client_cpu_ms"] for row in rows) / 1000
    times = [seconds + client_s for seconds in record["workers"]["1"]["seconds"]]
    record |= {"limits_trials_per_s": limits}
    record["simulated"] = {name: simulated(times, 1 / limit) for name, limit in limits.items()}
    _write(given.results, record)
    print(json.dumps({key: record[key] for key in ("limits_trials_per_s", "simulated")}, indent=1))


def _once(record: dict[str, Any], part: str, count: int, deed: Callable[[], dict[str, Any]], path: Path) -> None:
    """A figure that is not there yet."""
    if str(count) not in record[part]:
        record[part][str(count)] = deed()
        _write(path, record)
    shown = {key: value for key, value in record[part][str(count)].items() if key != "seconds"}
    print(part, count, json.dumps(shown), flush=True)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = hiding.hidden(json.dumps(record, indent=1))
    files.write_text_atomic(path, text + "\n")


# Real workers


def _searched(count: int, given: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    """So many workers on one new study; when each trial ended, and how long it took."""
    name = f"scaling-{count}-{os.getpid()}"
    words = [
        sys.executable,
        "-m",
        "edgeprune",
        "search",
        str(given.run),
        "--target",
        given.target,
        "--sampler",
        "random",
    ]
    words += ["--trials", str(given.trials), "--top", "0", "--samples", given.samples, "--multiple", given.multiple]
    words += ["--name", name, "--quiet"]
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "EDGEPRUNE_STORAGE": url, **threads}
    processes = [
        subprocess.Popen(
            [*words, "--out", str(folder / f"{name}-{number}")], env=environment, stdout=subprocess.DEVNULL
        )
        for number in range(count)
    ]
    if any(process.wait() for process in processes):
        raise SystemExit("A worker failed; see above.")
    storage = search_storage.opened(url)
    study = search_storage.optuna().load_study(study_name=name, storage=storage)
    trials = [
        (trial.datetime_complete, search_study._result(trial))
        for trial in study.get_trials(deepcopy=False)
        if trial.values
    ]
    begun = max(_firsts(trials).values())
    counted = [one for ended, one in trials if ended > begun]
    seconds = (max(ended for ended, _ in trials) - begun).total_seconds()
    return {
        "trials": len(counted),
        "per_hour": round(3600 * len(counted) / seconds, 1),
        "cycle_s": round(count * seconds / len(counted), 4),
        "seconds": [round(one.seconds, 4) for one in counted],
    }


def _firsts(trials: Sequence[tuple[datetime, search_study.Result]]) -> dict[str, datetime]:
    """Worker -> when its first trial ended."""
    found: dict[str, datetime] = {}
    for ended, one in sorted(trials, key=lambda pair: pair[0]):
        found.setdefault(one.worker, ended)
    return found


# Empty trials


def _space() -> Space:
    knobs = tuple(Knob(f"group_{place}", 64, tuple(range(4, 65, 4))) for place in range(GROUPS))

    def costs(candidate: Any) -> dict[str, float]:
        kept = float(sum(int(candidate[knob.name]) for knob in knobs))
        return {"macs": kept, "params": kept, "size_bytes": kept, "latency_ms": kept}

    return Space(knobs, {"criterion": ("taylor", "l2")}, costs)


def _served(count: int, given: argparse.Namespace, url: str) -> dict[str, Any]:
    name = f"empty-{count}-{os.getpid()}"
    words = [sys.executable, __file__, str(given.run), "--empty", str(given.empty * count), "--client", name]
    environment = {**os.environ, "EDGEPRUNE_STORAGE": url}
    before = _server_cpu_s()
    processes = [subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    spans = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    together = max(span["begun"] for span in spans), min(span["ended"] for span in spans)
    done = sum(sum(together[0] <= at <= together[1] for at in span["at"]) for span in spans)
    total = sum(len(span["at"]) for span in spans)
    server = 1000 * (_server_cpu_s() - before) / total if url.startswith("postgresql") and before else None
    return {
        "trials": done,
        "trials_per_s": round(done / max(together[1] - together[0], 1e-9), 2),
        "client_cpu_ms": round(1000 * sum(span["cpu_s"] for span in spans) / total, 2),
        "server_cpu_ms": server and round(server, 2),
    }


def _server_cpu_s() -> float:
    """Processor seconds of every PostgreSQL process of this machine, those that ended included; 0 where there is none."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text(encoding="utf-8").partition("(")[2].rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        if name == "postgres":
            ticks += sum(
                int(field) for field in rest.split()[11:15]
            )  # utime, stime, and of children that were waited for
    return ticks / os.sysconf("SC_CLK_TCK")


def _client(url: str, name: str, most: int) -> None:
    """Trials without an evaluation until there are so many, and when each ended."""
    space = _space()
    study = search_study.Study(search_storage.opened(url), url, name, space, 0, search_study.sampler("random"))
    begun, at, cpu = time.time(), [], time.process_time()
    while (claim := study.ask(most)) is not None or study.counts()["running"]:
        if claim is not None:
            study.tell(claim, 0.1, space.costs(claim.candidate), seconds=0.0, stopped=False)
            at.append(time.time())
    cpu_s = time.process_time() - cpu
    print(json.dumps({"begun": begun, "ended": at[-1] if at else begun, "at": at, "cpu_s": cpu_s}))


# Simulated workers


def simulated(times: Sequence[float], service_s: float, workers: Sequence[int] = SIMULATED) -> list[dict[str, Any]]:
    """Trials per hour of so many workers that share one storage.

    Args:
        times: seconds that evaluations took.
        service_s: seconds that the storage needs for one trial.
        workers: how many.
    """
    rows: list[dict[str, Any]] = []
    for count in workers:
        rate = _rate(times, service_s, count)
        one = 3600 / (float(np.mean(times)) + service_s)
        rows.append(
            {
                "workers": count,
                "per_hour": round(rate, 1),
                "efficiency": round(rate / (count * one), 4),
                "storage_busy": round(rate / 3600 * service_s, 4),
            }
        )
    return rows


def _rate(times: Sequence[float], service_s: float, count: int) -> float:
    """Trials per hour: every worker in turn waits for the storage, is served, and evaluates."""
    random = np.random.Generator(np.random.PCG64(0))
    given = np.asarray(times, float)
    arrivals = [(float(random.choice(given)), number) for number in range(count)]
    heapq.heapify(arrivals)
    free = 0.0
    for _ in range(SIMULATED_TRIALS * count):
        at, number = heapq.heappop(arrivals)
        free = max(at, free) + service_s
        heapq.heappush(arrivals, (free + float(random.choice(given)), number))
    return 3600 * SIMULATED_TRIALS * count / free


if __name__ == "__main__":
    main()
