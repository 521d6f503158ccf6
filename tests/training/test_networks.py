"""Several networks in one run: who is updated when and by what, and that an interruption changes nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastgen.checkpoint import WEIGHTS_FILE, Part, Spec, file_sha256
from fastgen.diffusion import NoiseSchedule
from fastgen.errors import CheckpointError, ConfigError, TrainingError
from fastgen.tensor_file import TensorFile
from fastgen.training import loop
from fastgen.training.arrays import Arrays
from fastgen.training.data import describe
from fastgen.training.diffusion import Denoising
from fastgen.training.loop import LOSS_FILE
from fastgen.training.objective import Group, Objective, Step
from fastgen.training.optimizers import optimizers
from fastgen.training.optimizers import rate as rate_of
from fastgen.training.run import STATE_FILE, Run
from fastgen.training.state import check_state
from tests import small

from .networks import CRITIC_STEPS, RUN, Critic, ToyConfig, ToyNet

FILES = (WEIGHTS_FILE, STATE_FILE, LOSS_FILE)
DATA = Arrays(torch.randint(0, 256, (12, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte())
SPEC = Spec("toy", {"generator": Part("toy_net", {})})


def networks(*names: str) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: ToyNet(ToyConfig()) for name in names or ("generator", "critic")})


def train(folder: Path, objective: Objective | None = None, **options) -> nn.ModuleDict:  # type: ignore[no-untyped-def]
    run = options.pop("run", Run(RUN, SPEC, describe(DATA)))
    nets = options.pop("networks", None) or networks()
    return loop.train(nets, run, objective or Critic(), DATA, folder, progress=False, **options)


def test_the_groups_alternate_and_move_nothing_else(tmp_path: Path) -> None:
    objective = Critic()
    train(tmp_path, objective)
    assert objective.order == ([*["critic"] * CRITIC_STEPS, "generator", "end"]) * RUN.steps
    moved = {"critic": 0, "generator": 0}
    for i, name in enumerate(objective.order):
        if name == "end":
            continue
        before, after = objective.seen[i], objective.seen[i + 1]
        changed = {n.partition(".")[0] for n in before if not torch.equal(before[n], after[n])}
        assert changed <= {name}
        moved[name] += changed == {name}
    # the cosine ends near zero, not at it: every update moves something
    assert moved == {"critic": CRITIC_STEPS * RUN.steps, "generator": RUN.steps}


class TwoByHand(Critic):
    """The first critic update and the generator's are those of plain PyTorch code."""

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        generator, critic = networks["generator"], networks["critic"]
        yield "critic", critic(generator(step.x)).mean() - critic(step.x).mean()
        yield "generator", -critic(generator(step.x)).mean()


def test_two_steps_are_those_of_adam_by_hand(tmp_path: Path) -> None:
    """A gradient that leaked from one group into the other's next update would show."""
    run = Run(loop.RunConfig(**{**vars(RUN), "steps": 2, "grad_clip": 0.0}), SPEC, describe(DATA))
    nets, twins = networks(), networks()
    train(tmp_path, TwoByHand(), run=run, networks=nets)
    twins.train().to(memory_format=torch.channels_last)
    adams = {
        name: torch.optim.Adam(twins[name].parameters(), lr=lr, betas=(0.0, 0.9), fused=True)
        for name, lr in (("critic", 2e-3), ("generator", RUN.lr))
    }
    for number, batch in enumerate(loop.batches(DATA, TwoByHand(), run.config, 0)):
        torch.manual_seed(loop._mix(run.config.seed, number, salt=2))
        for name in ("critic", "generator"):
            twins.zero_grad()
            fake = twins["generator"](batch.x)
            if name == "critic":
                loss = twins["critic"](fake).mean() - twins["critic"](batch.x).mean()
            else:
                loss = -twins["critic"](fake).mean()
            loss.backward()
            rate = rate_of(number, run.config)
            adams[name].param_groups[0]["lr"] = (2e-3 if name == "critic" else RUN.lr) * rate
            adams[name].step()
    for name, value in twins.state_dict().items():
        assert torch.equal(value, nets.state_dict()[name]), name


@pytest.fixture
def sigint() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted(Critic):
    """Ctrl-C comes between the updates of the third step."""

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        for i, found in enumerate(super().losses(networks, step)):
            if i == 1 and len(self.order) > 2 * (CRITIC_STEPS + 2):
                signal.raise_signal(signal.SIGINT)
            yield found


