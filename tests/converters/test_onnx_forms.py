"""Every declared form of every architecture in onnxruntime, beside its reference; and the page's table of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastgen.architectures import ARCHITECTURES
from fastgen.converters.onnx import export_form
from fastgen.converters.onnx.checking import TOLERANCE, form_error, open_session, trial_sizes
from fastgen.converters.onnx.export import Item
from fastgen.errors import ConfigError
from fastgen.exports import DENOISER, ExportForm
from fastgen.models.unet import UNet
from tests.converters import onnx_table
from tests.models.unet_configs import CONFIGS
from tests.refusals import refused
from tests.small import unet_config

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FORMS = [(name, form) for name, entry in ARCHITECTURES.items() for form in entry.exports]
FOLDERS = {"unet": "digits", "glow": "glow"}  # fixtures with the zoo's models, exported
# Of a flow `elbo` has all that `encode` has, `sample` all that `decode` has; what has no levels has no `elbo`.
WITHIN = {"encode": "elbo", "decode": "sample"}


def whole(architecture: str, form: ExportForm) -> bool:
    """No other form of the tests' network has all that `form` has."""
    net = onnx_table.small(architecture)[1]
    others = [other for other in ARCHITECTURES[architecture].exports if other.name == WITHIN.get(form.name)]
    return all(other.missing(net) for other in others)


HALVES = [
    (name, form)
    for name, form in FORMS
    if "fp16" in form.precisions and not form.missing(onnx_table.small(name)[1]) and whole(name, form)
]
REFERENCES = [(name, form) for name, form in FORMS if name in FOLDERS or whole(name, form)]


@pytest.mark.parametrize(("architecture", "form"), FORMS, ids=lambda value: getattr(value, "name", value))
def test_the_page_lists_every_form(architecture: str, form: ExportForm) -> None:
    text = onnx_table.PAGE.read_text(encoding="utf-8")
    if form.missing(onnx_table.network(architecture)[1]):
        return
    row = onnx_table.described(architecture, form)
    (line,) = [line for line in text.splitlines() if line.startswith(row)]
    measured = [float(cell) for cell in line.removeprefix(row).strip("| ").split("|")]
    assert [error <= TOLERANCE[p] for p, error in zip(form.precisions, measured, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "form"), REFERENCES, ids=lambda value: getattr(value, "name", value)
)
def test_forms_are_their_reference(
    architecture: str, form: ExportForm, request: pytest.FixtureRequest
) -> None:
    net = onnx_table.network(architecture)[1]
    if reason := form.missing(net):
        pytest.skip(reason)
    if architecture in FOLDERS:  # of the zoo: as the command has written it
        folder: Path = request.getfixturevalue(FOLDERS[architecture])
        model = onnx.load(folder / f"{form.name}.onnx")
    else:
        model = export_form(form, net)
    assert onnx_table.error(form, net, model) <= TOLERANCE["fp32"]


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "form"), HALVES, ids=lambda value: getattr(value, "name", value))
def test_forms_in_half_precision(architecture: str, form: ExportForm) -> None:
    net = onnx_table.small(architecture)[1]
    assert onnx_table.error(form, net, export_form(form, net, precision="fp16")) <= TOLERANCE["fp16"]


def unet(config: Mapping[str, Any]) -> UNet:
    torch.manual_seed(0)
    values = {**config}
    size = values["sample_size"]
    values["sample_size"] = (size, size) if isinstance(size, int) else size
    values.setdefault("in_channels", 3)
    from fastgen.models.unet import UNetConfig

    return UNet(UNetConfig(**values)).eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_denoisers_of_every_option(name: str) -> None:
    net = unet(CONFIGS[name])
    if net.config.class_embed_type is not None:
        with refused(ConfigError, "class_embed_type", net.config.class_embed_type):
            export_form(DENOISER, net)
        return
    model = export_form(DENOISER, net)
    session, interface = open_session(model), DENOISER.interface(net)
    item = Item("denoiser", interface, lambda: model, DENOISER, net)
    for batch in (1, 3):
        for sizes in trial_sizes(interface, DENOISER.sizes(net)):
            assert form_error(item, session, batch, sizes) < 1e-4, (batch, sizes)


def test_other_sizes_are_multiples_of_the_divisors() -> None:
    from tests.small import network

    interface = DENOISER.interface(network(unet_config()))
    assert interface.dynamic == ("batch", "height", "width")
    usual, other = trial_sizes(interface, {"height": 8, "width": 8})
    assert usual == {"height": 8, "width": 8}
    assert other == {"height": 10, "width": 6}
    assert all(value % interface.divisor(axis) == 0 for axis, value in other.items())
    assert np.prod(list(other.values())) != 64
