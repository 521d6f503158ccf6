"""Losses and learning rates of a run as TensorBoard shows them, beside ``loss.csv``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigError

FOLDER = "tensorboard"  # of a run's folder


class Board:
    """Writes event files into a run's folder, for the loop's `on_step`; what is written is flushed with every call."""

    def __init__(self, folder: Path, writer: Any) -> None:
        """writer: the class SummaryWriter of a package that has one."""
        self._folder, self._class = folder, writer
        self._writer: Any = None

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Write `values`, by name, of step number `step`, from 1 on.

        The first call hides what an earlier board in the folder has of this and later steps: a run that was killed has
        written some that it never saved.
        """
        if self._writer is None:
            later = {"purge_step": step} if step > 1 else {}
            self._writer = self._class(str(self._folder / FOLDER), **later)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def board(folder: Path) -> Board:
    """A board for the run in `folder`. Raises ConfigError where no package that writes event files is installed."""
    for name in ("torch.utils.tensorboard", "tensorboardX"):
        with suppress(ImportError):
            return Board(folder, importlib.import_module(name).SummaryWriter)
    raise ConfigError(
        "needs one of the packages tensorboard and tensorboardX: pip install 'fastgen[tensorboard]'",
        argument="--tensorboard",
    )
