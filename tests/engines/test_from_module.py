"""Any network of one's own is sampled: equal to a plain loop, and refused in words where it does not fit."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastgen import ConfigError, DiffusionEngine
from fastgen.diffusion import NoiseSchedule
from fastgen.errors import ArgumentError
from fastgen_kernels import normals
from tests.refusals import refused

SHAPE = (2, 6, 10)
LINEAR = {"beta_schedule": "linear"}


class Own(nn.Module):
    """Twenty lines that have nothing of ours."""

    def __init__(self, classes: int = 0, out_channels: int = 2) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, out_channels, 3, padding=1)
        self.time = nn.Linear(2, 8)
        self.labels = nn.Embedding(classes, 8) if classes else None

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        angle = t / 1000 * math.pi / 2
        added = self.time(torch.stack([angle.sin(), angle.cos()], 1).to(x.dtype))
        if self.labels is not None:
            added = added + self.labels(label)
        return self.last(torch.tanh(self.first(x) + added[:, :, None, None]))


def plain_ddim(
    net, seed: int, steps: int, prediction: str, label: int | None = None, weight: float = 1.0
) -> Tensor:  # type: ignore[no-untyped-def]
    """DDIM (Song et al. 2021, eq. 12; eta 0) as everybody writes it, in the network's dtype."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    dtype = next(net.parameters()).dtype
    x = normals([seed], 0, "initial", SHAPE, dtype=torch.float64).to(dtype)
    times = [k * (1000 // steps) for k in range(steps)][::-1]
    for i, t in enumerate(times):
        now = bar[t]
        # The last step goes to the first alpha, diffusers' set_alpha_to_one=True to 1.
        after = bar[times[i + 1]] if i + 1 < steps else torch.ones((), dtype=torch.float64)
        with torch.no_grad():
            time = torch.tensor([float(t)])
            if label is None:
                out = net(x, time)
            else:
                out, free = net(x, time, torch.tensor([label])), net(x, time, torch.tensor([4]))
                out = free + weight * (out - free)
        if prediction == "epsilon":
            x0, noise = (x - (1 - now).sqrt() * out) / now.sqrt(), out
        elif prediction == "sample":
            x0, noise = out, (x - now.sqrt() * out) / (1 - now).sqrt()
        else:
            x0, noise = now.sqrt() * x - (1 - now).sqrt() * out, now.sqrt() * out + (1 - now).sqrt() * x
        x = (after.sqrt() * x0 + (1 - after).sqrt() * noise).to(dtype)
    return x[0]


def deviation(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("graph", [True, "recorded"])
def test_equals_a_plain_ddim_loop(prediction: str, graph: bool | str) -> None:
    engine = DiffusionEngine.from_module(Own(), LINEAR, prediction, SHAPE, graph=graph)
    options = {"clip_sample": False, "timestep_spacing": "leading"}
    got = _unclamped(engine, n=3, seed=11, solver="ddim", steps=10, **options)
    exact = torch.stack([plain_ddim(Own().double(), 11 + k, 10, prediction) for k in range(3)])
    single = torch.stack([plain_ddim(Own(), 11 + k, 10, prediction) for k in range(3)])
    # A plain float32 loop is that far from float64 itself: ten steps of rounding, enlarged by 1 / sqrt(alpha_bar).
    assert deviation(got, exact) <= max(4 * deviation(single, exact), 1e-6)


def _unclamped(engine: DiffusionEngine, **call) -> Tensor:  # type: ignore[no-untyped-def]
    """States as the loop hands them out: `sample` clamps to the images' range."""
    request = engine.request(**call)
    tickets = [engine.loop.add(single) for single in request.singles()]
    done: dict[int, Tensor] = {}
    while engine.loop.step():
        done.update(engine.loop.finished())
    return torch.stack([done[ticket] for ticket in tickets])


def test_labels_and_guidance() -> None:
    engine = DiffusionEngine.from_module(
        Own(classes=5),
        LINEAR,
        "epsilon",
        SHAPE,
        num_classes=4,
        null_class=4,
        class_names=["a", "b", "c", "d"],
    )
    call = {"solver": "ddim", "steps": 5, "clip_sample": False, "timestep_spacing": "leading"}
    got = _unclamped(engine, seed=2, labels=["c", "a"], guidance_scale=3.0, **call)
    for k, label in enumerate([2, 0]):
        want, single = (
            plain_ddim(net, 2 + k, 5, "epsilon", label, 3.0)
            for net in (Own(classes=5).double(), Own(classes=5))
        )
        assert deviation(got[k], want) <= max(4 * deviation(single, want), 1e-6)
    assert engine.sample(labels="d", seed=1).shape == (1, *SHAPE)


def test_everything_else_works_as_with_a_checkpoint() -> None:
    net = Own().train()
    engine = DiffusionEngine.from_module(net, NoiseSchedule(), "epsilon", SHAPE, steps=4, solver="ddpm")
    assert not net.training
    assert torch.equal(engine.sample(4, seed=1)[2:], engine.sample(2, seed=3))
    assert [preview.step for preview in engine.stream(1, seed=1)] == [1, 2, 3, 4]
    facts = engine.describe()
    assert facts["networks"] == {"module": "Own"}
    assert facts["source"].endswith("test_from_module.Own")
    assert facts["defaults"]["steps"] == 4
    assert facts["memory_format"] == "contiguous_format"


def test_weights_that_change_show() -> None:
    net = Own()
    engine = DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, steps=3)
    before = engine.sample(seed=1)
    with torch.no_grad():
        net.last.weight.mul_(0.5)
    assert not torch.equal(engine.sample(seed=1), before)


@pytest.mark.parametrize("replace", [False, True])
def test_weights_that_are_replaced_show_in_captured_steps(replace: bool) -> None:
    net = Own()
    engine = DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, steps=3, graph="recorded")
    engine.sample(seed=1)
    other = {name: tensor * 0.5 for name, tensor in net.state_dict().items()}
    net.load_state_dict(other, assign=replace)
    want = DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, steps=3)
    assert torch.equal(engine.sample(seed=1), want.sample(seed=1))


