"""The form of translation with dropout: its noise goes by the image's size, and is the network's masks."""

from __future__ import annotations

import pytest
import torch

from fastgen.exports.translate import GENERATOR
from tests.engines.translations import RESNET, UNET, network

FORM = next(form for form in GENERATOR if form.name == "translate_dropout")


@pytest.mark.parametrize("part", [UNET, RESNET], ids=lambda part: part.architecture)
def test_noise_of_any_size(part) -> None:  # type: ignore[no-untyped-def]
    net = network(part)
    interface, multiple = FORM.interface(net), net.multiple
    assert interface.dynamic == ("batch", "height", "width", "activations")
    for rows, columns in ((2, 2), (3, 2)):
        sizes = {"height": rows * multiple, "width": columns * multiple}
        x, noise = FORM.example(net, 2, torch.Generator().manual_seed(0), sizes)
        assert x.shape[2:] == tuple(sizes.values())
        assert noise.shape == (2, net.dropout_count(*x.shape[2:]))
        assert noise.shape[1] == interface.divisor("activations") * rows * columns
        (made,) = FORM.make(net)(x, noise)
        (wanted,) = FORM.reference(net, x, noise)
        assert torch.equal(made, wanted)
        assert not torch.equal(made, FORM.reference(net, x, -noise)[0])


def test_a_network_without_masks_has_no_such_form() -> None:
    assert FORM.missing(network(RESNET, dropout=False))
    assert FORM.missing(network(RESNET, blocks=0))
    assert not FORM.missing(network(RESNET))
