"""How the affine coupling is cut into tiles, programs and launches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """Tiles [rows, columns], powers of two; `tiles` of them a program."""

    rows: int
    columns: int
    tiles: int = 1

    @property
    def num_warps(self) -> int:
        """8 elements a thread: 16 bytes of a half-precision network, 32 of the state."""
        return min(max(self.rows * self.columns // 256, 1), 16)


# A sample up to this size is one program's: on one multiprocessor it takes about as long as the second launch that
# adds up the parts of a divided one.
WHOLE = 4096
LARGE = 2048  # tile of a larger sample: eight warps
SMALL = 512  # ... where that leaves multiprocessors idle: one large image
SHARED = 1024  # tile of several small samples: tabular flows
# Programs of LARGE that keep an H200's 132 multiprocessors busy: three for each, 24 warps with 64 bytes a thread on
# their way. Beyond that a program takes more tiles, so that few sums are left to the second launch, or none.
ENOUGH = 396
MOST_TILES = 64  # of a program; each is a column of `totals`
SUM_BLOCK = 4096  # of the second launch


def cdiv(n: int, d: int) -> int:
    """n / d, rounded up."""
    return -(-n // d)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def flat_launch(batch: int, n: int) -> Launch:
    """The launch for `batch` samples that are runs of n elements."""
    whole = power_of_two(n)
    if whole <= WHOLE:
        # Small samples share a program once there are more than keep the machine busy.
        return Launch(min(max(SHARED // whole, 1), power_of_two(max(batch // (4 * ENOUGH), 1))), whole)
    columns = LARGE if batch * n >= ENOUGH * LARGE else SMALL
    return Launch(1, columns, tiles_each(batch, cdiv(n, columns)))


def plane_launch(batch: int, channels: int, pixels: int, pixels_first: bool) -> Launch:
    """The launch for samples whose tensors differ in order or have gaps: tiles [channels, pixels].

    pixels_first: pixels run fastest in every tensor. Else a tile has 32 channels, so that those tensors where
    channels run fastest get whole sectors too. The tile does not depend on the batch, for it sets the sum's order.
    """
    c, p = power_of_two(channels), power_of_two(pixels)
    if c * p <= WHOLE:
        return Launch(c, p)
    rows = min(1 if pixels_first else 32, c)
    columns = min(LARGE // rows, p)
    rows = min(LARGE // columns, c)  # what few pixels leave
    tiles = cdiv(channels, rows) * cdiv(pixels, columns)
    return Launch(rows, columns, tiles_each(batch, tiles))


def tiles_each(batch: int, tiles: int) -> int:
    """Tiles a program, of `tiles` a sample: the most that leave ENOUGH programs, evenly laden."""
    best = each = 1
    while each < min(tiles, MOST_TILES):
        each *= 2
        programs = cdiv(tiles, each)
        if batch * programs >= ENOUGH and (programs == 1 or tiles >= 0.9 * programs * each):
            best = each
    return best
