"""A network of the user's own as the denoiser F(x, t, label) that the sampling loop calls."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...config import from_dict
from ...diffusion.continuous import ContinuousProcess
from ...diffusion.processes import AnyProcess, process_from_config
from ...diffusion.schedule import NoiseSchedule
from ...diffusion.table import Table
from ...errors import ConfigError, OutOfMemoryError
from ...fused.swap import swap
from ...fused.unet import FusedUNet
from ...runtime.device import DTYPES, out_of_memory, placed
from ..arguments import check_known, parameters
from .classifier import Classifier
from .settings import DiffusionSettings

DEFAULTS = ("solver", "steps", "guidance_scale", "solver_options")


class Wrapped(nn.Module):
    """`net` called as F(x, t, label): its time's type, and the tensor that its result holds."""

    WRAPS = "net"  # the part that layers are named in

    def __init__(self, net: nn.Module, integer_time: bool) -> None:
        super().__init__()
        self.net, self.integer_time = net, integer_time

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        t = t.round().to(torch.int64) if self.integer_time else t
        output = self.net(x, t) if label is None else self.net(x, t, label)
        if not isinstance(output, Tensor):
            output = output.sample if hasattr(output, "sample") else output[0]
        return output.to(x.dtype)  # a network under autocast answers in another

    def try_out(
        self,
        shape: tuple[int, int, int],
        settings: DiffusionSettings,
        device: torch.device,
        dtype: torch.dtype,
        batch: int,
    ) -> None:
        """Call the network once, with its last class and its null class, and look at the result.

        Raises ConfigError or OutOfMemoryError.
        """
        channels = shape[0] * (1 if settings.variance is None else 2)
        want = (batch, channels, *shape[1:])
        x = torch.zeros(batch, *shape, device=device, dtype=dtype)
        t = torch.zeros(batch, device=device, dtype=torch.float32)
        label = None
        call = f"net(x {list(x.shape)} {_name(dtype)}, t [{batch}]"
        if settings.num_classes is not None:
            highest = max(settings.num_classes - 1, settings.null_class or 0)
            label = torch.tensor([highest, settings.num_classes - 1][:batch], device=device)
            call += f", label {label.tolist()}"
        try:
            with torch.no_grad():
                got = self(x, t, label)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # a label out of range shows only now
        except Exception as error:
            if out_of_memory(error):
                raise OutOfMemoryError(
                    f"a trial call {call}) does not fit in memory: {error}", argument="net"
                ) from error
            raise ConfigError(
                f"a trial call {call}) raised {type(error).__name__}: {error}", argument="net"
            ) from error
        if got.shape != want:
            raise ConfigError(
                f"a trial call {call}) returned shape {list(got.shape)}, expected {list(want)}",
                argument="net",
            )

    def check_times(self, table: Table) -> None:
        """Raises ConfigError where `table` asks for times that an integer cannot say."""
        if self.integer_time and (table.time % 1 != 0).any():
            between = float(table.time[table.time % 1 != 0][0])
            raise ConfigError(
                f"{table.name} asks the network at t = {between:g}, which integer_time=True excludes: take "
                "another solver or timestep_spacing",
                argument="solver",
            )


def wrap(net: nn.Module, integer_time: bool, dtype: str | torch.dtype | None) -> tuple[Wrapped, torch.device]:
    """`net` for the loop, and where it is. dtype: what it will be, None: as it is. Raises ConfigError."""
    if not isinstance(net, nn.Module):
        raise ConfigError(f"expected a torch.nn.Module, got {type(net).__name__}", argument="net")
    if type(integer_time) is not bool:
        raise ConfigError(f"expected True or False, got {integer_time!r}", argument="integer_time")
    here, kind = placed(net)
    if dtype is None and kind not in DTYPES.values():
        raise ConfigError(
            f"its parameters are {kind}; give dtype, one of {', '.join(DTYPES)}, to convert it",
            argument="net",
        )
    return Wrapped(net, integer_time), here


