"""A checkpoint is a folder: ``config.json`` (a :class:`Spec`) and ``model.safetensors``. Never a pickle.

One file may hold several networks (generator and discriminator, the stages of a cascade): tensor names carry
the part's name as a prefix, ``unet.conv_in.weight``. Files are replaced atomically, so that a folder can be
loaded at every moment of a training run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from .config import from_dict
from .errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
LOAD_ATTEMPTS = 6  # a reader meets a save now and then, hardly several in a row


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
    weights do not fit the new config until they are replaced.)
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    data = serialise({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    provenance = {**spec.provenance, "sha256": hashlib.sha256(data).hexdigest()}
    spec = dataclasses.replace(spec, provenance=provenance)
    untied = dataclasses.replace(spec, provenance={k: v for k, v in provenance.items() if k != "sha256"})
    write_atomic(folder / CONFIG_FILE, _spec_to_json(untied).encode())
    write_atomic(folder / WEIGHTS_FILE, data)
    write_atomic(folder / CONFIG_FILE, _spec_to_json(spec).encode())
    return spec


def load_spec(folder: str | Path) -> Spec:
    """Read and check ``config.json`` of `folder`. Raises CheckpointError or ConfigError."""
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; a model is a folder with {CONFIG_FILE} in it")
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {CONFIG_FILE} in it; is this a fastgen model folder?")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes is no configuration")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(raw).__name__}")
    return spec_from_json(raw, str(path))


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
            # `save` replaces the config before the weights: where that has not happened, no save is to blame.
            if attempt == LOAD_ATTEMPTS - 1 or stamp == _stamp(Path(folder) / CONFIG_FILE):
                raise
            time.sleep(0.05 * (attempt + 1))
    raise AssertionError("the last attempt returns or raises")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells a file from the one that replaces it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load_tensors(
    folder: str | Path, spec: Spec, builders: Mapping[str, Callable[[], nn.Module]]
) -> dict[str, nn.Module]:
    """Build each part of `spec` and fill it from ``model.safetensors``: {part: module in float32 on CPU}.

    Names and shapes in the file's header are compared with the modules' before anything is allocated.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {WEIGHTS_FILE} beside {CONFIG_FILE}")
    with torch.device("meta"):
        modules = {part: build() for part, build in builders.items()}
    wanted = {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            _compare({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, wanted, path)  # noqa: SIM118
            state = {name: file.get_tensor(name) for name in wanted}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    expected = spec.provenance.get("sha256")
    if expected is not None and file_sha256(path) != expected:
        raise CheckpointError(
            f"{path}: its sha256 is not the one in {CONFIG_FILE}: the weights are damaged or another model's"
        )
    for part, module in modules.items():
        own = {
            name: _cast(state[f"{part}.{name}"], tensor, f"{path}: {part}.{name}")
            for name, tensor in module.state_dict().items()
        }
        module.load_state_dict(own, assign=True)
        module.requires_grad_(False).eval()
    return modules


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to disk, then rename: `path` holds the old content or the new."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)  # mkstemp makes it private; other files of the folder are not
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, must survive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _spec_to_json(spec: Spec) -> str:
    """`spec` as the text of a ``config.json``."""
    return json.dumps(dataclasses.asdict(spec), indent=2) + "\n"


def spec_from_json(raw: Mapping[str, Any], where: str) -> Spec:
    """A spec from parsed JSON, checked; `where` names the file in errors. Raises ConfigError."""
    if raw.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: format_version {raw.get('format_version')!r} is not {FORMAT_VERSION}, "
            "the one this fastgen reads; a newer fastgen may read it"
        )
    raw = dict(raw)
    parts = raw.pop("parts", None)
    if not isinstance(parts, dict) or not parts:
        raise ConfigError(f"{where}: parts: expected an object with at least one network")
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


def _compare(found: dict[str, tuple[int, ...]], wanted: Mapping[str, Tensor], path: Path) -> None:
    if missing := sorted(set(wanted) - set(found)):
        raise CheckpointError(f"{path}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(set(found) - set(wanted)):
        raise CheckpointError(f"{path}: {len(extra)} tensors do not belong, the first is {extra[0]}")
    for name, tensor in wanted.items():
        if found[name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name} has shape {list(found[name])}, {CONFIG_FILE} asks for {list(tensor.shape)}"
            )


def _cast(value: Tensor, like: Tensor, where: str) -> Tensor:
    if value.is_floating_point() != like.is_floating_point():
        raise CheckpointError(f"{where} has dtype {value.dtype}, expected {like.dtype}")
    value = value.to(like.dtype)
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise CheckpointError(f"{where} holds values that are not finite")
    return value
