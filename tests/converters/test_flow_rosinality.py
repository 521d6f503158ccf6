"""Glow of rosinality, converted. Its code is no package: `TheirGlow` has its names, and formulas of our own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastgen
from fastgen.converters import from_module
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused

from .flow_cases import BATCH, TOLERANCE, ours


class TheirGlow:
    """Weights by their names, and what they mean, written for one sample's formulas (Kingma & Dhariwal 2018)."""

    def __init__(
        self, channels: int, flows: int, blocks: int, affine: bool, lu: bool, hidden: int = 6
    ) -> None:
        torch.manual_seed(0)
        self.flows, self.blocks, self.affine, self.channels = flows, blocks, affine, channels
        self.state: dict[str, Tensor] = {}
        for b in range(blocks):
            channels *= 4
            for f in range(flows):
                name = f"blocks.{b}.flows.{f}"
                norm = {
                    "loc": torch.randn(1, channels, 1, 1),
                    "scale": 1 + 0.1 * torch.randn(1, channels, 1, 1),
                }
                self._put(f"{name}.actnorm", **norm, initialized=torch.tensor(1, dtype=torch.uint8))
                rotation = torch.linalg.qr(torch.randn(channels, channels)).Q
                if lu or b == blocks - 1:  # in their `Glow` the last block is made without conv_lu
                    p, lower, upper = torch.linalg.lu(rotation)
                    s = upper.diagonal()
                    ones = torch.ones(channels, channels)
                    self._put(
                        f"{name}.invconv",
                        w_p=p, w_l=lower, w_u=upper.triu(1), w_s=s.abs().log(), s_sign=s.sign(),
                        u_mask=ones.triu(1), l_mask=ones.tril(-1), l_eye=torch.eye(channels),
                    )  # fmt: skip
                else:
                    self._put(f"{name}.invconv", weight=rotation[:, :, None, None])
                outputs = channels if affine else channels // 2
                self._conv(f"{name}.coupling.net.0", channels // 2, hidden, 3)
                self._conv(f"{name}.coupling.net.2", hidden, hidden, 1)
                self._conv(f"{name}.coupling.net.4.conv", hidden, outputs, 3)
                self._put(f"{name}.coupling.net.4", scale=0.1 * torch.randn(1, outputs, 1, 1))
            last = b == blocks - 1
            inputs = channels if last else channels // 2
            self._conv(f"blocks.{b}.prior.conv", inputs, 2 * inputs, 3)
            self._put(f"blocks.{b}.prior", scale=0.1 * torch.randn(1, 2 * inputs, 1, 1))
            channels //= 2

    def _put(self, name: str, **values: Tensor) -> None:
        self.state |= {f"{name}.{key}": value for key, value in values.items()}

    def _conv(self, name: str, inputs: int, outputs: int, size: int) -> None:
        weight = torch.randn(outputs, inputs, size, size) / math.sqrt(inputs * size**2)
        self._put(name, weight=0.5 * weight, bias=0.1 * torch.randn(outputs))

    def _zero_conv(self, name: str, x: Tensor) -> Tensor:
        s = self.state
        x = F.conv2d(F.pad(x, [1] * 4, value=1.0), s[f"{name}.conv.weight"], s[f"{name}.conv.bias"])
        return x * torch.exp(3 * s[f"{name}.scale"])

    def _matrix(self, name: str) -> Tensor:
        s = self.state
        if f"{name}.weight" in s:
            return s[f"{name}.weight"][:, :, 0, 0]
        lower = s[f"{name}.w_l"] * s[f"{name}.l_mask"] + s[f"{name}.l_eye"]
        upper = s[f"{name}.w_u"] * s[f"{name}.u_mask"] + torch.diag(
            s[f"{name}.s_sign"] * s[f"{name}.w_s"].exp()
        )
        return s[f"{name}.w_p"] @ lower @ upper

    def _step(self, name: str, x: Tensor) -> Tensor:
        s = self.state
        x = s[f"{name}.actnorm.scale"] * (x + s[f"{name}.actnorm.loc"])
        x = torch.einsum("oi,bihw->bohw", self._matrix(f"{name}.invconv"), x)
        a, b = x.chunk(2, 1)
        hidden = F.relu(
            F.conv2d(a, s[f"{name}.coupling.net.0.weight"], s[f"{name}.coupling.net.0.bias"], padding=1)
        )
        hidden = F.relu(
            F.conv2d(hidden, s[f"{name}.coupling.net.2.weight"], s[f"{name}.coupling.net.2.bias"])
        )
        out = self._zero_conv(f"{name}.coupling.net.4", hidden)
        if not self.affine:
            return torch.cat([a, b + out], 1)
        log_s, t = out.chunk(2, 1)
        return torch.cat([a, (b + t) * torch.sigmoid(log_s + 2)], 1)

    def _squeezed(self, x: Tensor) -> Tensor:
        pixels = [x[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
        return torch.stack(pixels, 2).flatten(1, 2)

    def encode(self, x: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Latents of x in [-1/2, 1/2], and mean and log deviation of each."""
        latents, moments = [], []
        for b in range(self.blocks):
            x = self._squeezed(x)
            for f in range(self.flows):
                x = self._step(f"blocks.{b}.flows.{f}", x)
            if b < self.blocks - 1:
                x, z = x.chunk(2, 1)
                mean, log_std = self._zero_conv(f"blocks.{b}.prior", x).chunk(2, 1)
            else:
                z = x
                mean, log_std = self._zero_conv(f"blocks.{b}.prior", torch.zeros_like(x)).chunk(2, 1)
            latents.append(z)
            moments.append((mean, log_std))
        return latents, moments

    def log_prob(self, x: Tensor) -> Tensor:
        """Of x in [0, 1], its Jacobian by autograd, one sample at a time."""
        total = []
        for one in x:
            jacobian = torch.autograd.functional.jacobian(
                lambda v: torch.cat([z.flatten() for z in self.encode(v[None] - 0.5)[0]]), one
            )
            log_p = torch.linalg.slogdet(jacobian.reshape(one.numel(), one.numel())).logabsdet
            for z, (mean, log_std) in zip(*self.encode(one[None] - 0.5), strict=True):
                log_p = log_p + torch.distributions.Normal(mean, log_std.exp()).log_prob(z).sum()
            total.append(log_p)
        return torch.stack(total)


CASES = {"affine, LU": (3, 2, 2, True, True), "additive, plain": (1, 1, 3, False, False)}


@pytest.mark.parametrize("name", CASES)
def test_agrees(name: str, tmp_path: Path) -> None:
    """The latents of our samples are the noise that they were made of; densities equal autograd's. float64."""
    theirs = TheirGlow(*CASES[name])
    theirs.state = {k: v.double() if v.is_floating_point() else v for k, v in theirs.state.items()}
    torch.save({f"module.{k}": v for k, v in theirs.state.items()}, tmp_path / "model.model")
    engine = fastgen.load(tmp_path / "model.model", device="cpu", dtype="float64", assume={"img_size": 8})
    torch.manual_seed(1)
    x = torch.rand(2, *engine.shape, dtype=torch.float64)
    flow = engine.flow
    # The file's float64 became float32 on the way: what that leaves of a log-density of some hundreds.
    torch.testing.assert_close(flow.log_prob(x), theirs.log_prob(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_live_module_agrees(name: str, dtype: torch.dtype) -> None:
    """Told by the names of its tensors; samples are encoded by their formulas again."""
    theirs = TheirGlow(*CASES[name])
    theirs.state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in theirs.state.items()}
    flow = ours(nested(theirs.state), dtype, img_size=8, n_bits=8)
    assert flow.levels == 256
    torch.manual_seed(1)
    given = [torch.randn(BATCH, *shape, dtype=dtype) for shape in flow.latent_shapes]
    latents, moments = theirs.encode(flow.sample(given) - 0.5)
    tolerance = 10 * TOLERANCE[dtype]  # there and back: rounding goes through the chain twice
    for noise, z, (mean, log_std) in zip(given, latents, moments, strict=True):
        torch.testing.assert_close(mean + log_std.exp() * noise, z, rtol=tolerance, atol=tolerance)
    x = torch.rand(2, *flow.data_shape, dtype=dtype)
    torch.testing.assert_close(
        flow.log_prob(x), theirs.log_prob(x), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def test_the_last_block_of_a_glow_without_lu(tmp_path: Path) -> None:
    """With --no_lu their `Glow` has plain matrices in every block but the last, whose factors are multiplied out."""
    theirs = TheirGlow(*CASES["additive, plain"])
    kinds = {name.split(".")[1]: name.endswith("weight") for name in theirs.state if ".invconv." in name}
    assert kinds == {"0": True, "1": True, "2": False}
    report = from_module(nested(theirs.state), {"img_size": 8}).report
    assert any("LU" in line for line in report.renamed)


def nested(state: dict[str, Tensor]) -> nn.Module:
    """A module whose state dict is `state`."""
    root = nn.Module()
    for name, value in state.items():
        *path, last = name.split(".")
        here = root
        for part in path:
            if part not in here._modules:
                here.add_module(part, nn.Module())
            here = here._modules[part]  # type: ignore[assignment]
        if value.is_floating_point():
            here.register_parameter(last, nn.Parameter(value))
        else:
            here.register_buffer(last, value)
    return root


def test_refused(tmp_path: Path) -> None:
    state = TheirGlow(*CASES["affine, LU"]).state
    torch.save(state, tmp_path / "glow.pt")
    with refused(ConfigError, tmp_path / "glow.pt", "--assume img_size=64"):
        fastgen.load(tmp_path / "glow.pt")
    with refused(ConfigError, "sample_size", "7x7"):
        fastgen.load(tmp_path / "glow.pt", assume={"img_size": 7})
    torch.save({**state, "blocks.0.flows.0.invconv.w_s": torch.zeros(3)}, tmp_path / "glow.pt")
    with refused(CheckpointError, tmp_path / "glow.pt", "w_s", "[3]", "[12]"):
        fastgen.load(tmp_path / "glow.pt", assume={"img_size": 8})
    report = from_module(nested(state), {"img_size": 8}).report
    assert not any("LU" in line for line in report.renamed)
    assert [line.split(";")[0] for line in report.assumed] == ["n_bits = 5"]
