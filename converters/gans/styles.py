"""What converters of style-based generators have in common: the mean of w, fixed noise, the taps of a filter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastgen.errors import CheckpointError, ConfigError
from fastgen.models.building import without_values
from fastgen.models.gan.stylegan import mapping as network
from fastgen_kernels.noise import normals

BATCH = 1024
MAX_TAP = 10_000
ROUNDING = 1e-5  # of quotients of taps in float32


@torch.no_grad()
def mean_style(config: network.StyleConfig, tensors: Mapping[str, Tensor], count: int) -> Tensor:
    """The mean of w over `count` normal z, which are the same at every call, [w_dim]. tensors: by our names.

    Of a generator without classes.
    """
    with without_values():
        made = network.Mapping(config)
    prefix = "mapping."
    own = {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}
    made.load_state_dict(own, assign=True)
    total = torch.zeros(config.w_dim, dtype=torch.float64, device="cpu")
    for start in range(0, count, BATCH):
        z = normals(range(start, min(start + BATCH, count)), 0, "initial", (config.latent,), device="cpu")
        total += made(z).double().sum(0)
    return (total / count).to(next(iter(tensors.values())).dtype)


def fixed_noise(side: int, index: int, dtype: torch.dtype) -> Tensor:
    """An image of noise [1, 1, side, side] for a layer, where the source draws it anew for every image."""
    return normals([0], index, "step", (1, side, side), device="cpu").to(dtype)


def taps_of(kernel: Tensor, where: str) -> tuple[int, ...]:
    """The whole numbers that a filter [N, N] or [N] is made of, up to a factor.

    Raises CheckpointError for what is no filter; ConfigError where they are not positive whole numbers, or where a
    filter of two dimensions is not the product of one of them.
    """
    kernel = kernel.detach().double()
    if kernel.dim() not in (1, 2) or not kernel.numel() or not bool(torch.isfinite(kernel).all()):
        raise CheckpointError(f"{list(kernel.shape)} is no shape of a filter", argument=where)
    row = kernel.sum(0) if kernel.dim() == 2 else kernel
    if float(row.min()) > 0:
        scaled = row / row.min()
        for factor in range(1, 5):  # 2, 3 are 1, 1.5
            taps = (scaled * factor).round()
            close = bool(((scaled * factor - taps).abs() < ROUNDING * scaled * factor).all())
            product = torch.outer(taps, taps) if kernel.dim() == 2 else taps
            product = product * (kernel.sum() / product.sum())
            if close and torch.allclose(product, kernel, rtol=ROUNDING, atol=0) and taps.max() <= MAX_TAP:
                return tuple(int(tap) for tap in taps)
    raise ConfigError(
        f"a filter of {[round(v, 6) for v in row.tolist()[:16]]}; supported: positive taps that are to each other as "
        "whole numbers, the same in both directions",
        argument=where,
    )
