"""What a large picture costs a style engine: little for each of its pixels, by tiles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastgen

from . import children

SIZE = 800, 1200
# Of each pixel: 24 bytes are content and result; features at a quarter of the size have 64 channels, 16 bytes a pixel,
# of which a residual block has some five copies at a time. A tile of 256 x 256 is a tenth of this picture. Without
# tiles it is 467.
MOST = 260


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def stylize(tile: int, most: float) -> None:
    torch.set_num_threads(1)
    engine = fastgen.load("zoo:microast", device="cpu", tile=tile)
    generator = torch.Generator().manual_seed(0)
    content = torch.rand(1, 3, *SIZE, generator=generator) * 2 - 1
    style = engine.encode_style(content[:, :, :64, :64])
    engine.stylize(content[:, :, :200, :200], style)
    before = peak()
    engine.stylize(content, style)
    used = (peak() - before) / (SIZE[0] * SIZE[1])
    assert used <= most, f"{used:.0f} bytes a pixel"


@pytest.mark.slow
def test_tiles_bound_the_memory(tmp_path: Path) -> None:
    assert children.run(tmp_path / "tiled", stylize, 256, MOST)[0] == 0
    code, said = children.run(tmp_path / "whole", stylize, 4096, MOST)
    assert code != 0
    assert "bytes a pixel" in said
