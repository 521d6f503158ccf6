"""Models of Hugging Face's diffusers: DDPM and DDIM pipelines, bare ``UNet2DModel`` and ``AutoencoderKL`` folders,
both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastgen.checkpoint import Spec

from ..base import Converted, Converter, Report, Tensors
from . import autoencoder
from . import read as pipelines
from . import write as writing
from .read import FILES, OWNED, detect, downloads


def read(path: Path, variant: str | None = None, assume: Mapping[str, Any] | None = None) -> Converted:
    """See ``Converter``."""
    return (autoencoder.read if autoencoder.is_one(path) else pipelines.read)(path, variant, assume)


def write(path: Path, spec: Spec, tensors: Tensors, dtype: torch.dtype | None = None) -> Report:
    """See ``Converter``."""
    return (autoencoder.write if spec.engine == "vae" else writing.write)(path, spec, tensors, dtype)


CONVERTER = Converter(
    name="diffusers",
    about="DDPMPipeline and DDIMPipeline folders, UNet2DModel and AutoencoderKL folders",
    detect=detect,
    read=read,
    write=write,
    files=FILES,
    owned=OWNED,
    downloads=downloads,
)
