"""How good zoo:vae-mnist is: bits per dimension of unseen digits, what its latents tell, and the digits it draws.

    FASTGEN_REAL_DATA=... python -m tests.zoo.vae_mnist [RUN]

takes the model from the folder of a training run, if one is given, measures it and writes what its folder shows:
``quality.json``, the loss curve, the sheets and the numbers of its README.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests import real
from tests.zoo import quality
from tests.zoo.glow_mnist import bits

NAME = "vae-mnist"
FILES = ("config.json", "model.safetensors", "loss.csv")
HELD_OUT, TRAINED_ON = (9000, 9999), (8000, 8999)  # MNIST's first 5,000 are easier
DRAWS = 16  # of the latents, of the tighter bound
CLASSES = 10
COUNT = 1000  # of drawn digits


def drawn(
    engine: Any, judge: Any, images: NDArray[np.uint8], labels: NDArray[np.int64], temperature: float
) -> dict[str, float]:
    """Agreement of a classifier with the label asked for, and variety, as of zoo:ddpm-mnist."""
    asked = np.arange(COUNT) % CLASSES
    found = engine.sample(COUNT, labels=asked.tolist(), seed=0, temperature=temperature, output_type="np")
    samples = np.asarray(found)[..., 0].astype(np.float64)
    held_out = quality.HELD_OUT
    spread = quality.spread(samples, asked)
    real_spread = quality.spread(images[held_out] / 255.0, labels[held_out])
    return {
        "agreement": round(float((judge.predict(quality.features(samples)) == asked).mean()), 4),
        "variety": round(sum(spread.values()) / sum(real_spread.values()), 4),
    }


def latents(engine: Any) -> dict[str, Any]:
    """The report of the held-out digits: nats of all latents, how many have collapsed."""
    x, labels = held_out()
    report = engine.report(x, labels=labels)
    return {"nats": round(report.total, 4), "collapsed": len(report.collapsed), "of": len(report.latents)}


def error(engine: Any) -> float:
    """Root mean square of reconstructions of held-out digits, of values in [0, 1]."""
    x, labels = held_out()
    off = (engine.reconstruct(x, labels=labels) - x) / 2
    return round(float(off.square().mean().sqrt()), 4)


def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """Digits in [-1, 1], and their labels."""
    images, labels = real.mnist()
    keep = slice(HELD_OUT[0], HELD_OUT[1] + 1)
    x = torch.from_numpy(np.array(images[keep]))[:, None].float() / 127.5 - 1
    return x, torch.from_numpy(np.array(labels[keep]))


def measure() -> dict[str, Any]:
    """The numbers of the README."""
    import fastgen

    engine: Any = fastgen.load(f"zoo:{NAME}", device="cpu")
    images, labels = real.mnist()
    training = quality.TRAINING
    judge = quality.classifier(images[training] / 255.0, labels[training])
    return {
        "held_out": bits(engine, HELD_OUT, 1),
        "held_out_importance_weighted": bits(engine, HELD_OUT, DRAWS),
        "trained_on": bits(engine, TRAINED_ON, 1),
        "latents": latents(engine),
        "reconstruction": error(engine),
        "temperature": engine.settings.temperature,
        "drawn": drawn(engine, judge, images, labels, engine.settings.temperature),
        "drawn_from_the_prior": drawn(engine, judge, images, labels, 1.0),
    }


def numbers(report: dict[str, Any], config: dict[str, Any], size: int) -> str:
    """The part of the README that the model decides."""
    run, network = config["provenance"]["run"], config["parts"]["vae"]["config"]

    def stated(found: dict[str, Any]) -> str:
        return f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f}"

    told, cool, warm = report["latents"], report["drawn"], report["drawn_from_the_prior"]
    objective, agreed = config["provenance"]["objective"], "a classifier sees the label asked for"
    command = (
        f"fastgen train {NAME} --model vae --data t10k-images-idx3-ubyte.gz --subset 0-8999 \\\n"
        f"    --steps {run['steps']} --batch-size {run['batch_size']} --lr {run['lr']:g} "
        f"--precision {run['precision']} \\\n"
        f"    --loss {objective['loss']} --beta {objective['beta']:g} --shift {objective['shift']} "
        f"--temperature {report['temperature']:g} \\\n"
        f"    --option hidden={','.join(map(str, network['hidden']))} --option latents={network['latents']}"
    )
    return f"""
{network["latents"]} latents, {size / 1e6:.1f} MB in float32. Made by

```
{command}
```

Weights averaged ({run["ema_decay"]}).

| | |
|---|---|
| held-out digits given their label, one draw of the latents | **{stated(report["held_out"])}** bits/dim (bound) |
| the same, {DRAWS} draws | {stated(report["held_out_importance_weighted"])} bits/dim (importance-weighted bound) |
| digits 8000-8999, which it was trained on | {stated(report["trained_on"])} bits/dim (bound) |
| KL of all latents, of held-out digits | {told["nats"]:.1f} nats |
| latents that have collapsed | {told["collapsed"]} of {told["of"]} |
| reconstructions of held-out digits | off by {report["reconstruction"]:.3f} (root mean square, values in [0, 1]) |
| digits drawn, temperature {report["temperature"]:g}: {agreed} | **{cool["agreement"]:.1%}** |
| their variety, relative to held-out digits of one label | {cool["variety"]:.2f} |
| digits drawn, temperature 1: {agreed} | {warm["agreement"]:.1%} |
| their variety | {warm["variety"]:.2f} |
"""


def main() -> None:
    """Take the model over, measure it and write what its folder shows."""
    import fastgen
    from fastgen.cli import main as command
    from fastgen.images import save_grid
    from fastgen.zoo import folder

    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished training run")
    run, home = parser.parse_args().run, folder(NAME)
    if run is not None:
        for name in FILES:
            shutil.copyfile(run / name, home / name)
    report = measure()
    print(json.dumps(report, indent=2))
    (home / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    quality.plot_losses(home, "bits/dim", f"zoo:{NAME}, training loss")
    text = (home / "README.md").read_text()
    config = json.loads((home / "config.json").read_text())
    block = numbers(report, config, (home / "model.safetensors").stat().st_size)
    text, count = re.subn(r"(?s)(<!-- measured -->\n).*(?=<!-- end -->)", lambda m: m[1] + block, text)
    assert count == 1
    (home / "README.md").write_text(text)
    sheet = ["--count", "60", "--columns", "10", "--labels", "0-9", "--seed", "0"]
    assert command(["sample", f"zoo:{NAME}", *sheet, "--out", str(home / "sheet.png"), "--overwrite"]) == 0
    engine: Any = fastgen.load(f"zoo:{NAME}", device="cpu")
    x, labels = held_out()
    pairs = torch.stack([x[:20], engine.reconstruct(x[:20], labels=labels[:20])], dim=1).flatten(0, 1)
    save_grid(pairs, home / "reconstructions.png", columns=10)


if __name__ == "__main__":
    main()
