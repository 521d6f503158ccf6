"""What the zoo's models give for fixed requests, and short training runs, as digests: `python -m tests.zoo.digests`
records them beside this file. A change that should leave numbers as they are is held to them.

Bits depend on the processor's vector extensions, on NumPy's BLAS (on a Zen 5 it adds as on a Haswell, where PyTorch has
AVX512) and on PyTorch's version, so that digests are kept by these; a mean and a standard deviation are kept besides,
which hold on any machine.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

import fastgen
from fastgen.cli import main
from fastgen.diffusion import NoiseSchedule
from fastgen.diffusion.processes import PROCESSES, AnyProcess
from fastgen.diffusion.solvers import SOLVERS, solver_table
from fastgen.errors import ConfigError
from fastgen.tensor_file import TensorFile

FILE = Path(__file__).with_name("digests.json")
UNIT_STEPS = 6
TRAINED = {
    "train unet": ["--widths", "8,8", "--flip"],
    "train glow": ["--model", "glow", "--option", "steps_per_scale=1", "--option", "hidden_channels=8"],
    "train vector_flow": ["--model", "vector_flow", "--widths", "8", "--option", "steps=2"],
}
REQUESTS: dict[str, dict[str, Any]] = {
    "ddpm guided": {"solver": "dpm++2m", "guidance_scale": 2.0, "guidance_rescale": 0.5},
    "ddpm interval": {"solver": "ddim", "eta": 0.5, "guidance_scale": 2.0, "guidance_interval": (0.2, 0.8)},
    "ddpm threshold": {"solver": "ddpm", "thresholding": True},
    "ddpm mixed": {"solver": ["heun", "euler_a", "ddim"], "steps": [3, 6, 5], "seeds": [1, 2, 3]},
}


def machine() -> str:
    """What bits depend on: PyTorch, the vector extensions it uses, and the kernels that NumPy's BLAS has chosen."""
    blas = {found["architecture"] for found in threadpool_info() if found["user_api"] == "blas"}
    return (
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, BLAS {' '.join(sorted(blas))}"
    )


def works() -> dict[str, Callable[[], Tensor]]:
    """Every piece of work by name."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name in ("schedule", *PROCESSES):
        found[f"tables {name}"] = lambda name=name: _tables(name)  # type: ignore[misc]
    for name in (n for n, solver in SOLVERS.items() if not solver.sde):
        found[f"ddpm {name}"] = lambda name=name: _ddpm("float32", solver=name)  # type: ignore[misc]
    for name, arguments in REQUESTS.items():
        found[name] = lambda arguments=arguments: _ddpm("float32", **arguments)  # type: ignore[misc]
    found["ddpm bfloat16"] = lambda: _ddpm("bfloat16")
    for verb in ("sample", "log_prob", "bits_per_dim", "encode", "decode", "interpolate"):
        found[f"glow {verb}"] = lambda verb=verb: _glow(verb)  # type: ignore[misc]
    for name, flags in TRAINED.items():
        found[name] = lambda flags=flags: _trained(flags)  # type: ignore[misc]
    return found


def _tables(name: str) -> Tensor:
    """Every column of every solver's table on a process."""
    process: AnyProcess = NoiseSchedule() if name == "schedule" else PROCESSES[name]()
    columns = []
    for solver in SOLVERS:
        try:
            table = solver_table(solver, process, UNIT_STEPS)
        except ConfigError:
            continue
        columns += [np.ravel(value) for value in vars(table).values() if isinstance(value, np.ndarray)]
    assert len(columns) > 100
    return torch.from_numpy(np.concatenate(columns).astype(np.float64))


def _ddpm(dtype: str, **arguments: Any) -> Tensor:
    engine = fastgen.load("zoo:ddpm-mnist", device="cpu", dtype=dtype)
    seeds = {} if "seeds" in arguments else {"seed": 7}
    labels = [1, 8] if "seeds" not in arguments else [1, 8, 3]
    given: dict[str, Any] = {"labels": labels, "steps": UNIT_STEPS, **seeds, **arguments}
    return engine.sample(**given)


def _glow(verb: str) -> Tensor:
    engine = fastgen.load("zoo:glow-mnist", device="cpu")
    labels = [1, 8]
    x = engine.sample(labels=labels, seed=7, temperature=0.7)
    levels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.int32)
    if verb == "sample":
        return x
    if verb == "bits_per_dim":
        return engine.bits_per_dim(levels, 2, labels=labels).values
    if verb == "interpolate":
        return engine.interpolate(x[:1], x[1:], 3, labels=1)
    if verb == "log_prob":
        return engine.log_prob(x, labels=labels)
    latents = engine.encode(x, labels=labels)
    if verb == "encode":
        return torch.cat([latent.flatten() for latent in latents])
    return engine.decode(latents, labels=labels)


def _trained(flags: list[str]) -> Tensor:
    data = ["--data", "two-moons" if "vector_flow" in flags else "digits"]
    more = ["--steps", "3", "--batch-size", "8", "--warmup", "2", "--save-every", "2", "--preview-every", "0"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", folder, *data, *flags, *more, "--precision", "fp32", "--quiet"]
        assert main([*arguments, "--device", "cpu"]) == 0
        with TensorFile(Path(folder) / "model.safetensors") as file:
            weights = dict(file.read({}))
    return torch.cat([weights[name].double().flatten() for name in sorted(weights)])


def measure(work: Callable[[], Tensor]) -> dict[str, Any]:
    """Digest, mean and standard deviation of a work's result, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        value = work().detach().cpu().contiguous()
    finally:
        torch.set_num_threads(threads)
    digest = hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    double = value.double()
    double = double[double.isfinite()].clamp(-1e3, 1e3)
    return {"digest": digest, "mean": float(double.mean()), "std": float(double.std())}


def record() -> None:
    """Write digests of this machine into FILE, beside those of others."""
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"moments": {}, "digests": {}}
    found = {name: measure(work) for name, work in works().items()}
    kept["moments"] = {name: [value["mean"], value["std"]] for name, value in found.items()}
    kept["digests"][machine()] = {name: value["digest"] for name, value in found.items()}
    FILE.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(record())
