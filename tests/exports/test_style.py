"""Export forms of networks for style transfer: what becomes of sides that are no multiples of the stride."""

from __future__ import annotations

import pytest
import torch

from fastgen.exports.style import STYLE_FORMS
from tests.engines.styles import NAMES, network, picture

FORMS = {form.name: form for form in STYLE_FORMS}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["stylize", "apply_style"])
def test_other_sides_come_rounded_up_as_declared(form: str, name: str) -> None:
    net = network(name)
    content, style = picture(1, 41, 57), picture(2)
    code = net.encode_style((style + 1) / 2)
    module = FORMS[form].make(net)
    (made,) = module(content, style if form == "stylize" else code, torch.ones(1))
    assert made.shape == (1, 3, *(-(-side // net.stride) * net.stride for side in (41, 57)))
    want = (net((content + 1) / 2, (style + 1) / 2) * 2 - 1).clamp(-1, 1)
    assert float((made[:, :, :41, :57] - want).abs().max()) < 1e-4
    (port,) = FORMS[form].interface(net).outputs
    assert str(net.stride) in port.meaning
