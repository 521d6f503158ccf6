"""Super-resolution: images of any size, in tiles, from the host and back."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ...checkpoint import Spec
from ...config import shown
from ...errors import ConfigError, OutOfMemoryError
from ...fused.upscale import fused_upscaler
from ...images import PICTURES, Range, within
from ...models.upscale.upscaler import Upscaler
from ...runtime.device import dtype_name, out_of_memory, placed
from ..base import Engine, NoSettings, only_part
from ..verb import Networks, Tensors, Verb
from .seams import Seams
from .sources import OUTPUT_TYPES, Result, Source, handed_out, resized, taken
from .tiles import Axis, Span, Tiling, axis, tiling

MAX_SCALE = 32
TRIAL, TIMED = 16, 64  # pixels a side of the images that `verify` and the benchmark make
# Pixels of results per call: a core's cache is faster with one image after the other, a GPU wants many.
PER_CALL = {"cpu": 1 << 16, "cuda": 1 << 24}
LEVEL = 2 / 255  # of 8 bits, in [-1, 1]


@dataclass(frozen=True)
class _Job:
    """A window of one of the images."""

    image: int
    row: Span
    column: Span
    size: tuple[int, int]


class UpscaleEngine(Engine):
    """Enlarges images by a super-resolution network. Made by :func:`fastgen.load`. Threads, forks: see ``Engine``.

    Images are float in [-1, 1], or uint8; the network sees [0, 1], and its results are clamped to that.
    """

    kind = "upscale"
    one_network = True
    operation = "kernels"
    settings_type = NoSettings

    def __init__(
        self,
        network: Upscaler,
        settings: NoSettings | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
        source: str = "",
        architectures: dict[str, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        max_batch: int = 64,
        graph: bool | str = True,
    ) -> None:
        """`network` is moved to `device` and `dtype` and belongs to the engine. max_batch: windows at a time, at most.

        Other arguments: see ``Engine``.
        """
        self._wide: nn.Module | None = None  # in float32, once one has overflowed
        self.last: dict[str, Any] = {}  # of the last call: how it was divided
        super().__init__(
            {next(iter(architectures or {}), "upscaler"): network},
            settings,
            device=device,
            dtype=dtype,
            source=source,
            architectures=architectures,
            provenance=provenance,
            max_batch=max_batch,
            graph=graph,
        )

    @classmethod
    def from_spec(cls, networks: nn.ModuleDict, spec: Spec, **options: Any) -> Self:
        """From the filled network of a checkpoint. options: those of ``UpscaleEngine``. Raises ConfigError."""
        name, network = only_part(networks)
        if not isinstance(network, Upscaler):
            raise ConfigError(f"{spec.parts[name].architecture} enlarges no images", argument=f"parts.{name}")
        return cls(network, cls.settings_of(spec), **cls.records(spec), **options)

    def upscale(
        self,
        image: Any,
        scale: float | None = None,
        *,
        tile: int | str | None = "auto",
        tile_overlap: int | str | None = None,
        output_type: str | None = None,
    ) -> Any:
        """Enlarged images, of one, a batch, or a list of images of unlike sizes.

        image: a tensor [C, H, W] or [n, C, H, W], float in [-1, 1] or uint8, an image of Pillow (8 bits; its alpha is
            left out), or a list of these. A large one may stay on the CPU: the device holds some tiles at a time.
        scale: of both sides, up to 32; by default the network's own. Another one is reached by resizing the network's
            result, bicubic and antialiased.
        tile: pixels of the input on a side that are made at a time; "auto" by the device's memory; None: all at once.
        tile_overlap: pixels around a tile that the network also sees. "exact": its receptive field, with which the
            result is that of the whole image, to rounding. By default exact where that is at most a quarter of the
            tile, else 32; how far tiles then differ where they meet is measured, kept in ``describe()["last"]``, and
            a warning if it is more than one level of 8 bits.
        output_type: "pt": float32 in [-1, 1]; "uint8": tensors; "np": float32 [H, W, C] in [0, 1]; "pil". By default
            "uint8" of uint8, else "pt". Results of a tensor lie where it does.

        Where float16 overflows, that tile is made again in float32, with a warning. Raises ConfigError, also where a
        result is not finite; OutOfMemoryError.
        """
        try:
            return self._upscale(image, scale, tile, tile_overlap, output_type)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, OutOfMemoryError) or not out_of_memory(error):
                raise
            raise OutOfMemoryError(
                "memory ran out for the results, or a tile: give a smaller image or scale, output_type='uint8', or a "
                f"smaller tile ({str(error).partition(chr(10))[0]})"
            ) from error

    @torch.no_grad()
    def _upscale(self, image: Any, scale: Any, tile: Any, tile_overlap: Any, output_type: Any) -> Any:
        images, form, whole = taken(image, self.upscaler.in_channels)
        output_type = output_type or ("uint8" if whole else "pt")
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(
                f"expected one of {', '.join(OUTPUT_TYPES)}, got {shown(output_type)}",
                argument="output_type",
            )
        own = self.upscaler.scale
        wanted: Any = own if scale is None else scale
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or not 0 < wanted <= MAX_SCALE:
            raise ConfigError(
                f"expected a number above 0, at most {MAX_SCALE}, got {shown(scale)}", argument="scale"
            )
        self._check_alive()
        plan = self.check_tiles(tile, tile_overlap)
        results = [
            Result(
                self.upscaler.out_channels,
                (value.shape[1] * own, value.shape[2] * own),
                output_type in ("uint8", "pil"),
                value.device,
            )
            for value in images
        ]
        self._fill(images, results, plan)
        made = [result.image for result in results]
        if wanted != own:
            sizes = [tuple(max(1, round(side * float(wanted))) for side in v.shape[1:]) for v in images]
            made = [
                resized(value, cast(tuple[int, int], size)) for value, size in zip(made, sizes, strict=True)
            ]
        return handed_out(made, form, output_type)

    def check_tiles(self, tile: Any, tile_overlap: Any) -> Tiling:
        """What the arguments of `upscale` mean here. Raises ConfigError."""
        network = self.upscaler
        return tiling(
            *(tile, tile_overlap),
            scale=network.scale,
            radius=network.radius,
            multiple=network.multiple,
            device=self.device.type,
        )

    def _fill(self, images: list[Tensor], results: list[Result], plan: Tiling) -> None:
        """Every window of every image through the network."""
        sources = [Source(value, self.upscaler.multiple) for value in images]
        jobs: list[_Job] = []
        for i, source in enumerate(sources):
            rows, columns = (axis(side, plan, self.upscaler.multiple) for side in source.padded)
            jobs += _jobs(i, rows, columns)
        seams = None if plan.exact or len(jobs) == len(images) else Seams()
        overflowed = 0
        with self._working():
            for group in self._batches(jobs):
                windows = [
                    sources[job.image].window(job.row.start, job.column.start, *job.size, self.device)
                    for job in group
                ]
                made = self._call("upscale", torch.stack(windows))[0]
                bad = [k for k, good in enumerate(made.flatten(1).sum(1).isfinite().tolist()) if not good]
                for k in bad if self.dtype == torch.float16 else ():
                    made[k] = self._in_float32(windows[k][None])[0]
                    overflowed += 1
                failed = [group[k].image for k in bad if not bool(made[k].isfinite().all())]
                if failed:
                    raise ConfigError(
                        f"image {failed[0]} is not finite (NaN or infinite) once enlarged in "
                        f"{dtype_name(self.dtype)}: are its values finite, and in [-1, 1]? engine.verify() looks at "
                        "the network",
                        argument="image",
                    )
                for job, part in zip(group, made, strict=True):
                    self._put(results[job.image], job, part, seams)
        self.last = {
            "windows": len(jobs),
            "tile": plan.tile,
            "halo": plan.halo,
            "exact": seams is None,
            "seam_error": None if seams is None else seams.error,
            "in_float32": overflowed,
        }
        self._warn(seams, plan, overflowed, len(jobs))

    def _put(self, result: Result, job: _Job, part: Tensor, seams: Seams | None) -> None:
        """What is kept of a window; the pixels on both sides of where it meets others are compared."""
        s, row, column = self.upscaler.scale, job.row, job.column
        top, left = (row.begin - row.start) * s, (column.begin - column.start) * s
        bottom, right = (row.end - row.start) * s, (column.end - column.start) * s
        kept = part[:, top:bottom, left:right]
        result.put(kept.to(result.image.device), row.begin * s, column.begin * s)
        if seams is None:
            return
        for dim, span, at in ((1, row, (top, bottom)), (2, column, (left, right))):
            across = (slice(top, bottom), slice(left, right))[2 - dim]
            for place, edge in zip((span.begin, span.end), at, strict=True):
                if 0 < edge < part.shape[dim]:  # no edge of the image
                    line = part.narrow(dim, edge - 1, 2)
                    line = line[:, :, across] if dim == 1 else line[:, across]
                    other = column.begin if dim == 1 else row.begin
                    seams.seen((job.image, dim, place, other), line)

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Windows of one size, as many as are made at a time."""
        ordered = sorted(jobs, key=lambda job: job.size)  # stable: images stay in order
        for size, same in groupby(ordered, key=lambda job: job.size):
            found = list(same)
            pixels = size[0] * size[1] * self.upscaler.scale**2
            count = max(1, min(self.batches.max_batch, PER_CALL[self.device.type] // pixels))
            for at in range(0, len(found), count):
                yield found[at : at + count]

    def _warn(self, seams: Seams | None, plan: Tiling, overflowed: int, windows: int) -> None:
        if overflowed:
            warnings.warn(
                f"float16 overflowed in {overflowed} of {windows} tiles, which were made again in float32; "
                "dtype='bfloat16' or 'float32' does not overflow",
                stacklevel=4,
            )
        if seams is not None and seams.error > LEVEL:
            warnings.warn(
                f"tiles differ by up to {seams.error / LEVEL:.1f} levels of 8 bits where they meet: they overlap by "
                f"{plan.halo} pixels, the network sees {self.upscaler.radius}. tile_overlap='exact' avoids it, a "
                "larger tile or overlap makes it smaller",
                stacklevel=4,
            )

    def _in_float32(self, x: Tensor) -> Tensor:
        """The verb by a copy of the network in float32, which is kept until the weights change."""
        if self._wide is None:
            self._wide = fused_upscaler(copy.deepcopy(self.upscaler).float().requires_grad_(False))
        return _through(self._wide, x, None)[0]

    @property
    def upscaler(self) -> Upscaler:
        """The reference network; a fused one runs in its place."""
        return cast(Upscaler, self.network)

    @property
    def value_range(self) -> Range | None:
        return PICTURES

    def verbs(self) -> dict[str, Verb]:
        """upscale: x [B, C, H, W] in [-1, 1], H and W multiples of the network's, to y."""

        def fast(x: Tensor) -> Tensors:
            return _through(self.fused, x, self.dtype if self.fused is self.upscaler else None)

        def reference(networks: nn.ModuleDict, x: Tensor) -> Tensors:
            (network,) = networks.values()
            return _through(network, x, placed(network)[1])

        def images(pixels: int, batch: int, generator: torch.Generator) -> Tensors:
            side = -(-pixels // self.upscaler.multiple) * self.upscaler.multiple
            shape = (batch, self.upscaler.in_channels, side, side)
            x = torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1
            return (x.to(self.device),)

        trial, timed = partial(images, TRIAL), partial(images, TIMED)
        return {"upscale": Verb("upscale", ("x",), ("y",), fast, reference, trial, timed=timed)}

    def running(self) -> Networks:
        return {only_part(self.networks)[0]: self.fused}

    def _prepare(self) -> None:
        self.fused = fused_upscaler(self.upscaler)
        self._wide = None

    def _facts(self) -> dict[str, Any]:
        network = self.upscaler
        return {
            "scale": network.scale,
            "channels": [network.in_channels, network.out_channels],
            "receptive_field": network.radius,
            "multiple": network.multiple,
            "fused": self.fused is not network,
            "last": self.last,
        }

    def _defaults(self) -> dict[str, Any]:
        return {"scale": self.upscaler.scale, "tile": "auto"}


def _jobs(image: int, rows: Axis, columns: Axis) -> list[_Job]:
    size = rows.window, columns.window
    return [_Job(image, row, column, size) for row in rows.spans for column in columns.spans]


def _through(network: nn.Module, x: Tensor, dtype: torch.dtype | None) -> Tensors:
    """([-1, 1] -> [0, 1] -> the network -> [-1, 1],), clamped, in x's type; what is not finite is NaN.

    dtype: that the network takes; None: it takes what comes.
    """
    inside = x.add(1).mul(0.5)
    if dtype is not None:
        inside = inside.to(dtype, memory_format=torch.channels_last)
    y = network(inside).to(x.dtype).contiguous().mul_(2).sub_(1)
    return (within(y, PICTURES),)
