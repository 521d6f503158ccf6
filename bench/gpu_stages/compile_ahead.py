"""Fill torch.compile's cache for one network: `python -m bench.gpu_stages.compile_ahead SOURCE BATCH MODE`, a child of
stage compiled, which lets several of them run side by side before it measures.

SOURCE: what fastgen.load takes, or "least" for the least network there is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import torch

import fastgen
from fastgen.bench import diffusion
from fastgen.bench.samplers import least

from .stage import Stage

LEAST = "least"
DEFAULT = "default"  # torch.compile's mode in a dry run


def start(sources: Sequence[tuple[str, int, str]], stage: Stage) -> list[subprocess.Popen[bytes]]:
    """A child for each (source, batch, mode), in the group of this process, which ends them with itself."""
    command = [sys.executable, "-m", "bench.gpu_stages.compile_ahead"]
    return [
        subprocess.Popen([*command, source, str(batch), mode, stage.device.type])
        for source, batch, mode in sources
    ]


def main() -> None:
    source, batch, mode, kind = sys.argv[1:]
    device = torch.device(kind)
    engine = least(device, "ddim") if source == LEAST else fastgen.load(source, device=device, graph=False)
    # One step: the compiled network is the same for any number.
    request = diffusion.ask(engine, int(batch), 1)
    with torch.no_grad():
        diffusion.compiled_loop(engine, request, mode).judged()


if __name__ == "__main__":
    main()
