"""Progressive distillation: its targets against diffusers' DDIM, its halvings, resumption, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastgen
from fastgen.checkpoint import load_spec, save
from fastgen.cli import main
from fastgen.config import to_dict
from fastgen.diffusion import NoiseSchedule
from fastgen.errors import ConfigError
from fastgen.tensor_file import TensorFile
from fastgen.training.distillation import STUDENT, TEACHER, Distillation, DistillationConfig
from fastgen.training.loop import LOSS_FILE, _generator
from fastgen.training.objective import Step
from fastgen.training.optimizers import rate
from fastgen.training.run import STATE_FILE
from fastgen.training.settings import RunConfig
from tests import small
from tests.refusals import names

from .test_train import interrupt_in_step, sigint

__all__ = ["sigint"]

SCHEDULE = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
NULL = 10
BATCH = 24
COMMON = ["--batch-size", "8", "--warmup", "1", "--preview-every", "0", "--precision", "fp32", "--quiet"]
COMMON += ["--device", "cpu", "--data", "digits"]


class Double(nn.Module):
    """A `TinyNet` in float64, in eval mode or not: of a student or a teacher with other weights."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.net = small.TinyNet().double()
        self.net.mix.mul_(factor)
        self.asked: list[tuple[Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        self.asked.append((t, label))
        found: Tensor = self.net(x.double(), t.double(), label)
        return found


def objective(config: DistillationConfig, schedule: NoiseSchedule = SCHEDULE, **more: Any) -> Distillation:
    return Distillation(schedule, config, NULL, dict, **more)


def ddim(steps: int, prediction: str, clip: bool) -> Any:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=clip,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    # diffusers keeps them in float32
    scheduler.alphas_cumprod = torch.from_numpy(np.array(SCHEDULE.alphas_cumprod))
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("weighting", ["truncated-snr", "snr-plus-one"])
@pytest.mark.parametrize("guidance", [1.0, 1.7])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_loss_against_two_steps_of_diffusers(
    prediction: str, clip: bool, guidance: float, weighting: str
) -> None:
    """The x_0 that takes a student's DDIM step to where the teacher's two steps end, in float64, sample by sample."""
    config = DistillationConfig(
        teacher_steps=8, student_steps=4, teacher_guidance=guidance, weighting=weighting
    )
    schedule = dataclasses.replace(SCHEDULE, prediction_type=prediction)
    student, teacher = Double(0.5), Double(1.3)
    networks = nn.ModuleDict({STUDENT: student, TEACHER: teacher})
    x = torch.rand(BATCH, 1, 3, 5, generator=_generator(0, 9), dtype=torch.float64) * 2 - 1
    label = torch.arange(BATCH) % 10
    run = RunConfig(label_dropout=0.3, steps=10)
    step = Step(x, label, _generator(0, 0), run)
    ((name, loss),) = objective(config, schedule, clip=clip).losses(networks, step)
    assert name == "loss"

    again = Step(x, label, _generator(0, 0), run)
    index, noise = again.integers(0, 4), again.normal(1, 3, 5).double()
    label = torch.where(again.uniform() < 0.3, NULL, label)
    assert (label == NULL).any()
    assert set(index.tolist()) == {0, 1, 2, 3}
    assert all(torch.equal(t, torch.tensor([999, 749, 499, 249])[index]) for t, _ in student.asked)
    two, one, terms = ddim(8, prediction, clip), ddim(4, prediction, clip), []
    for i in range(BATCH):
        t = int(one.timesteps[index[i]])
        bar = float(SCHEDULE.alphas_cumprod[t])
        z = start = bar**0.5 * x[i : i + 1] + (1 - bar) ** 0.5 * noise[i : i + 1]
        for now in (t, t - 125):
            at = torch.tensor([now])
            with_label, without = (teacher(z, at, k) for k in (label[i : i + 1], torch.tensor([NULL])))
            F = without + guidance * (with_label - without)
            z = two.step(F, now, z, use_clipped_model_output=True).prev_sample
        after = t - 250
        bar_s = 1.0 if after < 0 else float(SCHEDULE.alphas_cumprod[after])
        # z = alpha_s x + sigma_s (start - alpha x) / sigma, for x
        ratio = ((1 - bar_s) / (1 - bar)) ** 0.5
        wanted = (z - ratio * start) / (bar_s**0.5 - ratio * bar**0.5)
        F = student(start, torch.tensor([t]), label[i : i + 1])
        found = F if prediction == "sample" else bar**0.5 * start - (1 - bar) ** 0.5 * F
        snr = bar / (1 - bar)
        weight = max(snr, 1.0) if weighting == "truncated-snr" else snr + 1.0
        terms.append(weight * ((found - wanted) ** 2).mean())
    # the objective takes networks' outputs as float32, whose rounding the smallest alpha_s - ratio alpha magnifies
    assert float(loss) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)


def test_no_loss_where_two_steps_are_one() -> None:
    """Of a teacher whose x_0 is always the same, and a student that is equal to it."""

    class Constant(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
            bar = torch.from_numpy(np.array(SCHEDULE.alphas_cumprod))[t].view(-1, 1, 1, 1)
            return (bar.sqrt() * x.double() - 0.25) / (1 - bar).sqrt()  # the v that means x_0 = 0.25

    config = DistillationConfig(teacher_steps=4, student_steps=2)
    networks = nn.ModuleDict({STUDENT: Constant(), TEACHER: Constant()})
    step = Step(torch.zeros(8, 1, 2, 2, dtype=torch.float64), None, _generator(1, 0), RunConfig(steps=2))
    ((_, loss),) = objective(config).losses(networks, step)
    assert float(loss) < 1e-9


def teacher_in(folder: Path, prediction: str = "v_prediction", **settings: Any) -> Path:
    """A model of random weights, of images of scikit-learn's digits."""
    config = small.unet_config(num_class_embeds=11)
    network = small.network(config, seed=3)
    spec = small.spec(config, **{"guidance_scale": 1.5, **settings})
    spec.settings["schedule"] = {**small.SCHEDULE, "prediction_type": prediction}
    save(folder, spec, {f"unet.{name}": value for name, value in network.state_dict().items()})
    return folder


def distil(folder: Path, teacher: Path, *more: str) -> int:
    return main(["train", str(folder), *COMMON, "--teacher", str(teacher), *more])


def tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    with TensorFile(folder / STATE_FILE) as file:
        return {n.removeprefix(prefix): t for n, t in file.read({}) if n.startswith(prefix)}


def test_the_student_is_the_next_teacher(tmp_path: Path) -> None:
    """Of 8 -> 2 in 6 steps: 3 steps with the given teacher, 3 with what these have made of the student."""
    teacher, folder = teacher_in(tmp_path / "teacher"), tmp_path / "m"
    arguments = ["--steps", "6", "--student-steps", "2", "--save-every", "1"]
    with pytest.MonkeyPatch.context() as patch:
        import fastgen.training.loop as loop

        kept, before = [], loop._train_step

        def watched(state: loop.RunState, *rest: Any) -> Any:
            found = before(state, *rest)
            kept.append(
                {part: [p.clone() for p in state.networks[part].parameters()] for part in (STUDENT, TEACHER)}
            )
            return found

        patch.setattr(loop, "_train_step", watched)
        assert distil(folder, teacher, *arguments) == 0
    same = [[torch.equal(a, b) for a, b in zip(k[TEACHER], kept[0][TEACHER], strict=True)] for k in kept]
    assert [all(s) for s in same] == [True] * 3 + [False] * 3
    for number in (3, 4, 5):
        assert all(torch.equal(a, b) for a, b in zip(kept[number][TEACHER], kept[2][STUDENT], strict=True))
    spec = load_spec(folder)
    assert spec.settings["steps"] == 2
    assert (spec.settings["solver"], spec.settings["guidance_scale"]) == ("ddim", 1.0)
    assert spec.provenance["objective"]["teacher_guidance"] == 1.5
    assert spec.provenance["teacher"]["name"] == "teacher"
    assert set(spec.parts) == {"unet"}
    assert fastgen.load(folder, device="cpu").sample(2, labels=[3, 7], seed=0).shape == (2, 1, 8, 8)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("number", [2, 3, 4])
def test_interrupted_and_resumed_it_ends_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the end of a halving, and where the teacher has been moved since."""
    teacher = teacher_in(tmp_path / "teacher")
    arguments = ["--steps", "6", "--student-steps", "1", "--save-every", "4"]
    assert distil(tmp_path / "whole", teacher, *arguments) == 0
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, number)
        assert distil(tmp_path / "parts", teacher, *arguments) == 130
    teacher.rename(tmp_path / "elsewhere")
    assert main(["train", str(tmp_path / "parts"), "--resume", "--quiet", "--device", "cpu"]) == 0
    for name in (STATE_FILE, LOSS_FILE):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_each_halving_has_a_warm_up_and_a_decay() -> None:
    config = RunConfig(steps=20, warmup=2)
    halves = [rate(step, config, 2) for step in range(20)]
    assert halves[:10] == halves[10:]
    assert halves[:2] == [0.5, 1.0]
    assert halves[9] < 0.05
    assert [rate(step, config) for step in range(20)] == [rate(step, config, 1) for step in range(20)]
    odd = [rate(step, RunConfig(steps=7, warmup=0), 3) for step in range(7)]  # 3, 2 and 2 steps
    assert [i for i, value in enumerate(odd) if value == 1.0] == [0, 3, 5]


@pytest.mark.slow
def test_a_student_learns_its_teachers_two_steps(tmp_path: Path) -> None:
    """In one step it comes closer to the teacher's two than the teacher does itself in one."""
    teacher, folder = teacher_in(tmp_path / "teacher"), tmp_path / "m"
    arguments = ["--steps", "250", "--student-steps", "1", "--teacher-steps", "2", "--lr", "2e-3"]
    assert distil(folder, teacher, *arguments, "--batch-size", "32", "--teacher-guidance", "1") == 0
    call = {"seed": 5, "labels": list(range(10)) * 3, "solver": "ddim", "guidance_scale": 1.0}
    first, student = (fastgen.load(f, device="cpu") for f in (teacher, folder))
    wanted = first.sample(30, steps=2, **call)
    before, after = (
        float((engine.sample(30, steps=1, **call) - wanted).square().mean()) for engine in (first, student)
    )
    assert after < 0.3 * before


@pytest.mark.parametrize(("teacher", "student"), [(8, 3), (4, 4), (4, 8), (12, 5)])
def test_steps_that_are_no_halvings_are_refused(teacher: int, student: int) -> None:
    with pytest.raises(ConfigError) as error:
        DistillationConfig(teacher_steps=teacher, student_steps=student)
    assert error.value.argument == "student_steps"


def test_halvings() -> None:
    config = DistillationConfig(teacher_steps=12, student_steps=3)
    assert config.halvings == 2
    assert [config.steps_of(k) for k in range(2)] == [6, 3]
    assert to_dict(config)["weighting"] == "truncated-snr"


def test_what_cannot_be_distilled_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    teacher, target = teacher_in(tmp_path / "teacher"), tmp_path / "m"
    noise = teacher_in(tmp_path / "noise", prediction="epsilon")
    rgb = tmp_path / "rgb.npz"
    np.savez(rgb, images=np.zeros((8, 8, 8, 3), np.uint8))
    for given, argument in (
        ([str(noise)], "--teacher"),
        (["zoo:nothing"], "--teacher"),
        (["zoo:gan-mnist"], "--teacher"),
        ([str(teacher), "--widths", "8,8"], "--widths"),
        ([str(teacher), "--student-steps", "3", "--teacher-steps", "8"], "student_steps"),
        ([str(teacher), "--loss-weighting", "some"], "weighting"),
        ([str(teacher), "--student-steps", "1", "--steps", "1"], "--steps"),
    ):
        assert main(["train", str(target), *COMMON, "--teacher", *given]) == 1
        assert names(capsys.readouterr().err, argument), argument
        assert not target.exists()
    assert main(["train", str(target), *COMMON, "--student-steps", "4"]) == 1
    assert names(capsys.readouterr().err, "--student-steps")
    assert main(["train", str(target), *COMMON, "--data", str(rgb), "--teacher", str(teacher)]) == 1
    assert names(capsys.readouterr().err, str(rgb))
    with pytest.raises(ConfigError):
        objective(DistillationConfig(), NoiseSchedule())
