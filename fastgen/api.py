"""``fastgen.load`` and the few names an application needs."""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import architectures
from .checkpoint import CONFIG_FILE, WEIGHTS_FILE, Spec
from .checkpoint import load as load_checkpoint
from .engines import ENGINES, DiffusionEngine
from .errors import ArgumentError, CheckpointError, ConfigError
from .files import exists
from .zoo import ZOO
from .zoo import folder as zoo_folder

OURS = {"device", "dtype", "source", "networks", "sha256"}  # arguments of an engine that `load` gives itself
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> DiffusionEngine:
    """An engine from a checkpoint.

    source: a folder (config.json and model.safetensors), ``zoo:NAME`` or a hub id ``OWNER/NAME``, which is
        downloaded into Hugging Face's standard cache; a folder of that name goes first.
    device: "auto" (CUDA where there is one), "cpu", "cuda[:N]".
    dtype: of the network: "auto" (bfloat16 on CUDA, float32 on CPU), "float32", "bfloat16", "float16".
    revision: a hub branch, tag or commit. local_files_only: use the cache, never the network.
    **options: passed on to the engine, see ``DiffusionEngine``.

    ``engine.describe()`` says what was chosen. Raises CheckpointError or ConfigError (both ValueErrors), or
    ArgumentError (a TypeError).
    """
    folder = find(source, revision=revision, local_files_only=local_files_only)

    def builders(spec: Spec) -> Mapping[str, Callable[[], nn.Module]]:
        """Before the weights are read: whether there is an engine for them that takes `options`."""
        if spec.engine not in ENGINES:
            raise ConfigError(
                f"{folder}: unknown engine {reprlib.repr(spec.engine)}; known: {', '.join(ENGINES)}"
            )
        if len(spec.parts) != 1:
            raise ConfigError(
                f"{folder}: a {spec.engine} model has one network, this one has {', '.join(spec.parts)}"
            )
        check_options(ENGINES[spec.engine], options)
        return architectures.builders(spec)

    spec, modules = load_checkpoint(folder, builders)
    (network,) = modules.values()
    return ENGINES[spec.engine].from_spec(
        network, spec, device=device, dtype=dtype, source=str(source), **options
    )


def check_options(engine: type, options: Mapping[str, Any]) -> None:
    """Whether `engine` has these keyword arguments. Raises ArgumentError."""
    parameters = inspect.signature(engine).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OURS]
    if unknown := sorted(set(options) - set(known)):
        raise ArgumentError(
            f"load: unknown argument {', '.join(unknown)}; beside its own it takes {', '.join(known)}"
        )


def find(source: str | Path, *, revision: str | None = None, local_files_only: bool = False) -> Path:
    """The folder of `source` on this machine, downloaded if need be. Raises CheckpointError."""
    name = str(source)
    hub = not (name.startswith("zoo:") or exists(name) or isinstance(source, Path)) and HUB_ID.fullmatch(name)
    if revision is not None and not hub:
        raise ConfigError(f"revision: {revision!r} was asked for, but {name} is not a model on the hub")
    if name.startswith("zoo:"):
        try:
            return zoo_folder(name.removeprefix("zoo:"))
        except KeyError:
            raise CheckpointError(
                f"{name}: not in the zoo; there is {', '.join('zoo:' + z for z in ZOO)}"
            ) from None
    return _download(name, revision, local_files_only) if hub else Path(name)


def _download(name: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=local_files_only,
                allow_patterns=[CONFIG_FILE, WEIGHTS_FILE],
            )
        )
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such folder, not in the local Hugging Face cache, and "
            + (
                "local_files_only=True forbids a download"
                if local_files_only
                else "the hub cannot be reached"
            )
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"{name}: no such folder, and the hub does not give it: {error}") from error
