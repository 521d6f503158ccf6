"""diffusers as a careful user runs it: its U-Net channels-last, its scheduler, one batched call for guidance."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ...api import convert
from ...config import to_dict
from ...converters.base import Report
from ...converters.diffusers.scheduler_write import from_settings
from ...diffusion.schedule import NoiseSchedule
from ...diffusion.solvers import SOLVERS as ALL_SOLVERS
from ...engines import DiffusionEngine
from ...engines.diffusion.module import Wrapped
from ...engines.diffusion.plan import Plan
from ...engines.diffusion.request import Request
from ...errors import ConfigError
from ...runtime.device import dtype_name
from ..contest import NotApplicable

# Solvers of which diffusers has the same; the converter says which class that is, and with which options. Not pndm,
# whose steps differ, nor dpm++3m_sde, whose third order does, nor dpm2_a, which draws noise that it does not use.
SOLVERS = (
    "ddpm", "ddim", "dpm++2m", "euler", "heun", "euler_a", "dpm2", "lms", "dpm_multistep", "dpm++3m", "dpm++2m_sde",
    "dpm_singlestep", "dpm++2s", "dpm++3s", "unipc", "deis", "plms", "sa", "lcm", "tcd",
)  # fmt: skip
# Their state is that of the others times sqrt(1 + sigma^2).
BY_SIGMA = ("euler", "heun", "euler_a", "dpm2", "lms")


def network(engine: DiffusionEngine) -> Callable[..., Tensor]:
    """diffusers' U-Net with the engine's weights; a network that is not ours is its own."""
    if isinstance(engine.network, Wrapped):
        return engine.network
    if "unet" not in engine.architectures.values():
        raise NotApplicable(f"diffusers has no {', '.join(engine.architectures.values())}")
    from diffusers import UNet2DModel

    _quietly()
    config = to_dict(engine.network.config)
    net = UNet2DModel(**{**config, "sample_size": config["sample_size"][0]})
    state = {n.replace("to_out.", "to_out.0."): t for n, t in engine.network.state_dict().items()}
    net.load_state_dict(state)
    net = net.to(engine.device, engine.dtype, memory_format=engine.loop.memory_format).eval()

    def call(x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        given = {} if label is None else {"class_labels": label}
        return net(x, t, **given, return_dict=False)[0]

    return call


def scheduler(engine: DiffusionEngine, plan: Plan) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """diffusers' class, its configuration and its step's arguments for a plan's solver and options."""
    process = engine.settings.noise_schedule
    if not isinstance(plan.solver, str) or plan.solver not in SOLVERS:
        raise NotApplicable(f"no scheduler of diffusers is known to be {plan.table.name}")
    if not isinstance(process, NoiseSchedule):
        raise NotApplicable(
            f"diffusers is compared on a NoiseSchedule, and this model's process is {process.name}"
        )
    options = dict(plan.options)
    step: dict[str, Any] = {"eta": options.pop("eta")} if "eta" in options else {}
    if getattr(ALL_SOLVERS[plan.solver].check(options), "use_clipped_model_output", False):
        step["use_clipped_model_output"] = True
    settings = replace(engine.settings, solver=plan.solver, solver_options=options or None)
    try:
        config, lost = from_settings(settings, Report())
    except ConfigError as error:
        raise NotApplicable(str(error)) from error
    if lost := {key: value for key, value in lost.items() if key not in step}:
        raise NotApplicable(f"diffusers' {config['_class_name']} has no {', '.join(lost)}")
    return config.pop("_class_name"), config, step


def on_disk(engine: DiffusionEngine, request: Request, x: Tensor, folder: Path) -> dict[str, Any]:
    """The model as diffusers saves it, with inputs for `child.py`: its order.

    Raises ConfigError where it cannot be written.
    """
    (plan,) = request.kinds
    cls, config, step = scheduler(engine, plan)
    if step or plan.solver in BY_SIGMA or plan.table.stochastic:
        raise NotApplicable(
            f"in a fresh process diffusers draws without noise and by time, not {plan.solver}"
        )
    convert(engine.source, folder / "diffusers", to="diffusers")
    labels, null = None, engine.settings.null_class
    if engine.settings.num_classes is not None:
        labels = torch.tensor([null if i is None else i for i in request.labels], device="cpu")
        if plan.guidance.scale != 1:
            labels = torch.cat([labels, torch.full_like(labels, null or 0)])
    given: dict[str, Any] = {
        "x": x.cpu(),
        "labels": labels,
        "guidance_scale": plan.guidance.scale,
        "steps": plan.steps,
    }
    given |= {"scheduler": cls, "config": config, "dtype": dtype_name(engine.dtype)}
    torch.save(given, folder / "inputs.pt")
    return {"folder": str(folder / "diffusers"), "inputs": str(folder / "inputs.pt")}


def sample(
    engine: DiffusionEngine,
    plan: Plan,
    evaluate: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    noise: Sequence[Tensor] | None = None,
) -> Callable[[], Tensor]:
    """A call that draws by diffusers' scheduler.

    evaluate(input, t): the network with labels and guidance. x: float32 [B, C, H, W], the table's initial state; noise:
    what each evaluation adds, handed over in place of the scheduler's own. Without `noise` it makes its own in every
    call, the initial state included (diffusers' randn_tensor, a batch at a time), and x says only its shape.
    """
    import diffusers

    _quietly()
    cls, config, step = scheduler(engine, plan)
    oracle = getattr(diffusers, cls).from_config(config)
    module = sys.modules[type(oracle).__module__]
    first, initial = plan.table.input_scale[0], plan.table.initial_scale
    dtype, layout, device = engine.dtype, engine.loop.memory_format, x.device

    @torch.inference_mode()
    def call() -> Tensor:
        oracle.set_timesteps(plan.steps, device=device)
        state = (x if noise is not None else torch.randn_like(x) * initial) * float(first)
        if plan.solver in BY_SIGMA:
            state = state * (oracle.sigmas[0] ** 2 + 1) ** 0.5
        with nullcontext() if noise is None else _noise(module, iter(noise)):
            for t in oracle.timesteps:
                scaled = oracle.scale_model_input(state, t)
                out = evaluate(scaled.to(dtype, memory_format=layout), t).float()
                state = oracle.step(out, t, state, **step, return_dict=False)[0]
        return state.clamp(-1, 1)

    return call


def _quietly() -> None:
    """Without diffusers' remarks: at every change of type, and at options that it sets itself."""
    from diffusers.utils import logging

    logging.set_verbosity_error()


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
