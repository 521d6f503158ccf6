"""Large requests: any number of samples, a batch at a time in memory, straight into files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..config import check_flags, to_dict
from ..errors import ConfigError, FastgenError, WriteError
from ..runtime.memory import fitting, free_memory, output_bytes
from ..streaming import compact, open_output
from .base import Engine
from .finished import finite

COPIES = 8  # of a sample, while it is drawn and written


class Streamed(NamedTuple):
    """What a large request has come to: its files, in order, and how many samples were drawn, not there before."""

    files: list[Path]
    drawn: int


class Streams(Engine):
    """An engine that draws samples: it has `shape`, `request` and `draw`, and requests have `part`.

    sampling_verb: what a batch of samples calls, once or once a step; it tells how much memory a sample takes.
    asked: the settings that every request says itself, so that a record of samples need not compare the model's.
    """

    sampling_verb: ClassVar[str] = "sample"
    asked: ClassVar[tuple[str, ...]] = ("class_names",)

    if TYPE_CHECKING:

        @property
        def shape(self) -> tuple[int, ...]: ...

    def request(self, /, n: int | None = None, **arguments: Any) -> Any:
        raise NotImplementedError

    def draw(self, request: Any) -> Any:
        raise NotImplementedError

    def sample_batches(self, n: int | None = None, **arguments: Any) -> Iterator[Tensor]:
        """As `sample`, in parts, in order: float32 [b, *shape] each, together [n, *shape]; one is in memory at a time.

        How many go together depends on free memory, and is at most `max_batch`. The engine is free between two parts.
        Raises what `sample` raises, at once.
        """
        request = self.request(n, **arguments)
        batch = self.samples_at_a_time()
        self._check_parts(request, batch)
        return (self.draw(part) for _, part in _parts(request, batch))

    def sample_to(
        self,
        path: str | Path,
        n: int | None = None,
        *,
        overwrite: bool = False,
        progress: bool = False,
        **arguments: Any,
    ) -> Streamed:
        """Draw `n` samples into files, in parts as `sample_batches`.

        path: a folder, for images: a PNG file per sample, with the request that repeats it, as ``fastgen sample``
            writes them; or a name that ends in .npy (float32 [n, *shape], to be memory-mapped; the request is in
            NAME.npy.json) or .npz (`x`, `labels` if there are any, `request`), for samples of any shape.
        overwrite: replace what another request has left there, and what is damaged.
        progress: a bar on stderr, with samples per second.
        arguments: of `sample`.

        Killed at any moment, the same call goes on where it was, also where it gave no seed, and the files are those of
        a run that was never killed. Raises ConfigError for a place that holds something else, or another request's
        files, before anything is drawn; WriteError, after which the same call goes on, too.
        """
        check_flags(overwrite=overwrite, progress=progress)
        output = open_output(path, self.value_range)
        output.check(self.shape)
        if arguments.get("seed") is None and arguments.get("seeds") is None:
            arguments["seed"] = output.seed_to_go_on(overwrite)
        return self.draw_to(path, self.request(n, **arguments), overwrite=overwrite, progress=progress)

    def draw_to(
        self,
        path: str | Path,
        request: Any,
        *,
        overwrite: bool = False,
        progress: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> Streamed:
        """As `sample_to`, of what `request` returned. metadata: JSON values to keep with each image and the record."""
        check_flags(overwrite=overwrite, progress=progress)
        output = open_output(path, self.value_range)
        record = {
            **self.metadata(request),
            **(metadata or {}),
            "device": self.device.type,
            "settings": self._model_settings(),
            "batch": self.samples_at_a_time(),
            "request": compact(request),
        }
        self._check_parts(request, record["batch"])
        count = len(request.seeds)
        with output.writing(request, record, self.shape, overwrite) as agreed:
            parts = [(start, part) for start, part in _parts(request, agreed["batch"])]
            left = [(start, part) for start, part in parts if not output.done(start, start + len(part.seeds))]
            begun = len(left) < len(parts)
            done = count - sum(len(part.seeds) for _, part in left)
            unit = "row" if len(self.shape) == 1 else "image"
            with tqdm(total=count, initial=done, unit=unit) if progress else nullcontext() as bar:
                for start, part in left:
                    samples = self.draw(part)
                    if not begun and not finite(samples).any():
                        raise FastgenError(
                            f"no sample of the first {len(samples)} is finite (NaN or infinite); nothing is written",
                            argument=self.source,
                        )
                    begun = True
                    try:
                        output.write(start, samples)
                    except WriteError as error:
                        raise _kept(error, start) from error
                    if bar is not None:
                        bar.update(len(samples))
            return Streamed(output.finish(), sum(len(part.seeds) for _, part in left))

    def _model_settings(self) -> dict[str, Any]:
        """What the model's samples depend on beside its weights: JSON. A request says the rest, with all defaults."""
        own = {name: value for name, value in to_dict(self.settings).items() if name not in self.asked}
        converted = {
            name: self.provenance[name] for name in ("options", "variant") if name in self.provenance
        }
        return {**own, **converted}

    def samples_at_a_time(self) -> int:
        """How many samples a large request draws together: `max_batch`, or as many as fit into free memory.

        By what the network's layers return for one sample; `max_batch` for an engine without `sampling_verb`.
        """
        runs, verb = self._runs, self._verbs.get(self.sampling_verb)
        if verb is None:
            return int(runs.micro_batch)
        generator = torch.Generator("cpu").manual_seed(0)
        with self._working(), torch.no_grad():
            trial = verb.trial(1, generator)
            layers = output_bytes(self.networks.values(), lambda: verb.plain(self.networks, *trial))
        each = layers + COPIES * 4 * math.prod(self.shape)
        return fitting(free_memory(self.device), each, runs.micro_batch)

    def _check_parts(self, request: Any, batch: int) -> None:
        """Whether the engine can draw `request` in parts. Raises ConfigError."""
        if len(request.seeds) > batch and getattr(request, "coupled", False):
            raise ConfigError(
                f"step_size=batch makes each sample depend on all that are drawn with it, and {len(request.seeds)} do "
                f"not go together, {batch} at a time do; take step_size=sample",
                argument="step_size",
            )


def _parts(request: Any, batch: int) -> Iterator[tuple[int, Any]]:
    count = len(request.seeds)
    for start in range(0, count, batch):
        yield start, request.part(start, min(start + batch, count))


def _kept(error: WriteError, done: int) -> WriteError:
    """`error`, and what to do about it."""
    more = WriteError(
        f"{error.reason}. The {done} samples before are kept; the same request goes on after them",
        argument=error.argument,
    )
    more.errno = error.errno
    return more
