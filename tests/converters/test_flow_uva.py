"""Flows of the UvA tutorial 11, converted: random weights against its formulas, and its own MNISTFlow_simple."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastgen
from fastgen.errors import CheckpointError, ConfigError
from tests import real

from .flow_cases import BATCH

SIZE = 4
CHECKPOINT = "weights/mnist-flow/MNISTFlow_simple.ckpt"


def put_coupling(state: dict[str, Tensor], name: str, i: int, inputs: int, hidden: int, blocks: int) -> None:
    """Random weights of a CouplingLayer by their names; i: whose checkerboard is inverted where i is odd."""
    board = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2
    state[f"{name}.mask"] = (board if i % 2 == 0 else 1 - board).float().view(1, 1, SIZE, SIZE)
    state[f"{name}.scaling_factor"] = 0.3 * torch.randn(1)
    nn = f"{name}.network.nn"
    convs = [(f"{nn}.0", inputs, hidden, 3), (f"{nn}.{2 * blocks + 2}", 2 * hidden, 2, 3)]
    for b in range(blocks):
        convs += [
            (f"{nn}.{2 * b + 1}.net.1", 2 * hidden, hidden, 3),
            (f"{nn}.{2 * b + 1}.net.3", 2 * hidden, 2 * hidden, 1),
        ]
        state[f"{nn}.{2 * b + 2}.gamma"] = 1 + 0.1 * torch.randn(1, hidden, 1, 1)
        state[f"{nn}.{2 * b + 2}.beta"] = 0.1 * torch.randn(1, hidden, 1, 1)
    for place, before, after, size in convs:
        state[f"{place}.weight"] = torch.randn(after, before, size, size) / (before * size**2) ** 0.5
        state[f"{place}.bias"] = 0.1 * torch.randn(after)


def coupling(
    state: dict[str, Tensor], name: str, blocks: int, z: Tensor, beside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Towards the latents: z' = (z + t) exp(s), and the sum of s."""

    def conv(place: str, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, state[f"{place}.weight"], state[f"{place}.bias"], padding=padding)

    def both(x: Tensor) -> Tensor:
        return torch.cat([F.elu(x), F.elu(-x)], 1)

    nn, mask = f"{name}.network.nn", state[f"{name}.mask"]
    x = z * mask
    x = conv(f"{nn}.0", x if beside is None else torch.cat([x, beside], 1), 1)
    for b in range(blocks):
        inner = conv(f"{nn}.{2 * b + 1}.net.1", both(x), 1)
        value, gate = conv(f"{nn}.{2 * b + 1}.net.3", both(inner), 0).chunk(2, 1)
        x = x + value * gate.sigmoid()
        x = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
        x = x * state[f"{nn}.{2 * b + 2}.gamma"] + state[f"{nn}.{2 * b + 2}.beta"]
    s, t = conv(f"{nn}.{2 * blocks + 2}", both(x), 1).chunk(2, 1)
    factor = state[f"{name}.scaling_factor"].exp()
    s, t = (1 - mask) * torch.tanh(s / factor) * factor, (1 - mask) * t
    return (z + t) * s.exp(), s.flatten(1).sum(1)


def made(variational: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    for i in range(2 * variational):
        put_coupling(state, f"flows.0.flows.{i}", i, 2, 3, 2)
    for i in range(3):
        put_coupling(state, f"flows.{i + 1}", i, 1, 5, 1)
    return state


def test_random_weights_agree(tmp_path: Path) -> None:
    state = made()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "flow.ckpt")
    engine = fastgen.load(tmp_path / "flow.ckpt", device="cpu", assume={"alpha": 0.1})
    x = torch.rand(BATCH, 1, SIZE, SIZE)
    y = x * 0.9 + 0.05
    z = y.log() - (1 - y).log()
    log_det = (0.9 / (y * (1 - y))).log().flatten(1).sum(1)
    for i in range(3):
        z, change = coupling(state, f"flows.{i + 1}", 1, z)
        log_det = log_det + change
    (latent,), found = engine.flow(x)
    torch.testing.assert_close(latent, z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, log_det, rtol=1e-5, atol=1e-5)


