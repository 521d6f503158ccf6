"""How many kernels one step of a U-Net launches on a GPU, counted on a CPU by the operations it calls.

    python -m bench.step_count

An operation of PyTorch that is no view is one kernel, a convolution with a bias two (cuDNN's own and the sum), the norm
of PyTorch four (statistics, scale and shift of the channels, and copies to NCHW and back of what is channels-last);
`group_norm` one, `conv_norm` two. Attention is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.fused import blocks, onednn, small
from fastgen.fused.swap import swap
from fastgen.fused.unet import FusedUNet
from fastgen.models.unet import UNet, UNetConfig

LAUNCHES = {
    "aten::convolution": 1,
    "aten::native_group_norm": 4,
    "fastgen::group_norm": 1,
    "fastgen::conv_norm": 2,
    "aten::empty": 0,
    "aten::empty_like": 0,
    "aten::detach": 0,
}
CIFAR = {
    "sample_size": (32, 32),
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}


class Counting(TorchDispatchMode):
    """Counts launches by the name of the operation; views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        same = isinstance(result, Tensor) and any(result is value for value in args)  # nothing was done
        if not func.is_view and (not same or name.endswith("_")):
            biased = name == "aten::convolution" and args[2] is not None
            self.launches[name] += LAUNCHES.get(name, 1) + biased
        return result


@contextmanager
def as_on_a_gpu(few: bool) -> Iterator[None]:
    """Within the block, twins are those of a GPU, and fused operations one call each. few: images leave it idle."""
    with ExitStack() as stack:
        for module in ("fastgen_kernels.group_norm", "fastgen_kernels.conv_norm"):
            stack.enter_context(patch(f"{module}.direct", lambda device: False))
        for module in (blocks, small):
            stack.enter_context(patch.object(module, "DEVICES", ("cpu",) if few else ()))
        stack.enter_context(patch.object(onednn, "why_not", lambda dtype: "counted as on a GPU"))
        yield


def count(call: Callable[[], Any]) -> Counter[str]:
    """Launches of a call, by operation."""
    with torch.no_grad(), Counting() as counting:
        call()
    return counting.launches


def counts(config: UNetConfig, batch: int = 1) -> dict[str, Counter[str]]:
    """Launches of one evaluation: of the plain network, of its twins, and of those for few images."""
    torch.manual_seed(0)
    network = UNet(config).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    x = torch.randn(batch, config.in_channels, *config.sample_size).to(memory_format=torch.channels_last)
    t = torch.full((batch,), 500.0)
    found = {"plain": count(lambda: network(x, t))}
    for name, few in (("fused", False), ("fused, small batch", True)):
        with as_on_a_gpu(few):
            fast = swap(network)
            assert isinstance(fast, FusedUNet)
            condition = fast.condition(t, None, x.dtype)
            found[name] = count(lambda fast=fast, condition=condition: fast.denoise(x, condition, t))  # type: ignore[misc]
    return found


def main() -> None:
    """Print the counts for the CIFAR-10 U-Net at batch 1."""
    for name, launches in counts(UNetConfig(**CIFAR)).items():
        parts = ", ".join(f"{op.partition('::')[2]} {n}" for op, n in launches.most_common() if n)
        print(f"{name}: {launches.total()} ({parts})")


if __name__ == "__main__":
    main()
