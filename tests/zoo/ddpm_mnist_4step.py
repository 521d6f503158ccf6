"""What zoo:ddpm-mnist-4step draws in 4 steps, measured beside its teacher; the pictures of its page and the docs.

FASTGEN_REAL_DATA=... python -m tests.zoo.ddpm_mnist_4step           everything
python -m tests.zoo.ddpm_mnist_4step --sheet FILE.png                the digits beside the teacher's alone
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.pages import write_between
from fastgen.zoo import folder

from .judge import predict
from .quality import COUNT, HELD_OUT, judged, plot_losses, spread

NAME = "ddpm-mnist-4step"
STUDENT, TEACHER = f"zoo:{NAME}", "zoo:ddpm-mnist"
MARKS = ("<!-- measured -->\n", "<!-- end -->")
DOCS = Path(__file__).parents[2] / "docs/images/distillation.png"
SHEETS: dict[str, tuple[str, dict[str, Any]]] = {  # title: model, arguments of `sample`
    "teacher, 20 steps (its defaults: DPM-Solver++, guidance 1.5, 40 evaluations)": (TEACHER, {}),
    "teacher, 4 steps (DDIM, guidance 1.5, 8 evaluations)": (TEACHER, {"solver": "ddim", "steps": 4}),
    "student, 4 steps (its defaults: DDIM, 4 evaluations)": (STUDENT, {}),
}
ROWS = 3  # of each digit, in a sheet


def draw(model: str, labels: np.ndarray, **arguments: Any) -> np.ndarray:
    """[N, 28, 28] in [0, 1], float64, seeds from 0."""
    import fastgen

    engine = fastgen.load(model, device="cpu", dtype="float32")
    drawn = engine.sample(len(labels), labels=labels.tolist(), seed=0, output_type="np", **arguments)
    return np.asarray(drawn)[..., 0].astype(np.float64)


def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """``quality.measure`` of the student by its default settings, and what the network ``judge`` says of it.

    images: MNIST's 10,000 test digits, uint8 [N, 28, 28], and their labels.
    """
    asked = np.arange(COUNT) % 10
    drawn = draw(STUDENT, asked)
    return {**judged(drawn, asked, images, labels, 1.0), "judge": float((predict(drawn) == asked).mean())}


def of_teacher(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What the teacher draws in as many steps: agreement by the network, variety."""
    asked = np.arange(COUNT) % 10
    drawn = draw(TEACHER, asked, solver="ddim", steps=4)
    real = spread(images[HELD_OUT] / 255.0, labels[HELD_OUT])
    return {
        "judge": float((predict(drawn) == asked).mean()),
        "variety": round(sum(spread(drawn, asked).values()) / sum(real.values()), 4),
    }


def table(found: dict[str, Any]) -> str:
    """The page's tables."""
    teacher = json.loads((folder("ddpm-mnist") / "quality.json").read_text())
    by_label = found["variety_by_label"].values()
    lines = [
        "| | student, 4 steps | teacher, 4 steps | teacher, 20 steps |",
        "|---|---|---|---|",
        "| evaluations of the network | 4 | 8 | 40 |",
        f"| agreement (SVM) | **{found['agreement']:.1%}** | | {teacher['agreement']:.1%} |",
        f"| agreement (network) | **{found['judge']:.1%}** | {found['teacher_4_steps']['judge']:.1%} | |",
        f"| variety | **{found['variety']:.2f}** (by label {min(by_label):.2f} to {max(by_label):.2f}) | "
        f"{found['teacher_4_steps']['variety']:.2f} | {teacher['variety']:.2f} |",
        "",
        "| distance to the closest training digit | drawn | held out |",
        "|---|---|---|",
    ]
    drawn, held = found["nearest_training_digit"], found["nearest_training_digit_of_held_out"]
    names = {"0.0": "smallest", "0.01": "1 % quantile", "0.1": "10 %", "0.5": "median", "0.9": "90 %"}
    lines += [f"| {words} | {drawn[q]:.2f} | {held[q]:.2f} |" for q, words in names.items()]
    return "\n".join(lines) + "\n"


def sheet(path: Path) -> None:
    """The same seeds and labels by the teacher in 20 and in 4 steps, and by the student in 4."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = np.arange(10 * ROWS) % 10
    figure, axes = pyplot.subplots(len(SHEETS), 1, figsize=(5.6, 2.0 * len(SHEETS)), dpi=110)
    for ax, (title, (model, arguments)) in zip(axes, SHEETS.items(), strict=True):
        digits = draw(model, labels, **arguments).reshape(ROWS, 10, 28, 28)
        ax.imshow(digits.transpose(0, 2, 1, 3).reshape(ROWS * 28, 280), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=8)
        ax.axis("off")
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Measure the model and write what its folder and the docs show."""
    from fastgen.cli import main as command
    from tests import real

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheet", type=Path, help="write this file, and nothing else")
    chosen = parser.parse_args().sheet
    if chosen is not None:
        sheet(chosen)
        return
    home = folder(NAME)
    images, labels = real.mnist()
    report = {**measure(images, labels), "teacher_4_steps": of_teacher(images, labels)}
    print(json.dumps(report, indent=2))
    (home / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    write_between(home / "README.md", MARKS, table(report))
    plot_losses(home, "weighted squared error of x_0", f"zoo:{NAME}, distillation loss")
    place = ["--out", str(home / "sheet.png"), "--overwrite"]
    command(["sample", STUDENT, "--count", "64", "--labels", "0-9", "--seed", "0", *place])
    sheet(DOCS)


if __name__ == "__main__":
    main()
