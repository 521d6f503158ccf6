"""Training a denoiser: uniform times, mean squared error on the network's own target (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import Spec, save, write_atomic
from ..diffusion.schedule import NoiseSchedule
from ..errors import CheckpointError
from ..runtime.device import fast_bf16
from .data import Dataset
from .run import RunConfig, RunState, saved_config

LOSS_FILE = "loss.csv"


def train(
    module: nn.Module,
    spec: Spec,
    schedule: NoiseSchedule,
    dataset: Dataset,
    config: RunConfig,
    folder: str | Path,
    *,
    null_class: int | None = None,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: bool = True,
    on_preview: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train `module` (F(x, t, label)) on `dataset` into `folder`; returns the averaged network.

    spec: what is written beside the averaged weights, which are one part of the only name in ``spec.parts``.
    null_class: the label that stands for "no label"; `config.label_dropout` of the labels become it.
    on_preview(step, averaged network) is called every `config.preview_every` steps and at the end.

    The same seed, data and machine give the same weights, interrupted and resumed or not: every step draws its
    times, noise and dropouts from a generator seeded by (seed, step). Raises CheckpointError where `folder`
    holds a run and `resume` is False, or the other way round. Ctrl-C saves before it passes on.
    """
    folder = Path(folder)
    earlier = saved_config(folder)
    if earlier is None and resume:
        raise CheckpointError(f"{folder}: no training run to resume in it")
    if earlier is not None and not resume:
        raise CheckpointError(f"{folder}: holds a training run; resume it, or choose another folder")
    config = _settled(earlier or config, torch.device(device))

    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    module = module.to(device, **layout).train().requires_grad_(True)
    ema = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    state = RunState(config, module, ema, optimizer, [])
    if resume:
        state.restore(folder)
    folder.mkdir(parents=True, exist_ok=True)

    bar = tqdm(total=config.steps, initial=state.step, disable=not progress, unit="step", smoothing=0.05)
    saved = state.step if resume else -1
    try:
        with torch.random.fork_rng(enabled=True):
            for x, label in _batches(dataset, config, state.step):
                _train_step(state, schedule, x.to(device), label, null_class)
                bar.update()
                bar.set_postfix(loss=f"{_recent(state.losses):.4f}", refresh=False)
                if state.step % config.save_every == 0:
                    _save(state, spec, folder)
                    saved = state.step
                if on_preview and config.preview_every and state.step % config.preview_every == 0:
                    on_preview(state.step, ema)
    finally:  # also on Ctrl-C: nothing trained is lost
        bar.close()
        if state.step != saved:
            _save(state, spec, folder)
    if on_preview and config.preview_every and state.step % config.preview_every:
        on_preview(state.step, ema)
    return ema


def _settled(config: RunConfig, device: torch.device) -> RunConfig:
    if config.precision != "auto":
        return config
    return dataclasses.replace(config, precision="bf16" if fast_bf16(device) else "fp32")


def _batches(dataset: Dataset, config: RunConfig, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches `start`..`config.steps` of one endless stream of shuffled epochs: float32 in [-1, 1], labels."""
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for step in range(start, config.steps):
        indices = []
        for position in range(step * config.batch_size, (step + 1) * config.batch_size):
            if position // len(dataset) != epoch:
                epoch = position // len(dataset)
                order = torch.randperm(len(dataset), generator=_generator(config.seed, -1 - epoch))
            indices.append(int(order[position % len(dataset)]))
        images, labels = dataset.batch(indices)
        x = images.float() / 127.5 - 1
        if config.flip:
            mirror = torch.rand(len(x), generator=_generator(config.seed, step, salt=1)) < 0.5
            x[mirror] = x[mirror].flip(-1)
        yield x, labels


def _train_step(
    state: RunState, schedule: NoiseSchedule, x: Tensor, label: Tensor | None, null_class: int | None
) -> None:
    config, device = state.config, x.device
    generator = _generator(config.seed, state.step)
    torch.manual_seed(_mix(config.seed, state.step, salt=2))  # dropout layers use the global generator
    # Drawn on the CPU so that a GPU run sees the same noise as a CPU run.
    t = torch.randint(schedule.num_train_timesteps, (len(x),), generator=generator)
    noise = torch.randn(x.shape, generator=generator).to(device)
    if label is not None and null_class is not None:
        dropped = torch.rand(len(x), generator=generator) < config.label_dropout
        label = torch.where(dropped, null_class, label)
    t, label = t.to(device), None if label is None or null_class is None else label.to(device)

    noisy = schedule.add_noise(x, noise, t).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        output = state.module(noisy, t, label)
    loss = nn.functional.mse_loss(output.float(), schedule.target(x, noise, t))
    loss.backward()
    if config.grad_clip:
        nn.utils.clip_grad_norm_(state.module.parameters(), config.grad_clip)
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * _rate(state.step, config)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)

    # Early on the average forgets faster, or it would keep the random start for 1 / (1 - decay) steps.
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.parameters()), list(state.module.parameters()), 1 - decay)
    state.losses.append(loss.item())


def _rate(step: int, config: RunConfig) -> float:
    """Linear warm-up, then a cosine down to zero: a factor of the learning rate."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def _save(state: RunState, spec: Spec, folder: Path) -> None:
    state.save(folder)
    (part,) = spec.parts
    dtype = torch.float16 if state.config.weights_dtype == "float16" else torch.float32
    save(folder, spec, {f"{part}.{name}": t.to(dtype) for name, t in state.ema.state_dict().items()})
    rows = "".join(f"{i + 1},{loss:.6f}\n" for i, loss in enumerate(state.losses))
    write_atomic(folder / LOSS_FILE, ("step,loss\n" + rows).encode())


def _recent(losses: list[float]) -> float:
    tail = losses[-50:]
    return sum(tail) / len(tail)


def _mix(seed: int, step: int, salt: int = 0) -> int:
    """A 63-bit seed from (seed, step, salt): splitmix64's finaliser, so that neighbours are unrelated."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + salt * 0xD6E8FEB86659FD93) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


def _generator(seed: int, step: int, salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, step, salt))
