"""A study in a storage: nothing finished is lost, whoever dies; errors have names; passwords stay hidden."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import search_worker

from edgeprune import registry, search, search_storage, search_study
from edgeprune.errors import MissingDependency, StudyError
from edgeprune.search_space import Proposal, Told

pytest.importorskip("optuna", reason='pip install "edgeprune[search]"')

WORKER = Path(search_worker.__file__)
OWN = ("random", "tpe", "nsga2", "nsga3", "cmaes")
SERVERS = ("EDGEPRUNE_TEST_POSTGRESQL", "EDGEPRUNE_TEST_MYSQL")  # URLs of databases that tests may write to


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def worker(url, trials, seconds=0.0, sampler="cmaes", name="one"):
    words = [sys.executable, str(WORKER), url, name, sampler, str(trials), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})


def unbroken(url, trials, sampler):
    study = search_worker.opened(url, "unbroken", sampler)
    search_worker.work(study, trials)
    return study


# Samplers of Optuna, and CMA-ES


def evaluated(sampler, trials, limits=None):
    """What a sampler comes to, without a storage."""
    module, given, history = search_study.sampler(sampler), search_worker.space(limits), []
    for number in range(trials):
        proposal = search_study.propose(module, given, history, search_study.trial_seed(0, number))
        candidate = dict(proposal.candidate)
        history.append(Told(candidate, search_worker.drop(candidate), given.costs(candidate), dict(proposal.notes)))
    return given, history


@pytest.mark.parametrize("sampler", OWN)
def test_what_is_tried_follows_from_what_is_finished(sampler):
    given, history = evaluated(sampler, 20, {"latency_ms": 0.9})
    module = search_study.sampler(sampler)
    stored = [Told(*one) for one in json.loads(json.dumps(history))]  # as another process reads it
    for count in (0, 1, 16, 20):
        one, other = (search_study.propose(module, given, known[:count], 7) for known in (history, stored))
        assert one.candidate == other.candidate
        assert all(int(one.candidate[knob.name]) in knob.kept for knob in given.knobs)
    others = {tuple(search_study.propose(module, given, history, seed).candidate.values()) for seed in range(4)}
    assert len(others) > 1
    assert all(given.feasible(told.candidate) for told in history)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "nsga2"])
def test_choosing_beats_chance(sampler):
    volumes = {}
    for name in ("random", sampler):
        given, history = evaluated(name, 80)
        box = search.box(given, search_worker.drop(given.smallest()))
        volumes[name] = box.volume([search.values(box.names, told.drop, told.costs) for told in history])
    assert volumes[sampler] > volumes["random"]


def test_every_sampler_is_one():
    for name in registry.names("samplers"):
        module = search_study.sampler(name)
        assert hasattr(module, "optuna") != hasattr(module, "propose")
        assert search_study.judge(module) in ("cut", "supernet")
        assert search_study.patient(module) == (name == "netadapt")  # which compares the drops of an iteration


# Workers that die


def test_killing_a_worker_loses_nothing_and_leads_to_the_same_front(url):
    trials, kills = 30, 0
    for count in (4, 3):
        process = worker(url, trials, 0.05)
        assert process.stdout is not None
        for _ in range(1 + count):
            process.stdout.readline()
        time.sleep(0.02)  # in the middle of a trial
        before = {one.number: one for one in _finished(url)}
        process.send_signal(signal.SIGKILL)
        process.wait()
        after = {one.number: one for one in _finished(url)}
        assert all(after[number] == one for number, one in before.items())
        kills += 1
    process = worker(url, trials)
    assert process.wait(timeout=120) == 0
    study = search_worker.opened(url, "one", "cmaes")
    assert study.counts()["complete"] == trials
    assert study.counts()["running"] == study.counts()["waiting"] == 0
    whole = unbroken(url, trials, "cmaes")
    whole.refresh()
    assert [one.candidate for one in study.finished()] == [one.candidate for one in whole.finished()]
    assert search_worker.front(study) == search_worker.front(whole)
    assert study.counts()["fail"] <= kills


def _finished(url):
    return search_worker.opened(url, "one", "cmaes").finished()


def test_two_workers_share_a_file(url):
    trials = 24
    processes = [worker(url, trials, 0.03, "nsga2") for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    study = search_worker.opened(url, "one", "nsga2")
    done = study.finished()
    assert len(done) == trials
    assert len({one.worker for one in done}) == 2
    assert len({tuple(one.candidate.values()) for one in done}) > trials / 2


def test_another_worker_takes_over_with_the_same_candidate(url):
    dead = worker(url, 3, 60.0)
    assert dead.stdout is not None
    dead.stdout.readline()
    study = search_worker.opened(url, "one", "cmaes")
    while not study.counts()["running"]:
        time.sleep(0.05)
        study.refresh()
    begun = next(trial for trial in study._seen if trial.state.name == "RUNNING")
    assert study.ask(1) is None  # somebody is at it
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    claim = study.ask(3)
    assert claim.candidate == begun.user_attrs["drawn"]["candidate"]
    assert claim.notes == begun.user_attrs["drawn"]["notes"]


def test_silence_is_death_on_another_machine(url, monkeypatch):
    one, other = (search_worker.opened(url, "one", "random") for _ in range(2))
    one.worker = "elsewhere:7 1"
    claim = one.ask(5)
    assert other.take_over() == 0
    other._listened = -1e9
    monkeypatch.setattr(other._storage, "_get_stale_trial_ids", lambda study: [claim.identity])
    assert other.take_over() == 1
    taken = other.ask(5)
    assert taken.candidate == claim.candidate
    assert one.tell(claim, 0.5, one._space.costs(claim.candidate)) is False  # too late
    assert other.tell(taken, 0.5, one._space.costs(claim.candidate)) is True


@pytest.mark.parametrize("begun", ["made", "claimed"])
def test_a_worker_that_dies_before_its_first_sign_of_life_is_noticed(url, monkeypatch, begun):
    one, other = (search_worker.opened(url, "one", "random") for _ in range(2))
    one.worker = "elsewhere:7 1"

    def die(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_begun", die)
    if begun == "claimed":
        one.enqueue(one._space.whole(), {})
    with pytest.raises(KeyboardInterrupt):
        one.ask(5)
    (abandoned,) = (trial for trial in one._study.get_trials() if trial.state.name == "RUNNING")

    def looked(seconds_later):
        """What another worker takes over when the storage's clock has gone on."""
        with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
            database.execute(
                "update trial_heartbeats set heartbeat = datetime(heartbeat, ?)", (f"-{seconds_later} seconds",)
            )
        other._listened = -1e9
        return other.take_over()

    assert looked(3600) == 0  # as if it had only just begun
    assert looked(search_storage.DEAD_S - 20) == 0
    assert looked(30) == 1
    assert other.ask(5).candidate == abandoned.user_attrs["drawn"]["candidate"]


