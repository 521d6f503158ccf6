"""The diffusion engine against diffusers on a CPU: DDIM, same weights and noise, rounds interleaved in one process.

    python -m bench.versus.diffusers --clock cpu --threads 1 --compile --json bench/results/cpu-diffusers.json
    python -m bench.versus.diffusers --page bench/results/cpu-diffusers.json   # the table of docs/fast-networks.md

diffusers runs in float32, as it comes ("eager") and in channels-last, which is its best form on a CPU. Images are
compared before anything is timed; where float32 ones differ no speed is reported. For bfloat16 the
difference is stated. Peak memory is that of fresh processes that draw the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastgen
from fastgen.bench import diffusion
from fastgen.bench.baselines import diffusers
from fastgen.bench.families import on_disk
from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.engines import DiffusionEngine

from ..pages import write_between
from .header import header

CPU = torch.device("cpu")
MODELS = ("random:cifar10", "zoo:ddpm-mnist")
BATCHES = {"random:cifar10": (1, 8), "zoo:ddpm-mnist": (1, 64)}
# float32: 20 evaluations, each off by some 1e-6 in sums of other orders, on a schedule that diffusers keeps in float32.
PARITY = 1e-3
COMPILED = "fastgen, compile=True"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "fast-networks.md"
MARKS = ("<!-- diffusers: python -m bench.versus.diffusers --page -->\n", "<!-- end of diffusers -->")


def load(model: str, dtype: str, compile: bool = False) -> DiffusionEngine:
    """The engine under test."""
    with tempfile.TemporaryDirectory() as folder:
        engine = fastgen.load(on_disk(model, Path(folder)), device="cpu", dtype=dtype, compile=compile)
    assert isinstance(engine, DiffusionEngine)
    return engine


def theirs(engine: DiffusionEngine, batch: int, steps: int, last: bool) -> Callable[[], Tensor]:
    """diffusers' call for the request, in float32. last: channels-last."""
    request = ask(engine, batch, steps)
    x, noise = diffusion.start(engine, request)
    engine.loop.memory_format = torch.channels_last if last else torch.contiguous_format
    network = diffusers.network(engine)
    evaluate = diffusion.guided(engine, request, network, torch.float32)
    return diffusers.sample(engine, diffusion.plan_of(request), evaluate, x, noise)


def ask(engine: DiffusionEngine, batch: int, steps: int) -> Any:
    """DDIM of `steps`, unguided and unclipped, with diffusers' timesteps."""
    labels = None if engine.settings.num_classes is None else [k % 10 for k in range(batch)]
    options = {"clip_sample": False, "as_diffusers": True}
    return engine.request(
        batch, seed=0, labels=labels, solver="ddim", steps=steps, guidance_scale=1.0, **options
    )


def compare(
    model: str, batch: int, steps: int, dtype: str, rounds: int, clock: str, compile: bool
) -> dict[str, Any]:
    """One row: how far the images are apart, seconds per image and ratios with quartiles.

    compile: fastgen under torch.compile takes part, too.
    """
    engine, plain = load(model, dtype), load(model, "float32")
    request = ask(engine, batch, steps)
    calls: dict[str, Callable[[], Any]] = {
        "fastgen": lambda: engine.draw(request),
        "diffusers": theirs(plain, batch, steps, last=False),
        "diffusers, channels-last": theirs(load(model, "float32"), batch, steps, last=True),
    }
    ours = ["fastgen"]
    if compile:
        compiled = load(model, dtype, compile=True)
        calls[COMPILED] = lambda: compiled.draw(request)
        ours.append(COMPILED)
    want = calls["diffusers"]()
    off = torch.stack([(calls[name]() - want).abs() for name in ours])
    row: dict[str, Any] = {
        "model": model, "batch": batch, "steps": steps, "dtype": dtype,
        "largest_difference": round(float(off.max()), 6), "mean_difference": round(float(off.mean()), 6),
    }  # fmt: skip
    if dtype == "float32" and not off.max() <= PARITY:
        return row | {"error": "images differ: no speed is reported"}
    times = interleaved(calls, CPU, rounds=rounds, clock=clock)
    for name, timing in times.items():
        row[name] = {
            "median_s": round(timing.median, 4),
            "quartiles_s": [round(timing.low, 4), round(timing.high, 4)],
        }
        if name not in ours:
            ratio = timing.over(times["fastgen"])
            row[f"speedup over {name}"] = [round(v, 3) for v in (ratio.low, ratio.median, ratio.high)]
    if compile:
        ratio = times["diffusers"].over(times[COMPILED])
        row["speedup of compile=True"] = [round(v, 3) for v in (ratio.low, ratio.median, ratio.high)]
    return row