@pytest.mark.usefixtures("sigint")
def test_networks_may_come_in_another_order_when_resumed(tmp_path: Path) -> None:
    """Each keeps its own optimiser's count of updates."""
    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", Interrupted())
    in_order = networks()
    train(tmp_path / "broken", networks=nn.ModuleDict(reversed(list(in_order.items()))), resume=True)
    for name in (LOSS_FILE, WEIGHTS_FILE):
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


@pytest.mark.usefixtures("sigint")
def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """Both optimisers, the batch norms, and the critic, which no model file holds."""
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", Interrupted())
    assert len((tmp_path / "broken" / LOSS_FILE).read_text().splitlines()) == 1 + 3
    resumed = train(tmp_path / "broken", networks=networks(), resume=True)
    for name in FILES:
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_what_is_published_and_what_is_kept(tmp_path: Path) -> None:
    shown = []
    nets = networks()
    averages = train(tmp_path, networks=nets, on_preview=lambda step, found: shown.append((step, set(found))))
    assert shown == [(2, {"generator"}), (4, {"generator"}), (5, {"generator"})]
    model, state = load_file(tmp_path / WEIGHTS_FILE), load_file(tmp_path / STATE_FILE)
    assert set(model) == {f"generator.{name}" for name in nets["generator"].state_dict()}
    for name, value in averages.state_dict().items():
        assert torch.equal(model[name], value)
    assert torch.equal(averages["generator"].layers[1].running_var, nets["generator"].layers[1].running_var)
    assert {name for name in state if name.startswith("ema.")} == {f"ema.{name}" for name in model}
    assert torch.equal(state["model.critic.layers.0.weight"], nets["critic"].layers[0].weight)
    head, *rows = (tmp_path / LOSS_FILE).read_text().splitlines()
    assert head == "step,critic,generator"
    assert all(len(row.split(",")) == 3 for row in rows)
    parameters = len(list(nets["critic"].parameters()))
    steps = RUN.steps
    assert state["updates"].tolist() == [CRITIC_STEPS * steps] * parameters + [steps] * parameters  # by name


def test_a_model_of_two_parts(tmp_path: Path) -> None:
    spec = Spec("toy", {name: Part("toy_net", {}) for name in ("generator", "critic")})
    averages = train(tmp_path, run=Run(RUN, spec, describe(DATA)))
    assert set(load_file(tmp_path / WEIGHTS_FILE)) == set(averages.state_dict())
    assert {name.partition(".")[0] for name in averages.state_dict()} == {"generator", "critic"}


class Bad(Critic):
    """Its critic's second loss of the third step is not a number."""

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        for i, (name, loss) in enumerate(super().losses(networks, step)):
            yield name, loss * float("nan") if i == 1 and len(self.order) > 2 * (CRITIC_STEPS + 2) else loss