def test_a_candidate_that_kills_its_workers_is_left_in_the_end(url, monkeypatch):
    study = search_worker.opened(url, "one", "random")
    seen = []
    for _ in range(search_study.RETRIES + 2):
        seen.append(study.ask(5).candidate)
        monkeypatch.setattr(search_study, "_is_dead", lambda worker: bool(worker))
    assert seen[: search_study.RETRIES + 1] == [seen[0]] * (search_study.RETRIES + 1)
    assert seen[-1] != seen[0]


def test_a_storage_that_goes_away_is_waited_for(url, monkeypatch):
    study = search_worker.opened(url, "one", "random")
    made, away = study._storage.create_new_trial, [True, True]
    error = search_storage.optuna().exceptions.StorageInternalError("gone")

    def create(*words):
        identity = made(*words)
        if away:
            away.pop()
            raise error  # after it was written: nobody knows of that trial
        return identity

    monkeypatch.setattr(study._storage, "create_new_trial", create)
    monkeypatch.setattr(search_study.time, "sleep", lambda seconds: None)
    search_worker.work(study, 6)
    monkeypatch.undo()
    whole = unbroken(url, 6, "random")
    whole.refresh(), study.refresh()
    assert [one.candidate for one in study.finished()] == [one.candidate for one in whole.finished()]
    monkeypatch.setattr(search_study, "PATIENCE_S", -1.0)
    with pytest.raises(StudyError, match="cannot be reached: gone"):
        study._steadily(lambda: (_ for _ in ()).throw(error))


