"""The reverse step's cases, error bounds and costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..op import Arguments, Case, rounding_bound
from . import row
from .reference import convert_rows, integer_words, reverse_step, step_noise


def arguments(
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int],
    slots: int = 0,
    guided: bool = False,
    learned: int = 0,
    channels_last: bool = False,
    sliced: bool = False,
    noise: str = "some",
    unused: tuple[int, ...] = (),
) -> Arguments:
    """Random arguments of `reverse_step` for a state of `shape` [B, C, H, W] and a network in `dtype`.

    `noise`: "none", "all", or "some" of the rows use it. History slots in `unused` have zero coefficients and
    hold NaN. `sliced`: h is a slice of a buffer for one sample more. Sample i writes slot i modulo slots,
    sample 2 none.
    """
    batch, channels, height, width = shape
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=state, device="cpu")

    coefficients = draw(batch, 2, 8) * 0.7
    coefficients[:, :, row.H + slots :] = 0.0
    coefficients[:, :, [row.H + k for k in unused]] = 0.0
    noisy = {"none": 0, "all": batch, "some": (batch + 1) // 2}[noise]
    coefficients[noisy:, :, row.Z] = 0.0

    sample = torch.arange(batch, device="cpu")
    rows = torch.zeros(batch, row.ROW_WORDS, dtype=state, device="cpu")
    rows[:, row.P], rows[:, row.Q] = draw(batch), draw(batch)
    rows[:, row.GUIDANCE] = 1.5 + sample.to(state)
    rows[:, row.CLIP] = torch.where(sample % 2 == 0, 1.0, torch.inf)
    rows[:, row.NEXT_SCALE] = 0.7
    rows[:, row.A : row.A + 8], rows[:, row.B : row.B + 8] = coefficients[:, 0], coefficients[:, 1]
    rows[:, row.LOG2_STD_MIN], rows[:, row.LOG2_STD_MAX] = -3.0, 0.5
    words = integer_words(rows)
    words[:, row.SLOT] = torch.where(sample == 2, -1, sample % slots if slots else -1).to(words.dtype)
    words[:, row.NOISE_STEP] = (sample * 7 + 3).to(words.dtype)
    words[:, row.NEXT] = (sample + 11).to(words.dtype)

    full = draw(slots, batch + sliced, channels, height, width)
    full[list(unused)] = torch.nan
    F = draw((2 if guided else 1) * batch, (2 if learned else 1) * channels, height, width).to(dtype)
    seeds = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator, device="cpu")
    return {
        "x": draw(*shape).to(device),
        "h": full.to(device)[:, :batch],
        "F": F.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format),
        "rows": rows.to(device),
        "seeds": seeds.to(device),
        "learned": learned,
    }


def _case(
    name: str,
    reason: str,
    shape: tuple[int, int, int, int],
    production: bool = False,
    large: bool = False,
    **options: Any,
) -> Case:
    make: Callable[..., Arguments] = lambda generator, device, dtype: arguments(  # noqa: E731
        generator, device, dtype, shape, **options
    )
    return Case(name, make, reason, production=production, large=large)


CASES = (
    _case("one", "a single element: every mask has one true lane", (1, 1, 1, 1), slots=1, noise="all"),
    _case("ragged", "n = 105 divides by nothing", (2, 3, 5, 7), slots=2),
    _case("no_history", "DDPM, DDIM, Euler", (3, 3, 4, 4), noise="all"),
    _case("slots1", "DPM-Solver++(2M), Heun", (3, 2, 6, 6), slots=1, noise="none"),
    _case("slots3", "UniPC-3, PLMS; a NaN in a slot that no row reads", (3, 2, 6, 6), slots=3, unused=(1,)),
    _case(
        "slots4", "full PNDM in a batch bucket smaller than the buffer", (4, 1, 9, 7), slots=4, sliced=True
    ),
    _case("guided", "classifier-free guidance", (2, 3, 5, 5), slots=1, guided=True),
    _case("learned", "learned range, odd image", (2, 3, 3, 7), learned=1, noise="all"),
    _case("learned_value", "learned variance itself", (2, 3, 4, 6), slots=1, learned=2, guided=True),
    _case("last", "channels-last network", (2, 3, 6, 6), slots=2, channels_last=True),
    _case(
        "last_all",
        "everything at once",
        (3, 3, 4, 10),
        slots=4,
        guided=True,
        learned=1,
        channels_last=True,
        sliced=True,
        unused=(0,),
    ),
    _case("mnist1", "latency: one digit", (1, 1, 28, 28), production=True, slots=1),
    _case("cifar1", "latency: one small image", (1, 3, 32, 32), production=True, slots=2),
    _case(
        "cifar256", "throughput, channels-last network", (256, 3, 32, 32), True, slots=2, channels_last=True
    ),
    _case(
        "session1",
        "as the sampling loop launches it: four slots, guided; one grey digit, whose layouts are one and the same",
        (1, 1, 28, 28),
        production=True,
        slots=4,
        guided=True,
        sliced=True,
    ),
    _case(
        "session64",
        "the same for a full batch of small colour images, channels-last",
        (64, 3, 32, 32),
        production=True,
        slots=4,
        guided=True,
        channels_last=True,
        sliced=True,
    ),
    _case("latent8", "guided latents", (8, 4, 64, 64), production=True, slots=3, guided=True),
    _case("lsun16", "bandwidth, no noise", (16, 3, 256, 256), production=True, slots=1, noise="none"),
    _case(
        "lsun16_ancestral", "bandwidth, noise in every row", (16, 3, 256, 256), production=True, noise="all"
    ),
    _case(
        "lsun64",
        "bandwidth beyond a GPU's cache, no noise",
        (64, 3, 256, 256),
        production=True,
        large=True,
        slots=1,
        noise="none",
        channels_last=True,
    ),
    _case(
        "lsun64_ancestral",
        "bandwidth beyond a GPU's cache, noise in every row",
        (64, 3, 256, 256),
        production=True,
        large=True,
        noise="all",
        channels_last=True,
    ),
    _case("adm4", "learned range, guided", (4, 3, 256, 256), production=True, guided=True, learned=1),
)


def exact(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The step in float64 from the arguments as they were rounded."""
    noise = None if noise is None else noise.double()
    double = convert_rows(rows, torch.float64)
    return reverse_step(x.double(), h.double(), F.double(), double, seeds, learned, noise)


