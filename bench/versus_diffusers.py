"""The engine against a plain diffusers loop: same weights, same start noise, same solver, rounds interleaved.

    python -m bench.versus_diffusers --json bench/results/cpu.json
    python -m bench.versus_diffusers --model cifar10 --batches 1 8 --clock cpu --json bench/results/cpu-cifar10.json

zoo: zoo:ddpm-mnist with classes, guidance and DPM-Solver++. cifar10: a folder that diffusers saved, the U-Net of
google/ddpm-cifar10-32 (35.7 M parameters, random weights), DDIM.
Outputs are compared before anything is timed; where they differ no speed is reported.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor

import fastgen
from fastgen.config import to_dict
from fastgen.runtime.device import cpu_features
from fastgen_kernels import normals

GUIDANCE = 1.5
# wall: seconds gone by; cpu: seconds this process had the processor, for machines that others use, too
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


class Diffusers:
    """What a careful user of diffusers writes: channels-last network, one batched call for guidance."""

    def __init__(self, engine: fastgen.DiffusionEngine) -> None:
        config = to_dict(engine.network.config)
        self.net = UNet2DModel(**{**config, "sample_size": config["sample_size"][0]})
        state = {n.replace("to_out.", "to_out.0."): t for n, t in engine.network.state_dict().items()}
        self.net.load_state_dict(state)
        self.net = self.net.to(engine.device, engine.dtype, memory_format=torch.channels_last).eval()
        self.null, self.dtype = engine.settings.null_class, engine.dtype
        self.schedule = engine.settings.schedule

    @torch.inference_mode()
    def sample(self, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
        if self.null is None:
            return self.without_guidance(noise, steps)
        scheduler = DPMSolverMultistepScheduler(**self.schedule)
        scheduler.set_timesteps(steps, device=noise.device)
        both = torch.cat([labels, torch.full_like(labels, self.null)])
        x = noise
        for t in scheduler.timesteps:
            double = torch.cat([x, x]).to(self.dtype, memory_format=torch.channels_last)
            conditional, free = self.net(double, t, class_labels=both).sample.float().chunk(2)
            x = scheduler.step(free + GUIDANCE * (conditional - free), t, x).prev_sample
        return x.clamp(-1, 1)

    def without_guidance(self, noise: Tensor, steps: int) -> Tensor:
        scheduler = DDIMScheduler(**self.schedule)
        scheduler.set_timesteps(steps, device=noise.device)
        x = noise
        for t in scheduler.timesteps:
            out = self.net(x.to(self.dtype, memory_format=torch.channels_last), t).sample.float()
            x = scheduler.step(out, t, x).prev_sample
        return x.clamp(-1, 1)


def load(model: str, dtype: str) -> fastgen.DiffusionEngine:
    """The engine of a model named by --model."""
    if model == "zoo":
        return fastgen.load("zoo:ddpm-mnist", dtype=dtype)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        DDIMPipeline(UNet2DModel(**CIFAR10), DDIMScheduler()).save_pretrained(folder)
        return fastgen.load(folder, dtype=dtype)


def compare(model: str, batch: int, steps: int, rounds: int, dtype: str, clock: str = "wall") -> dict:
    """One row: parity, then medians and quartiles of seconds a call, and the ratio of medians."""
    engine = load(model, dtype)
    rival = Diffusers(engine)
    labels = torch.arange(batch, device=engine.device) % 10
    noise = normals(range(batch), 0, "initial", engine.shape, device=engine.device)

    guided = {} if rival.null is None else {"labels": labels.tolist(), "guidance_scale": GUIDANCE}

    def ours() -> Tensor:
        return engine.sample(batch, seed=0, steps=steps, **guided)

    def theirs() -> Tensor:
        return rival.sample(noise, labels, steps)

    difference = (ours() - theirs()).abs().max().item()
    row = {"model": model, "batch": batch, "steps": steps, "dtype": dtype, "parity": difference}
    row["parity_mean"] = (ours() - theirs()).abs().mean().item()
    # float32: rounding that grows over the steps. bfloat16: each layer is rounded to 8 bits, in other orders in the
    # two programs; single pixels on an edge may differ much, the mean may not.
    if row["parity_mean"] > (1e-5 if dtype == "float32" else 2**-6):
        return {**row, "error": "outputs differ: no speed is reported"}
    times: dict[str, list[float]] = {"fastgen": [], "diffusers": []}
    pair: list[tuple[str, Callable[[], Tensor]]] = [("fastgen", ours), ("diffusers", theirs)]
    for round_ in range(rounds):
        for name, call in pair if round_ % 2 == 0 else reversed(pair):
            _finish()
            started = CLOCKS[clock]()
            call()
            _finish()
            times[name].append(CLOCKS[clock]() - started)
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        row[name] = {"median_s": round(median, 4), "quartiles_s": [round(low, 4), round(high, 4)]}
    ratios = [b / a for a, b in zip(times["fastgen"], times["diffusers"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {**row, "speedup": round(median, 3), "speedup_quartiles": [round(low, 3), round(high, 3)]}


def _finish() -> None:
    """Wait for the device: a clock read earlier would time the launches."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> int:
    """Run the comparison and print a table; the exit code is 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["zoo", "cifar10"], default="zoo")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    header = {
        "machine": gpu or f"{platform.machine()}, {torch.get_num_threads()} threads",
        "cpu_features": [name for name, present in cpu_features().items() if present],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "fastgen": fastgen.__version__,
        "clock": args.clock,
    }
    print(json.dumps(header))
    rows = []
    for dtype in args.dtypes:
        for batch in args.batches:
            rows.append(compare(args.model, batch, args.steps, args.rounds, dtype, args.clock))
            print(json.dumps(rows[-1]), flush=True)
            if args.json:  # kept as they come: a long run that is cut off has not been for nothing
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps({"environment": header, "rows": rows}, indent=2) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
