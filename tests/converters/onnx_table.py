"""The table of export forms in ``docs/onnx.md``.

    python -m tests.converters.onnx_table [ARCHITECTURE ...]

measures and writes it; with names, the rows of these architectures, and the others stay.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

import fastgen
from bench.pages import write_between
from fastgen.architectures import ARCHITECTURES
from fastgen.converters.onnx import export_form
from fastgen.converters.onnx.checking import BATCHES, form_error, open_session, trial_sizes
from fastgen.converters.onnx.export import Item
from fastgen.exports import ExportForm, Port
from tests.engines import gans, stylegans
from tests.engines.flows import CASES, make
from tests.engines.styles import NAMES as STYLES
from tests.engines.styles import network as style_network
from tests.engines.translations import PATCH, PIXEL, RESNET, UNET
from tests.engines.translations import network as translation
from tests.models.test_upscale import small as upscaler
from tests.models.vae_models import ARCHITECTURES as VAES
from tests.small import network as small_network
from tests.small import unet_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "onnx.md"
MARKS = ("<!-- forms: python -m tests.converters.onnx_table -->\n", "<!-- end of forms -->")
ZOO = {"unet": "zoo:ddpm-mnist", "glow": "zoo:glow-mnist", "microast": "zoo:microast"}
TRANSLATIONS = {part.architecture: part for part in (UNET, RESNET, PATCH, PIXEL)}
UPSCALERS = {
    "srresnet": "srresnet x2",
    "msrresnet": "msrresnet x4",
    "rrdbnet": "rrdbnet x2",
    "srvgg": "srvgg x4",
}
HEAD = (
    "| architecture | form | in | out | of any length | measured on | error fp32 | error fp16 |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


@functools.cache
def network(architecture: str) -> tuple[str, nn.Module]:
    """(what it is, a network) that an architecture's forms are tried on: a zoo model, else a small one of the tests."""
    if architecture in ZOO:
        engine = fastgen.load(ZOO[architecture], device="cpu", dtype="float32")
        return ZOO[architecture], next(iter(engine.networks.values()))
    return small(architecture)


def small(architecture: str) -> tuple[str, nn.Module]:
    """As `network`, of the tests in any case."""
    if architecture == "unet":
        return "a small one", small_network(unet_config())
    if architecture in STYLES:
        return "a small one", style_network(architecture)
    if architecture in VAES:
        return "a small one", VAES[architecture]()
    if architecture in TRANSLATIONS:
        return "a small one", translation(TRANSLATIONS[architecture])
    if architecture in UPSCALERS:
        return f"a small one ({UPSCALERS[architecture]})", upscaler(UPSCALERS[architecture])
    for case, (name, _) in reversed(stylegans.CASES.items()):
        if name == architecture:
            return f"a small one ({case})", stylegans.generator(case)
    if (found := gan(architecture)) is not None:
        return found
    name = next(name for name, (kind, _) in CASES.items() if kind == architecture)
    return f"a small one ({name})", make(name).flow


def gan(architecture: str) -> tuple[str, nn.Module] | None:
    """A small network of the family of GANs, with standing statistics where there are such; None for other names."""
    for case, networks in reversed(gans.CASES.items()):
        for part, (name, _) in zip(("generator", "discriminator"), networks, strict=True):
            if name == architecture:
                return f"a small one ({case})", gans.parts(case)[part]
    return None


def forms() -> Iterator[tuple[str, ExportForm]]:
    """(architecture, form) of every form that the architecture's network has."""
    for architecture, entry in ARCHITECTURES.items():
        for form in entry.exports:
            if not form.missing(network(architecture)[1]):
                yield architecture, form


def error(form: ExportForm, net: nn.Module, model: onnx.ModelProto) -> float:
    """The largest error over batches and sizes, relative to the reference's largest value; ONNX's checker passed."""
    onnx.checker.check_model(model, full_check=True)
    item = Item(form.name, form.interface(net), lambda: model, form, net)
    session = open_session(model)
    return max(
        form_error(item, session, batch, sizes)
        for batch in BATCHES
        for sizes in trial_sizes(item.interface, form.sizes(net))
    )


def described(architecture: str, form: ExportForm) -> str:
    """A row without its errors."""
    what, net = network(architecture)
    interface = form.interface(net)
    dynamic = [
        f"{axis} (of {interface.divisor(axis)})" if interface.divisor(axis) > 1 else axis
        for axis in interface.dynamic
    ]
    cells = [
        architecture,
        form.name,
        _names(interface.inputs),
        _names(interface.outputs),
        ", ".join(dynamic),
        what,
    ]
    return "| " + " | ".join(cells) + " |"


def _names(ports: tuple[Port, ...]) -> str:
    """``latents_0 .. latents_3`` for many alike."""
    names: list[str] = []
    for port in ports:
        match = re.fullmatch(r"(\w+_)(\d+)", port.name)
        if match and names and names[-1].startswith(match[1]):
            names[-1] = f"{match[1]}0 .. {port.name}"
        else:
            names.append(port.name)
    return ", ".join(names)


def table(wanted: Collection[str], known: str) -> str:
    """The table, measured for `wanted` architectures, as in the table `known` for the others."""
    torch.set_num_threads(1)
    lines = []
    for architecture, form in forms():
        if architecture not in wanted:
            start = f"| {architecture} | {form.name} |"
            lines += [line for line in known.splitlines(keepends=True) if line.startswith(start)]
            continue
        net = network(architecture)[1]
        models = [export_form(form, net, precision=precision) for precision in form.precisions]
        found = " ".join(f"{error(form, net, model):.1e} |" for model in models)
        lines.append(f"{described(architecture, form)} {found}\n")
        print(lines[-1], end="", file=sys.stderr, flush=True)
    return HEAD + "".join(lines)


def main() -> None:
    wanted = sys.argv[1:] or list(ARCHITECTURES)
    if unknown := set(wanted) - set(ARCHITECTURES):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(ARCHITECTURES)}")
    known = PAGE.read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0]
    write_between(PAGE, MARKS, table(wanted, known))


if __name__ == "__main__":
    main()
