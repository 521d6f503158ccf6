"""Networks without values: their tensors are those of a network with values, which no other thread goes without."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict
from fastgen.models.building import without_values
from tests.engines.flows import CASES
from tests.models.unet_configs import CONFIGS


class Odd(nn.Module):
    """Values by every door: constructors, functions of nn.init, tensor methods."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.embedding = nn.Embedding(4, 6)
        self.register_buffer("frequencies", torch.randn(7, generator=torch.Generator()))
        self.shift = nn.Parameter(torch.empty(2).normal_(0.0, 1.0))
        self.scale = nn.Parameter(torch.rand((2, 3), dtype=torch.float64))
        nn.init.orthogonal_(self.linear.weight)
        nn.init.trunc_normal_(tensor=self.embedding.weight)


def sized(options: dict[str, Any]) -> dict[str, Any]:
    size = options["sample_size"]
    return {**options, "sample_size": (size, size) if isinstance(size, int) else size}


def network(architecture: str, options: dict[str, Any]) -> nn.Module:
    built = ARCHITECTURES[architecture]
    return built.module(from_dict(built.config, options, architecture))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "odd": Odd,
    **{name: partial(network, "unet", sized(options)) for name, options in CONFIGS.items()},
    **{name: partial(network, *case) for name, case in CASES.items()},
}


def described(module: nn.Module) -> dict[str, tuple]:
    return {name: (t.shape, t.dtype) for name, t in module.state_dict().items()}


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_tensors_without_values_or_random_numbers(name: str) -> None:
    make = MAKERS[name]
    before = torch.get_rng_state()
    with without_values():
        planned = make()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(t.is_meta for t in planned.state_dict().values())
    made = make()
    assert described(planned) == described(made)
    planned.load_state_dict(made.state_dict(), assign=True)
    assert all(torch.equal(t, made.state_dict()[name]) for name, t in planned.state_dict().items())


def test_another_thread_goes_on_with_values() -> None:
    made: list[nn.Linear] = []
    with without_values():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(4, 4)))
        thread.start()
        thread.join()
        assert nn.Linear(4, 4).weight.is_meta
    assert not made[0].weight.is_meta
    assert made[0].weight.std() > 0
    assert not nn.Linear(4, 4).weight.is_meta


def test_no_architecture_computes_with_what_has_no_values() -> None:
    """PyTorch does that in Python, and imports torch._dynamo or sympy for it: seconds."""
    code = (
        "import sys\nfrom tests.models.test_building import MAKERS, without_values\n"
        "for name, make in MAKERS.items():\n"
        "    with without_values():\n"
        "        make()\n"
        "    assert not {'torch._dynamo', 'sympy'} & set(sys.modules), name\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