def test_variational_dequantisation_agrees(tmp_path: Path) -> None:
    state = made(variational=True)
    torch.save(state, tmp_path / "flow.ckpt")
    engine = fastgen.load(tmp_path / "flow.ckpt", device="cpu", assume={"quants": 8})
    dequantiser = engine.flow.dequantiser.double()  # logarithms of tails
    state = {name: value.double() for name, value in state.items()}
    k = torch.randint(0, 8, (BATCH, 1, SIZE, SIZE))
    noise = torch.randn(BATCH, 1, SIZE, SIZE, dtype=torch.float64)
    uniform = torch.special.ndtr(noise)
    v = uniform.log() - (1 - uniform).log()
    log_q = (uniform * (1 - uniform)).log().flatten(1).sum(1)
    for i in range(2):
        v, change = coupling(state, f"flows.0.flows.{i}", 2, v, k / 7 * 2 - 1)
        log_q = log_q - change
    u = v.sigmoid()
    log_q = log_q - (u * (1 - u)).log().flatten(1).sum(1)
    x, found = dequantiser(k, noise)
    # The scaling factors' exponentials are folded into the weights, once, in float32.
    torch.testing.assert_close(x, (k + u) / 8, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, log_q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flows.5.mask": torch.ones(1, 4, 1, 1)}, "flows.4 has no tensors: SqueezeFlow and SplitFlow"),
        ({"flows.2.mask": torch.ones(1, 1, SIZE, SIZE)}, "flows.2.mask is no checkerboard"),
        ({"flows.1.network.nn.9.weight": torch.ones(1)}, "not the layers of a GatedConvNet"),
        ({"flows.1.network.nn.0.weight": torch.ones(7, 1, 3, 3)}, "has shape"),
        ({"flows.1.other": torch.ones(7)}, "the first is flows.1.other"),
    ],
)
def test_refused(change: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    torch.save({**made(), **change}, tmp_path / "flow.ckpt")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        fastgen.load(tmp_path / "flow.ckpt")


def mnist_flow() -> tuple[Any, dict[str, Tensor]]:
    engine = fastgen.load(real.folder() / CHECKPOINT, device="cpu")
    return engine, torch.load(real.folder() / "expected/phlippe_flow_simple.pt", weights_only=True)


@pytest.mark.real
def test_mnist_flow_gives_what_its_author_had() -> None:
    """Latents and samples to 1e-4. The log-determinant, a sum of 6,272 terms near -1,200, to 1e-6 of itself."""
    engine, expected = mnist_flow()
    assert engine.describe()["converted"]["assumed"][0].startswith("quants = 256")
    z, log_det = expected["cont"], torch.zeros(8)
    for layer in engine.flow.scales[0]:
        z, change = layer(z)
        log_det = log_det + change
    torch.testing.assert_close(z, expected["cont_z"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(log_det, expected["cont_ldj"], rtol=1e-6, atol=0)
    levels = engine.flow.dequantiser.quantise((engine.decode([expected["z"]]) + 1) / 2)
    wrong = levels != expected["sample"]
    # Where x 256 is an integer but for rounding, the level below or above is as right.
    assert (levels - expected["sample"]).abs().max() <= 1
    assert wrong.double().mean() < 1e-3


@pytest.mark.real
@pytest.mark.slow
def test_mnist_flow_bits_per_dim() -> None:
    """Its author recorded 1.0784 on all 10,000 test images. An image's deviation is 0.26, that of 500's mean 0.011."""
    engine, _ = mnist_flow()
    images = torch.from_numpy(real.mnist()[0][::20].copy())[:, None]
    bits = engine.bits_per_dim(images, samples=8)
    assert bits.standard_error < 0.015
    assert abs(bits.mean - 1.0784) < 0.01 + 2 * bits.standard_error
