"""What tells the weights of one state from those of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def fingerprint(network: nn.Module) -> str:
    """The sha256 of a network's parameters and buffers, their names, types and shapes, and its modules' classes.

    It is the same on every device and in every memory format. Reads all weights, one tensor at a time in the host's
    memory.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules(remove_duplicate=False):
        digest.update(f"{name}: {type(module).__qualname__}\n".encode())
    for name, tensor in _tensors(network):
        if is_lazy(tensor):  # it has no values before the network's first call
            digest.update(f"{name}: none yet\n".encode())
            continue
        digest.update(f"{name}: {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_plain(tensor).reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of buffers those, too, that no checkpoint keeps: networks compute with them."""
    return chain(
        network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False)
    )


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, one number after the other."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return tensor.cpu().contiguous()
