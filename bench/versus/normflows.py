"""The flow engine against normflows: a Glow on 32x32 images (3 scales of 8 steps), same weights, rounds interleaved.

    python -m bench.versus.normflows --clock cpu --json bench/results/cpu-normflows.json

normflows runs as a careful user runs it: eval mode, without gradients, in the faster of the two memory formats (and
compiled, with --compile, where that is faster still). Log-densities and decoded images are compared before anything
is timed; where they differ no speed is reported. For bfloat16 the engine's coupling networks are held against
normflows in float32, and beside it, as "autocast", against normflows under bfloat16 autocast, which rounds the state
and the 1x1 convolutions as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import normflows as nf
import torch
from torch import Tensor, nn

from fastgen.bench.contest import fastest
from fastgen.bench.timing import CLOCKS, interleaved
from fastgen.engines import FlowEngine
from fastgen.models.flow.glow import Glow, GlowConfig

from .header import header

CPU = torch.device("cpu")
SCALES, STEPS, SHAPE = 3, 8, (3, 32, 32)
VERBS = ("log_prob", "sample")
# float32: sums of 3072 terms of about 1, in other orders, after some 70 layers that pass rounding on; relative to the
# log-density. bfloat16 rounds the results of the networks to 8 bits: that is stated, not bounded tightly.
PARITY = {"float32": 1e-4, "bfloat16": 1e-2}


def their_glow(hidden: int) -> nf.MultiscaleFlow:
    """normflows' Glow with random weights of a trained one's size."""
    channels, height, width = SHAPE
    q0, merges, flows = [], [], []
    for i in range(SCALES):
        c = channels * 2 ** (SCALES + 1 - i)
        blocks = [nf.flows.GlowBlock(c, hidden, split_mode="channel", scale=True) for _ in range(STEPS)]
        flows.append([*blocks, nf.flows.Squeeze()])
        if i > 0:
            merges.append(nf.flows.Merge())
        last = i == 0
        shape = (c if last else c // 2, height // 2 ** (SCALES - i), width // 2 ** (SCALES - i))
        q0.append(nf.distributions.DiagGaussian(shape))
    model = nf.MultiscaleFlow(q0, flows, merges, transform=None, class_cond=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.5 / module.weight[0].numel() ** 0.5)
    with torch.no_grad():
        model.log_prob(torch.rand(16, *SHAPE), None)  # sets its ActNorms
    return model.eval().requires_grad_(False)


def same_weights(model: nf.MultiscaleFlow, hidden: int) -> Glow:
    """Our Glow with the weights of `model`: scales the other way round, steps from data to latents."""
    config = GlowConfig(
        sample_size=SHAPE[1:],
        in_channels=SHAPE[0],
        levels=None,
        preprocessing="none",
        num_scales=SCALES,
        steps_per_scale=STEPS,
        hidden_channels=(hidden,),
        conv_scaled=False,
        act_fn="leaky_relu",
        leaky_slope=0.0,
        prior="element",
        shift_first=True,
        parameters="shift_scale_interleaved",
    )
    flow = Glow(config).requires_grad_(False)
    for i, layers in enumerate(flow.scales):
        blocks = list(model.flows[SCALES - 1 - i])[:-1]
        steps: list[Any] = list(layers)[1:]  # after the squeeze
        for k, block in enumerate(reversed(blocks)):
            actnorm, linear, coupling = steps[3 * k : 3 * k + 3]
            theirs, mixing, norm = block.flows
            actnorm.scale.copy_(torch.exp(-norm.s.flatten()))
            actnorm.loc.copy_(-norm.t.flatten())
            actnorm.initialised.fill_(1)
            linear.permutation.copy_(mixing.P.argmax(1))
            linear.sign.copy_(mixing.sign_S)
            for ours, his in (
                (linear.lower, mixing.L),
                (linear.upper, mixing.U),
                (linear.log_s, mixing.log_S),
            ):
                ours.copy_(his)
            convs = [m for m in theirs.modules() if isinstance(m, nn.Conv2d)]
            network = coupling.network
            inner = next(m for m in network.inner if isinstance(m, nn.Conv2d))
            for ours, his in zip((network.first, inner, network.last.conv), convs, strict=True):
                ours.weight.copy_(his.weight)
                ours.bias.copy_(his.bias)
            network.last.conv.weight[0::2] *= -1  # its shift is subtracted
            network.last.conv.bias[0::2] *= -1
        prior: Any = flow.priors[i]
        prior.mean.copy_(model.q0[SCALES - 1 - i].loc)
        prior.log_std.copy_(model.q0[SCALES - 1 - i].log_scale)
    return flow


def forms(model: nf.MultiscaleFlow, x: Tensor, compiled: bool) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """The ways to run normflows: {name: {verb: call}}."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = x.contiguous(memory_format=torch.channels_last)

    def verbs(m: nf.MultiscaleFlow, given: Tensor) -> dict[str, Callable[[], Tensor]]:
        return {"log_prob": lambda: m.log_prob(given, None), "sample": lambda: m.sample(len(given))[0]}

    found = {"contiguous": verbs(model, x), "channels_last": verbs(last, images)}
    if compiled:
        log_prob = torch.compile(lambda given: model.log_prob(given, None))
        sample = torch.compile(lambda: model.sample(len(x))[0])
        found["compiled"] = {"log_prob": lambda: log_prob(x), "sample": sample}
    return found


