"""Training a denoiser F(x, t, label) on any process that sampling knows: noise levels by the process' own rule
(``training.levels``), the squared error of the network's own target, weighted (``training.weighting``), and for a
learned variance the variational term (``training.learned_variance``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..config import bounded, one_of
from ..diffusion.processes import AnyProcess
from ..diffusion.schedule import NoiseSchedule, zero_snr_error
from ..errors import ConfigError
from ..models.embeddings import FourierFeatures
from .batch import Dataset
from .learned_variance import variational_term
from .levels import Levels, at, check_process, places, spread
from .objective import Group, OneNetwork, Step
from .weighting import WEIGHTINGS, weighted, weights


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """weighting: of ``training.weighting``; gamma: of min-snr. sigma_data: standard deviation of the data, of the
    weighting edm. log_sigma_mean, log_sigma_std: of the noise levels of EDM (P_mean, P_std). variational_weight: lambda
    of a learned variance's term in L_simple + lambda L_vlb (Nichol & Dhariwal 2021, eq. 16).
    """

    weighting: str = one_of(*WEIGHTINGS, default="simple")
    gamma: float = bounded(1e-6, 1e6, default=5.0)
    sigma_data: float = bounded(1e-3, 1e3, default=0.5)
    log_sigma_mean: float = bounded(-20.0, 20.0, default=-1.2)
    log_sigma_std: float = bounded(1e-3, 20.0, default=1.2)
    variational_weight: float = bounded(0.0, 1e3, default=1e-3)


@dataclass(frozen=True)
class Denoising(OneNetwork):
    """The objective of a network F(x, t, label), x: images [B, C, H, W] in [-1, 1], or rows [B, D].

    schedule: the process. null_class: the label that stands for "no label"; the run's `label_dropout` of the labels
    become it. learned: whether the second half of the network's channels says the variance, as a learned range.
    shift, scale: [D], what rows are brought to mean 0 and deviation 1 by. Raises ConfigError.
    """

    schedule: AnyProcess
    null_class: int | None
    unit: str = "loss"
    config: DenoisingConfig = field(default_factory=DenoisingConfig)
    learned: bool = False
    shift: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        process = self.schedule
        check_process(process)
        if not isinstance(process, NoiseSchedule):
            if self.learned:
                raise ConfigError(
                    f"a variance is learned between the timesteps of a NoiseSchedule, not on {process.name}",
                    argument="learned",
                )
            return
        if self.learned and process.num_train_timesteps < 2:
            raise ConfigError("a learned variance needs at least 2 timesteps", argument="num_train_timesteps")
        estimates_x0 = self.learned or self.config.weighting != "simple"
        if estimates_x0 and process.prediction_type == "epsilon" and process.alphas_cumprod[-1] == 0.0:
            raise zero_snr_error(process.num_train_timesteps - 1)

    def inputs(self, batch: Tensor) -> Tensor:
        """uint8 -> float32 in [-1, 1]; rows standardised."""
        if batch.dtype == torch.uint8:
            return batch.float() / 127.5 - 1
        if self.shift is None or self.scale is None:
            return batch.float()
        shift, scale = (torch.tensor(v, dtype=torch.float32, device="cpu") for v in (self.shift, self.scale))
        return (batch.float() - shift) / scale

    def start(self, networks: nn.ModuleDict, dataset: Dataset, step: Step) -> None:
        """Nothing about a denoiser is decided by the data."""

    def groups(self, networks: nn.ModuleDict) -> Mapping[str, Group]:
        """All parameters but random frequencies of the time (Song et al. 2021, appendix C), which stay as drawn."""
        features = [m for m in networks.modules() if isinstance(m, FourierFeatures)]
        if not features:
            return super().groups(networks)
        others = [m for m in networks.modules() if list(m.parameters(recurse=False)) and m not in features]
        return {"loss": Group(others), "frequencies": Group(features, fixed=True)}

    def loss(self, module: nn.Module, step: Step) -> Tensor:
        """The weighted squared error of the network's output at levels and noise drawn for this step.

        With `learned` the variational term as well: lambda T L_t, whose mean over t is lambda L_vlb, in bits per
        dimension.
        """
        x, label, process, config = step.x, step.label, self.schedule, self.config
        log_sigma = config.log_sigma_mean, config.log_sigma_std
        levels = at(
            process, step.drawn(lambda count, generator: places(process, count, generator, log_sigma))
        )
        noise = step.normal(*x.shape[1:]).to(x)
        if label is not None and self.null_class is not None:
            label = torch.where(step.uniform() < step.config.label_dropout, self.null_class, label)
        label = None if label is None or self.null_class is None else label.to(x.device)

        t = levels.time.to(x.device)
        if isinstance(process, NoiseSchedule):
            noisy, target = process.add_noise(x, noise, t), process.target(x, noise, t)
        else:
            noisy, target = levels.noisy(x, noise), levels.target(x, noise)
            noisy = spread(levels.input_scale, x) * noisy
        if x.dim() == 4:
            noisy = noisy.to(memory_format=torch.channels_last)
        with step.autocast():
            output = module(noisy, t, label)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if not self.learned:
            return self._error(output, target, levels)
        output, V = output.chunk(2, dim=1)
        assert isinstance(process, NoiseSchedule)
        x0 = process.x0_from(output.detach(), noisy, t)
        term = variational_term(process, x, x0, V, levels.time, levels=x.dim() == 4)
        most = process.num_train_timesteps * config.variational_weight
        return self._error(output, target, levels) + most * term.mean()

    def _error(self, output: Tensor, target: Tensor, levels: Levels) -> Tensor:
        config = self.config
        weight = weights(
            config.weighting,
            levels,
            prediction_type=self.schedule.prediction_type,
            gamma=config.gamma,
            sigma_data=config.sigma_data,
        )
        if weight is None:
            return nn.functional.mse_loss(output, target)
        return weighted((output - target) ** 2, weight)
