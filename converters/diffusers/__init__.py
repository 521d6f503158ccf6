"""Models of Hugging Face's diffusers: DDPM and DDIM pipelines, and bare ``UNet2DModel`` folders, both ways."""

from __future__ import annotations

from ..base import Converter
from .read import FILES, OWNED, detect, downloads, read
from .write import write

CONVERTER = Converter(
    name="diffusers",
    about="DDPMPipeline and DDIMPipeline folders, UNet2DModel folders",
    detect=detect,
    read=read,
    write=write,
    files=FILES,
    owned=OWNED,
    downloads=downloads,
)