def swapped(network: nn.Module) -> nn.Module:
    """What runs in place of `network`: the same with fused blocks where it is one of ours."""
    if not isinstance(network, Wrapped):
        return swap(network)
    inner = swap(network.net)
    if inner is network.net:
        return network
    if isinstance(inner, FusedUNet):  # it returns a tensor, and tables say times that it can take
        return inner
    made = copy.copy(network)
    made._modules = {"net": inner}
    return made


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` under ``torch.compile``, compiled in its first call for each shape."""
    torch._dynamo.reset()  # frozen weights are those of the compilation: what was compiled before may be out of date
    if device.type == "cpu":
        return torch.compile(network, dynamic=False, options={"freezing": True})  # type: ignore[return-value]
    # Without CUDA graphs of its own: the engine captures the whole step.
    return torch.compile(network, dynamic=False, mode="max-autotune-no-cudagraphs")  # type: ignore[return-value]


def noisy_classifier(
    net: nn.Module, shape: tuple[int, int, int], device: torch.device, needed: int
) -> tuple[Classifier, int]:
    """(log p(label | x), number of classes) of a classifier c(x, t) -> logits. Raises ConfigError.

    needed: how many classes it must tell apart.
    """
    if not isinstance(net, nn.Module):
        raise ConfigError(f"expected a torch.nn.Module, got {type(net).__name__}", argument="classifier")
    net = net.to(device).eval()
    dtype = placed(net)[1]

    def log_p(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        logits = net(x.to(dtype), t).float()
        known = label.clamp(max=logits.shape[1] - 1)  # a null class, whose sample has no use for the result
        return torch.log_softmax(logits, 1).gather(1, known[:, None])[:, 0]

    try:
        with torch.no_grad():
            logits = net(
                torch.zeros(2, *shape, device=device, dtype=dtype),
                torch.zeros(2, device=device, dtype=torch.float32),
            )
    except Exception as error:
        raise ConfigError(
            f"a trial call c(x {[2, *shape]}, t [2]) raised {type(error).__name__}: {error}",
            argument="classifier",
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2 or logits.shape[1] < 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"expected logits [2, classes] from a trial call, got {found}", argument="classifier"
        )
    if logits.shape[1] < needed:
        raise ConfigError(
            f"tells {logits.shape[1]} classes apart, the network knows {needed}", argument="classifier"
        )
    return log_p, logits.shape[1]


def check_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W), checked. Raises ConfigError."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    if len(sizes) != 3 or any(type(size) is not int or size < 1 for size in sizes):
        raise ConfigError(f"expected (C, H, W), three ints of at least 1, got {shape!r}", argument="shape")
    return sizes[0], sizes[1], sizes[2]


def module_settings(
    schedule: AnyProcess | Mapping[str, Any],
    prediction_type: str,
    num_classes: int | None,
    null_class: int | None,
    class_names: Sequence[str] | None,
    variance: str | None,
    value_range: Sequence[float] | None,
    defaults: Mapping[str, Any],
) -> DiffusionSettings:
    """The settings of a model without a checkpoint, checked as strictly. Raises ConfigError, ArgumentError."""
    named = ", ".join(name for name in parameters(module_settings) if name != "defaults")
    check_known(
        defaults, DEFAULTS, f"besides net, shape, {named} and those that say where it runs, from_module takes"
    )
    if not isinstance(schedule, (NoiseSchedule, ContinuousProcess)):
        told = schedule.get("prediction_type", prediction_type) if isinstance(schedule, Mapping) else None
        schedule = process_from_config(schedule)
    else:
        told = schedule.prediction_type
    if prediction_type not in schedule.prediction_types:
        raise ConfigError(
            f"expected one of {', '.join(schedule.prediction_types)}, got {prediction_type!r}",
            argument="prediction_type",
        )
    if told != prediction_type:
        raise ConfigError(
            f"the schedule says {told}, the argument {prediction_type}; give both the same",
            argument="prediction_type",
        )
    values = {
        "schedule": schedule.to_config() | {"prediction_type": prediction_type},
        "num_classes": num_classes,
        "null_class": null_class,
        "class_names": None if class_names is None else list(class_names),
        "variance": variance,
        "value_range": value_range,
        **defaults,
    }
    return from_dict(DiffusionSettings, values, "from_module").checked()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