def test_a_critic_that_diverges_keeps_the_last_save(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train(tmp_path, Bad())
    assert len((tmp_path / LOSS_FILE).read_text().splitlines()) == 1 + 2
    train(tmp_path, networks=networks(), resume=True)
    train(tmp_path / "whole")
    for name in FILES:
        assert file_sha256(tmp_path / name) == file_sha256(tmp_path / "whole" / name), name


class Groups(Critic):
    """Groups and losses of the test's choice."""

    def __init__(self, groups: Mapping[str, tuple[str, ...]], losses: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.wanted, self.given = groups, losses

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        return {name: Group([networks[n] for n in names]) for name, names in self.wanted.items()}

    def losses(self, networks: nn.ModuleDict, step: Step) -> Iterator[tuple[str, Tensor]]:
        for name in self.given:
            yield name, networks["critic"](networks["generator"](step.x)).mean()


BOTH = {"a": ("generator",), "b": ("critic",)}


@pytest.mark.parametrize(
    ("objective", "argument"),
    [
        (Groups({"a": ("generator",)}), "groups"),  # nobody trains the critic
        (Groups({"a": ("generator",), "b": ("generator", "critic")}), "groups"),  # two train the generator
        (Groups({**BOTH, "c": ()}), "groups"),
        (Groups(BOTH, ("a",)), "losses"),  # the critic has no loss
        (Groups(BOTH, ("a", "b", "c")), "losses"),  # nobody is c
    ],
)
def test_groups_and_losses_that_do_not_fit(tmp_path: Path, objective: Groups, argument: str) -> None:
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "m", objective)
    assert error.value.argument == argument
    assert not (tmp_path / "m").exists()


def test_networks_without_a_part_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        train(tmp_path / "m", networks=networks("critic", "other"))
    assert error.value.argument == "networks"


def test_a_state_of_other_networks_or_groups_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    run = Run(RUN, SPEC, describe(DATA))
    check_state(tmp_path, networks(), run)
    with pytest.raises(CheckpointError):
        check_state(tmp_path, networks("generator"), run)
    with pytest.raises(CheckpointError):  # the losses of two groups, where one is trained
        train(tmp_path, Groups({"a": ("generator", "critic")}, ("a",)), networks=networks(), resume=True)


def test_a_parameter_that_is_reached_late(tmp_path: Path) -> None:
    """Its own optimiser has nothing to remember at the first save, and counts its updates from its first."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.early, self.late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    class Fit(Denoising):
        def loss(self, module: nn.Module, step: Step) -> Tensor:
            assert isinstance(module, Late)
            use_late = step.generator.initial_seed() in late_seeds
            return (step.x.mean() * module.early + (module.late if use_late else 0)).pow(2).sum()

    late_seeds = {loop._mix(RUN.seed, number) for number in (3, 4)}
    run = Run(RUN, SPEC, describe(DATA))
    objective = Fit(NoiseSchedule(), None)
    train(tmp_path / "whole", objective, run=run, networks=nn.ModuleDict({"generator": Late()}))
    assert load_file(tmp_path / "whole" / STATE_FILE)["updates"].tolist() == [RUN.steps, 2]
    save = loop.RunState.save

    def killed(state: loop.RunState, folder: Path) -> None:
        save(state, folder)
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.RunState, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "broken", objective, run=run, networks=nn.ModuleDict({"generator": Late()}))
    train(tmp_path / "broken", objective, networks=nn.ModuleDict({"generator": Late()}), resume=True)
    for name in FILES:
        assert file_sha256(tmp_path / "broken" / name) == file_sha256(tmp_path / "whole" / name), name


def test_a_state_of_one_network_in_the_old_layout(tmp_path: Path) -> None:
    """Names without a part, AdamW's steps left out, losses in one row, a run without fields that came later."""
    config = small.unet_config(num_class_embeds=None)
    run = Run(loop.RunConfig(**{**vars(RUN), "steps": 2}), small.spec(config), describe(DATA))
    net = small.network(config).train().requires_grad_(True)
    tensors = {f"model.{n}": t.detach().contiguous() for n, t in net.state_dict().items()}
    tensors |= {f"ema.{n}": t.detach().clone() for n, t in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        tensors[f"optimizer.exp_avg.{name}"] = torch.full(parameter.shape, 0.01)
        tensors[f"optimizer.exp_avg_sq.{name}"] = torch.full(parameter.shape, 0.02)
    tensors["losses"] = torch.tensor([0.5], dtype=torch.float64)
    raw = json.loads(run.encoded(tmp_path))
    assert not {"auxiliary", "paired"} & {*raw, *raw["data"]}
    for name in ("target", "side_by_side"):
        del raw["config"][name]
    save_file(tensors, tmp_path / STATE_FILE, metadata={"run": json.dumps(raw)})

    nets = nn.ModuleDict({"unet": small.network(config, seed=9)})
    objective = Denoising(NoiseSchedule(), None)
    train(tmp_path, objective, networks=nets, resume=True)
    # the step that is left, by hand
    twin = nn.ModuleDict({"unet": net}).to(memory_format=torch.channels_last)
    optimizer = optimizers(objective, twin, run.config)["loss"]
    for parameter in net.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.full_like(parameter, 0.01, requires_grad=False),
            "exp_avg_sq": torch.full_like(parameter, 0.02, requires_grad=False),
        }
    (batch,) = loop.batches(DATA, objective, run.config, 1)
    torch.manual_seed(loop._mix(run.config.seed, 1, salt=2))
    loss = objective.loss(net, loop._step(batch, run.config, 1))
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), run.config.grad_clip)
    optimizer.param_groups[0]["lr"] = run.config.lr * rate_of(1, run.config)
    optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, nets["unet"].state_dict()[name]), name
    with TensorFile(tmp_path / STATE_FILE) as file:
        assert set(file.entries) == set(tensors)  # the same layout again
