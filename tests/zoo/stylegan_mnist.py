"""What zoo:stylegan-mnist draws, measured; its sheet, its animation and the numbers of its page.

FASTGEN_REAL_DATA=... python -m tests.zoo.stylegan_mnist
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from bench.pages import write_between
from fastgen.zoo import folder

from .gan_mnist import MARKS
from .judge import entropy, probabilities
from .quality import COUNT, HELD_OUT, TRAINING, _quantiles, classifier, features, nearest, spread

PSIS = (1.0, 0.9, 0.8, 0.7, 0.5, 0.0)


def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The numbers of the page, from MNIST's 10,000 test digits [N, 28, 28] and their labels; see ``quality.measure``.

    judge, confidence, entropy: how often ``tests.zoo.judge`` sees the label asked for, its mean largest probability,
    and the entropy of the labels it sees, in nats; it has seen what the model has seen, and no picture of a GAN.
    """
    import fastgen

    images, asked = images / 255.0, np.arange(COUNT) % 10
    engine = fastgen.load("zoo:stylegan-mnist", device="cpu", dtype="float32")
    svm = classifier(images[TRAINING], labels[TRAINING])
    held_out, held_out_labels = images[HELD_OUT], labels[HELD_OUT]
    real_spread = spread(held_out, held_out_labels)
    own = engine.settings.truncation_psi
    found: dict[str, Any] = {
        "samples": COUNT,
        "default_psi": own,
        "classifier_on_held_out": float((svm.predict(features(held_out)) == held_out_labels).mean()),
        "held_out": _judged(held_out, held_out_labels),
        "by_psi": {},
    }
    for psi in dict.fromkeys((own, *PSIS)):
        drawn = engine.sample(COUNT, seed=0, labels=asked.tolist(), truncation_psi=psi, output_type="np")
        drawn = np.asarray(drawn)[..., 0].astype(np.float64)
        drawn_spread = spread(drawn, asked)
        found["by_psi"][str(psi)] = {
            "agreement": float((svm.predict(features(drawn)) == asked).mean()),
            **_judged(drawn, asked),
            "variety": round(sum(drawn_spread.values()) / sum(real_spread.values()), 4),
            "variety_by_label": {str(i): round(drawn_spread[i] / real_spread[i], 3) for i in drawn_spread},
        }
        if psi == own:
            found["nearest_training_digit"] = _quantiles(nearest(drawn, images[TRAINING]))
    found["nearest_training_digit_of_held_out"] = _quantiles(nearest(held_out, images[TRAINING]))
    return found


def _judged(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    odds = probabilities(images)
    seen = odds.argmax(1)
    return {
        "judge": float((seen == labels).mean()),
        "confidence": round(float(odds.max(1).mean()), 4),
        "entropy": round(entropy(seen), 4),
    }


def table(found: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| psi | agreement (SVM) | agreement (network) | its confidence | entropy of the labels it sees | variety | "
        "by label |",
        "|---|---|---|---|---|---|---|",
    ]
    for psi, row in found["by_psi"].items():
        own = " (default)" if psi == str(found["default_psi"]) else ""
        low, high = min(row["variety_by_label"].values()), max(row["variety_by_label"].values())
        lines.append(
            f"| {psi}{own} | {row['agreement']:.1%} | {row['judge']:.1%} | {row['confidence']:.3f} | "
            f"{row['entropy']:.3f} | {row['variety']:.2f} | {low:.2f} to {high:.2f} |"
        )
    held_out = found["held_out"]
    lines.append(
        f"| held-out digits | {found['classifier_on_held_out']:.1%} | {held_out['judge']:.1%} | "
        f"{held_out['confidence']:.3f} | {held_out['entropy']:.3f} | 1 | 1 |"
    )
    drawn, held = found["nearest_training_digit"], found["nearest_training_digit_of_held_out"]
    lines += ["", "| distance to the closest training digit | drawn | held out |", "|---|---|---|"]
    names = {"0.0": "smallest", "0.01": "1 % quantile", "0.1": "10 %", "0.5": "median", "0.9": "90 %"}
    lines += [f"| {words} | {drawn[q]:.2f} | {held[q]:.2f} |" for q, words in names.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the model and write what its folder shows."""
    from fastgen.cli import main as command
    from tests import real

    home = folder("stylegan-mnist")
    report = measure(*real.mnist())
    print(json.dumps(report, indent=2), f"log(10) = {math.log(10):.3f}", sep="\n")
    (home / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    write_between(home / "README.md", MARKS, table(report))
    places = {name: ["--overwrite", "--out", str(home / name)] for name in ("sheet.png", "interpolation.gif")}
    sheet = ["-n", "60", "--labels", "0-9", "--columns", "10", "--seed", "0"]
    command(["sample", "zoo:stylegan-mnist", *sheet, *places["sheet.png"]])
    animation = ["--seeds", "0-3", "--frames", "10", "--scale", "1", "--space", "w"]
    command(["interpolate", "--model", "zoo:stylegan-mnist", *animation, *places["interpolation.gif"]])


if __name__ == "__main__":
    main()
