"""Kernels of a step, counted by operations; what a loop does beside its network."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from bench import step_count
from bench.step_count import CIFAR, count, counts
from fastgen.engines.diffusion import body
from fastgen.models.unet import UNetConfig
from tests.engines.test_conditions import InTwo, loop, unlike

# A step beside its network and the fused reverse step: rows, times, the place of the conditions and they themselves.
OUTSIDE = {False: 5, True: 9}


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_does_little_beside_its_network(guided: bool) -> None:
    session = loop(InTwo())
    for request in unlike()[1:2] if guided else unlike()[:1]:
        session.add(request)
    session.step()
    assert session.tabled
    network = session.network
    with (
        patch.object(body, "reverse_step_out", lambda *given, **named: None),
        patch.object(type(network), "denoise", lambda self, x, emb, t: x),
    ):
        step = body.step_body(session, 1, guided, ())
        found = count(step)
    assert found.total() <= OUTSIDE[guided], found


@pytest.mark.slow
def test_the_cifar_u_net_needs_a_third_of_the_kernels() -> None:
    found = {name: launches.total() for name, launches in counts(UNetConfig(**CIFAR)).items()}
    assert 500 <= found["plain"] <= 620
    assert found["fused"] <= 250
    assert found["fused, small batch"] <= 165


def test_counts_are_of_what_runs() -> None:
    """By hand: of one convolution with a bias, one without, a sum in place and a view."""
    x = torch.randn(1, 2, 4, 4)
    biased, bare = torch.nn.Conv2d(2, 2, 3), torch.nn.Conv2d(2, 2, 3, bias=False)
    assert count(lambda: biased(x)).total() == 2
    assert count(lambda: bare(x)).total() == 1
    assert count(lambda: bare(x).add_(1).view(-1)[:2]).total() == 2
    assert step_count.LAUNCHES["fastgen::conv_norm"] == 2
