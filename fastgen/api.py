"""``fastgen.load`` and the few names an application needs."""

from __future__ import annotations

import gc
import inspect
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import architectures
from .checkpoint import Spec, is_ours, load_spec
from .checkpoint import load as load_checkpoint
from .config import check_flags
from .errors import ConfigError
from .families import FAMILIES, Family
from .sources import find

# Converters are imported where they are used: a model of our own needs none of them.
if TYPE_CHECKING:
    from .converters import Converted, Report
    from .converters.onnx import Written
    from .engines.base import Engine


class _Engines(Mapping[str, "type[Engine]"]):
    """The engine of each family by its name, imported when it is looked up."""

    def __getitem__(self, name: str) -> type[Engine]:
        return FAMILIES[name].engine_class()

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILIES)

    def __len__(self) -> int:
        return len(FAMILIES)


ENGINES = _Engines()
OURS = {
    "device",
    "dtype",
    "source",
    "architectures",
    "provenance",
}  # arguments of an engine that `load` gives itself
WEIGHT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    source: str | Path | nn.Module,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
    assume: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """An engine from a checkpoint: a ``DiffusionEngine`` or a ``FlowEngine``, by what the checkpoint is.

    source: a folder (config.json and model.safetensors), ``zoo:NAME`` or a hub id ``OWNER/NAME``, which is
        downloaded into Hugging Face's standard cache; a folder of that name goes first. Folders and hub ids may be
        of another project in ``fastgen.converters.CONVERTERS``, for instance a DDPMPipeline of diffusers. So may a
        file of weights, or a live module, which stays as it is: a flow of normflows, nflows or zuko.
    device: "auto" (CUDA where there is one), "cpu", "cuda[:N]".
    dtype: of the network: "auto" (bfloat16 on CUDA, float32 on CPU; float32 for flows), "float32", "bfloat16",
        "float16"; for flows also "float64".
    revision: a hub branch, tag or commit. local_files_only: use the cache, never the network.
    variant: another set of weights of a foreign model, as diffusers' "fp16"; of a flow's file with several, the key or
        prefix of one, as "model" beside "ema".
    assume: what a foreign model does not say itself, such as {"scale_map": "exp"}; the report in ``describe()`` names
        what was assumed.
    **options: passed on to the engine, see ``DiffusionEngine`` and ``FlowEngine``.

    ``engine.describe()`` says what was chosen. Raises CheckpointError or ConfigError (both ValueErrors), or
    ArgumentError (a TypeError).
    """
    return load_accepted(
        source,
        None,
        device=device,
        dtype=dtype,
        revision=revision,
        local_files_only=local_files_only,
        variant=variant,
        assume=assume,
        **options,
    )