def test_training_between_calls_does_not_change_how_it_samples() -> None:
    class Drops(Own):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return nn.functional.dropout(super().forward(x, t, label), 0.5, self.training)

    net = Drops()
    engine = DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, steps=3)
    before = engine.sample(seed=1)
    net.train()
    assert torch.equal(engine.sample(seed=1), before)


def test_mixed_types_are_left_alone() -> None:
    class Mixed(Own):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = self.first.to(torch.bfloat16), self.last.to(torch.bfloat16)

        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            shift = self.time(torch.stack([t, t], 1) / 1000).to(x.dtype)
            return self.last(torch.tanh(self.first(x) + shift[:, :, None, None]))

    net = Mixed()
    engine = DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, steps=3)
    assert net.time.weight.dtype == torch.float32
    assert engine.dtype == torch.bfloat16
    assert engine.sample(seed=1).isfinite().all()


def test_a_network_that_takes_one_sample_at_a_time() -> None:
    net = Answers(lambda x, t: x * 0.5 if len(x) == 1 else 1 / 0)
    assert (
        DiffusionEngine.from_module(net, LINEAR, "sample", SHAPE, max_batch=1).sample(3, steps=2).shape[0]
        == 3
    )


def test_it_stays_where_and_as_it_is_unless_told() -> None:
    net = Own().to(torch.bfloat16)
    engine = DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, steps=3)
    assert engine.dtype == torch.bfloat16
    assert net.first.weight.is_contiguous()
    assert DiffusionEngine.from_module(net, LINEAR, "epsilon", SHAPE, dtype="float32").dtype == torch.float32
    assert net.first.weight.dtype == torch.float32  # the same module


class Answers(nn.Module):
    """Returns what is asked of it."""

    def __init__(self, make) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, t: Tensor) -> object:
        return self.make(x, t)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, t: SimpleNamespace(sample=x * 0.5),
        lambda x, t: (x * 0.5, "more"),
        lambda x, t: (x * 0.5).double(),
        lambda x, t: (x.view(len(x), -1) * 0.5).view(x.shape),
    ],
    ids=["object", "tuple", "another_dtype", "view"],
)
def test_results_of_many_kinds(make) -> None:  # type: ignore[no-untyped-def]
    engine = DiffusionEngine.from_module(Answers(make), LINEAR, "sample", SHAPE, steps=3)
    want = DiffusionEngine.from_module(Answers(lambda x, t: x * 0.5), LINEAR, "sample", SHAPE, steps=3)
    assert torch.equal(engine.sample(2, seed=4), want.sample(2, seed=4))


def test_a_diffusers_unet_as_it_is() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    engine = DiffusionEngine.from_module(net, LINEAR, "epsilon", (1, 8, 8), channels_last=True)
    assert engine.sample(2, seed=0, steps=4).isfinite().all()


