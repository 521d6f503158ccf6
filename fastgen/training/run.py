"""What a training run is a run of, as its state file says it: settings, model, data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import Part, Spec, encoded, spec_from_json
from ..config import at_most, bounded, from_dict, parse_json, to_dict
from ..errors import CheckpointError, ConfigError
from ..files import exists
from ..tensor_file import MAX_HEADER_BYTES, TensorFile
from .settings import RunConfig

STATE_FILE = "training.safetensors"


@dataclass(frozen=True)
class Run:
    """What a run is a run of.

    spec: the model that it makes. data: describes its samples, so that a resumed run can tell others from them.
    auxiliary: networks that are trained with the model's and are no part of it, such as a discriminator; the run's
    state file holds them, the model does not. Raises ConfigError where one of them has a part's name.
    """

    config: RunConfig
    spec: Spec
    data: dict[str, Any]
    auxiliary: dict[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := sorted(set(self.spec.parts) & set(self.auxiliary)):
            raise ConfigError(f"{both[0]} is a part of the model", argument="auxiliary")

    def trained(self) -> Spec:
        """A spec whose parts are all the networks that the run trains: the model's, then the auxiliary ones."""
        return dataclasses.replace(self.spec, parts={**self.spec.parts, **self.auxiliary})

    def encoded(self, folder: Path) -> str:
        """Its JSON in `folder`'s state file, as the strict reader has seen it.

        Raises ConfigError or CheckpointError where the reader refuses it, or the model's own config.
        """
        path = folder / STATE_FILE
        encoded(self.spec, folder)
        run = {"config": to_dict(self.config), "spec": dataclasses.asdict(self.spec), "data": self.data}
        if self.auxiliary:
            run["auxiliary"] = {name: dataclasses.asdict(part) for name, part in self.auxiliary.items()}
        text = json.dumps(run)
        # quoted once more, it has to leave room for the names of the tensors
        if len(json.dumps(text)) > MAX_HEADER_BYTES // 2:
            raise ConfigError(
                f"could not be resumed: its settings take {len(text)} bytes; are there so many classes?",
                argument=path,
            )
        try:
            _run(text, str(path))
        except CheckpointError as error:
            raise CheckpointError(f"could not be resumed: {error.reason}", argument=path) from error
        return text


def saved_run(folder: Path) -> Run | None:
    """The run in `folder`, or None where there is none. Raises CheckpointError for a damaged one."""
    path = folder / STATE_FILE
    if not exists(path):
        return None
    with TensorFile(path) as file:
        metadata = file.metadata
    return _run(metadata.get("run"), str(path))


def _run(text: str | None, where: str) -> Run:
    """A run from its JSON, checked; `where` names the file in errors. Raises CheckpointError."""
    try:
        if text is None:
            raise ValueError("no run in its metadata")
        run = parse_json(text, where)
        config = from_dict(RunConfig, run["config"], where)
        spec = spec_from_json(run["spec"], where)
        auxiliary: dict[str, Part] = {}
        if "auxiliary" in run:  # read as the parts of a spec are
            auxiliary = spec_from_json({**run["spec"], "parts": run["auxiliary"]}, where).parts
        return Run(config, spec, _data(run["data"], f"{where}: data"), auxiliary)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"is no training run of this version of fastgen: {error}", argument=where
        ) from error


@dataclass(frozen=True)
class _Images:
    """``training.data.describe`` of images, read back: the same keys in the same order, so that states are equal."""

    pictures: int = bounded(1, 1 << 62)
    shape: tuple[int, ...] = bounded(1, 1 << 20, max_items=3)
    num_classes: int | None = bounded(1, 1 << 62, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def __post_init__(self) -> None:
        if len(self.shape) != 3:
            raise ConfigError(
                f"expected channels, height and width, got {list(self.shape)}", argument="shape"
            )


@dataclass(frozen=True)
class _Pairs(_Images):
    """Likewise of pairs of images."""

    paired: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.paired:
            raise ConfigError("expected true, or no such key", argument="paired")


@dataclass(frozen=True)
class _Rows:
    """Likewise of rows of numbers."""

    rows: int = bounded(1, 1 << 62)
    shape: tuple[int, ...] = bounded(1, 1 << 20, max_items=1)
    num_classes: int | None = bounded(1, 1 << 62, default=None)
    class_names: tuple[str, ...] | None = at_most(1_000_000, default=None)

    def __post_init__(self) -> None:
        if len(self.shape) != 1:
            raise ConfigError(f"expected the number of columns, got {list(self.shape)}", argument="shape")


def _data(raw: Any, where: str) -> dict[str, Any]:
    """A description of samples, checked. Raises ConfigError."""
    keys = raw if isinstance(raw, Mapping) else ()
    kind = _Rows if "rows" in keys else _Pairs if "paired" in keys else _Images
    return to_dict(from_dict(kind, raw, where))