def test_no_more_trials_than_asked_for(url):
    studies = [search_worker.opened(url, "one", "random") for _ in range(3)]
    threads = [threading.Thread(target=search_worker.work, args=(study, 7, 0.01)) for study in studies]
    for number, study in enumerate(studies):
        study.worker = f"machine{number}:1 1"
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    studies[0].refresh()
    assert studies[0].counts()["complete"] == 7


# Errors


def test_a_study_of_another_model_is_refused(url):
    study = search_worker.opened(url, "one", "random")
    study.agree({"model": "a" * 64, "seed": 0})
    study.agree({"model": "a" * 64, "seed": 0})
    with pytest.raises(StudyError, match=r"of another model.*--name"):
        search_worker.opened(url, "one", "random").agree({"model": "b" * 64, "seed": 0})
    with pytest.raises(StudyError, match="of another seed"):
        study.agree({"model": "a" * 64, "seed": 1})


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be reached"),
        ("postgresql+psycopg://anna:geheim@127.0.0.1:1/x", "cannot be reached"),
        ("mysql+pymysql://anna:geheim@127.0.0.1:1/x", "cannot be reached"),
        ("nonsense://anna:geheim@db/x", "no URL of a database"),
        ("postgresql+psycopg://anna:ge@heim@127.0.0.1:1/x", "(cannot be reached|credentials)"),
    ],
)
def test_storages_that_cannot_be_opened(url, said):
    try:
        with pytest.raises(StudyError, match=said) as told:
            search_storage.opened(url)
    except MissingDependency as error:
        assert "geheim" not in str(error)
        pytest.skip(str(error))
    assert "heim" not in str(told.value)
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("no database at all, only words " * 100)
    with pytest.raises(StudyError, match="no SQLite database"):
        search_storage.opened(f"sqlite:///{path}")


def test_drivers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises((MissingDependency, StudyError), match="psycopg") as told:
        search_storage.opened("postgresql+psycopg://anna:geheim@db/x")
    assert "geheim" not in str(told.value)


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_serves_workers_and_refuses_a_wrong_password(server):
    if server not in os.environ:
        pytest.skip(f"{server} names no database (see docs/search.md)")
    url, name = os.environ[server], f"test-{os.getpid()}-{time.time()}"
    processes = [worker(url, 12, 0.05, "nsga2", name) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    assert len(search_worker.opened(url, name, "nsga2").finished()) == 12
    head, _, tail = url.rpartition("@")
    wrong = f"{head.rpartition(':')[0]}:falsch@{tail}"
    with pytest.raises(StudyError, match="refuses these credentials") as told:
        search_storage.opened(wrong)
    assert "falsch" not in str(told.value)


# Clones


def test_finished_trials_can_be_taken_along(url):
    study = search_worker.opened(url, "one", "cmaes")
    search_worker.work(study, 5)
    study.refresh()
    other = search_worker.opened(url, "two", "tpe")
    other.add(study.finished())
    assert [one.candidate for one in other.finished()] == [one.candidate for one in study.finished()]
    search_worker.work(other, 8)
    other.refresh()
    assert other.counts()["complete"] == 8


def test_a_sampler_of_ones_own_is_a_module_path(url, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "narrow.py").write_text(
        "from edgeprune.search_space import Proposal\n"
        "def propose(space, history, seed):\n    return Proposal(space.smallest(), {'seen': len(history)})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    study = search_worker.opened(url, "one", "pack.narrow")
    search_worker.work(study, 3)
    study.refresh()
    assert [one.notes for one in study.finished()] == [{"seen": 0}, {"seen": 1}, {"seen": 2}]
    assert Proposal(study.finished()[0].candidate).candidate == study._space.smallest()


def test_the_storage_is_readable_by_others(url):
    search_worker.work(search_worker.opened(url, "one", "random"), 2)
    rows = sqlite3.connect(url.removeprefix("sqlite:///")).execute("select count(*) from trial_values").fetchone()
    assert rows == (6,)