def tolerance(outputs: tuple[Tensor, ...], named: Arguments) -> tuple[Tensor, ...]:
    """Bounds of x_next, h_next and y: the step on absolute values, times the roundings on the way."""
    x, h, F, rows, learned = (named[name] for name in ("x", "h", "F", "rows", "learned"))
    batch, channels = x.shape[:2]
    words = convert_rows(rows, torch.float64)
    absolute = words.abs()[:, :, None, None, None].unbind(1)
    state, history, network = x.double().abs(), h.double().abs(), F.double()

    f = network[:batch, :channels].abs()
    if F.shape[0] != batch:
        unconditional = network[batch:, :channels].abs()
        f = unconditional + absolute[row.GUIDANCE] * (f + unconditional)
    x0 = absolute[row.P] * state + absolute[row.Q] * f

    noise = named.get("noise")
    # A made normal's own error, 6 * 2^-24 * (1 + |z|), is within the 8 roundings that its magnitude then
    # counts.
    z = (step_noise(words, named["seeds"], x.double()).abs() + 1.0) if noise is None else noise.double().abs()
    if learned:
        V = network[:batch, channels:]
        if learned == 1:
            low, span = words[:, row.LOG2_STD_MIN], words[:, row.LOG2_STD_MAX] - words[:, row.LOG2_STD_MIN]
            low, span = low[:, None, None, None], span[:, None, None, None]
            # 2^t carries t's absolute error, a rounding for each of its parts; 4 more for exp2 itself.
            carried = 4.0 + low.abs() + span.abs() * (V.abs() + 1.0)
            z = z * torch.exp2(low + (V * 0.5 + 0.5) * span) * carried
        else:
            z = z * V.clamp(min=0.0).sqrt() * 4.0

    def magnitude(first: int) -> Tensor:
        c = absolute[first : first + 8]
        total = c[row.X] * state + c[row.X0] * x0 + c[row.F] * f + c[row.Z] * z
        for k in range(h.shape[0]):
            total = total + c[row.H + k] * history[k].nan_to_num(nan=0.0)
        return total

    x_magnitude = magnitude(row.A)
    y_magnitude = absolute[row.NEXT_SCALE] * x_magnitude
    y_magnitude = torch.cat((y_magnitude, y_magnitude)) if F.shape[0] != batch else y_magnitude
    x_exact, h_exact, y_exact = outputs
    return (
        rounding_bound(x_exact, x_magnitude, x.dtype),
        rounding_bound(h_exact, magnitude(row.B)[None].expand(h.shape), h.dtype),
        rounding_bound(y_exact, y_magnitude, F.dtype),
    )


def bytes_moved(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> int:
    """Least traffic of the in-place step: state in and out, F in, y out, and the history that rows use."""
    image = x[0].numel() * x.element_size()
    coefficients = rows[:, row.A : row.B + 8].reshape(-1, 2, 8)
    read = int((coefficients[:, :, row.H : row.H + h.shape[0]] != 0).any(1).sum())
    written = int((integer_words(rows)[:, row.SLOT] >= 0).sum())
    noisy = int((coefficients[:, :, row.Z] != 0).any(1).sum())
    state = 2 * x.numel() * x.element_size() + (read + written) * image
    # F and y have as many samples; the variance is read where there is noise to scale, and of one half only.
    network = (2 * F.shape[0] + (noisy if learned else 0)) * x[0].numel() * F.element_size()
    return (
        state + network + rows.numel() * rows.element_size() + len(rows) * (seeds.element_size() + 4)
    )  # 4: cursor


def flops(
    x: Tensor,
    h: Tensor,
    F: Tensor,
    rows: Tensor,
    seeds: Tensor,
    learned: int = 0,
    noise: Tensor | None = None,
) -> int:
    """Floating-point additions and multiplications; Philox, which is integer work, is not counted."""
    n = x[0].numel()
    coefficients = rows[:, row.A : row.B + 8].reshape(-1, 2, 8)
    used = (coefficients != 0).any(1)
    writes = (integer_words(rows)[:, row.SLOT] >= 0).to(torch.int64)
    sums = 1 + writes  # x', and the slot where one is written
    terms = 3 + used[:, row.H : row.H + h.shape[0]].sum(1) + used[:, row.Z]
    per_element = 3 + 1 + (2 * terms - 1) * sums + (3 if F.shape[0] != x.shape[0] else 0)
    noisy = used[:, row.Z].to(torch.int64) * (24 + (6 if learned else 0))
    return int((per_element + noisy).sum()) * n
