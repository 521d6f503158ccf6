"""The engine of a diffusion model, and its verbs ``sample`` and ``stream``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...architectures import part_config
from ...checkpoint import Spec
from ...config import check_flags
from ...diffusion.processes import AnyProcess
from ...diffusion.table import Table
from ...errors import ConfigError
from ...fused.swap import census, convolutions
from ...images import PICTURES, Range, to_output
from ..base import only_part
from ..fingerprint import fingerprint
from ..finished import warn_clamped
from ..streams import Streams
from ..verb import Networks, Verb
from ..verification import Check
from .editing import Editing
from .latents import Latents
from .likelihood_verbs import LEVELS, Likelihood
from .loop import Loop
from .module import DEFAULTS, Wrapped, check_shape, compiled, module_settings, noisy_classifier, swapped, wrap
from .noises import noised_request
from .previews import Preview, Run, progress_bar
from .request import Request, resolve
from .session import Session
from .settings import DiffusionSettings
from .verbs import step_verb
from .verification import captured_loop, steps

Callback = Callable[[int, int, Tensor], Any]
Pair = tuple[float, float]
COMPILED = "compiled by torch.compile"
Scale = float | Callable[[float], float] | Sequence[float]  # of guidance


class DiffusionEngine(Streams, Editing, Latents, Likelihood):
    """Samples from a denoising network. Made by :func:`fastgen.load`. Threads and forks: see ``Engine``."""

    kind = "diffusion"
    sampling_verb = "step"
    asked = (*DEFAULTS, *Streams.asked)
    one_network = True
    operation = "reverse_step"
    settings_type = DiffusionSettings
    settings: DiffusionSettings
    fused: nn.Module
    loop: Loop
    shape: tuple[int, ...]
    state_shape: tuple[int, int, int]

    def __init__(
        self,
        network: nn.Module,
        settings: DiffusionSettings,
        shape: tuple[int, ...],
        *,
        compile: bool = False,
        **options: Any,
    ) -> None:
        """`network`, F(x, t, label), is moved to its device and type and belongs to the engine from here on.

        shape: (C, H, W) of a sample, or (D,) of a row, which the network gets as [B, D, 1, 1]. compile: run the network
            under ``torch.compile`` in place of its fused blocks, with frozen weights on a CPU; the first call for each
            batch takes a minute or more. options: those of ``Engine``; max_batch: samples that step together; graph:
            capture steps.
        """
        self.shape = tuple(shape)
        channels, height, width = (*shape, 1, 1)[:3]
        self.state_shape = channels, height, width
        check_flags(compile=compile)
        self._compile = compile
        self._range_assumed = False  # whether nobody has said the value range
        self._classifier: nn.Module | None = None  # given to `guide`
        self._guiding_classes: int | None = None  # of that
        part = next(iter(options.get("architectures") or {"network": ""}))
        super().__init__({part: network}, settings, **options)

    @classmethod
    def from_spec(cls, networks: nn.ModuleDict, spec: Spec, **options: Any) -> Self:
        """From a checkpoint's filled network, by part. options: those of ``DiffusionEngine``. Raises ConfigError."""
        settings = cls.settings_of(spec)
        name, network = only_part(networks)
        config = part_config(spec.parts[name], f"parts.{name}")
        settings.check_network(config)
        shape = (config.in_channels, *config.sample_size)
        return cls(network, settings, shape, **cls.records(spec), **options)

    @classmethod
    def settings_of(cls, spec: Spec) -> DiffusionSettings:
        """A checkpoint's settings, checked. Raises ConfigError."""
        settings: DiffusionSettings = super().settings_of(spec)
        return settings.checked()

    @classmethod
    def from_module(
        cls,
        net: nn.Module,
        schedule: AnyProcess | Mapping[str, Any],
        prediction_type: str,
        shape: Sequence[int],
        *,
        num_classes: int | None = None,
        null_class: int | None = None,
        class_names: Sequence[str] | None = None,
        variance: str | None = None,
        value_range: Sequence[float] | None = PICTURES,
        integer_time: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        channels_last: bool = False,
        max_batch: int = 64,
        graph: bool | str = True,
        **defaults: Any,
    ) -> DiffusionEngine:
        """Sample from any network of yours: net(x, t), or net(x, t, label) where it knows classes.

        net: x is [B, C, H, W] in its dtype, t float32 [B] (int64 with `integer_time`) in training steps, 0 to
            T - 1, label int64 [B]; it returns [B, C, H, W] ([B, 2C, H, W] with `variance`), or an object whose
            `sample`, or first entry, is that. It is used, not copied: weights that change in place show in the next
            call. Every call puts it into eval mode.
        schedule: the noise schedule it was trained with, or its arguments: {"beta_schedule": "linear"}; or another
            process (``fastgen.diffusion.PROCESSES``), or its name and arguments: {"process": "flow", "shift": 3.0}.
        prediction_type: what it predicts: epsilon, sample or v_prediction; on another process one of its own.
        shape: (C, H, W).
        num_classes, null_class, class_names: labels run from 0 to num_classes - 1; null_class is the one that it learnt
            as "no label", which guidance needs.
        variance: "learned_range" or "learned", where the second half of its channels says the variance.
        value_range: (lowest, highest) value of the images that it draws: samples are clamped to it. None where it draws
            something else (latents, standardised data, rows, points): samples are what the solver gives, and solvers
            do not clip unless asked to. Left out it is (-1, 1), and a warning says so where many values were clamped.
        integer_time: it looks t up in a table. Solvers that need times between the steps are then refused.
        device, dtype: where to move it; by default it stays where and as it is.
        channels_last, max_batch, graph: see ``DiffusionEngine``.
        **defaults: solver, steps, guidance_scale, solver_options that ``sample`` uses where its caller says nothing.

        Raises ConfigError (a ValueError) that names the argument, also where a trial call of `net` fails; ArgumentError
        (a TypeError) for arguments that do not exist.
        """
        check_flags(integer_time=integer_time, channels_last=channels_last)
        settings = module_settings(
            schedule, prediction_type, num_classes, null_class, class_names, variance, value_range, defaults
        )
        wrapped, here = wrap(net, integer_time, dtype)
        engine = cls(
            wrapped,
            settings,
            check_shape(shape),
            device=here if device is None else device,
            dtype=dtype,
            source=f"module {type(net).__module__}.{type(net).__qualname__}",
            architectures={"module": type(net).__qualname__},
            channels_last=channels_last,
            max_batch=max_batch,
            graph=graph,
        )
        engine._range_assumed = value_range is PICTURES  # else somebody has said it
        wrapped.try_out(engine.state_shape, settings, engine.device, engine.dtype, min(2, max_batch))
        return engine

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: int | str | Sequence[int | str | None] | None = None,
        solver: str | Table | Sequence[str | Table] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance_scale: Scale | Sequence[Scale] | None = None,
        guidance_interval: Pair | Sequence[Pair | None] | None = None,
        guidance_sigmas: Pair | Sequence[Pair | None] | None = None,
        guidance_times: Pair | Sequence[Pair | None] | None = None,
        guidance_rescale: float | Sequence[float] | None = None,
        classifier_scale: float | Sequence[float] | None = None,
        eta: float | Sequence[float | None] | None = None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **options: Any,
    ) -> Tensor | np.ndarray | list:
        """Draw `n` images: float32 [n, C, H, W] in [-1, 1] (see `value_range`) on the engine's device.

        A sample with values that are not finite is handed out with a warning that names its seed.

        Every argument from solver to eta is one value for all samples, or a list of one per sample.

        n: how many; by default as many as there are seeds, labels or values in a list, else 1.
        seed: sample k has seed + k, in [0, 2^64); seeds: one per sample. Neither: seeds from the system's entropy.
            A sample depends on its seed, not on how many are drawn beside it (but with step_size="batch").
        labels: class numbers or names, one for all or one per sample; None is "no label".
        solver, steps (alias num_inference_steps), eta, **options: a name in ``fastgen.diffusion.SOLVERS``, its steps
            (a network evaluation each; heun's n take 2n - 1), and its own options; the checkpoint's by default. Or a
            ``Table`` of your own (``compile_scheduler``), which has its steps and options in it.
        guidance_scale: classifier-free guidance (Ho & Salimans 2022) w in F_u + w (F_c - F_u); 1 = none. Or a function
            of the progress, 0 <= p < 1; or for a sample a list of weights, one per network evaluation.
        guidance_interval: (start, stop), guided only at that part of the network evaluations, in fractions of the run.
            The rest costs half where no sample of the batch is guided.
        guidance_sigmas: (low, high), guided only where low < sigma / alpha <= high (Kynkaanniemi et al. 2024).
        guidance_times: (low, high), guided only where low <= t <= high, t being what the network is told: timesteps, or
            with a process' time="unit" 0 to 1. Of several of these three, a step is guided where all say so.
        guidance_rescale: phi in [0, 1]: brings the output's spread back to the conditional one's (Lin et al. 2023).
        classifier_scale: of the gradient of the classifier given to ``guide`` (Dhariwal & Nichol 2021); 0 = none.
        noise: float [1 or n, C, H, W], standard normal, to begin with instead of the seeds' own; with begin_index the
            state itself at that step. step_noise: float [1 or n, R, C, H, W], what each of the R network evaluations
            adds instead of theirs (read where the solver adds any).
        callback(step, total, images): called after every network evaluation with the noisy states [n, C, H, W].
        progress: a bar on stderr, with images per second.
        output_type: "pt"; "np": float32 [n, H, W, C], the value range as [0, 1]; "pil": a list of images.

        ConfigError (a ValueError) for values out of range, ArgumentError (a TypeError) for names that do not exist.
        """
        check_flags(progress=progress)  # before any work is done
        to_output(None, output_type)
        request = noised_request(
            self,
            n,
            noise,
            step_noise,
            seed=seed,
            seeds=seeds,
            labels=labels,
            solver=solver,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_sigmas=guidance_sigmas,
            guidance_times=guidance_times,
            guidance_rescale=guidance_rescale,
            classifier_scale=classifier_scale,
            eta=eta,
            **options,
        )
        return self.draw(request, callback=callback, progress=progress, output_type=output_type)

    def draw(
        self,
        request: Request,
        *,
        callback: Callback | None = None,
        progress: bool = False,
        output_type: str = "pt",
        clamped: bool = True,
    ) -> Tensor | np.ndarray | list:
        """As `sample`, of what `request` returned. clamped: to the value range, which is for images."""
        check_flags(progress=progress)
        to_output(None, output_type)
        with self._run(request, clamped) as run, progress_bar(len(request.seeds), progress) as advance:
            for step, total in run.steps(self.loop.micro_batch):
                advance(step, total)
                if callback is not None:
                    callback(step, total, run.images())
            return to_output(run.images(), output_type, self.value_range)

    def stream(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: int | str | Sequence[int | str | None] | None = None,
        solver: str | Table | Sequence[str | Table] | None = None,
        steps: int | Sequence[int] | None = None,
        guidance_scale: Scale | Sequence[Scale] | None = None,
        guidance_interval: Pair | Sequence[Pair | None] | None = None,
        guidance_sigmas: Pair | Sequence[Pair | None] | None = None,
        guidance_times: Pair | Sequence[Pair | None] | None = None,
        guidance_rescale: float | Sequence[float] | None = None,
        classifier_scale: float | Sequence[float] | None = None,
        eta: float | Sequence[float | None] | None = None,
        noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        **options: Any,
    ) -> Iterator[Preview]:
        """As `sample`, yielding a :class:`Preview` after every network evaluation; the last holds the result.

        The engine is busy until the iterator is exhausted or closed.
        """
        request = noised_request(
            self,
            n,
            noise,
            step_noise,
            seed=seed,
            seeds=seeds,
            labels=labels,
            solver=solver,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_sigmas=guidance_sigmas,
            guidance_times=guidance_times,
            guidance_rescale=guidance_rescale,
            classifier_scale=classifier_scale,
            eta=eta,
            **options,
        )
        return self._stream(request)

    @contextmanager
    def session(self, *, clamped: bool = True) -> Iterator[Session]:
        """A :class:`Session`, for requests that come one by one: ``with engine.session() as session``.

        The engine is busy until the block ends; what is not done then is given up. clamped: samples to the value range.
        """
        with self._working():
            span = self.value_range if clamped else None
            session = Session(
                lambda: self.loop, self.request, span, self.outward, measure=self._range_assumed
            )
            try:
                yield session
            finally:
                session.close()
            if self.value_range is not None and (share := session.outside()) is not None:
                self._range_assumed = False  # said once
                warn_clamped(share, self.value_range)

    @property
    def value_range(self) -> Range | None:
        """See ``Engine``."""
        return self.settings.clamped

    def inward(self, x: Tensor) -> Tensor:
        """Samples [n, *shape] as the network knows them, [n, *state_shape]: rows standardised."""
        shift, scale = self._units(x)
        return ((x - shift) / scale).view(-1, *self.state_shape)

    def outward(self, state: Tensor) -> Tensor:
        """A state of the loop, or several, as the caller knows them: rows [..., D, 1, 1] as [..., D], unscaled."""
        if len(self.shape) != 1:
            return state
        shift, scale = self._units(state)
        return state.flatten(-3) * scale + shift

    def _units(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of the samples' units, typed as `like`."""
        shift, scale = self.settings.shift, self.settings.scale
        return like.new_tensor(0.0 if shift is None else shift), like.new_tensor(
            1.0 if scale is None else scale
        )

    def guide(self, classifier: nn.Module | None) -> None:
        """Give the engine a classifier for ``sample(classifier_scale=...)``, or take it away with None.

        classifier: c(x, t) -> logits [B, classes] of noisy images, x as the denoising network gets it (in the
            classifier's own dtype), t likewise. It is moved to the engine's device and put into eval mode. Its labels
            are those of ``sample``, also where the denoising network knows no classes. Steps with it are not captured.

        Raises ConfigError where a trial call fails or returns no logits for every class of the network.
        """
        with self._alone():
            if classifier is None:
                self._classifier, self._guiding_classes, self.loop.classifier = None, None, None
                return
            log_p, classes = noisy_classifier(
                classifier, self.state_shape, self.device, self.settings.num_classes or 0
            )
            self._classifier, self._guiding_classes, self.loop.classifier = classifier, classes, log_p

    def verbs(self) -> dict[str, Verb]:
        """One step of a sample: "step"."""
        return {"step": step_verb(self)}

    def request(self, /, n: int | None = None, **arguments: Any) -> Request:
        """What ``sample(n, **arguments)`` would draw, with every default and random seed filled in."""
        request = self.resolved(n, **arguments)
        if any(plan.options.get("begin_index") for plan in request.kinds):
            raise ConfigError(
                "begins after the noise: give the state there (sample(noise=...)), or take edit, which makes it",
                argument="begin_index",
            )
        return request

    def resolved(self, /, n: int | None = None, **arguments: Any) -> Request:
        """As `request`, also of a run that begins later than with noise, whose state the caller makes."""
        request = resolve(self.settings, self._guiding_classes, n=n, **arguments)
        for plan in request.kinds:
            if isinstance(self.network, Wrapped):
                self.network.check_times(plan.table)
            self.settings.check_times(getattr(self.network, "config", None), plan.options)
        return request

    def metadata(self, request: Request) -> dict[str, Any]:
        """See ``Engine``. With `classifier`, the fingerprint of the one that guides the request."""
        kept = super().metadata(request)
        if self._classifier is not None and any(plan.guidance.classifier_scale for plan in request.kinds):
            kept["classifier"] = fingerprint(self._classifier)
        return kept

    @contextmanager
    def _run(self, request: Request, clamped: bool = True) -> Iterator[Run]:
        with self.session(clamped=clamped) as session:
            yield Run(session, request, (len(request.seeds), *self.shape), self.device)

    def _stream(self, request: Request) -> Iterator[Preview]:
        with self._run(request) as run:
            for step, total in run.steps(self.loop.micro_batch):
                yield Preview(step, total, run.images())

    def new_loop(self, **changes: Any) -> Loop:
        """A loop over the engine's network. changes: of the arguments of ``Loop``, one by one."""
        arguments: dict[str, Any] = {
            "device": self.device,
            "dtype": self.dtype,
            "labelled": self.settings.num_classes is not None,
            "null_label": self.settings.null_class or 0,
            "learned": self.settings.learned,
            "channels_last": self.channels_last,
            "max_batch": self.batches.max_batch,
            "backend": self.batches.graphs.backend,
        }
        return Loop(self.fused, self.state_shape, **{**arguments, **changes})

    @property
    def _runs(self) -> Loop:
        return self.loop

    def _prepare(self) -> None:
        self.fused = compiled(self.network, self.device) if self._compile else swapped(self.network)
        if "loop" in vars(self):
            self.loop.use(self.fused)
        else:
            self.loop = self.new_loop()

    def _restart(self) -> None:
        classifier, self.loop = self.loop.classifier, self.new_loop()
        self.loop.classifier = classifier

    def _facts(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "classes": self.settings.num_classes,
            "levels": None if self.value_range is None else LEVELS,
            "bound": True,  # likelihoods are not exact, or not always
            "value_range": None if self.value_range is None else list(self.value_range),
            "memory_format": str(self.loop.memory_format).removeprefix("torch."),
            "blocks": COMPILED if self._compile else census(self.fused),
            "convolutions": COMPILED if self._compile else convolutions(self.fused, self.device, self.dtype),
            "conditions": None if self.loop.conditions is None else self.loop.conditions.describe(),
        }

    def _defaults(self) -> dict[str, Any]:
        return {
            "solver": self.settings.solver,
            "steps": self.settings.steps,
            "guidance_scale": self.settings.guidance_scale,
            **(self.settings.solver_options or {}),
        }

    def running(self) -> Networks:
        # Within a compiled network there are no layers to look at.
        return {} if self._compile else dict.fromkeys(self.networks, self.fused)

    def more_checks(self, batch: int, seed: int, generator: torch.Generator) -> Iterator[Check]:
        yield from steps(self, batch, generator)
        yield from captured_loop(self, batch, seed)
