"""How likely zoo:ddpm-mnist finds digits that it has not seen, in all the ways there are.

    FASTGEN_REAL_DATA=... python -m tests.zoo.likelihood [PART ...]

measures the PARTS, by default all, in about ten minutes of one quiet thread, keeps them in ``likelihood.json`` beside
the model, and writes the table of its README, the one of docs/likelihood.md and, of the bound, the plot.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastgen.zoo import folder
from tests import real

FIRST, COUNT = 9000, 256  # digits, the first of those held out
TIMESTEPS = 50  # evaluated for each digit
COARSE = (
    5  # steps of the comparison of traces on the first digit: a whole trace takes 784 gradients an evaluation
)
PARTS: dict[str, dict[str, Any]] = {
    "bound": {"method": "bound", "timesteps": TIMESTEPS},
    "decoder": {},
    "uniform": {"dequantisation": "uniform"},
    "one_hutchinson": {"steps": COARSE, "trace": "hutchinson", "samples": 1},
    "one_exact": {"steps": COARSE, "trace": "exact"},
}
PAGES = ("fastgen/zoo/ddpm-mnist/README.md", "docs/likelihood.md")
ROOT = Path(__file__).resolve().parents[2]


def measure(part: str) -> dict[str, Any]:
    """Bits per dimension of each digit, their kind, and seconds of the process' time."""
    import fastgen
    from fastgen.commands.plots import write_terms

    images, labels = real.mnist()
    digits = slice(FIRST, FIRST + (1 if part.startswith("one_") else COUNT))
    engine: Any = fastgen.load("zoo:ddpm-mnist", device="cpu")
    start = time.process_time()
    found = engine.bits_per_dim(
        torch.tensor(images[digits])[:, None], labels=labels[digits].tolist(), **PARTS[part]
    )
    seconds = time.process_time() - start
    if found.terms is not None:
        values = [None if value != value else value for value in found.terms.mean().tolist()]
        terms = {"prior": float(found.terms.prior.mean()), "values": values}
        write_terms(ROOT / "docs/images/ddpm-bound.png", terms, f"zoo:ddpm-mnist, {found}")
    return {
        "kind": found.kind,
        "values": [round(value, 5) for value in found.values.tolist()],
        "evaluations": found.evaluations,
        "seconds": round(seconds, 1),
    }


def mean(values: list[float]) -> str:
    """``1.234 ± 0.012``: the mean and its standard error."""
    found = torch.tensor(values, dtype=torch.float64)
    return f"{found.mean():.3f} ± {found.std() / len(found) ** 0.5:.3f}"


def table(report: dict[str, Any]) -> str:
    """The rows of what has been measured."""
    names = {
        "bound": f"variational bound, {TIMESTEPS} timesteps a digit",
        "decoder": "probability flow, decoder dequantisation",
        "uniform": "probability flow, uniform dequantisation",
    }
    rows = [
        f"| {name} | {mean(report[part]['values'])} | {report[part]['kind']} |"
        for part, name in names.items()
        if part in report
    ]
    if {"bound", "decoder"} <= set(report):
        apart = [a - b for a, b in zip(report["bound"]["values"], report["decoder"]["values"], strict=True)]
        rows.append(
            f"| the bound less the flow by decoder, digit by digit | {mean(apart)} | smallest {min(apart):.3f} |"
        )
    lines = ["| | bits/dim | kind |", "|---|---|---|", *rows]
    if {"one_exact", "one_hutchinson"} <= set(report):
        exact, hutchinson = (report[part]["values"][0] for part in ("one_exact", "one_hutchinson"))
        lines += [
            "",
            f"With the whole trace, 784 gradients an evaluation, digit {FIRST} by {COARSE} steps has {exact:.3f} "
            f"bits/dim, with Hutchinson's by the same steps and noise {hutchinson:.3f}.",
        ]
    return "\n".join(lines)


def write(report: dict[str, Any]) -> None:
    """The tables of the pages."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        head, rest = text.split("<!-- likelihood -->", 1)
        tail = rest.split("<!-- end -->", 1)[1]
        new = f"{head}<!-- likelihood -->\n\n{table(report)}\n<!-- end -->{tail}"
        (ROOT / page).write_text(new, encoding="utf-8")


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    path = Path(folder("ddpm-mnist")) / "likelihood.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    for part in parts or list(PARTS):
        found = measure(part)
        report[part] = found
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(part, found, flush=True)
    write(report)  # parts of the same digits


if __name__ == "__main__":
    main(sys.argv[1:])