def test_times_that_are_indices() -> None:
    class Looks(Own):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, 2)

        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            return super().forward(x, t.float()) + self.table(t)[:, :, None, None]

    engine = DiffusionEngine.from_module(Looks(), LINEAR, "epsilon", SHAPE, integer_time=True)
    assert engine.sample(seed=0, steps=5).isfinite().all()
    with refused(ConfigError, "net", "RuntimeError"):
        DiffusionEngine.from_module(Looks(), LINEAR, "epsilon", SHAPE)


def test_times_between_steps_are_refused_where_they_are_indices() -> None:
    engine = DiffusionEngine.from_module(Own(), LINEAR, "epsilon", SHAPE, integer_time=True)
    request = engine.request(steps=4)
    table = request.plans[0].table
    between = SimpleNamespace(name=table.name, time=table.time + 0.5)
    engine.network.check_times(table)
    with refused(ConfigError, "solver", "dpm++2m", "integer_time=True"):
        engine.network.check_times(between)


def test_learned_variance() -> None:
    net = Own(out_channels=4)
    engine = DiffusionEngine.from_module(
        net, LINEAR, "epsilon", SHAPE, variance="learned_range", solver="ddpm"
    )
    assert engine.sample(seed=0, steps=6).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"net": lambda x, t: x}, ("net", "function")),
        (
            {"net": Own(classes=3)},
            ("net", "net(x [2, 2, 6, 10] float32, t [2])", "TypeError"),
        ),
        ({"net": Own(out_channels=4)}, ("net", "[2, 4, 6, 10]", "[2, 2, 6, 10]")),
        ({"net": Answers(lambda x, t: None)}, ("net", "TypeError")),
        ({"shape": (6, 10)}, ("shape", "(6, 10)")),
        ({"shape": (2, 6, 10.0)}, ("shape", "(2, 6, 10.0)")),
        ({"schedule": {"beta_schedul": "linear"}}, ("schedule", "beta_schedul;")),
        ({"prediction_type": "noise"}, ("prediction_type", "epsilon, sample, v_prediction", "noise")),
        ({"net": Own().double()}, ("net", "torch.float64", "dtype", "float32")),
        ({"net": Own(classes=4), "num_classes": 400}, ("net", "label [399, 399]", "IndexError")),
        ({"net": Own(classes=4), "num_classes": 4, "null_class": 4}, ("net", "label [4, 3]", "IndexError")),
        ({"null_class": 3}, ("settings: null_class", 3, "num_classes")),
        ({"num_classes": 3, "net": Own(3), "class_names": ["a"]}, ("settings: class_names", 1, 3)),
        ({"steps": 0}, ("from_module: steps", 0)),
        ({"integer_time": 1}, ("integer_time", 1)),
        ({"graph": "yes"}, ("graph", "recorded", "yes")),
        ({"dtype": "float8"}, ("dtype", "float8")),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, about: tuple) -> None:
    values = {"net": Own(), "schedule": LINEAR, "prediction_type": "epsilon", "shape": SHAPE, **changes}
    with refused(ConfigError, *about):
        DiffusionEngine.from_module(**values)


def test_an_argument_that_does_not_exist_is_an_argument_error() -> None:
    """As from `fastgen.load`: not a ConfigError, and never Python's own TypeError."""
    values: dict = {"net": Own(), "schedule": LINEAR, "prediction_type": "epsilon", "shape": SHAPE}
    with refused(ArgumentError, "step", "steps", "value_range"):
        DiffusionEngine.from_module(**values, step=3)
    with refused(ArgumentError, "bogus, step", "solver_options"):
        DiffusionEngine.from_module(**values, step=3, bogus=1, steps=2)


def test_a_network_whose_weights_are_made_in_its_first_call() -> None:
    class Lazy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.LazyConv2d(2, 3, padding=1)
            self.register_buffer("mask", torch.eye(3).to_sparse())  # has no memory of its own

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.conv(x)

    engine = DiffusionEngine.from_module(Lazy(), {}, "epsilon", (2, 6, 10), graph="recorded")
    before = engine.sample(1, seed=0, steps=2)
    with torch.no_grad():
        engine.network.net.conv.weight = torch.nn.Parameter(engine.network.net.conv.weight * 2)
    assert not torch.equal(engine.sample(1, seed=0, steps=2), before)
