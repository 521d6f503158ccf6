"""What a converter is: plain data and three functions. Files and tensors pass through here, architectures do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.architectures import builders
from fastgen.checkpoint import Spec
from fastgen.errors import CheckpointError, ConfigError
from fastgen.files import read_ordinary, write_atomic
from fastgen.models.building import without_values

MAX_JSON_BYTES = 8 << 20  # an index of shards names every tensor
LFS_POINTER = b"version https://git-lfs"


REAL_DTYPES = frozenset(
    {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)


def check_plain(tensor: Tensor, where: str) -> None:
    """Raise CheckpointError, with `where` in front, unless `tensor` holds real numbers, each in its place in memory."""
    if tensor.is_meta:
        kind = "a tensor without values (on the meta device)"
    elif tensor.layout is not torch.strided or tensor.is_nested:
        kind = f"a tensor of layout {tensor.layout}"
    elif tensor.is_quantized:
        kind = "a quantised tensor"
    elif tensor.dtype not in REAL_DTYPES:
        kind = f"a tensor of {tensor.dtype}"
    else:
        return
    raise CheckpointError(
        f"is {kind}; supported: dense tensors of real numbers, not quantised", argument=where
    )


@dataclass(frozen=True)
class Tensors:
    """Named tensors that are not read yet: `get(name)` reads one. shapes: {name: shape}; where: for messages.

    dtypes: {name: type} of those whose type is known without reading them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]
    where: str
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """The tensors under other names: names[new] = old. Those that are not named are left out."""
        return Tensors(
            {new: self.shapes[old] for new, old in names.items()},
            lambda name: self.get(names[name]),
            self.where,
            {new: self.dtypes[old] for new, old in names.items() if old in self.dtypes},
        )


@dataclass
class Report:
    """What became of everything in the source. Each list holds lines for the user.

    mapped: options that have a counterpart, with their values; renamed: tensors under other names; assumed: what the
    source does not say; ignored: what has no effect or no counterpart, and why.
    """

    title: str = ""
    mapped: list[str] = field(default_factory=list)
    renamed: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def followed_by(self, other: Report) -> Report:
        """Both reports in one, for a model that went through our form into another's."""
        both = [getattr(self, n) + getattr(other, n) for n in ("mapped", "renamed", "assumed", "ignored")]
        return Report(f"{self.title}; {other.title}", *both)

    def lines(self) -> list[str]:
        """The report as text, a line an entry."""
        found = [self.title] if self.title else []
        for name in ("mapped", "renamed", "assumed", "ignored"):
            found += [f"  {name}: {line}" for line in getattr(self, name)]
        return found


@dataclass(frozen=True)
class Converted:
    """A foreign model in our terms: spec, tensors under the names of a ``model.safetensors``, and the report."""

    spec: Spec
    tensors: Tensors
    report: Report

    def reported(self) -> Spec:
        """The spec with the report in its provenance, where ``engine.describe()`` finds it."""
        report = {name: value for name, value in asdict(self.report).items() if value}
        return replace(self.spec, provenance={**self.spec.provenance, "report": report})


@dataclass(frozen=True)
class Converter:
    """A source of models. Its `path` is a folder, or a single file of projects that have no folders.

    detect(path): whether its content is of this kind; cheap, reads no weights, never raises.
    read(path, variant, assume): the model; CheckpointError or ConfigError for what is missing, damaged or not
        supported. variant: a source's name for another set of weights (fp16), or None. assume: options that the files
        do not say, by the source's names.
    read_module(module, assume): the same, of a live module; no `read_module`: there is no such way.
    package: whose modules `read_module` is for. recognises(names): whether a state dict with these names, without
        prefix, is of this kind.
    write(path, spec, tensors, dtype): our model in the source's form, into an empty folder, weights as `dtype`
        (None: as they are). No `write`: there is no way back.
    files: patterns of the small files that `detect` and `downloads` need from a hub.
    owned: patterns of all files of such a model, which are removed when another one of the kind takes its place.
    downloads(path, variant): once those are there, lists of patterns of weight files, the best choice first.
    """

    name: str
    about: str
    detect: Callable[[Path], bool]
    read: Callable[..., Converted]
    write: Callable[[Path, Spec, Tensors, torch.dtype | None], Report] | None = None
    files: tuple[str, ...] = ()
    owned: tuple[str, ...] = ()
    downloads: Callable[[Path, str | None], list[list[str]]] | None = None
    read_module: Callable[[nn.Module, Mapping[str, Any]], Converted] | None = None
    package: str | None = None
    recognises: Callable[[Iterable[str]], bool] | None = None


def build(converted: Converted, dtype: torch.dtype | None = None) -> dict[str, nn.Module]:
    """The networks of a converted model on the CPU: {part: module}, parameters as `dtype` (None: the default type).

    Names and shapes are compared before anything is allocated; tensors are read one at a time. Raises CheckpointError.
    """
    modules = check(converted)
    for part, module in modules.items():
        state = {
            name: _cast(
                converted.tensors.get(f"{part}.{name}"),
                dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype,
                f"{converted.tensors.where}: {name}",
            )
            for name, tensor in module.state_dict().items()
        }
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False).eval()
    return modules


def check(converted: Converted) -> dict[str, nn.Module]:
    """The networks without memory, once names and shapes of the tensors were found to fit. Raises CheckpointError."""
    with without_values():
        modules = {part: make() for part, make in builders(converted.spec).items()}
    wanted = {f"{p}.{name}": t for p, m in modules.items() for name, t in m.state_dict().items()}
    found, where = converted.tensors.shapes, converted.tensors.where
    extra = sorted(set(found) - set(wanted))
    if missing := sorted(set(wanted) - set(found)):
        others = f"; {len(extra)} are there that it has not, the first is {extra[0]}" if extra else ""
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} tensors are missing, the first is {missing[0]}{others}",
            argument=where,
        )
    if extra:
        raise CheckpointError(
            f"{len(extra)} tensors do not belong to its configuration, the first is {extra[0]}",
            argument=where,
        )
    for name, tensor in wanted.items():
        if tuple(found[name]) != tuple(tensor.shape):
            raise CheckpointError(
                f"{name} has shape {list(found[name])}, its configuration asks for {list(tensor.shape)}",
                argument=where,
            )
    return modules


def read_json(path: Path) -> dict[str, Any]:
    """An object from an untrusted JSON file. Raises CheckpointError."""
    data = read_ordinary(path, MAX_JSON_BYTES, CheckpointError)
    if data.startswith(LFS_POINTER):
        raise lfs_error(path)
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"not valid JSON: {error}; was it downloaded to the end?", argument=path
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"expected an object, got {type(raw).__name__}", argument=path)
    return raw


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a JSON file as a whole."""
    write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())


def lfs_error(path: Path) -> CheckpointError:
    return CheckpointError(
        "is a pointer of git-lfs, not the file itself; run `git lfs pull` in that folder", argument=path
    )


def _cast(value: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    if value.is_floating_point() != dtype.is_floating_point:
        raise ConfigError(f"has dtype {value.dtype}, expected {dtype}", argument=where)
    # A copy: what a file maps into memory must not change under a network when somebody writes to the file.
    value = value.to(dtype, copy=True)
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise CheckpointError("holds values that are not finite", argument=where)
    return value