def load_accepted(
    source: str | Path | nn.Module,
    accept_family: Callable[[Family], None] | None,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    revision: str | None,
    local_files_only: bool,
    variant: str | None = None,
    assume: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """As `load`. accept_family: called with the model's family before weights are read; it may raise."""
    with _no_collections():
        return _load(
            source, accept_family, device, dtype, revision, local_files_only, variant, assume, options
        )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Within the block Python looks for no reference cycles: what a load makes, thousands of objects, is there to stay.

    In a process that has just imported PyTorch one such search takes as long as reading a small model.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _load(
    source: str | Path | nn.Module,
    accept_family: Callable[[Family], None] | None,
    device: str | torch.device,
    dtype: str | torch.dtype,
    revision: str | None,
    local_files_only: bool,
    variant: str | None,
    assume: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Any:
    check_flags(local_files_only=local_files_only)
    model = _find(source, revision, local_files_only, variant)
    name = _name(source)

    def accept(spec: Spec) -> None:
        """Before weights are read: whether there is an engine for them that takes `options`."""
        if spec.engine not in FAMILIES:
            raise ConfigError(
                f"unknown engine {reprlib.repr(spec.engine)}; known: {', '.join(FAMILIES)}", argument=name
            )
        if accept_family is not None:
            accept_family(FAMILIES[spec.engine])
        engine = FAMILIES[spec.engine].engine_class()
        engine.check_parts(spec)
        check_options(engine, options)

    spec, modules = _read(model, variant, assume, accept)
    engine = FAMILIES[spec.engine].engine_class()
    return engine.from_spec(nn.ModuleDict(modules), spec, device=device, dtype=dtype, source=name, **options)


def convert(
    source: str | Path | nn.Module,
    destination: str | Path,
    *,
    to: str = "fastgen",
    variant: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    overwrite: bool = False,
    assume: Mapping[str, Any] | None = None,
) -> Report:
    """Write the model `source` (as for `load`) into the folder `destination`, in fastgen's form or a foreign one.

    to: "fastgen" or a name in ``fastgen.converters.CONVERTERS``. dtype: of the weights written, "float32", "float16",
    "bfloat16" or None, as they are. overwrite: replace a model of the same form; other files of the folder are left
    alone. Where conversion fails the folder stays as it was. assume: as for `load`.

    Returns what was mapped, renamed, assumed and ignored. Raises ConfigError or CheckpointError.
    """
    from .converters import CONVERTERS, check, read_ours, replace, save

    check_flags(local_files_only=local_files_only, overwrite=overwrite)
    destination = Path(destination)
    if to != "fastgen" and (to not in CONVERTERS or CONVERTERS[to].write is None):
        writers = [name for name, converter in CONVERTERS.items() if converter.write is not None]
        raise ConfigError(f"expected one of fastgen, {', '.join(writers)}, got {to!r}", argument="to")
    if dtype is not None and dtype not in WEIGHT_DTYPES:
        raise ConfigError(f"expected one of {', '.join(WEIGHT_DTYPES)}, got {dtype!r}", argument="dtype")
    if destination.exists() and not destination.is_dir():
        raise ConfigError("is a file; give a folder", argument=destination)
    if destination.is_dir() and any(destination.iterdir()) and not overwrite:
        raise ConfigError(
            "is not empty; choose another folder or overwrite (--overwrite)", argument=destination
        )
    model = _find(source, revision, local_files_only, variant)
    if isinstance(model, Path) and destination.resolve() == model.resolve():
        raise ConfigError("is the source itself; give another folder", argument=destination)
    converted = _foreign(model, variant, assume)
    foreign = converted is not None
    if converted is None:
        assert isinstance(model, Path)
        load_spec(model)  # raises the error for a folder that is of no known project
    if (str(converted.spec.provenance["converted_from"]) if converted else "fastgen") == to and dtype is None:
        raise ConfigError(
            f"is a {to} model already; say to= (--to) what it shall become", argument=_name(source)
        )
    if converted is None:
        assert isinstance(model, Path)
        converted = read_ours(model, f"{source} -> {to}")
    check(converted)
    weights_dtype = None if dtype is None else WEIGHT_DTYPES[dtype]

    def fill(path: Path) -> Report:
        if to == "fastgen":
            spec = converted.reported() if foreign else converted.spec
            save(path, spec, converted.tensors, weights_dtype)
            return converted.report
        write = CONVERTERS[to].write
        assert write is not None
        written = write(path, converted.spec, converted.tensors, weights_dtype)
        return converted.report.followed_by(written) if foreign else written

    return replace(destination, to, fill)


def export(
    source: str | Path | nn.Module,
    destination: str | Path,
    *,
    what: str = "all",
    precision: str = "fp32",
    opset: int | None = None,
    tables: Iterable[str] = (),
    check: bool = False,
    force: bool = False,
    **source_options: Any,
) -> Written:
    """Write a model (as for `load`) as ONNX files into a folder, for ``fastgen.onnx_runtime`` and other programs.

    what: "model": every export form of its network; "step", "sampler": of a diffusion model one step of any solver, and
        all steps from seeds to pictures; "tables": solvers for these two, as JSON; "server": a model repository of the
        Triton Inference Server in ``server/``; "all": everything but the last.
    precision: "fp32", or "fp16": weights and networks in half precision, tensors in and out still float32.
    opset: of ONNX; onnxruntime 1.17 and later run the default, ``fastgen.converters.onnx.OPSET``.
    tables: solvers beside the usual ones, each "SOLVER:STEPS", as "unipc:12".
    check: run ONNX's checker on every file, and the file in onnxruntime beside the reference.
    force: overwrite. Without it, nothing that is there is touched.
    source_options: revision, local_files_only, variant, assume, as for `load`.

    Files appear all together, or not at all; the same model gives the same bytes. Returns what was written. Raises
    ConfigError or ArgumentError, with the reason; CheckpointError; WriteError.
    """
    from .converters.onnx import OPSET, check_arguments, export_engine

    opset = OPSET if opset is None else opset
    tables = tuple(tables) if isinstance(tables, Iterator) else tables  # they are read twice
    check_arguments(what, precision, opset, tables, check, force)
    engine = load(source, device="cpu", dtype="float32", **source_options)
    return export_engine(
        engine,
        destination,
        what=what,
        precision=precision,
        opset=opset,
        tables=tables,
        check=check,
        force=force,
    )


def _name(source: str | Path | nn.Module) -> str:
    """The source, for messages and records."""
    if isinstance(source, nn.Module):
        return f"module {type(source).__module__}.{type(source).__qualname__}"
    return str(source)


def _find(
    source: str | Path | nn.Module, revision: str | None, local_files_only: bool, variant: str | None
) -> Path | nn.Module:
    if not isinstance(source, nn.Module):
        return find(source, revision=revision, local_files_only=local_files_only, variant=variant)
    if revision is not None or variant is not None:
        raise ConfigError(
            "were asked for, but the source is a live module, which has none", argument="revision, variant"
        )
    return source


def _foreign(
    model: Path | nn.Module, variant: str | None, assume: Mapping[str, Any] | None
) -> Converted | None:
    """A model of another project; None for fastgen's own. Raises ConfigError where that cannot be had as asked for."""
    if isinstance(model, nn.Module):
        from .converters import from_module

        return from_module(model, assume)
    if not is_ours(model):
        from .converters import detect

        converter = detect(model)
        if converter is not None:
            return converter.read(model, variant, assume)
    if variant is not None:
        raise ConfigError(_no_variant(variant, model), argument="variant")
    if assume:
        raise ConfigError(f"{model} is a fastgen model, which says everything itself", argument="assume")
    return None


def _read(
    model: Path | nn.Module,
    variant: str | None,
    assume: Mapping[str, Any] | None,
    accept: Callable[[Spec], None],
) -> tuple[Spec, dict[str, nn.Module]]:
    """The spec and filled networks of a folder, file or module, ours or foreign, once `accept` has seen the spec."""
    converted = _foreign(model, variant, assume)
    if converted is not None:
        from .converters import build

        accept(converted.spec)
        exact = isinstance(model, nn.Module) and any(p.dtype == torch.float64 for p in model.parameters())
        return converted.reported(), build(converted, torch.float64 if exact else None)
    assert isinstance(model, Path)

    def builders(spec: Spec) -> Mapping[str, Callable[[], nn.Module]]:
        accept(spec)
        return architectures.builders(spec)

    return load_checkpoint(model, builders)


def _no_variant(variant: str, folder: Path) -> str:
    return f"{variant!r} was asked for, but {folder} is a fastgen model, which has none"


def check_options(engine: type, options: Mapping[str, Any]) -> None:
    """Whether `engine` has these keyword arguments. Raises ArgumentError."""
    from .engines.arguments import check_known

    known: list[str] = []
    for kind in engine.__mro__:  # a class that takes **options hands them to the next
        parameters = inspect.signature(kind).parameters.values()
        known += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OURS]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    check_known(options, known, "besides its own, load takes")
