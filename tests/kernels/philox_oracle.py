"""Philox4x32-10 and Box-Muller in NumPy, from the paper, unsigned: independent of the package."""

import numpy as np


def philox(key: tuple[int, int], counter: tuple[int | np.ndarray, ...]) -> np.ndarray:
    """[4, N] uint32 words for counters (four integers or arrays of N)."""
    c0, c1, c2, c3 = (np.array(c, np.uint64) for c in np.broadcast_arrays(*counter))
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & mask, (p0 >> half) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack([np.atleast_1d(c) for c in (c0, c1, c2, c3)]).astype(np.uint32)


def words(seed: int, step: int, stream: int, blocks: int) -> np.ndarray:
    """[4, blocks] uint32 words of a sample's noise."""
    seed &= 2**64 - 1
    return philox((seed & 0xFFFFFFFF, seed >> 32), (np.arange(blocks), step, stream, 0))


def box_muller(radius_word: np.ndarray, angle_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 normals of uint32 words."""
    radius = np.sqrt(-2.0 * np.log((radius_word.astype(np.float64) + 0.5) * 2.0**-32))
    angle = angle_word.view(np.int32).astype(np.float64) * np.pi * 2.0**-31
    return radius * np.cos(angle), radius * np.sin(angle)


def normals(seed: int, step: int, stream: int, count: int) -> np.ndarray:
    """[count] float64 normals of a sample."""
    w = words(seed, step, stream, -(-count // 4))
    return np.stack([*box_muller(w[0], w[1]), *box_muller(w[2], w[3])], 1).reshape(-1)[:count]
