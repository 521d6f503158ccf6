"""A checkpoint is a folder: ``config.json`` (a :class:`Spec`) and ``model.safetensors``. Never a pickle.

One file may hold several networks (generator and discriminator, the stages of a cascade): tensor names carry
the part's name as a prefix, ``unet.conv_in.weight``. Files are replaced atomically, so that a folder can be
loaded at every moment of a training run.

A checkpoint is untrusted: its config is bounded field by field, networks are built without memory first
(`meta`) and compared with the weights' header, and only what the file really holds is allocated: its own bytes, twice
as much where half-precision weights become float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialise
from torch import Tensor, nn

from .config import from_dict, parse_json, shown
from .errors import CheckpointError, ConfigError
from .files import exists, make_folder, open_ordinary, prepared, read_ordinary
from .models.building import without_values
from .tensor_file import TensorFile

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_PARTS = 16
PART_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # no dot: it ends the prefix of the part's tensors
LOAD_ATTEMPTS = 6  # a read may overlap a save; it hardly overlaps several in a row


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: a name in ``ARCHITECTURES`` and the arguments it is built from."""

    architecture: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """What a checkpoint holds: which engine runs it, its networks, the engine's settings, where it came from."""

    engine: str
    parts: dict[str, Part]
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def save(folder: str | Path, spec: Spec, tensors: Mapping[str, Tensor]) -> Spec:
    """Write `spec` and `tensors` (CPU or GPU, any dtype) into `folder`; returns the spec with its sha256.

    Killed at any moment, the folder holds a checkpoint that loads: the digest, which ties the two files together, is
    taken out of the config before the weights are replaced. (Where the old checkpoint has another architecture, its
    weights do not fit the new config until they are replaced.) Raises WriteError where a file cannot be written, and
    ConfigError or CheckpointError for what could not be loaded again; then nothing is written.
    """
    folder = Path(folder)
    make_folder(folder, parents=True)
    data = serialise({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    provenance = {**spec.provenance, "sha256": hashlib.sha256(data).hexdigest()}
    spec = dataclasses.replace(spec, provenance=provenance)
    untied = dataclasses.replace(spec, provenance={k: v for k, v in provenance.items() if k != "sha256"})
    tied, free = encoded(spec, folder), encoded(untied, folder)
    TensorFile(folder / WEIGHTS_FILE, data)
    # Everything is on disk before anything is replaced: a disk that is full leaves the old checkpoint.
    with (
        prepared(folder / WEIGHTS_FILE, data) as replace_weights,
        prepared(folder / CONFIG_FILE, tied) as tie,
        prepared(folder / CONFIG_FILE, free) as untie,
    ):
        untie()
        replace_weights()
        tie()
    return spec


def encoded(spec: Spec, folder: Path) -> bytes:
    """The ``config.json`` of `spec`, as the strict reader has seen it. Raises ConfigError where it refuses it."""
    path = folder / CONFIG_FILE
    try:
        data = (json.dumps(dataclasses.asdict(spec), indent=2) + "\n").encode()
        if len(data) > MAX_CONFIG_BYTES:
            raise ValueError(f"{len(data)} bytes are more than {MAX_CONFIG_BYTES}")
        spec_from_json(parse_json(data, str(path)), str(path))
    except (TypeError, ValueError) as error:  # ConfigError and CheckpointError are ValueErrors
        why = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"could not be loaded again: {why}", argument=path) from error
    return data


def load_spec(folder: str | Path) -> Spec:
    """Read and check ``config.json`` of `folder`. Raises CheckpointError or ConfigError."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not exists(folder):
        raise CheckpointError(
            f"no such folder; a model is a folder with {CONFIG_FILE} in it", argument=folder
        )
    if not exists(path):
        raise CheckpointError(f"no {CONFIG_FILE} in it; is this a fastgen model folder?", argument=folder)
    data = read_ordinary(path, MAX_CONFIG_BYTES, CheckpointError)
    try:
        raw = parse_json(data, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error).removeprefix(f"{path}: "), argument=path) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"expected an object, got {type(raw).__name__}", argument=path)
    return spec_from_json(raw, str(path))


def is_ours(path: str | Path) -> bool:
    """Whether `path` is a folder whose ``config.json`` is one of ours, perhaps a wrong one. Raises nothing."""
    try:
        raw = parse_json(read_ordinary(Path(path) / CONFIG_FILE, MAX_CONFIG_BYTES, CheckpointError), "")
    except (CheckpointError, ConfigError):
        return False
    return isinstance(raw, dict) and {"format_version", "engine", "parts"} <= set(raw)


def load(
    folder: str | Path, builders: Callable[[Spec], Mapping[str, Callable[[], nn.Module]]]
) -> tuple[Spec, dict[str, nn.Module]]:
    """The spec and the filled networks of `folder`, also while a training run replaces them.

    builders(spec) gives a function for each part that makes its network. Raises CheckpointError or ConfigError.
    """
    for attempt in range(LOAD_ATTEMPTS):
        stamp = _stamp(Path(folder) / CONFIG_FILE)
        spec = load_spec(folder)
        try:
            return spec, _load_tensors(folder, spec, builders(spec))
        except CheckpointError:
            # `save` replaces the config before the weights: if it did not, no save caused the error.
            if attempt == LOAD_ATTEMPTS - 1 or stamp == _stamp(Path(folder) / CONFIG_FILE):
                raise
            time.sleep(0.05 * (attempt + 1))
    raise AssertionError("the last attempt returns or raises")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells a file from the one that replaces it."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return found.st_ino, found.st_mtime_ns


def _load_tensors(
    folder: str | Path, spec: Spec, builders: Mapping[str, Callable[[], nn.Module]]
) -> dict[str, nn.Module]:
    """Build each part of `spec` and fill it from ``model.safetensors``: {part: module in float32 on CPU}.

    Names and shapes in the file's header are compared with the modules' before anything is allocated.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not exists(path):
        raise CheckpointError(f"no {WEIGHTS_FILE} beside {CONFIG_FILE}", argument=folder)
    with without_values():
        modules = {part: build() for part, build in builders.items()}
    wanted = {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    with TensorFile(path) as file:
        file.compare(wanted, CONFIG_FILE)
        state = dict(file.read({name: tensor.dtype for name, tensor in wanted.items()}))
    expected = spec.provenance.get("sha256")
    if expected is not None and file.sha256 != expected:
        raise CheckpointError(
            f"its sha256 is not the one in {CONFIG_FILE}: the weights are damaged or another model's",
            argument=path,
        )
    if file.flaw is not None:
        raise CheckpointError(f"{file.flaw}; was its training stable?", argument=path)
    for part, module in modules.items():
        own = {name: state.pop(f"{part}.{name}") for name in module.state_dict()}
        module.load_state_dict(own, assign=True)
        module.requires_grad_(False).eval()
        unfilled = [name for name, buffer in module.named_buffers() if buffer.is_meta]
        assert not unfilled, f"{part}: buffers {unfilled} are not in its state_dict and cannot be loaded"
    return modules


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open_ordinary(path, CheckpointError) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(raw: Mapping[str, Any]) -> str:
    version = raw.get("format_version")
    return str(version) if type(version) is int and abs(version) < 1 << 62 else shown(version)


def spec_from_json(raw: Mapping[str, Any], where: str) -> Spec:
    """A spec from parsed JSON, checked; `where` names the file in errors. Raises ConfigError."""
    if raw.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"format_version {_version(raw)} is not {FORMAT_VERSION}, "
            "the one this fastgen reads; a newer fastgen may read it",
            argument=where,
        )
    raw = dict(raw)
    parts = raw.pop("parts", None)
    if not isinstance(parts, dict) or not 1 <= len(parts) <= MAX_PARTS:
        raise ConfigError(
            f"expected an object with at least one network, at most {MAX_PARTS}", argument=f"{where}: parts"
        )
    for name in parts:
        if not PART_NAME.fullmatch(name) or hasattr(
            nn.ModuleDict(), name
        ):  # its networks become a ModuleDict
            raise ConfigError(f"{shown(name)} is no name of a network", argument=f"{where}: parts")
    spec = from_dict(_Header, raw, where)
    return Spec(
        engine=spec.engine,
        parts={name: from_dict(Part, part, f"{where}: parts.{name}") for name, part in parts.items()},
        settings=spec.settings,
        provenance=spec.provenance,
    )


@dataclass(frozen=True)
class _Header:
    engine: str
    settings: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
