"""The levels that solvers choose by default beside diffusers', on schedules that no network here was trained for.

    python -m tests.diffusion.defaults      writes the table of docs/solvers.md

The exact denoiser of 300 images (scikit-learn's 8x8 digits), whose path from a given noise ends at one of them, stands
in for a network; to its estimate of x_0 comes an error that depends on the state, as a network's does: ERROR * tanh of
a random mix of x, and less below sigma = alpha. A cell counts the runs, of 100, that end at the image where the path of
the exact denoiser does (300 steps of Heun): those that do not have been led astray by their own steps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bench.gallery import steps_for as without_options
from fastgen.diffusion import SOLVERS, VPSDE, NoiseSchedule, Table, run
from fastgen.errors import ConfigError
from fastgen.training.data import load

from .deviations import PAGE, block, replace_block

Array = np.ndarray
ERROR = 0.1
RUNS, IMAGES = 100, 300
EVALUATIONS = (10, 20)
NAMES = ("ddim", "heun", "midpoint", "rk4", "dpm2", "plms", "pndm")
LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V: dict[str, Any] = {"prediction_type": "v_prediction"}
PROCESSES: dict[str, Any] = {
    "linear": NoiseSchedule(**V),
    "scaled_linear": NoiseSchedule(**LATENT, **V),
    "squaredcos_cap_v2": NoiseSchedule(beta_schedule="squaredcos_cap_v2", **V),
    "zero terminal SNR": NoiseSchedule(**LATENT, rescale_betas_zero_snr=True, **V),
    "vp_sde": VPSDE(),
}


def images() -> Array:
    """[IMAGES, 64] in [-1, 1]."""
    levels = load("digits").batch(list(range(IMAGES))).x.double().numpy()
    return levels.reshape(IMAGES, -1) / 127.5 - 1.0


class Judge:
    """Runs on a process that keeps alpha^2 + sigma^2 = 1, always from the same 100 noises."""

    def __init__(self) -> None:
        self.images = images()
        generator = np.random.default_rng(1)
        size = self.images.shape[1]
        self.noise = generator.normal(size=(RUNS, size))
        self.mix = generator.normal(size=(size, size)) / math.sqrt(size)

    def x0(self, x: Array, ratio: float) -> Array:
        """E[x_0 | x] with sigma / alpha = ratio, if x_0 is one of the images."""
        if math.isinf(ratio):
            return np.broadcast_to(self.images.mean(0), x.shape)
        alpha = 1.0 / math.hypot(1.0, ratio)
        # log N(x / alpha; image, ratio^2), without what all images share
        logs = (x / alpha @ self.images.T - (self.images**2).sum(1) / 2.0) / ratio**2
        share = np.exp(logs - logs.max(1, keepdims=True))
        return share / share.sum(1, keepdims=True) @ self.images

    def ends(self, table: Table, error: float) -> Array:
        """[RUNS]: the number of the image nearest to the end of each run."""
        asked = iter(range(len(table)))

        def network(x: Array, t: float) -> Array:
            i = next(asked)
            x = x / table.input_scale[i]
            wrong = error * min(1.0, table.sigma[i]) * np.tanh(2.0 * x @ self.mix)
            return (self.x0(x, table.sigma[i]) + wrong - table.p[i] * x) / table.q[i]

        end = run(table, network, table.initial_scale * self.noise, [self.noise] * len(table))
        nearest: Array = ((end[:, None] - self.images) ** 2).sum(-1).argmin(1)
        return nearest

    def wanted(self, process: Any) -> Array:
        """`ends` of the exact denoiser's paths."""
        return self.ends(SOLVERS["heun"](process, 300, as_diffusers=True), 0.0)

    def agreement(self, name: str, process: Any, evaluations: int, wanted: Array, **options: Any) -> int:
        """Runs that end at the image `wanted`."""
        steps = steps_for(name, process, evaluations, **options)
        table = SOLVERS[name](process, steps, **options)
        return int((self.ends(table, ERROR) == wanted).sum())


def steps_for(name: str, process: Any, evaluations: int, **options: Any) -> int:
    """As `bench.gallery.steps_for`, with options."""
    if not options:
        return without_options(name, process, evaluations)
    found = 0
    for steps in range(1, evaluations + 1):
        try:
            rows = len(SOLVERS[name](process, steps, **options))
        except ConfigError:
            continue
        if rows <= evaluations or not found:
            found = steps
    return found


def main() -> None:
    judge = Judge()
    wanted = {name: judge.wanted(process) for name, process in PROCESSES.items()}
    lines = [f"| solver, evaluations | {' | '.join(PROCESSES)} |", "|---" * (1 + len(PROCESSES)) + "|"]
    for name in NAMES:
        for evaluations in EVALUATIONS:
            cells = [f"`{name}`, {evaluations}"]
            for kind, process in PROCESSES.items():
                if SOLVERS[name].discrete and not isinstance(process, NoiseSchedule):
                    cells.append("-")
                    continue
                found = [
                    judge.agreement(name, process, evaluations, wanted[kind], **options)
                    for options in ({}, {"as_diffusers": True})
                ]
                cells.append(" / ".join(map(str, found)))
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    page = PAGE.read_text()
    assert block(page, "defaults") is not None
    PAGE.write_text(replace_block(page, "defaults", "\n".join(lines)))


if __name__ == "__main__":
    main()
