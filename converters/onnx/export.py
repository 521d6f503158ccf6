"""``fastgen export``: which files a model becomes, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fastgen import __version__
from fastgen.architectures import ARCHITECTURES
from fastgen.config import check_flags, to_dict
from fastgen.engines import DiffusionEngine, FlowEngine
from fastgen.engines.base import Engine
from fastgen.errors import ArgumentError, ConfigError
from fastgen.exports import ExportForm, Interface, Port, support
from fastgen.files import check_writable, make_folder

from .exporter import OPSET, check_opset, describe, export_form, precision_dtype
from .folder import Written, changed, check_destination, model_files, write_folder
from .samplers import (
    Layout,
    Pieces,
    sampler_interface,
    sampler_model,
    step_interface,
    step_model,
)
from .server import configuration
from .tables import parse_tables, table_files

if TYPE_CHECKING:
    import onnx

WHAT = ("model", "step", "sampler", "tables", "server", "all")
OF_DIFFUSION = ("step", "sampler", "tables")


@dataclass(frozen=True)
class Item:
    """One model of an export: ``NAME.onnx``. form: what is compared with the reference, None for step and sampler."""

    name: str
    interface: Interface
    build: Callable[[], onnx.ModelProto]
    form: ExportForm | None = None
    network: nn.Module | None = None


class Source:
    """An engine, float32 on the CPU, and what it can be written as. Raises ConfigError, with the reason."""

    def __init__(self, engine: Engine, precision: str, opset: int) -> None:
        self.engine, self.precision, self.opset = engine, precision, opset
        every = forms_of(engine)
        self.forms = [(network, form) for network, form in every if not form.missing(network)]
        reasons = {form.name: form.missing(network) for network, form in every}
        self.left_out = [f"{name}.onnx: {reason}" for name, reason in reasons.items() if reason]

    def items(self, what: str) -> list[Item]:
        """The models of `what`, none of them made yet."""
        found = []
        diffusion = isinstance(self.engine, DiffusionEngine)
        if what in ("model", "server", "all"):
            for network, form in self.forms:
                build = (lambda: self.pieces.denoiser) if diffusion else self._builder(network, form)
                found.append(Item(form.name, form.interface(network), build, form, network))
        if diffusion and what in ("step", "all"):
            found.append(Item("step", step_interface(self.layout), lambda: step_model(self.pieces)))
        if diffusion and what in ("sampler", "server", "all"):
            found.append(Item("sampler", sampler_interface(self.layout), lambda: sampler_model(self.pieces)))
        return found

    def _builder(self, network: nn.Module, form: ExportForm) -> Callable[[], onnx.ModelProto]:
        return lambda: export_form(form, network, precision=self.precision, opset=self.opset)

    @cached_property
    def pieces(self) -> Pieces:
        """Of a diffusion model: each is exported once, for all of its files."""
        ((network, _),) = self.forms
        return Pieces(network, self.layout, precision=self.precision, opset=self.opset)

    @cached_property
    def layout(self) -> Layout:
        engine = self.engine
        assert isinstance(engine, DiffusionEngine)
        settings = engine.settings
        return Layout(
            engine.state_shape, settings.num_classes is not None, settings.null_class, settings.learned
        )

    def metadata(self, item: Item) -> dict[str, str]:
        """What a file says of itself."""
        engine = self.engine
        networks = {part: to_dict(net.config) for part, net in engine.networks.items()}
        ports = (*item.interface.inputs, *item.interface.outputs)
        return {
            "fastgen.version": __version__,
            "fastgen.family": engine.kind,
            "fastgen.form": item.name,
            "fastgen.precision": self.precision,
            "fastgen.sha256": str(engine.provenance.get("sha256") or ""),
            "fastgen.ranges": json.dumps({port.name: port.meaning for port in ports}),
            "fastgen.config": json.dumps({"architectures": dict(engine.architectures), "networks": networks}),
        }

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the model: plain data, the same for every export of it."""
        engine = self.engine
        known: dict[str, Any] = {
            "fastgen": __version__,
            "family": engine.kind,
            "sha256": engine.provenance.get("sha256"),
            "precision": self.precision,
            "opset": self.opset,
        }
        if isinstance(engine, DiffusionEngine):
            settings = engine.settings
            known |= {
                "shape": list(engine.shape),
                "classes": settings.num_classes,
                "null_class": settings.null_class,
                "class_names": None if settings.class_names is None else list(settings.class_names),
                "defaults": {
                    "solver": settings.solver,
                    "steps": settings.steps,
                    "guidance_scale": settings.guidance_scale,
                },
            }
        if isinstance(engine, FlowEngine):
            known |= flow_facts(engine)
        return known


