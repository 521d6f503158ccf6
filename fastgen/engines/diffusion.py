"""The verbs of a diffusion model: ``sample`` and ``stream``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import fastgen_kernels

from .. import __version__
from ..architectures import part_config
from ..checkpoint import Spec
from ..errors import FastgenError
from ..images import to_output
from ..runtime.device import choose_device, choose_dtype
from ..runtime.loop import Loop
from .request import Request, resolve
from .settings import DiffusionSettings

Callback = Callable[[int, int, Tensor], Any]


@dataclass(frozen=True)
class Preview:
    """A moment of a run: `step` of `total` network evaluations are done.

    images: float32 [n, C, H, W] in [-1, 1], the noisy states; samples that have not begun are 0 (grey).
    """

    step: int
    total: int
    images: Tensor


class DiffusionEngine:
    """Samples from a denoising network. Made by :func:`fastgen.load`.

    Calls from several threads queue; one engine draws for one call at a time.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: Spec,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        source: str = "",
        max_batch: int = 64,
        backend: str = "eager",
    ) -> None:
        """`network`, F(x, t, label), is moved to `device` and `dtype` and belongs to the engine from here on.

        spec: its checkpoint's; source: where it came from, for records. max_batch: samples that step together
        (more are drawn in turns). backend: how a step is captured, a name in ``runtime.capture.BACKENDS``.
        """
        self.spec, self.source = spec, source
        self.settings = DiffusionSettings.from_spec(spec)
        self.device = choose_device(device)
        try:
            fastgen_kernels.select(self.device.type)
        except RuntimeError as error:  # no triton
            raise FastgenError(str(error)) from error
        self.dtype = choose_dtype(dtype, self.device)
        ((name, part),) = spec.parts.items()
        config = part_config(part, f"parts.{name}")
        self.settings.check_network(config)
        height, width = config.sample_size
        self.shape = (config.in_channels, height, width)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.network = network.to(self.device, self.dtype, **layout).eval()
        self.loop = Loop(
            self.network,
            self.shape,
            device=self.device,
            dtype=self.dtype,
            labelled=self.settings.num_classes is not None,
            null_label=self.settings.null_class or 0,
            learned=self.settings.learned,
            max_batch=max_batch,
            backend=backend,
        )
        # Not an RLock: a stream may be begun in one thread and ended in another.
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread whose call the engine is busy with

    def sample(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: int | str | Sequence[int | str | None] | None = None,
        solver: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        output_type: str = "pt",
        **options: Any,
    ) -> Tensor | np.ndarray | list:
        """Draw `n` pictures: float32 [n, C, H, W] in [-1, 1] on the engine's device.

        n: how many; by default as many as there are seeds or labels, else 1.
        seed: sample k has seed + k, in [0, 2^64); seeds: one a sample. Neither: seeds from the system's entropy.
            A sample depends on its seed, not on how many are drawn beside it.
        labels: class numbers or names, one for all or one a sample; None is "no label".
        solver, steps (alias num_inference_steps), eta, **options: a name in ``fastgen.diffusion.SOLVERS``, its steps
            (a network evaluation each; heun's n take 2n - 1), and its own options; the checkpoint's by default.
        guidance_scale: classifier-free guidance (Ho & Salimans 2022) w in F_u + w (F_c - F_u); 1 = none.
        callback(step, total, images): called after every network evaluation with the noisy states [n, C, H, W].
        progress: a bar on stderr.
        output_type: "pt"; "np": float32 [n, H, W, C] in [0, 1]; "pil": a list of pictures.

        ConfigError (a ValueError) for values out of range, ArgumentError (a TypeError) for names that do not exist.
        """
        to_output(None, output_type)  # before any work is done
        request = self.request(
            n,
            seed=seed,
            seeds=seeds,
            labels=labels,
            solver=solver,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            **options,
        )
        with self._session(), tqdm(total=0, disable=not progress, unit="step") as bar:
            for step, total in self._run(request):
                bar.total = total
                bar.update()
                if callback is not None:
                    callback(step, total, self._images())
            return to_output(self._images(), output_type)

    def stream(
        self,
        n: int | None = None,
        *,
        seed: int | None = None,
        seeds: Sequence[int] | None = None,
        labels: int | str | Sequence[int | str | None] | None = None,
        solver: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        **options: Any,
    ) -> Iterator[Preview]:
        """As `sample`, yielding a :class:`Preview` after every network evaluation; the last holds the result.

        The engine is busy until the iterator is exhausted or closed.
        """
        request = self.request(
            n,
            seed=seed,
            seeds=seeds,
            labels=labels,
            solver=solver,
            steps=steps,
            guidance_scale=guidance_scale,
            eta=eta,
            **options,
        )
        return self._stream(request)

    def describe(self) -> dict[str, Any]:
        """What runs, where and how: plain data."""
        return {
            "engine": "diffusion",
            "source": self.source,
            "sha256": self.spec.provenance.get("sha256"),
            "converted": self.spec.provenance.get("report"),
            "networks": {name: part.architecture for name, part in self.spec.parts.items()},
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "shape": list(self.shape),
            "classes": self.settings.num_classes,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "reverse_step": fastgen_kernels.select(self.device.type),
            "memory_format": str(self.loop.memory_format).removeprefix("torch."),
            "backend": self.loop.backend,
            "captured": [
                {"batch": batch, "guided": guided}
                for batch, guided in sorted(self.loop.graphs)
                if self.loop.backend != "eager"
            ],
            "max_batch": self.loop.max_batch,
            "defaults": {
                "solver": self.settings.solver,
                "steps": self.settings.steps,
                "guidance_scale": self.settings.guidance_scale,
                **(self.settings.solver_options or {}),
            },
        }

    def metadata(self, request: Request) -> dict[str, Any]:
        """What ``fastgen sample --like`` needs to repeat `request`: JSON for ``save_grid(..., metadata=...)``."""
        return {
            "fastgen": __version__,
            "model": self.source,
            "sha256": self.spec.provenance.get("sha256"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "request": request.to_dict(),
        }

    def request(self, /, n: int | None = None, **arguments: Any) -> Request:
        """What ``sample(n, **arguments)`` would draw, with every default and random seed filled in."""
        request = resolve(self.settings, n=n, **arguments)
        self.settings.check_times(getattr(self.network, "config", None), request.options)
        return request

    @contextmanager
    def _session(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            raise FastgenError(
                "this engine is busy in this thread: first finish its stream or leave its callback"
            )
        with self._lock:
            self._owner = threading.get_ident()
            self._tickets: list[int] = []
            self._results: dict[int, Tensor] = {}
            try:
                yield
            finally:
                self.loop.clear()
                self._owner = None

    def _run(self, request: Request) -> Iterator[tuple[int, int]]:
        """Step until every sample of `request` is done, yielding (evaluations done, evaluations in all)."""
        self._tickets = [self.loop.add(single) for single in request.singles(self.settings.noise_schedule)]
        rounds = -(-len(self._tickets) // self.loop.max_batch)
        total = rounds * request.evaluations(self.settings.noise_schedule)
        step = 0
        while len(self._results) < len(self._tickets):
            self.loop.step()
            self._results.update(self.loop.finished())
            step += 1
            yield step, max(step, total)  # more than planned where tables had to wait for room

    def _stream(self, request: Request) -> Iterator[Preview]:
        with self._session():
            for step, total in self._run(request):
                yield Preview(step, total, self._images())

    def _images(self) -> Tensor:
        """float32 [n, C, H, W] in [-1, 1], the caller's own: results, and states of what is not done."""
        running = self.loop.current()
        images = torch.zeros(len(self._tickets), *self.shape, device=self.device)
        for i, ticket in enumerate(self._tickets):
            state = self._results.get(ticket, running.get(ticket))
            if state is not None:
                images[i] = state
        return images.clamp_(-1, 1)
