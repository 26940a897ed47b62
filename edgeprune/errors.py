"""Errors that a user can act on.

::

    EdgepruneError            exit 1: one paragraph, no traceback
    ├── NameUnknown           a word that names nothing (with the nearest that does)
    ├── RecipeError           a recipe or edgeprune.yaml that does not validate
    ├── TargetError           a target file that does not validate, or a target that cannot do what is asked
    ├── CutError              channels or layers to remove that the model cannot lose
    ├── BudgetError           limits that contradict each other, or that no cut of the model meets
    ├── ModelError            a model that is missing, corrupt, or of a kind that cannot be taken
    │   └── UntrustedModel    a model whose loading would run code; needs --trust
    ├── DataError             data that is missing, corrupt, empty, or does not fit the model
    ├── RunFolderError        a run folder that is another run's, unwritable, or damaged
    ├── StudyError            a search's storage that cannot be reached, or a study of something else
    ├── ConversionError       the converter refused, crashed, or gave something else than asked
    ├── ArtefactError         a .tflite that cannot be read, or does not hold what it must
    ├── DeviceError           a board, an emulator or a runtime that did not do what was asked
    │   └── CutShort          a measurement that ended early; has what was measured until then
    └── MissingDependency     something to install, with the command that installs it

Every message says what was given, what was expected, and how to fix it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class EdgepruneError(Exception):
    """The root: ``edgeprune`` prints its text and exits with 1."""


class NameUnknown(EdgepruneError):
    """A word that names no member of its family."""


class RecipeError(EdgepruneError):
    """A recipe or project file that does not validate."""


class TargetError(EdgepruneError):
    """A target that does not validate or cannot do what is asked."""


class CutError(EdgepruneError):
    """Channels or layers to remove that the model cannot lose."""


class BudgetError(EdgepruneError):
    """Limits that contradict each other, or that no cut of the model can meet.

    Args:
        nearest: what comes nearest to them; None: nothing was looked for.
    """

    def __init__(self, message: str, nearest: Any = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class ModelError(EdgepruneError):
    """A model that is missing, corrupt, or of a kind that cannot be taken."""


class UntrustedModel(ModelError):
    """A model whose loading would run code of its author's."""


class DataError(EdgepruneError):
    """Data that is missing, corrupt, empty, or does not fit the model."""


class RunFolderError(EdgepruneError):
    """A run folder that is another run's, unwritable, or damaged."""


class StudyError(EdgepruneError):
    """A search's storage that cannot be reached, or a study in it that is of something else."""


class ConversionError(EdgepruneError):
    """The converter refused, crashed, or gave something else than was asked."""


class ArtefactError(EdgepruneError):
    """A ``.tflite`` file that cannot be read or does not hold what it must."""


class DeviceError(EdgepruneError):
    """A board, an emulator or a runtime that did not do what was asked."""


class CutShort(DeviceError):
    """A measurement that ended early: a lost connection, a reboot, a timeout.

    Args:
        measurement: a `edgeprune.measurement.Measurement` of what was measured until then; None: nothing was.
        path: the file that it is kept in.
    """

    def __init__(self, message: str, measurement: Any = None, path: Path | None = None) -> None:
        super().__init__(message)
        self.measurement = measurement
        self.path = path


class MissingDependency(EdgepruneError):
    """Something that is not installed; the message holds the command that installs it."""
