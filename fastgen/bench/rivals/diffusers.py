"""diffusers as a careful user runs it: its U-Net channels-last, its scheduler, one batched call for guidance."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...api import convert
from ...config import to_dict
from ...engines import DiffusionEngine
from ...engines.module import Wrapped
from ...engines.request import Request
from ..contest import NotApplicable

# solver -> module and class of the scheduler whose defaults are those of our solver
SCHEDULERS = {
    "ddpm": ("scheduling_ddpm", "DDPMScheduler"),
    "ddim": ("scheduling_ddim", "DDIMScheduler"),
    "dpm++2m": ("scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "euler": ("scheduling_euler_discrete", "EulerDiscreteScheduler"),
    "heun": ("scheduling_heun_discrete", "HeunDiscreteScheduler"),
}
BY_SIGMA = ("euler", "heun")  # their state is that of the others times sqrt(1 + sigma^2)


def network(engine: DiffusionEngine) -> Callable[..., Tensor]:
    """diffusers' U-Net with the engine's weights; a network that is not ours is its own."""
    if isinstance(engine.network, Wrapped):
        return engine.network
    if "unet" not in engine.networks.values():
        raise NotApplicable(f"diffusers has no {', '.join(engine.networks.values())}")
    from diffusers import UNet2DModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # a remark at every change of type
    config = to_dict(engine.network.config)
    net = UNet2DModel(**{**config, "sample_size": config["sample_size"][0]})
    state = {n.replace("to_out.", "to_out.0."): t for n, t in engine.network.state_dict().items()}
    net.load_state_dict(state)
    net = net.to(engine.device, engine.dtype, memory_format=engine.loop.memory_format).eval()

    def call(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        given = {} if label is None else {"class_labels": label}
        return net(x, t, **given, return_dict=False)[0]

    return call


def scheduler(engine: DiffusionEngine, request: Request) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """diffusers' module, class, constructor's and step's arguments for a request's solver and options."""
    if request.solver not in SCHEDULERS:
        raise NotApplicable(f"no scheduler of diffusers is known to be {request.solver}")
    options = dict(request.options)
    step: dict[str, Any] = {
        key: options.pop(key) for key in ("eta", "use_clipped_model_output") if key in options
    }
    config = engine.settings.noise_schedule.to_config()
    if request.solver == "heun" and config.pop("rescale_betas_zero_snr", False):
        raise NotApplicable("diffusers' heun has no rescale_betas_zero_snr")
    return *SCHEDULERS[request.solver], {**config, **options}, step


def on_disk(engine: DiffusionEngine, request: Request, x: Tensor, folder: Path) -> dict[str, Any]:
    """The model as diffusers saves it, with inputs for `child.py`: its order.

    Raises ConfigError where it cannot be written.
    """
    name, cls, config, step = scheduler(engine, request)
    if step or request.solver in BY_SIGMA or request.table(engine.settings.noise_schedule).stochastic:
        raise NotApplicable(
            f"in a fresh process diffusers draws without noise and by time, not {request.solver}"
        )
    convert(engine.source, folder / "diffusers", to="diffusers")
    null = engine.settings.null_class
    labels = None
    if engine.settings.num_classes is not None:
        labels = torch.tensor([null if i is None else i for i in request.labels])
        if request.guidance_scale != 1:
            labels = torch.cat([labels, torch.full_like(labels, null or 0)])
    given: dict[str, Any] = {
        "x": x.cpu(),
        "labels": labels,
        "guidance_scale": request.guidance_scale,
        "steps": request.steps,
    }
    given |= {"scheduler": [name, cls], "config": config, "dtype": str(engine.dtype).removeprefix("torch.")}
    torch.save(given, folder / "inputs.pt")
    return {"folder": str(folder / "diffusers"), "inputs": str(folder / "inputs.pt")}


def sample(
    engine: DiffusionEngine,
    request: Request,
    evaluate: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    noise: Sequence[Tensor],
) -> Callable[[], Tensor]:
    """A call that draws `request` by diffusers' scheduler.

    evaluate(input, t): the network with labels and guidance. x: float32 [B, C, H, W], the table's initial state; noise:
    what each evaluation adds, handed over in place of the scheduler's own.
    """
    name, cls, config, step = scheduler(engine, request)
    module = importlib.import_module(f"diffusers.schedulers.{name}")
    try:
        oracle = getattr(module, cls)(**config)
    except TypeError as error:
        raise NotApplicable(f"diffusers' {cls}: {error}") from error
    first = request.table(engine.settings.noise_schedule).input_scale[0]
    dtype, layout, device = engine.dtype, engine.loop.memory_format, x.device

    @torch.inference_mode()
    def call() -> Tensor:
        oracle.set_timesteps(request.steps, device=device)
        state = x * float(first)
        if request.solver in BY_SIGMA:
            state = state * (oracle.sigmas[0] ** 2 + 1) ** 0.5
        with _noise(module, iter(noise)):
            for t in oracle.timesteps:
                scaled = oracle.scale_model_input(state, t)
                out = evaluate(scaled.to(dtype, memory_format=layout), t).float()
                state = oracle.step(out, t, state, **step, return_dict=False)[0]
        return state.clamp(-1, 1)

    return call


@contextmanager
def _noise(module: ModuleType, given: Iterator[Tensor]) -> Iterator[None]:
    """Within the block the scheduler's module takes its noise from `given`."""
    own = getattr(module, "randn_tensor", None)
    if own is None:
        yield
        return
    module.randn_tensor = lambda *args, **kwargs: next(given)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.randn_tensor = own  # type: ignore[attr-defined]