def flow_facts(engine: FlowEngine) -> dict[str, Any]:
    """Of a flow: shapes of its data and latents, where it has a density, what its latents are conditioned on."""
    flow = engine.flow
    bounds = support(flow)
    return {
        "shape": list(flow.data_shape),
        "latent_shapes": [list(shape) for shape in flow.latent_shapes],
        "levels": flow.levels,
        "support": None if bounds is None else list(bounds),
        "classes": flow.classes,
        "context": flow.context,
        "class_names": None if engine.settings.class_names is None else list(engine.settings.class_names),
        "defaults": {"temperature": engine.settings.temperature},
    }


def forms_of(engine: Engine) -> list[tuple[nn.Module, ExportForm]]:
    """(network, form) of all that an engine's networks can be written as. Raises ConfigError, with the reason."""
    found, reasons = [], []
    for part, network in engine.networks.items():
        name = engine.architectures.get(part)
        architecture = ARCHITECTURES.get(str(name))
        if architecture is None or type(network) is not architecture.module:
            reasons.append(
                f"{part}: {name} is not one of {', '.join(ARCHITECTURES)}, which alone have export forms"
            )
        elif not architecture.exports:
            reasons.append(f"{part}: {architecture.no_export}")
        else:
            found += [(network, form) for form in architecture.exports]
    if reasons:
        raise ConfigError(f"cannot be exported: {'; '.join(reasons)}", argument=engine.source)
    return found


def export_engine(
    engine: Engine,
    destination: str | Path,
    *,
    what: str = "all",
    precision: str = "fp32",
    opset: int = OPSET,
    tables: Iterable[str] = (),
    check: bool = False,
    force: bool = False,
) -> Written:
    """Write an engine (float32, on the CPU) as ONNX files; see ``fastgen.export``."""
    asked, folder = check_arguments(what, precision, opset, tables, check, force), Path(destination)
    if not isinstance(engine, DiffusionEngine) and (what in OF_DIFFUSION or asked):
        raise ConfigError(
            f"step, sampler and tables are of diffusion models, and {engine.source} is a {engine.kind}",
            argument="what" if what in OF_DIFFUSION else "tables",
        )
    source = Source(engine, precision, opset)
    items = source.items(what)
    place: Callable[[str], str] = _served if what == "server" else _plain
    files: dict[str, bytes] = {}
    described: dict[str, Mapping[str, Any]] = {}
    left_out = source.left_out
    if isinstance(engine, DiffusionEngine) and what != "model":
        files, tables_left_out = table_files(engine, asked)
        left_out = [*left_out, *tables_left_out]
    # Before minutes of work: would anything be overwritten, can anything be written at all?
    check_destination(folder, [*(place(item.name) for item in items), *changed(folder, files)], force)
    make_folder(folder, parents=True)
    check_writable(folder)
    checks: list[str] = []
    for item in items:
        model = item.build()
        describe(model, source.metadata(item))
        if check:
            from .checking import check_item

            checks += check_item(engine, item, model, precision)
        files |= model_files(place(item.name), model)
        if what == "server":
            files[f"server/{item.name}/config.pbtxt"] = configuration(item.name, item.interface)
        else:
            described[place(item.name)] = _description(item)
    return Written(folder, write_folder(folder, files, described, source.facts(), force), left_out, checks)


def check_arguments(
    what: str, precision: str, opset: int, tables: Iterable[str], check: bool, force: bool
) -> list[tuple[str, int]]:
    """Before a model is loaded; returns what `tables` ask for. Raises ArgumentError, ConfigError."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"is needed to write ONNX files: pip install 'fastgen[onnx]' ({error})", argument=error.name
        ) from error
    if what not in WHAT:
        raise ArgumentError(f"expected one of {', '.join(WHAT)}, got {what!r}", argument="what")
    precision_dtype(precision)
    check_opset(opset)
    check_flags(check=check, force=force)
    return parse_tables(tables)


def _plain(name: str) -> str:
    return f"{name}.onnx"


def _served(name: str) -> str:
    return f"server/{name}/1/model.onnx"


def _description(item: Item) -> dict[str, Any]:
    return {
        "form": item.name,
        "inputs": [_port(port) for port in item.interface.inputs],
        "outputs": [_port(port) for port in item.interface.outputs],
    }


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "axes": list(port.axes), "dtype": str(port.dtype).removeprefix("torch.")}
