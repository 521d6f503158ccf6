"""Any linear scheduler object as a table: `compile_scheduler`.

A scheduler in the style of diffusers (timesteps, step(model_output, t, sample), perhaps scale_model_input) is run
once with unit vectors in place of images. Where its step is linear in the state, the network's output and
fresh noise, whatever it keeps inside, each state comes out as its exact coefficients over

    x_T,   F_0 .. F_n-1,   z_0 .. z_n-1

From them follows what has to be remembered after each evaluation, the span of what later states take from the past,
and a table that remembers just that, in as few slots as are found (`converters/tracing/slots.py`).
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.config import shown
from fastgen.diffusion.interpreter import run
from fastgen.diffusion.table import Table
from fastgen.errors import ConfigError
from fastgen.models.building import in_float32

from .driven import Draws, driven
from .slots import Rows, realise

MAX_EVALUATIONS = 1000
DRAWS = 2  # of noise a step may make, of which one may matter
LINEAR = (
    1e-9  # how far a sum of runs may be from the run of the sum, and a run's multiple from the multiple's run
)
AMPLITUDES = (
    1e6,
    1e-6,
)  # of such multiples: above what clips and thresholds let pass, and below where small terms show
ROUNDED = 1e-5  # a smaller difference than this, and larger than LINEAR, is that of float32
EXACT = 1e-8  # how far a table may be from its scheduler
SHAPE = (2, 3, 4, 4)  # of trial states

_Run = tuple[list[Tensor], list[Tensor]]  # states [n + 1] and network inputs [n]


@dataclass(frozen=True, eq=False)
class CompiledTable(Table):
    """A table made from a scheduler.

    deviation: the largest difference between the two, over all states of a run with a random network, relative to the
        state's largest value; both in float64 arithmetic
    prediction_type: what the scheduler's own configuration says that its network predicts, None where it says nothing
    """

    deviation: float = 0.0
    prediction_type: str | None = None

    def check_prediction(self, prediction_type: str) -> None:
        """ConfigError where the scheduler was configured for a network that predicts something else."""
        if self.prediction_type is None:
            return
        # diffusers' flow_prediction is a velocity, and what its EDM schedulers call epsilon is the raw network.
        known = {"flow_prediction": ("velocity",), "epsilon": ("epsilon", "edm")}
        if prediction_type not in known.get(self.prediction_type, (self.prediction_type,)):
            raise ConfigError(
                f"{self.name} was configured for a network that predicts {self.prediction_type}, this model's "
                f"predicts {prediction_type}; compile it with prediction_type={prediction_type}",
                argument="solver",
            )


def compile_scheduler(
    scheduler: Any,
    steps: int | None = None,
    *,
    initial_scale: float | None = None,
    step_options: Mapping[str, Any] | None = None,
) -> CompiledTable:
    """A scheduler object as a table, which every engine takes for a solver: ``engine.sample(solver=table)``.

    scheduler: has `timesteps` and ``step(model_output, t, sample)``, whose result is the next state, has it as
        `prev_sample` or begins with it; perhaps ``scale_model_input(sample, t)``. It is copied, never changed.
    steps: for its ``set_timesteps(steps)``; None: it was called already, and no step has been taken since
    initial_scale: the first state's standard deviation, by default its `init_noise_sigma` after set_timesteps, else 1
    step_options: further keyword arguments of its step: {"eta": 1.0}

    The scheduler computes in float64 as far as it lets us: states are never rounded to float32, its own tables are what
    they are, mostly float32.

    Raises ConfigError where it is no such object; where its step is not linear (clipping, thresholding, adaptive step
    sizes, norms over the batch), at which step; where it needs more than one noise per step, or more than four slots.
    """
    with torch.no_grad(), torch.device("cpu"), in_float32():
        player = _Player(_prepared(scheduler, steps), dict(step_options or {}), type(scheduler).__name__)
        scale = _initial_scale(player, initial_scale)
        player.check_linear()
        states, input_scale, used = player.trace()
        states *= np.append(scale, np.ones(states.shape[1] - 1))
        found = float("inf")
        for rows in realise(states):
            table = _table(player, rows, input_scale, scale)
            found = min(found, deviation := player.deviation(table, used))
            if deviation <= EXACT:
                object.__setattr__(table, "deviation", deviation)
                return table
    if np.isfinite(found):
        raise ConfigError(
            f"a table made from it differs from it by {found:.1e} on a random network: its step does "
            "more than add multiples of whole states, or depends on more than its timesteps and state",
            argument=player.name,
        )
    raise ConfigError(
        "no table with four slots, of which a row writes one, was found: it remembers more than four "
        "earlier states or outputs, or two new ones per step, or its levels are too far apart for float64",
        argument=player.name,
    )


def _table(player: _Player, rows: Rows, input_scale: np.ndarray, scale: float) -> CompiledTable:
    count = len(player.times)
    return CompiledTable(
        name=player.name,
        time=player.times,
        input_scale=input_scale,
        p=np.zeros(count),
        q=np.zeros(count),
        clip=np.full(count, np.inf),
        slot=rows.slot,
        noise_step=np.arange(count),
        a=rows.a,
        b=rows.b,
        log2_std=np.zeros((count, 2)),
        initial_scale=scale,
        prediction_type=player.prediction_type,
    )


class _Player:
    """Runs of one scheduler from the beginning, each with a fresh copy of it."""

    def __init__(self, scheduler: Any, step_options: dict[str, Any], name: str) -> None:
        self.scheduler, self.step_options, self.name = scheduler, step_options, name
        self.timesteps = _timesteps(scheduler, name)
        self.times = np.array([float(t) for t in self.timesteps])

    @property
    def prediction_type(self) -> str | None:
        """See `CompiledTable`."""
        found = getattr(getattr(self.scheduler, "config", None), "prediction_type", None)
        return found if isinstance(found, str) else None

    def play(
        self, network: Callable[[Tensor, int], Tensor], x: Tensor, noise: Sequence[Sequence[Tensor]]
    ) -> _Run:
        """States [n + 1] and network inputs [n]. network(input, i); noise[i]: what step i may draw, in order."""
        scheduler = copy.deepcopy(self.scheduler)
        states, inputs = [x], []
        for i, t in enumerate(self.timesteps):
            draws = Draws(noise[i], self.name, i)
            scaled = x.clone()
            if hasattr(scheduler, "scale_model_input"):
                with driven(scheduler, draws), self._foreign(f"scale_model_input at step {i}"):
                    scaled = scheduler.scale_model_input(scaled, t)
                scaled = self._state(scaled, x, f"scale_model_input at step {i}")
            inputs.append(scaled)
            output = network(scaled, i)
            with driven(scheduler, draws), self._foreign(f"step {i}"):
                result = scheduler.step(output.clone(), t, x.clone(), **self.step_options)
            if not hasattr(result, "prev_sample") and isinstance(result, Sequence) and result:
                result = result[0]
            x = self._state(getattr(result, "prev_sample", result), x, f"step {i}")
            states.append(x)
        with self._foreign("reading its timesteps"):
            after = np.array([float(t) for t in scheduler.timesteps])
        if not np.array_equal(after, self.times):
            raise ConfigError(
                "it changes its timesteps on the way: adaptive steps do not fit a table", argument=self.name
            )
        return states, inputs

    @contextmanager
    def _foreign(self, what: str) -> Iterator[None]:
        """Within the block runs code that is not ours: whatever it raises becomes a ConfigError that says where."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{what} raised {_said(error)}", argument=self.name) from error

    def _state(self, value: Any, like: Tensor, where: str) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != like.shape:
            found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else shown(value)
            raise ConfigError(
                f"{where} returned no tensor of its argument's shape, {list(like.shape)}, but {found}",
                argument=self.name,
            )
        return value.clone()  # a scheduler may go on to write into its own

    def check_linear(self) -> None:
        """Play u, v, u + v and multiples of that, the network's outputs given.

        Raises ConfigError where a state of the third is not the sum, or of the others not the multiple.
        """
        count = len(self.times)
        generator = torch.Generator().manual_seed(0)

        def random() -> Tensor:
            return 2.0 * torch.randn(
                1 + count * (1 + DRAWS), *SHAPE, generator=generator, dtype=torch.float64, device="cpu"
            )

        u, v = random(), random()

        def play(values: Tensor) -> _Run:
            noise = values[1 + count :].reshape(count, DRAWS, *SHAPE)
            return self.play(lambda x, i: values[1 + i], values[0], list(noise))

        first, second, both = play(u), play(v), play(u + v)
        sums = [[a + b for a, b in zip(first[kind], second[kind], strict=True)] for kind in (0, 1)]
        self._compare(sums, both, "a run of a sum differs from the sum of the runs", play, u)
        for size in AMPLITUDES:
            multiples = [[size * whole for whole in both[kind]] for kind in (0, 1)]
            what = f"a run of {size:.0e} times the values differs from {size:.0e} times the run"
            self._compare(multiples, play(size * (u + v)), what, play, u)

    def _compare(
        self,
        wanted: Sequence[Sequence[Tensor]],
        played: _Run,
        what: str,
        play: Callable[[Tensor], _Run],
        values: Tensor,
    ) -> None:
        """Raise ConfigError at the first of the states and inputs `played` that is not as `wanted`, saying why."""
        for kind in (0, 1):
            for i, got in enumerate(played[kind]):
                where = f"step {i - 1}" if kind == 0 else f"scale_model_input at step {i}"
                if not bool(torch.isfinite(got).all()):
                    raise ConfigError(f"{where} gives inf or nan", argument=self.name)
                difference = float((wanted[kind][i] - got).abs().max() / got.abs().max().clamp(min=1e-30))
                if not difference <= LINEAR:
                    raise ConfigError(
                        f"{where} is not linear in state, network output and noise ({what} by "
                        f"{difference:.1e}): {self._cause(play, values, kind, i, difference)}",
                        argument=self.name,
                    )

    def trace(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """(states [n + 1, 1 + 2 n] over [x_T, F, z], input_scale [n], the draw of each step that matters)."""
        count = len(self.times)
        size = 1 + count * (1 + DRAWS)
        units = torch.eye(size, dtype=torch.float64, device="cpu").reshape(size, 1, size, 1, 1)
        noise = units[1 + count :].reshape(count, DRAWS, *units.shape[1:])
        states, inputs = self.play(lambda x, i: units[1 + i], units[0], list(noise))
        flat = torch.stack(states).flatten(1).numpy()
        if not np.all(np.isfinite(flat)):
            step = int(np.argwhere(~np.isfinite(flat).all(1))[0][0]) - 1
            raise ConfigError(f"step {step} gives inf or nan", argument=self.name)
        scales = []
        for i, given in enumerate(inputs):
            wanted, got = flat[i], given.flatten().numpy()
            if not np.any(wanted):
                raise ConfigError(
                    f"step {i - 1} gives a state of zeros, whatever came before", argument=self.name
                )
            scale = float(got @ wanted / (wanted @ wanted))
            if not np.abs(got - scale * wanted).max() <= LINEAR * np.abs(got).max():
                raise ConfigError(
                    f"scale_model_input at step {i} does more than multiply the state", argument=self.name
                )
            scales.append(scale)
        drawn = np.abs(flat[:, 1 + count :]).max(0).reshape(count, DRAWS) > 0.0
        if np.any(drawn.sum(1) > 1):
            step = int(np.argmax(drawn.sum(1)))
            raise ConfigError(
                f"step {step} adds more than one noise; a table's row has one", argument=self.name
            )
        used = drawn.argmax(1)
        kept = [*range(1 + count), *(1 + count + DRAWS * np.arange(count) + used)]
        return flat[:, kept], np.array(scales), used.tolist()

    def deviation(self, table: Table, used: list[int]) -> float:
        """Between the scheduler and `table` with a random network: see `CompiledTable`."""
        count = len(self.times)
        generator = torch.Generator().manual_seed(1)
        x = table.initial_scale * torch.randn(SHAPE, generator=generator, dtype=torch.float64, device="cpu")
        noise = torch.randn(count, DRAWS, *SHAPE, generator=generator, dtype=torch.float64, device="cpu")
        mix = torch.randn(SHAPE[1], SHAPE[1], generator=generator, dtype=torch.float64, device="cpu")

        def network(x: Tensor, i: int) -> Tensor:
            return 1.5 * torch.tanh(torch.einsum("oc,bchw->bohw", mix, x) + 0.3 * i) + 0.1 * x

        theirs, _ = self.play(network, x, list(noise))
        asked = iter(range(count))
        ours: list[Tensor] = []

        def watched(x: Tensor, t: float) -> Tensor:
            i = next(asked)
            ours.append(x / table.input_scale[i])
            return network(x, i)

        ours.append(run(table, watched, x, [noise[i, k] for i, k in enumerate(used)]))
        differences = [
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
            for a, b in zip(ours, theirs, strict=True)
        ]
        return float(np.max(differences))

    def _cause(
        self, play: Callable[[Tensor], _Run], values: Tensor, kind: int, i: int, difference: float
    ) -> str:
        """Why state or input `i` is not linear, as far as further runs tell."""
        if not torch.equal(play(values)[kind][i], play(values)[kind][i]):
            return "two equal runs differ: it draws random numbers that do not come from PyTorch"
        nothing = play(torch.zeros_like(values))[kind][i].abs().max()
        if 0.0 < nothing < float("inf"):
            return "it adds a constant: zeros do not stay zero"
        config = getattr(self.scheduler, "config", None)
        on = [
            key
            for key in ("clip_sample", "thresholding")
            if config is not None and getattr(config, key, False)
        ]
        if on:
            return f"it is configured with {', '.join(f'{key}=True' for key in on)}; make one without"
        if difference < ROUNDED:
            return "by as little as if it rounds to float32 somewhere within; have it compute in its states' type"
        return "clipping, thresholds, adaptive step sizes and norms over a sample or batch do not fit a table"


def _said(error: Exception) -> str:
    """What an exception says; of one without words, an assertion's as a rule, the line that raised it."""
    name = type(error).__name__
    if str(error).strip():
        return f"{name}: {error}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return f"{name} without a message at {place}: {frame.line}"


def _prepared(scheduler: Any, steps: int | None) -> Any:
    """A copy, ready for its first step."""
    if not callable(getattr(scheduler, "step", None)):
        raise ConfigError(
            f"expected an object with timesteps and a step method, got {shown(scheduler)}",
            argument="scheduler",
        )
    scheduler = copy.deepcopy(scheduler)
    if steps is not None:
        if type(steps) is not int or not 1 <= steps <= MAX_EVALUATIONS:
            raise ConfigError(f"expected an int from 1 to {MAX_EVALUATIONS}, got {steps!r}", argument="steps")
        if not callable(getattr(scheduler, "set_timesteps", None)):
            raise ConfigError("has no set_timesteps: leave steps out", argument=type(scheduler).__name__)
        try:
            scheduler.set_timesteps(steps)
        except Exception as error:
            raise ConfigError(
                f"set_timesteps({steps}) raised {_said(error)}: call it "
                "yourself with its arguments, and leave steps out",
                argument=type(scheduler).__name__,
            ) from error
    return scheduler


def _timesteps(scheduler: Any, name: str) -> Any:
    found = getattr(scheduler, "timesteps", None)
    if found is None or getattr(scheduler, "num_inference_steps", 1) is None:
        raise ConfigError("has no timesteps yet: give steps, or call its set_timesteps before", argument=name)
    try:
        times = [float(t) for t in found]
    except Exception as error:
        raise ConfigError(
            f"timesteps: expected a list of numbers, got {shown(found)}", argument=name
        ) from error
    if not 1 <= len(times) <= MAX_EVALUATIONS:
        raise ConfigError(f"expected 1 to {MAX_EVALUATIONS} timesteps, got {len(times)}", argument=name)
    if not np.all(np.isfinite(times)):
        raise ConfigError(f"timesteps: expected finite numbers, got {shown(times)}", argument=name)
    return found


def _initial_scale(player: _Player, given: float | None) -> float:
    name = "initial_scale" if given is not None else f"{player.name}: init_noise_sigma"
    value = getattr(player.scheduler, "init_noise_sigma", 1.0) if given is None else given
    try:
        scale = float(value)
    except Exception as error:
        raise ConfigError(f"expected a number above 0, got {shown(value)}", argument=name) from error
    if not 0.0 < scale < float("inf"):
        raise ConfigError(f"expected a number above 0, got {scale}", argument=name)
    return scale
