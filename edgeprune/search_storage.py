"""The storage of a search: Optuna's, in SQLite, PostgreSQL or MySQL; what its drivers raise becomes an error that says what to do.

Passwords stay here: what is shown, written or raised holds ``***`` in their place.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeprune.errors import MissingDependency, StudyError
from edgeprune.hiding import HIDDEN, hidden

BEAT_S, DEAD_S = 20, 90  # a worker says that it lives every so often; after so long without a word it is taken for dead
TABLES = 10  # attempts to open a storage that others are opening too


def optuna() -> ModuleType:
    """Optuna, which is asked for only when something is searched.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import optuna as found
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"A search needs the Python package '{error.name}'. Install it: pip install \"edgeprune[search]\""
        ) from error
    found.logging.set_verbosity(found.logging.ERROR)
    return found


def storage_url(word: str | None, folder: Path) -> str:
    """What the user's word for a storage means: a URL, the path of an SQLite file, or nothing: ``study.db`` in the folder."""
    if word is None:
        return f"sqlite:///{(folder / 'study.db').resolve()}"
    return word if "://" in word else f"sqlite:///{Path(word).resolve()}"


def opened(url: str) -> Any:
    """The storage behind a URL.

    Raises:
        MissingDependency: what speaks to such a database is not installed.
        StudyError: it cannot be reached, it wants another password, or it is none.
    """
    library = optuna()
    lite = url.startswith("sqlite")
    engine = {"connect_args": {"timeout": 60} if lite else {"connect_timeout": 20}}
    with named(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", library.exceptions.ExperimentalWarning)
        for last in (*[False] * TABLES, True):
            try:
                return library.storages.RDBStorage(url, engine, heartbeat_interval=BEAT_S, grace_period=DEAD_S)
            except errors() as error:
                if last or not re.search("(?i)already exists|unique|duplicate", f"{error} {error.__cause__}"):
                    raise
            time.sleep(0.3)  # another worker made the tables at the same time


def unheard(storage: Any, study: int) -> list[int]:
    """Trials at work whose worker never gave a sign of life; the storage counts a silence from the first sign on alone.

    Args:
        storage: from ``opened``.
        study: its identity there.

    Returns:
        The trials' identities.
    """
    from optuna.storages._rdb.models import TrialModel
    from sqlalchemy import select

    at_work = optuna().trial.TrialState.RUNNING
    wanted = select(TrialModel.trial_id).where(
        TrialModel.study_id == study, TrialModel.state == at_work, ~TrialModel.heartbeats.any()
    )
    with storage.engine.connect() as connection:
        return [int(identity) for identity in connection.scalars(wanted)]


@contextmanager
def named(url: str) -> Iterator[None]:
    """Turn what a database's driver raises into an error that says what to do, and holds no password."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = {"psycopg": "postgresql", "psycopg2": "postgresql", "pymysql": "mysql", "MySQLdb": "mysql"}.get(
            error.name or ""
        )
        install = f'"edgeprune[{extra}]"' if extra else str(error.name)
        scheme = {"postgresql": "postgresql+psycopg://", "mysql": "mysql+pymysql://"}.get(extra or "")
        begin = f", and begin the URL with {scheme}" if scheme else ""
        raise MissingDependency(
            f"The storage {hidden(url)} needs the Python package '{error.name}'. Install it: pip install {install}{begin}."
        ) from None
    except ImportError as error:
        raise StudyError(
            f"The storage {hidden(url)} cannot be spoken to: {_without_secrets(url, str(error))}"
        ) from None
    except (ValueError, OSError) as error:
        raise StudyError(why(url, error)) from None
    except errors() as error:
        raise StudyError(why(url, error)) from None  # the cause holds the URL


def errors() -> tuple[type[Exception], ...]:
    """What a storage raises that is away, or is none."""
    from sqlalchemy import exc

    away: type[Exception] = optuna().exceptions.StorageInternalError
    return (exc.SQLAlchemyError, away)


def why(url: str, error: Exception) -> str:
    """An error in one line, with what to do about it."""
    shown = hidden(url)
    words = _without_secrets(url, str(getattr(error, "orig", None) or error.__cause__ or error))
    words = " ".join(words.split())
    lower = words.lower()
    if "password" in lower or "access denied" in lower or "authentication" in lower or "no pg_hba" in lower:
        return (
            f"The storage {shown} refuses these credentials: {words}. Check user and password in --storage; in a password @, / and : "
            "have to be written as %40, %2F and %3A."
        )
    if "could not parse" in lower or "can't load plugin" in lower or "rfc1738" in lower or "no such module" in lower:
        return (
            f"The storage {shown.split('://')[0]}://... is no URL of a database. Give the path of an SQLite file, "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or mysql+pymysql://USER:PASSWORD@HOST/DATABASE."
        )
    if "not a database" in lower or "malformed" in lower:
        return f"{shown} is no SQLite database: {words}. Give another path with --storage."
    if "does not exist" in lower or "unknown database" in lower:
        return f"The storage {shown} has no such database: {words}. Create it first, see docs/search.md."
    return (
        f"The storage {shown} cannot be reached: {words}. Check that the database runs, that its host and port are right, and that the "
        "folder of a file exists and can be written."
    )


def _without_secrets(url: str, words: str) -> str:
    """What a driver says, without the password in any form that the URL may have it in."""
    from urllib.parse import unquote

    found = re.search(r"://[^\s:/@]*:(\S*)@", url)
    for secret in {found[1], unquote(found[1])} if found and found[1] else set():
        words = words.replace(secret, HIDDEN)
        for piece in secret.split("@")[1:]:  # what a driver takes for the host when an @ is not written as %40
            words = words.replace(f"{piece}@", f"{HIDDEN}@")
    return hidden(words)
