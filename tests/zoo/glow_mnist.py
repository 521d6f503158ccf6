"""How good zoo:glow-mnist is: bits per dimension of unseen digits, what it takes them for, and the digits it draws.

    FASTGEN_REAL_DATA=... python -m tests.zoo.glow_mnist [RUN]

takes the model from the folder of a training run, if one is given, measures it and writes what its folder shows:
``quality.json``, the loss curve, the sheet and the numbers of its README.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests import real
from tests.zoo import quality

NAME = "glow-mnist"
FILES = ("config.json", "model.safetensors", "loss.csv")
HELD_OUT_START = (9000, 9499)  # for what takes an evaluation a label
HELD_OUT, TRAINED_ON = (9000, 9999), (8000, 8999)  # MNIST's first 5,000 are easier
DRAWS = 4  # dequantisations a digit, of the tighter bound
CLASSES = 10
COUNT = 1000  # of drawn digits
TEMPERATURES = (1.0, 0.7)


def bits(engine: Any, subset: tuple[int, int], samples: int) -> dict[str, Any]:
    """Bits/dim of digits first..last given their labels: what ``fastgen evaluate`` prints."""
    from fastgen.commands.evaluate import evaluate

    return evaluate(engine, _digits(subset), samples)


def marginal(engine: Any, subset: tuple[int, int]) -> dict[str, float]:
    """Without the labels: p(x) is the mean of p(x | y) over the ten; the largest of them says which digit it is."""
    images, labels, _ = _digits(subset).batch(range(subset[1] - subset[0] + 1))
    dimensions = math.prod(engine.flow.data_shape)
    bound = torch.stack([engine.bits_per_dim(images, labels=y).values for y in range(CLASSES)], dim=1)
    log_p = -bound * dimensions * math.log(2)
    value = (math.log(CLASSES) - log_p.logsumexp(1)) / (dimensions * math.log(2))
    return {
        "bits_per_dim": round(float(value.mean()), 4),
        "digits_told": round(float((log_p.argmax(1) == labels).double().mean()), 4),
    }


def drawn(
    engine: Any, temperature: float, judge: Any, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> dict:
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
        "without_labels": marginal(engine, HELD_OUT_START),
        "drawn": {str(t): drawn(engine, t, judge, images, labels) for t in TEMPERATURES},
    }


def numbers(report: dict[str, Any], config: dict[str, Any], size: int) -> str:
    """The part of the README that the model decides."""
    run, network = config["provenance"]["run"], config["parts"]["flow"]["config"]

    def stated(found: dict[str, Any]) -> str:
        return f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f}"

    told, warm, tighter = report["without_labels"], report["drawn"], report["held_out_importance_weighted"]
    options = [f"--option {name}={network[name]}" for name in ("steps_per_scale",)]
    widths = ",".join(map(str, network["hidden_channels"]))
    command = (
        f"fastgen train {NAME} --model glow --data t10k-images-idx3-ubyte.gz --subset 0-8999 \\\n"
        f"    --steps {run['steps']} --batch-size {run['batch_size']} --lr {run['lr']:g} --widths {widths} "
        f"{' '.join(options)}"
    )
    rows = "\n".join(
        f"| digits drawn at temperature {t}: a classifier sees the label asked for | {w['agreement']:.1%} |\n"
        f"| their variety, relative to held-out digits of one label | {w['variety']:.2f} |"
        for t, w in warm.items()
    )
    return f"""
Two scales of {network["steps_per_scale"]} steps, {size / 1e6:.1f} MB in float32. Made by

```
{command}
```

{run["precision"]} autocast of the networks within the couplings, weights averaged ({run["ema_decay"]}).

| | |
|---|---|
| held-out digits given their label, one dequantisation | **{stated(report["held_out"])}** bits/dim (bound) |
| the same, {DRAWS} dequantisations | {stated(tighter)} bits/dim (importance-weighted bound) |
| digits 8000-8999, which it was trained on | {stated(report["trained_on"])} bits/dim (bound) |
| digits 9000-9499 without their label | {told["bits_per_dim"]:.3f} bits/dim (bound) |
| of these, those whose own label has the highest likelihood | {told["digits_told"]:.1%} |
{rows}
"""


def _digits(subset: tuple[int, int]) -> Any:
    from fastgen.training.data import load

    return load(str(real.folder() / "data/mnist/t10k-images-idx3-ubyte.gz"), subset=subset)


def main() -> None:
    """Take the model over, measure it and write what its folder shows."""
    from fastgen.cli import main as command
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
    sheet = ["--count", "60", "--columns", "10", "--labels", "0-9", "--seed", "0", "--temperature", "0.7"]
    assert command(["sample", f"zoo:{NAME}", *sheet, "--out", str(home / "sheet.png"), "--overwrite"]) == 0


if __name__ == "__main__":
    main()
