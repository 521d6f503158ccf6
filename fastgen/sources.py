"""Where a model comes from: a folder, the zoo, or the hub's cache on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from .checkpoint import CONFIG_FILE, WEIGHTS_FILE
from .errors import CheckpointError, ConfigError
from .files import exists
from .zoo import ZOO
from .zoo import folder as zoo_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
) -> Path:
    """The folder of `source` on this machine, downloaded if need be. Raises CheckpointError."""
    name = str(source)
    hub = not (name.startswith("zoo:") or exists(name) or isinstance(source, Path)) and HUB_ID.fullmatch(name)
    if revision is not None and not hub:
        raise ConfigError(
            f"{revision!r} was asked for, but {name} is not a model on the hub", argument="revision"
        )
    if name.startswith("zoo:"):
        try:
            return zoo_folder(name.removeprefix("zoo:"))
        except KeyError:
            raise CheckpointError(
                f"not in the zoo; there is {', '.join('zoo:' + z for z in ZOO)}", argument=name
            ) from None
    return _download(name, revision, local_files_only, variant) if hub else Path(name)


def _download(name: str, revision: str | None, local_files_only: bool, variant: str | None) -> Path:
    """The hub's model in the local cache: its small files, which say what it is, then the weights it needs."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    from .converters import CONVERTERS, detect

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name, revision=revision, local_files_only=local_files_only, allow_patterns=patterns
            )
        )

    try:
        folder = fetch([CONFIG_FILE, *(f for c in CONVERTERS.values() for f in c.files)])
        converter = detect(folder)
        if converter is None or converter.downloads is None:
            return fetch([WEIGHTS_FILE])
        for patterns in converter.downloads(folder, variant):
            folder = fetch(patterns)
            if any(match for pattern in patterns for match in folder.glob(pattern)):
                break
        return folder
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            "no such folder, not in the local Hugging Face cache, and "
            + (
                "local_files_only=True forbids a download"
                if local_files_only
                else "the hub cannot be reached"
            ),
            argument=name,
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"no such folder, and the hub does not give it: {error}", argument=name
        ) from error
