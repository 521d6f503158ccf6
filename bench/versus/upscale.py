"""The engine of super-resolution against the networks' own layout in eager PyTorch: same weights, rounds interleaved.

    python -m bench.versus.upscale --clock cpu --json bench/results/cpu-upscale.json

"eager" is the network as its project builds it, in eval mode without gradients, in the memory format that it comes in;
"eager_channels_last" the same in channels-last. The engine works in float32, and in bfloat16 where the CPU has
instructions for it. Results are compared before anything is timed; where they differ no speed is reported.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.converters import build, from_module
from fastgen.engines.upscale import UpscaleEngine

from . import upscale_networks as theirs
from .header import header

CPU = torch.device("cpu")
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "SRGAN x4": lambda: theirs.SRGANGenerator(4),  # leftthomas'
    "RRDBNet x4, 2 blocks": lambda: theirs.RRDBNet(4, blocks=2),
    "SRVGG x4": lambda: theirs.SRVGGNetCompact(4),  # Real-ESRGAN's animevideov3
}
# Of results in [-1, 1]: float32 adds up to 1,700 products in other orders, some 20 layers on; bfloat16 has 8 bits,
# which is stated, not bounded tightly.
PARITY = {"float32": 1e-4, "bfloat16": 0.1}


def compare(name: str, batch: int, size: int, rounds: int, clock: str) -> dict[str, Any]:
    """Parity, then medians and quartiles of seconds per call, and the median ratio of the rounds."""
    torch.manual_seed(0)
    network = theirs.with_statistics(NETWORKS[name]())
    x = torch.rand(batch, 3, size, size)
    expected = (network(x) * 2 - 1).clamp(-1, 1)
    images = x * 2 - 1

    def engine(dtype: str) -> UpscaleEngine:
        ours: Any = build(from_module(network))["upscaler"]
        return UpscaleEngine(ours, dtype=dtype, device="cpu", graph=False)

    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    given = x.contiguous(memory_format=torch.channels_last)
    engines = {dtype: engine(dtype) for dtype in PARITY}
    row: dict[str, Any] = {"network": name, "batch": batch, "size": size, "parity": {}}
    for dtype, made in engines.items():
        off = float((made.upscale(images) - expected).abs().max())
        row["parity"][dtype] = off
        if off > PARITY[dtype]:
            row["error"] = f"{dtype}: outputs differ: no speed is reported"
            return row

    def run(made: UpscaleEngine) -> Callable[[], Tensor]:
        return lambda: made.upscale(images)

    calls: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: network(x),
        "eager_channels_last": lambda: last(given),
        **{dtype: run(made) for dtype, made in engines.items()},
    }
    times = interleaved(calls, CPU, rounds=rounds, clock=clock)
    for which, timing in times.items():
        row[which] = {
            "median_s": round(timing.median, 5),
            "quartiles_s": [round(timing.low, 5), round(timing.high, 5)],
        }
        if which in PARITY:
            for other in ("eager", "eager_channels_last"):
                ratio = times[other].over(timing)
                row[which][f"over_{other}"] = round(ratio.median, 3)
                row[which][f"over_{other}_quartiles"] = [round(ratio.low, 3), round(ratio.high, 3)]
    return row


@torch.inference_mode()
def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=64, help="pixels a side of the images to be enlarged")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    environment = header(args.clock)
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        for batch in args.batches:
            rows.append(compare(name, batch, args.size, args.rounds, args.clock))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
