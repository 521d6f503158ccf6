"""What zoo:gan-mnist draws, measured; its sheet, its animation and the numbers of its page.

FASTGEN_REAL_DATA=... python -m tests.zoo.gan_mnist
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from bench.pages import write_between
from fastgen.zoo import folder

from .judge import predict
from .quality import COUNT, HELD_OUT, TRAINING, _quantiles, classifier, features, nearest, spread

MARKS = ("<!-- measured -->\n", "<!-- end -->")
TRUNCATIONS = (None, 0.9, 0.8, 0.7, 0.5)


def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The numbers of the page, from MNIST's 10,000 test digits [N, 28, 28] and their labels; see ``quality.measure``.

    judge: the digits of ``tests.zoo.judge`` that has seen what the model has seen, and no picture of a GAN.
    """
    import fastgen

    images, asked = images / 255.0, np.arange(COUNT) % 10
    engine = fastgen.load("zoo:gan-mnist", device="cpu", dtype="float32")
    svm = classifier(images[TRAINING], labels[TRAINING])
    held_out, held_out_labels = images[HELD_OUT], labels[HELD_OUT]
    real_spread = spread(held_out, held_out_labels)
    found: dict[str, Any] = {
        "samples": COUNT,
        "default_truncation": engine.settings.truncation,
        "classifier_on_held_out": float((svm.predict(features(held_out)) == held_out_labels).mean()),
        "judge_on_held_out": float((predict(held_out) == held_out_labels).mean()),
        "by_truncation": {},
    }
    for truncation in dict.fromkeys((engine.settings.truncation, *TRUNCATIONS)):
        drawn = engine.sample(COUNT, seed=0, labels=asked.tolist(), truncation=truncation, output_type="np")
        drawn = np.asarray(drawn)[..., 0].astype(np.float64)
        drawn_spread = spread(drawn, asked)
        row = {
            "agreement": float((svm.predict(features(drawn)) == asked).mean()),
            "judge": float((predict(drawn) == asked).mean()),
            "variety": round(sum(drawn_spread.values()) / sum(real_spread.values()), 4),
            "variety_by_label": {str(i): round(drawn_spread[i] / real_spread[i], 3) for i in drawn_spread},
        }
        found["by_truncation"][str(truncation)] = row
        if truncation == engine.settings.truncation:
            found["nearest_training_digit"] = _quantiles(nearest(drawn, images[TRAINING]))
    found["nearest_training_digit_of_held_out"] = _quantiles(nearest(held_out, images[TRAINING]))
    return found


def table(found: dict[str, Any]) -> str:
    """The page's table."""
    lines = [
        "| truncation | agreement (SVM) | agreement (network) | variety | by label |",
        "|---|---|---|---|---|",
    ]
    for truncation, row in found["by_truncation"].items():
        own = " (default)" if truncation == str(found["default_truncation"]) else ""
        low, high = min(row["variety_by_label"].values()), max(row["variety_by_label"].values())
        lines.append(
            f"| {'none' if truncation == 'None' else truncation}{own} | {row['agreement']:.1%} | {row['judge']:.1%} | "
            f"{row['variety']:.2f} | {low:.2f} to {high:.2f} |"
        )
    lines.append(
        f"| held-out digits | {found['classifier_on_held_out']:.1%} | {found['judge_on_held_out']:.1%} | 1 | 1 |"
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

    home = folder("gan-mnist")
    report = measure(*real.mnist())
    print(json.dumps(report, indent=2))
    (home / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    write_between(home / "README.md", MARKS, table(report))
    places = {name: ["--overwrite", "--out", str(home / name)] for name in ("sheet.png", "interpolation.gif")}
    sheet = ["-n", "60", "--labels", "0-9", "--columns", "10", "--seed", "0"]
    command(["sample", "zoo:gan-mnist", *sheet, *places["sheet.png"]])
    animation = ["--seeds", "0-3", "--frames", "10", "--scale", "1"]
    command(["interpolate", *animation, *places["interpolation.gif"]])


if __name__ == "__main__":
    main()
