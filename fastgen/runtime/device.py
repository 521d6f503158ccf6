"""Which device and dtype a model runs in, and what this machine offers."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from ..errors import ConfigError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is the first CUDA device where there is one, else the CPU. Raises ConfigError."""
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"expected auto, cpu or cuda[:N], got {device!r}", argument="device") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{device} was asked for, but this PyTorch sees no CUDA device", argument="device")
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"expected auto, cpu or cuda[:N], got {device!r}", argument="device")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{device} was asked for, this machine has {torch.cuda.device_count()} CUDA devices",
            argument="device",
        )
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The network's dtype. ``"auto"`` is bfloat16 on CUDA and float32 on CPU. Raises ConfigError."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ConfigError(f"expected auto, {', '.join(DTYPES)}, got {dtype!r}", argument="dtype")
    return chosen  # type: ignore[return-value]


def placed(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a module's parameters are, and the type of the first real one; the CPU and float32 without any."""
    tensors = list(chain(net.parameters(), net.buffers()))
    device = tensors[0].device if tensors else torch.device("cpu")
    return device, next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"``."""
    return str(dtype).removeprefix("torch.")


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions are faster than float32 ones here: tensor cores, or AVX-512 BF16 / AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = cpu_features()
    return features["avx512_bf16"] or features["amx_tile"]


def cpu_features() -> dict[str, bool]:
    """The vector extensions that decide which CPU kernels run."""
    from torch import cpu

    names = {
        "avx2": "_is_avx2_supported",
        "avx512": "_is_avx512_supported",
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_tile": "_is_amx_tile_supported",
    }
    return {name: bool(getattr(cpu, probe, lambda: False)()) for name, probe in names.items()}


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the device, or the host, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # PyTorch's CPU allocator; CUDA, triton and graphs outside PyTorch's allocator; cuBLAS and cuDNN workspaces.
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
