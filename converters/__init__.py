"""Other projects' checkpoints to fastgen's and back, one file or folder per source; and their schedulers as tables.

Installed as ``fastgen.converters``.

converter = detect(path)                # by content; None for fastgen's own folders
converted = converter.read(path, None)  # spec, tensors not read yet, a report of what was mapped and what not
converted = from_module(module)         # the same, of a live model of another project
table = compile_scheduler(scheduler)    # a scheduler object of another project as a table (`converters/tracing`)
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from fastgen.checkpoint import CONFIG_FILE, WEIGHTS_FILE, is_ours, load_spec
from fastgen.errors import CheckpointError, ConfigError

from .base import Converted, Converter, Report, Tensors, build, check
from .diffusers import CONVERTER as DIFFUSERS
from .disentangling_vae import CONVERTER as DISENTANGLING_VAE
from .flows import CONVERTERS as FLOWS
from .gans import CONVERTERS as GANS
from .pix2pix import CONVERTER as PIX2PIX
from .style import CONVERTERS as STYLES
from .tracing import CompiledTable, compile_scheduler
from .unknown import advice, unwrapped
from .upscale import CONVERTERS as UPSCALE
from .weights import Found, contents, of, open_weights, save, sha256, write
from .wrapping import StateDict, holds

T = TypeVar("T")
CONVERTERS: dict[str, Converter] = {
    "diffusers": DIFFUSERS,
    "disentangling-vae": DISENTANGLING_VAE,
    **FLOWS,
    **GANS,
    "pix2pix": PIX2PIX,
    **STYLES,
    **UPSCALE,
}


def unknown_weights(found: Found, where: Path) -> CheckpointError:
    """What to raise for weights of no model that is known."""
    what, shapes = contents(found)  # says what is wrong with a damaged file
    if is_ours(where.parent):
        return CheckpointError(
            f"are weights of the model in {where.parent}: give that folder", argument=where
        )
    missing = f"no {CONFIG_FILE} beside the weights, and " if os.path.isdir(where) else ""
    return CheckpointError(f"{missing}{what}. {advice(shapes, _flows())}", argument=where)


def unknown_module(module: nn.Module, state: Mapping[str, Tensor]) -> ConfigError:
    """What to raise for a live module of no project that is known."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    return ConfigError(
        f"is of no project that is known. {advice(shapes, _flows())}",
        argument=f"{type(module).__module__}.{type(module).__qualname__}",
    )


def _flows() -> str:
    return "; ".join(c.about for c in FLOWS.values())


def detect(path: Path) -> Converter | None:
    """The converter whose kind of model the folder or file `path` holds; None if no one's, as with fastgen's own.

    Raises CheckpointError for weights that are no one's, a file or a folder without config.json: it says what they are.
    """
    converter = _converter(path)
    if converter is None and not is_ours(path):
        if os.path.isfile(path):  # False, too, for what is no name of a file
            raise unknown_weights(Found((path,)), path)
        if os.path.isdir(path) and not os.path.exists(path / CONFIG_FILE):
            try:
                found = of(path)
            except CheckpointError:  # no weights at all
                return None
            raise unknown_weights(found, path)
    return converter


def _converter(path: Path) -> Converter | None:
    if is_ours(path):
        return None
    return next((converter for converter in CONVERTERS.values() if _detects(converter, path)), None)


def _detects(converter: Converter, path: Path) -> bool:
    try:
        return converter.detect(path)
    except (
        OSError,
        ValueError,
    ):  # what may not be entered, or is no name at all: `read` and `load_spec` say so
        return False


def from_module(module: nn.Module, assume: Mapping[str, Any] | None = None) -> Converted:
    """A live model of another project, told by its class, or else by the names of its tensors.

    assume: options that the module does not say, by the source's names. The tensors are the module's own, not copies.
    Raises ConfigError that names what is not supported.
    """
    module = unwrapped(module)
    packages = {cls.__module__.split(".")[0] for cls in type(module).__mro__}
    state = module.state_dict()
    for converter in CONVERTERS.values():
        if converter.read_module is None:
            continue
        if converter.package in packages or (not converter.package and _named(state, converter)):
            return converter.read_module(module, assume or {})
    raise unknown_module(module, state)


def _named(state: Mapping[str, Tensor], converter: Converter) -> bool:
    """Whether a module of no package has the names that `converter` knows."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    whole = StateDict("", Tensors(shapes, state.__getitem__, ""))
    return converter.recognises is not None and holds([whole], converter.recognises)


def form(folder: Path) -> str | None:
    """What `folder` holds: a name in CONVERTERS, "fastgen" (perhaps a damaged one), or None for no model."""
    converter = _converter(folder)
    if converter is not None:
        return converter.name
    return "fastgen" if (folder / CONFIG_FILE).exists() else None


def read_ours(folder: Path, title: str) -> Converted:
    """Fastgen's own model in `folder`, its tensors not read yet, in the types of the file. Raises CheckpointError."""
    spec, path = load_spec(folder), folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"no {WEIGHTS_FILE} beside {CONFIG_FILE}", argument=folder)
    found = Found((path,))
    tensors = open_weights(found)
    if spec.provenance.get("sha256") not in (None, sha256(found)):
        raise CheckpointError(
            f"its sha256 is not the one in {CONFIG_FILE}: the weights are damaged or another model's",
            argument=path,
        )
    stamp = path.stat().st_mtime_ns

    def get(name: str) -> Tensor:
        value = tensors.get(name)
        if path.stat().st_mtime_ns != stamp:
            raise CheckpointError(
                "was replaced while it was read, by a training run perhaps; try again", argument=path
            )
        return value

    return Converted(spec, dataclasses.replace(tensors, get=get), Report(title))


def replace(destination: Path, to: str, write: Callable[[Path], T]) -> T:
    """Have `write` fill an empty folder, then put its files into `destination`; returns what `write` does.

    destination: a folder, perhaps with a model of the form `to`, whose files are replaced or removed (no others are).
    Where `write` fails it stays as it was. Raises ConfigError where it holds a model of another form.
    """
    if (held := form(destination)) not in (None, to):
        raise ConfigError(
            f"holds a model in the form of {held}, which one in the form of {to} does not replace; "
            "choose another folder, or delete it first",
            argument=destination,
        )
    above = next(path for path in (destination.resolve(), *destination.resolve().parents) if path.is_dir())
    temporary = Path(tempfile.mkdtemp(dir=above, prefix=".convert."))
    try:
        result = write(temporary)
        if form(temporary) != to:
            raise CheckpointError(f"what was written is no model in the form of {to}", argument=destination)
        new = sorted(p.relative_to(temporary) for p in temporary.rglob("*") if p.is_file())
        owned = CONVERTERS[to].owned if to in CONVERTERS else (CONFIG_FILE, WEIGHTS_FILE)
        old = [path for pattern in owned for path in destination.glob(pattern) if path.is_file()]
        # Weights first: a folder whose configuration is there is whole.
        for path in sorted(new, key=lambda path: path.suffix == ".json"):
            (destination / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / path, destination / path)
        for path in old:
            if path.relative_to(destination) not in new:
                path.unlink()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return result


__all__ = [
    "CONVERTERS",
    "CompiledTable",
    "Converted",
    "Converter",
    "Report",
    "Tensors",
    "build",
    "check",
    "compile_scheduler",
    "detect",
    "form",
    "from_module",
    "read_ours",
    "replace",
    "save",
    "write",
]