def table(found: dict[str, Any]) -> str:
    """The results as the page shows them."""
    machine = found["environment"]
    lines = [
        f"{machine['machine']} ({', '.join(machine['cpu_features'])}), PyTorch {machine['torch']}, diffusers "
        f"{machine['diffusers']}; DDIM, float32 against float32, bfloat16 against diffusers' float32; medians of the "
        "ratio of times, with quartiles.",
        "",
        "| model | batch | type | over diffusers | over diffusers, channels-last | with `compile=True` |",
        "|---|---|---|---|---|---|",
    ]
    memory = []
    for row in found["rows"]:
        if "peak_memory_ratio" in row:
            memory.append(f"{row['peak_memory_ratio']:.2f} of diffusers' for `{row['model']}`")
            continue
        columns = (
            "speedup over diffusers",
            "speedup over diffusers, channels-last",
            "speedup of compile=True",
        )
        cells = [
            "{1:.2f}x ({0:.2f} - {2:.2f})".format(*row[name]) if name in row else "-" for name in columns
        ]
        lines.append(f"| `{row['model']}` | {row['batch']} | {row['dtype']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Peak memory of a process at batch 1: {', '.join(memory)}.", ""])


def memory(model: str, batch: int, steps: int) -> dict[str, Any]:
    """Peak memory in MiB of a fresh process for each."""
    peaks = {}
    for name in ("fastgen", "diffusers"):
        order = [sys.executable, "-m", __spec__.name, "--child", name, model, str(batch), str(steps)]
        done = subprocess.run(order, capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout.split()[-1])
    ratio = round(peaks["fastgen"] / peaks["diffusers"], 3)
    return {"model": model, "batch": batch, "peak_memory_mib": peaks, "peak_memory_ratio": ratio}


def child(name: str, model: str, batch: int, steps: int) -> None:
    """Draw once and print this process's peak memory in MiB."""
    if name == "fastgen":
        engine = load(model, "float32")
        engine.draw(ask(engine, batch, steps))
    else:
        # The engine's network is diffusers' own from here on; ours is given back.
        engine = load(model, "float32")
        call = theirs(engine, batch, steps, last=False)
        del engine
        call()
    # Not getrusage's, which a process inherits from the one that started it.
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    print(int(line.split()[1]) / 1024)


def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where images differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument("--batches", type=int, nargs="+", help="by default 1 and 8, of the zoo 1 and 64")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch; by default one per core")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    parser.add_argument("--compile", action="store_true", help="time fastgen's compile=True as well")
    parser.add_argument(
        "--page", type=Path, metavar="JSON", help="only write the docs' table of these results"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, model, batch, steps = args.child
        child(name, model, int(batch), int(steps))
        return 0
    if args.page:
        write_between(PAGE, MARKS, table(json.loads(args.page.read_text(encoding="utf-8"))))
        return 0
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    environment = header(args.clock, "diffusers")
    rows: list[dict] = []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print(json.dumps(row), flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n")

    for model in args.models:
        for dtype in args.dtypes:
            for batch in args.batches or BATCHES[model]:
                keep(compare(model, batch, args.steps, dtype, args.rounds, args.clock, args.compile))
        keep(memory(model, (args.batches or BATCHES[model])[0], 2))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