def parity(engine: FlowEngine, model: nf.MultiscaleFlow, x: Tensor) -> dict[str, float]:
    """How far the engine is from normflows: log-density (of its size) and images decoded from the same latents."""
    theirs = model.log_prob(x, None)
    latents, _ = model.inverse_and_log_det(x)
    images, _ = model.forward_and_log_det(latents)
    ours = engine.decode(list(reversed(latents)))
    return {
        "log_prob": float(((engine.log_prob(x) - theirs) / theirs).abs().max()),
        "decode": float((ours - images).abs().max()),
    }


def compare(hidden: int, batch: int, dtype: str, rounds: int, clock: str, compiled: bool) -> list[dict]:
    """One row per verb: parity, then medians and quartiles of seconds per call, and the median ratio of the rounds."""
    torch.manual_seed(0)
    model = their_glow(hidden)
    engine = FlowEngine.from_module(same_weights(model, hidden), dtype=dtype, device="cpu", graph=False)
    x = torch.rand(batch, *SHAPE)
    off = parity(engine, model, x)
    rows = []
    found = forms(model, x, compiled)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    for verb in VERBS:
        row: dict[str, Any] = {"verb": verb, "hidden": hidden, "batch": batch, "dtype": dtype, "parity": off}
        rows.append(row)
        if max(off["log_prob"], 0.0 if dtype != "float32" else off["decode"]) > PARITY[dtype]:
            row["error"] = "outputs differ: no speed is reported"
            continue
        best = fastest({name: verbs[verb] for name, verbs in found.items()}, CPU, clock)
        ours: Callable[[], Any] = (
            (lambda: engine.log_prob(x)) if verb == "log_prob" else (lambda: engine.sample(batch, seed=0))
        )
        calls: dict[str, Callable[[], Any]] = {"fastgen": ours, "normflows": found[best][verb]}
        if dtype == "bfloat16":
            last = found["channels_last"][verb]

            def rounded(call: Callable[[], Any] = last) -> Any:
                with autocast:
                    return call()

            calls["autocast"] = rounded
            if verb == "log_prob":
                exact = model.log_prob(x, None)
                row["autocast_log_prob"] = float(((rounded() - exact) / exact).abs().max())
        times = interleaved(calls, CPU, rounds=rounds, clock=clock)
        row["normflows_form"] = best
        for name, timing in times.items():
            quartiles = [round(timing.low, 5), round(timing.high, 5)]
            row[name] = {"median_s": round(timing.median, 5), "quartiles_s": quartiles}
            if name != "fastgen":
                ratio = timing.over(times["fastgen"])
                key = "speedup" if name == "normflows" else f"speedup_{name}"
                row[key] = round(ratio.median, 3)
                row[f"{key}_quartiles"] = [round(ratio.low, 3), round(ratio.high, 3)]
    return rows


@torch.no_grad()
def main() -> int:
    """Run the comparison and print one row per line; the exit code is 1 where outputs differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512], help="channels of the networks")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--dtypes", nargs="+", choices=PARITY, default=list(PARITY))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="let normflows try torch.compile (minutes)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others use, too"
    )
    parser.add_argument("--json", type=Path, help="keep the results in this file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    environment = header(
        args.clock, "normflows", model=f"Glow, {'x'.join(map(str, SHAPE))}, {SCALES} scales of {STEPS} steps"
    )
    rows: list[dict] = []
    for hidden in args.hidden:
        for dtype in args.dtypes:
            for batch in args.batches:
                new = compare(hidden, batch, dtype, args.rounds, args.clock, args.compile)
                rows += new
                for row in new:
                    print(json.dumps(row), flush=True)
                if args.json:  # kept as they come: a long run that is cut off has not been for nothing
                    args.json.parent.mkdir(parents=True, exist_ok=True)
                    args.json.write_text(
                        json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n"
                    )
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
