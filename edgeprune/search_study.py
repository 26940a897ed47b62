"""The study of a search in a storage that any number of processes and machines share: Optuna's, in SQLite, PostgreSQL or MySQL.

Only what is finished counts. A worker says that it lives while it evaluates; the trial of one that does not is taken over with
the same candidate. What is tried next is a function of what is finished and of a seed, which follows from the study's and from how
many trials there are; so a study of one worker comes to the same trials however often it is killed. With more of them every
worker's name has a part in the seed, or two of them would try the same.

A trial is written three times: with its candidate when it begins, with what came out when it ends, and its state. That is all a
storage has to bear besides signs of life, and what limits how many workers it can serve.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from edgeprune import registry, search, search_storage
from edgeprune.errors import StudyError
from edgeprune.hiding import hidden
from edgeprune.samplers import _optuna
from edgeprune.search_space import Candidate, Proposal, Space, Told

PATIENCE_S = 300.0  # that a storage may be away for
RETRIES = 3  # of one candidate whose workers die
TERMS, READY, ABOUT = "edgeprune", "ready", "about"  # user attributes of a study
DRAWN, RESULT = "drawn", "result"  # user attributes of a trial: candidate, notes, worker and retries; what came out
T = TypeVar("T")


class Result(NamedTuple):
    """A finished trial.

    Attributes:
        number: in the study.
        candidate: what was evaluated.
        drop: of the metric.
        costs: by name.
        stopped: whether it was given up early: its drop is that of a part of the samples.
        seconds: that the evaluation took.
        notes: of the sampler, plain data.
        worker: that evaluated it.
        more: what else was told, plain data.
    """

    number: int
    candidate: Candidate
    drop: float
    costs: Mapping[str, float]
    stopped: bool
    seconds: float
    notes: Mapping[str, Any]
    worker: str
    more: Mapping[str, Any]


class Claim(NamedTuple):
    """A trial that this worker has to finish.

    Attributes:
        identity: in the storage.
        number: in the study.
        candidate: to evaluate.
        notes: plain data of whoever proposed it.
    """

    identity: int
    number: int
    candidate: Candidate
    notes: Mapping[str, Any]


class Study:
    """A study, and this process as one of its workers; it has one trial at a time.

    Attributes:
        name: in the storage.
        url: of the storage, without a password.
        worker: host, process, and when that began.
    """

    def __init__(self, storage: Any, url: str, name: str, space: Space, seed: int, sampler: ModuleType | None) -> None:
        """Args:
        storage: from ``opened``.
        url: of it.
        name: of the study; it is made where there is none.
        space: what is searched.
        seed: of the study.
        sampler: a module of `edgeprune.samplers`; None: nothing is drawn, candidates are only enqueued.
        """
        self.name, self.url, self._secret_url, self._space, self._seed = name, hidden(url), url, space, seed
        self._library, self._sampler = search_storage.optuna(), sampler
        self.worker = _this_worker()
        self._names = search.objectives(space.costs(space.whole()))
        self._listened = -math.inf
        self._study = self._steadily(
            lambda: self._library.create_study(
                storage=storage, study_name=name, directions=["minimize"] * len(self._names), load_if_exists=True
            )
        )
        self._database, self._storage = storage, self._study._storage  # the latter remembers what is finished
        self._seen: list[Any] = []
        self.refresh()

    def agree(self, terms: Mapping[str, Any], but: Sequence[str] = ()) -> None:
        """Write down what the study is of, or check that it is of the same.

        Args:
            terms: plain data.
            but: names of those that may differ, for somebody who only reads.

        Raises:
            StudyError: it is not; in what.
        """
        given = json.loads(json.dumps(dict(terms)))
        if self.attribute(TERMS) is None:
            self.note(TERMS, given)
        stored = self.attribute(TERMS) or {}
        for key in {**stored, **given}:
            if key not in but and stored.get(key) != given.get(key):
                raise StudyError(
                    f"The study '{self.name}' in {self.url} is of another {key}: it has {_short(stored.get(key))}, and this search "
                    f"{_short(given.get(key))}. Give this search a name of its own with --name, or another --storage; to begin with what "
                    "the other found: --clone."
                )

    def attribute(self, key: str) -> Any:
        """What was noted for all workers; None: nothing was."""
        return self._steadily(lambda: self._study.user_attrs).get(key)

    def note(self, key: str, value: Any) -> None:
        """Note plain data for all workers."""
        self._steadily(lambda: self._study.set_user_attr(key, value))

    # What there is, as it was when last looked at

    def refresh(self) -> None:
        """Look at what all workers have done."""
        self._seen = self._steadily(lambda: self._study.get_trials(deepcopy=False))

    def finished(self) -> list[Result]:
        """All finished trials, in order of finishing."""
        done = [trial for trial in self._seen if trial.state.name == "COMPLETE" and RESULT in trial.user_attrs]
        return [_result(trial) for trial in sorted(done, key=lambda trial: (trial.datetime_complete, trial.number))]

    def counts(self) -> dict[str, int]:
        """How many trials there are by their state: ``complete``, ``running``, ``waiting``, ``fail``."""
        found: dict[str, int] = {"complete": 0, "running": 0, "waiting": 0, "fail": 0}
        for trial in self._seen:
            found[trial.state.name.lower()] = found.get(trial.state.name.lower(), 0) + 1
        return found

    def workers(self) -> list[str]:
        """Those that evaluate something."""
        return sorted({_drawn(trial).get("worker", "?") for trial in self._seen if trial.state.name == "RUNNING"})

    def failures(self) -> list[str]:
        """Why trials were given up, where a reason was told."""
        return [
            str(_drawn(trial)["why"]) for trial in self._seen if trial.state.name == "FAIL" and "why" in _drawn(trial)
        ]

    # Trials

    def ask(self, most: int) -> Claim | None:
        """A trial for this worker; None where so many are finished or at work.

        Trials of workers that died are taken over first.
        """
        self.take_over()
        waiting = [trial for trial in self._seen if trial.state.name == "WAITING"]
        for trial in waiting:
            if self._steadily(lambda trial=trial: self._claimed(trial)):  # type: ignore[misc]
                return self._begun(trial._trial_id, trial.number, _drawn(trial))
        counts = self.counts()
        if waiting or self._sampler is None or counts["complete"] + counts["running"] >= most:
            return None
        drawn = self._proposed()
        identity = self._steadily(lambda: self._made(drawn))
        number = self._steadily(lambda: self._storage.get_trial_number_from_id(identity))
        claim = self._begun(identity, number, drawn)
        if most - counts["complete"] - counts["running"] <= 2 * counts["running"] + 2 and self._superfluous(
            number, most
        ):
            self.fail(claim)
            return None
        return claim

    def _claimed(self, trial: Any) -> bool:
        running = self._library.trial.TrialState.RUNNING
        try:
            return bool(self._storage.set_trial_state_values(trial._trial_id, state=running))
        except self._library.exceptions.UpdateFinishedTrialError:
            return False

    def _begun(self, identity: int, number: int, drawn: Mapping[str, Any]) -> Claim:
        """Say that this worker is at it."""
        self._steadily(lambda: self._storage.record_heartbeat(identity))
        if drawn.get("worker") != self.worker:
            mine = {**drawn, "worker": self.worker}
            self._steadily(lambda: self._storage.set_trial_user_attr(identity, DRAWN, mine))
        return Claim(identity, number, drawn["candidate"], drawn.get("notes", {}))

    def _made(self, drawn: Mapping[str, Any]) -> int:
        """A new trial, at work, with its candidate, in one step; one that this worker began in vain is given up before."""
        self._disown()
        state = self._library.trial.TrialState.RUNNING
        trial = self._library.trial.create_trial(state=state, user_attrs={DRAWN: dict(drawn)})
        return int(self._storage.create_new_trial(self._study._study_id, trial))

    def _disown(self) -> None:
        """Give up trials of this worker's own that it does not know of: the storage went away while they were made."""
        for trial in self._study.get_trials(deepcopy=False, states=(self._library.trial.TrialState.RUNNING,)):
            if _drawn(trial).get("worker") == self.worker:
                self._lost(trial)

    def _proposed(self) -> dict[str, Any]:
        """The next candidate, from what is finished."""
        history = [Told(one.candidate, one.drop, one.costs, one.notes) for one in self.finished()]
        before = sum(trial.state.name != "FAIL" for trial in self._seen)
        lost = sum(
            trial.state.name == "FAIL" and len(_drawn(trial).get("tries", ())) >= RETRIES for trial in self._seen
        )
        seed = trial_seed(self._seed, before, lost, self.worker if self.counts()["running"] else "")
        proposal = (
            propose(self._sampler, self._space, history, seed) if self._sampler else Proposal(self._space.whole())
        )
        plain = {"candidate": dict(proposal.candidate), "notes": dict(proposal.notes), "worker": self.worker}
        found: dict[str, Any] = json.loads(json.dumps(plain))
        return found

    def tell(self, claim: Claim, drop: float, costs: Mapping[str, float], **more: Any) -> bool:
        """Finish a trial; False where it was taken over by another worker meanwhile.

        Args:
            claim: from ``ask``.
            drop, costs: what came out.
            more: further plain data, such as ``seconds`` and ``stopped``.
        """
        record = {"candidate": dict(claim.candidate), "drop": float(drop), "costs": dict(costs), **more}
        values = search.values(self._names, float(drop), costs)
        state = self._library.trial.TrialState.COMPLETE

        def finish() -> None:
            self._storage.set_trial_user_attr(claim.identity, RESULT, record)
            self._storage.set_trial_state_values(claim.identity, state=state, values=values)

        return self._closed(claim, finish)

    def fail(self, claim: Claim, why: str | None = None) -> None:
        """Give a trial up as if it had never been; the reason is told where there is one."""
        state = self._library.trial.TrialState.FAIL

        def finish() -> None:
            if why is not None:
                drawn = {"candidate": dict(claim.candidate), "worker": self.worker, "why": why}
                self._storage.set_trial_user_attr(claim.identity, DRAWN, drawn)
            self._storage.set_trial_state_values(claim.identity, state=state)

        self._closed(claim, finish)

    def _closed(self, claim: Claim, deed: Callable[[], None]) -> bool:
        """Do what ends a trial; when a storage that went away is back, it may already have been done."""

        def once() -> bool:
            try:
                deed()
            except self._library.exceptions.UpdateFinishedTrialError:
                return bool(self._storage.get_trial(claim.identity).state.name == "COMPLETE")
            return True

        return self._steadily(once)

    def enqueue(self, candidate: Candidate, notes: Mapping[str, Any]) -> None:
        """Have a candidate evaluated by whoever asks next."""
        self._wait({"candidate": dict(candidate), "notes": dict(notes)})

    def _wait(self, drawn: Mapping[str, Any]) -> None:
        state = self._library.trial.TrialState.WAITING
        trial = self._library.trial.create_trial(state=state, user_attrs={DRAWN: dict(drawn)})
        self._steadily(lambda: self._storage.create_new_trial(self._study._study_id, trial))

    def add(self, results: Sequence[Result]) -> None:
        """Finished trials of another study of the same space."""
        for one in results:
            record = {
                "candidate": dict(one.candidate),
                "drop": one.drop,
                "costs": dict(one.costs),
                "seconds": one.seconds,
            }
            trial = self._library.trial.create_trial(
                values=list(search.values(self._names, one.drop, one.costs)),
                user_attrs={
                    RESULT: {**record, "stopped": one.stopped, **one.more},
                    DRAWN: {"candidate": dict(one.candidate), "notes": dict(one.notes), "worker": one.worker},
                },
            )
            self._steadily(lambda trial=trial: self._study.add_trial(trial))  # type: ignore[misc]
        self.refresh()

    @contextmanager
    def alive(self, claim: Claim) -> Iterator[None]:
        """Within it the storage is told that this worker lives."""
        ended = threading.Event()

        def beats() -> None:
            while not ended.wait(search_storage.BEAT_S):
                try:
                    self._storage.record_heartbeat(claim.identity)
                except Exception:  # noqa: S112 - a storage that is away now may be back for the next one
                    continue

        thread = threading.Thread(target=beats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    # Workers that died

    def take_over(self) -> int:
        """Have the trials of dead workers evaluated again; how many there were. Looks at what all workers have done."""
        self.refresh()
        running = [trial for trial in self._seen if trial.state.name == "RUNNING"]
        silent: set[int] = set()
        if running and time.monotonic() - self._listened > search_storage.BEAT_S:
            silent = set(self._steadily(self._silent))
            self._listened = time.monotonic()
        dead = [trial for trial in running if trial._trial_id in silent or _is_dead(_drawn(trial).get("worker", ""))]
        found = sum(self._steadily(lambda trial=trial: self._again(trial)) for trial in dead)  # type: ignore[misc]
        if dead:
            self.refresh()
        return found

    def _silent(self) -> list[int]:
        """Trials whose workers gave no sign of life for too long, by the storage's clock: those of machines may differ.

        Of a worker that died before its first sign there is nothing to count from; so whoever finds its trial gives that sign.
        """
        for identity in search_storage.unheard(self._database, self._study._study_id):
            self._storage.record_heartbeat(identity)
        return list(self._storage._get_stale_trial_ids(self._study._study_id))

    def _again(self, trial: Any) -> bool:
        """Another trial with the same candidate, unless that one has killed too many workers."""
        if not self._lost(trial):
            return False
        drawn = _drawn(trial)
        tries = [*drawn.get("tries", []), trial.number]
        if len(tries) <= RETRIES:
            self._wait({**drawn, "worker": "", "tries": tries})
        return True

    def _lost(self, trial: Any) -> bool:
        """Mark a trial as failed; whether it was this worker that did."""
        try:
            return bool(
                self._storage.set_trial_state_values(trial._trial_id, state=self._library.trial.TrialState.FAIL)
            )
        except self._library.exceptions.UpdateFinishedTrialError:
            return False

    def _superfluous(self, number: int, most: int) -> bool:
        """Whether so many trials came before this one: several workers may have asked at once."""
        self.refresh()
        return sum(trial.number < number and trial.state.name != "FAIL" for trial in self._seen) >= most

    def _steadily(self, deed: Callable[[], T]) -> T:
        """Do something with the storage, again and again while it is away.

        Raises:
            StudyError: it did not come back.
        """
        began, wait = time.monotonic(), 0.2
        while True:
            try:
                return deed()
            except search_storage.errors() as error:
                if time.monotonic() - began > PATIENCE_S:
                    raise StudyError(search_storage.why(self._secret_url, error)) from None
            time.sleep(wait)
            wait = min(2 * wait, 10.0)


def _drawn(trial: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = trial.user_attrs.get(DRAWN, {})
    return found


def trial_seed(seed: int, before: int, lost: int = 0, worker: str = "") -> int:
    """Of one trial: from the study's seed, the number of trials there are, of those that were lost for good, and who draws it."""
    digest = hashlib.sha256(f"{seed} {before} {lost} {worker}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _result(trial: Any) -> Result:
    record, drawn = dict(trial.user_attrs[RESULT]), trial.user_attrs.get(DRAWN, {})
    return Result(
        trial.number,
        record.pop("candidate"),
        record.pop("drop"),
        record.pop("costs"),
        record.pop("stopped", False),
        record.pop("seconds", 0.0),
        drawn.get("notes", {}),
        str(drawn.get("worker", "")).partition(" ")[0],
        record,
    )


def sampler(name: str) -> ModuleType:
    """The module of a sampler.

    Raises:
        NameUnknown, MissingDependency: as ``registry.module``.
        StudyError: it is none.
    """
    found = registry.module("samplers", name)
    if not hasattr(found, "optuna") and not hasattr(found, "propose"):
        raise StudyError(
            f"'{name}' is no sampler: it has neither propose(space, history, seed) nor optuna(space, seed)."
        )
    return found


def propose(module: ModuleType, space: Space, history: Sequence[Told], seed: int) -> Proposal:
    """What a sampler, of Optuna's or our own, tries next."""
    if hasattr(module, "optuna"):
        return _optuna.proposed(module, space, history, seed)
    found: Proposal = module.propose(space, history, seed)
    return found


def judge(module: ModuleType) -> str:
    """What a sampler's candidates are evaluated with: ``cut`` or ``supernet``."""
    return str(getattr(module, "JUDGE", "cut"))


def patient(module: ModuleType) -> bool:
    """Whether a sampler's candidates are evaluated on all samples, however poor they are."""
    return bool(getattr(module, "PATIENT", False))


# Workers


def _this_worker() -> str:
    """Host, process and when it began: a number of a process may be used again."""
    return f"{socket.gethostname()}:{os.getpid()} {_begun(os.getpid())}"


def _is_dead(worker: str) -> bool:
    """Whether it is a process of this machine that is no more; of another machine nobody can tell."""
    place, _, begun = worker.partition(" ")
    host, _, number = place.rpartition(":")
    if host != socket.gethostname() or not number.isdigit():
        return False
    return _begun(int(number)) != begun


def _begun(process: int) -> str:
    """When a process began, in the kernel's ticks; "" where there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:18] + "..." + text[-10:]
