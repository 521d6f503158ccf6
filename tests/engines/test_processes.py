"""Networks of continuous processes in the engine: what it draws is what the plain interpreter makes of the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgen import ConfigError, DiffusionEngine
from fastgen.diffusion import (
    EDM,
    SOLVERS,
    VESDE,
    FlowMatching,
    Table,
    compile_scheduler,
    process_from_config,
    run,
)
from fastgen.engines.diffusion.settings import DiffusionSettings
from fastgen_kernels import normals
from tests.refusals import refused

from ..small import unet_config

SHAPE = (2, 6, 10)
CASES: list[tuple[dict[str, Any], str, str, dict[str, Any]]] = [
    ({"process": "edm"}, "edm", "heun", {"S_churn": 10.0}),
    ({"process": "edm"}, "sample", "dpm++2m", {}),
    ({"process": "flow", "shift": 3.0}, "velocity", "euler", {}),
    ({"process": "flow", "time": "unit"}, "sample", "rk4", {}),
    ({"process": "vp_sde"}, "epsilon", "euler_maruyama", {}),
    ({"process": "subvp"}, "score", "midpoint", {}),
    ({"process": "ve"}, "score", "predictor_corrector", {"n_steps": 2}),
]


class Net(nn.Module):
    """Bounded, smooth, and told the time; of VE's, a score."""

    def __init__(self, score: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.mix, self.score = nn.Conv2d(2, 2, 3, padding=1), score

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.dtype)[:, None, None, None]
        scale = 1.0 / (1.0 + t) if self.score else 1.0
        return scale * torch.tanh(self.mix(x) + torch.sin(0.01 * t))


def plain(table: Table, net: nn.Module, seeds: list[int]) -> Tensor:
    """`table` interpreted in float64, with the engine's noise."""
    twin = Net(net.score)
    twin.load_state_dict(net.state_dict())
    twin.double()

    def network(x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            return twin(x, torch.full((len(x),), t, dtype=torch.float64))

    def noise(stream: str, step: int) -> Tensor:
        return normals(seeds, step, stream, SHAPE, dtype=torch.float64)

    x = table.initial_scale * noise("initial", 0)
    return run(table, network, x, [noise("step", int(step)) for step in table.noise_step])


@pytest.mark.parametrize(
    ("schedule", "prediction", "solver", "options"), CASES, ids=[str(c[:3]) for c in CASES]
)
def test_engine_draws_what_the_table_says(
    schedule: dict[str, Any], prediction: str, solver: str, options: dict[str, Any]
) -> None:
    net = Net(score=prediction == "score")
    engine = DiffusionEngine.from_module(
        net, schedule, prediction, SHAPE, solver=solver, steps=12, solver_options=options, graph="recorded"
    )
    steps = 100 if solver == "euler_maruyama" else 12  # which blows errors up where beta / steps is near 1
    process = process_from_config(schedule | {"prediction_type": prediction})
    table = SOLVERS[solver](process, steps, **options)
    want = plain(table, net, [5, 6]).clamp(-1, 1)
    got = engine.sample(2, seed=5, steps=steps).double()
    # float32 states as large as the noise they start from, a few operations a row.
    size = max(1.0, table.initial_scale)
    assert float((got - want).abs().max()) <= 16 * len(table) * 2.0**-24 * size
    assert float(want.abs().max()) > 0.1


def test_verification_asks_at_times_of_the_process() -> None:
    engine = DiffusionEngine.from_module(Net(), {"process": "edm"}, "edm", SHAPE, steps=6)
    assert engine.verify(batch=2).passed


def test_process_objects_are_taken_too() -> None:
    engine = DiffusionEngine.from_module(Net(), FlowMatching(shift=2.0), "velocity", SHAPE)
    assert engine.settings.noise_schedule == FlowMatching(shift=2.0)
    assert engine.settings.schedule["process"] == "flow"  # and can be saved
    with refused(ConfigError, "prediction_type", "velocity, sample", "epsilon"):
        DiffusionEngine.from_module(Net(), FlowMatching(), "epsilon", SHAPE)
    with refused(ConfigError, "process", "edm, flow", "flows"):
        DiffusionEngine.from_module(Net(), {"process": "flows"}, "velocity", SHAPE)
    for schedule in (
        FlowMatching(prediction_type="sample"),
        {"process": "flow", "prediction_type": "sample"},
    ):
        with refused(ConfigError, "prediction_type", "sample", "velocity"):
            DiffusionEngine.from_module(Net(), schedule, "velocity", SHAPE)


def test_solvers_of_discrete_time_are_refused() -> None:
    engine = DiffusionEngine.from_module(Net(), EDM(), "edm", SHAPE)
    with refused(ConfigError, "solver", "ddpm", "edm"):
        engine.sample(1, solver="ddpm")


def test_a_compiled_scheduler_is_a_solver() -> None:
    """A table from diffusers' scheduler in the engine equals diffusers' scheduler with our network and noise."""
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as module

    net, steps, seeds = Net(), 8, [3, 4]
    engine = DiffusionEngine.from_module(net, {}, "epsilon", SHAPE, graph="recorded")
    scheduler = module.EulerAncestralDiscreteScheduler()
    table = compile_scheduler(scheduler, steps)
    got = engine.sample(seeds=seeds, solver=table)

    x = normals(seeds, 0, "initial", SHAPE) * scheduler.init_noise_sigma
    current: list[Tensor] = []
    kept = module.randn_tensor
    module.randn_tensor = lambda *args, **kwargs: current[-1]
    try:
        scheduler.set_timesteps(steps)
        for i, t in enumerate(scheduler.timesteps):
            current.append(normals(seeds, i, "step", SHAPE))
            with torch.no_grad():
                output = net(scheduler.scale_model_input(x, t), t.reshape(1).float())
            x = scheduler.step(output, t, x).prev_sample
    finally:
        module.randn_tensor = kept
    # States as large as sigma_max in float32, on both sides.
    limit = 2 * 16 * steps * 2.0**-24 * table.initial_scale
    assert float((got - x.clamp(-1, 1)).abs().max()) <= limit
    assert table.stochastic
    flow = DiffusionEngine.from_module(net, FlowMatching(), "velocity", SHAPE)
    with refused(ConfigError, "solver", "epsilon", "prediction_type=velocity"):
        flow.sample(1, solver=table)


def test_networks_with_fourier_features_need_sigma() -> None:
    fourier = unet_config(num_class_embeds=None, time_embedding_type="fourier")
    DiffusionSettings(schedule=VESDE().to_config()).check_network(fourier)
    for schedule in ({}, {"process": "ve", "time": "unit"}, {"process": "flow"}):
        with refused(ConfigError, "time_embedding_type", "fourier", " ve "):
            DiffusionSettings(schedule=schedule).check_network(fourier)
    learned = unet_config(num_class_embeds=None, time_embedding_type="learned", num_train_timesteps=1000)
    with refused(ConfigError, "time_embedding_type", "edm", "positional"):
        DiffusionSettings(schedule={"process": "edm"}).check_network(learned)
