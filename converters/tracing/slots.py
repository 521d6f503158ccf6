"""What a linear run must remember, in as few slots as it finds: from the coefficients of its states to a table's rows.

After row i the later states take from the past (x_T, and what was answered and drawn up to i) combinations of a few
vectors only, a space S_i. The new state is one of its vectors; the slots must hold the rest. A row may write one slot,
so that at most one direction can be new, and what stays in a slot must still be in S_i+1, S_i+2, .. : of the vectors
that complete S_i, the one that stays useful longest is written. That choice is never taken back: a run may fit into
fewer slots than are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fastgen.diffusion.table import WIDTH
from fastgen_kernels.reverse_step import row

WINDOW = 16  # later states looked at first; all of them if that was too few
RANK = 1e-11  # a direction this much weaker than the strongest is rounding
TOLERANCES = (1e-9, 1e-10, 1e-8, 1e-7, 1e-6)  # of a vector's part outside a space, relative to the vector
NOTHING = 1e-15  # a term this much smaller than the largest is rounding
AHEAD = row.MAX_SLOTS + 1  # a slot is written anew by then if all are in use


@dataclass(frozen=True)
class Rows:
    """slot [n] int, a and b [n, 8]: columns of a `Table`."""

    slot: np.ndarray
    a: np.ndarray
    b: np.ndarray


def realise(states: np.ndarray) -> Iterator[Rows]:
    """Rows that reproduce `states` with few slots, one written per row, best first; none where four are too few.

    states: float64 [n + 1, 1 + 2 n], state i over [x_T, F_0 .. F_n-1, z_0 .. z_n-1], each of about unit size; the first
    is a multiple of x_T.

    What lies in a space is known within rounding only, which grows over a long run, and where coefficients lie far
    apart: hence `TOLERANCES`. How good the rows are is for the caller to find out, who then asks for more.
    """
    count = len(states) - 1
    for window in dict.fromkeys((min(WINDOW, count), count)):
        spaces = [_orthonormal(states[i + 1 : i + 1 + window] * _past(i, count)) for i in range(count)]
        fewest = max(1, *(len(space) for space in spaces)) - 1
        for tolerance in TOLERANCES:
            for slots in range(fewest, row.MAX_SLOTS + 1):
                rows = _with_slots(states, spaces, slots, tolerance)
                if rows is not None:
                    yield rows
                    break


def _past(i: int, count: int) -> np.ndarray:
    """1 for what is known after row i, else 0."""
    mask = np.zeros(1 + 2 * count)
    mask[: i + 2] = mask[1 + count : 2 + count + i] = 1.0
    return mask


def _with_slots(states: np.ndarray, spaces: list[np.ndarray], slots: int, tolerance: float) -> Rows | None:
    count, size = len(spaces), states.shape[1]
    columns = [row.X, row.F, row.Z, *range(row.H, row.H + slots)]
    written, a, b = np.full(count, -1), np.zeros((count, WIDTH)), np.zeros((count, WIDTH))
    known = np.zeros((3 + slots, size))  # x, F, z and the slots
    known[0] = states[0]
    for i in range(count):
        known[1:3] = 0.0
        known[1, 1 + i] = 1.0
        # A noise that nothing reads is none.
        known[2, 1 + count + i] = float(np.any(states[:, 1 + count + i]))
        choice = _remembered(states[i + 1], known, spaces[i : i + 1 + AHEAD], tolerance)
        if choice is None:
            return None
        written[i], kept = choice
        a[i, columns], inside = _combination(known, states[i + 1], tolerance)
        if not inside:
            return None
        state = a[i, columns] @ known
        if written[i] >= 0:
            b[i, columns], inside = _combination(known, kept, tolerance)
            if not inside:
                return None
            known[3 + written[i]] = b[i, columns] @ known
        known[0] = state
    return Rows(written, a, b)


def _remembered(
    after: np.ndarray, known: np.ndarray, spaces: list[np.ndarray], tolerance: float
) -> tuple[int, np.ndarray] | None:
    """(slot, the vector to write), slot = -1 for none; None where more than one direction is new.

    after: the next state. spaces: S_i and those that follow.
    """
    space, history = spaces[0], known[3:]
    if not len(space):  # nothing of the past matters any more
        return -1, after
    lasting = [_lasting(vector, spaces, tolerance) for vector in history]
    suffices = _holds(np.vstack([after, history]), space, tolerance)
    if suffices and _in_time(lasting, len(space) - 1, len(spaces)):
        return -1, after
    for slot in sorted(range(len(history)), key=lambda k: lasting[k]):
        rest = _orthonormal(np.vstack([after, np.delete(history, slot, axis=0)]))
        if _one_missing(rest, space, tolerance):
            return slot, _longest(rest, spaces, tolerance)
    return (-1, after) if suffices else None


def _in_time(lasting: list[int], needed: int, horizon: int) -> bool:
    """Whether of the `needed` vectors that last longest no two lapse at once, so that one write per row can follow."""
    soonest = sorted(sorted(lasting)[len(lasting) - needed :])
    return all(rows > k or rows == horizon for k, rows in enumerate(soonest))


def _lasting(vector: np.ndarray, spaces: list[np.ndarray], tolerance: float) -> int:
    """In how many of the spaces that come next, one after the other, `vector` lies; -1 for no vector at all."""
    size = float(np.linalg.norm(vector))
    if size == 0.0:
        return -1
    for k, space in enumerate(spaces):
        if np.linalg.norm(vector - (vector @ space.T) @ space) > tolerance * size:
            return k
    return len(spaces)


def _longest(rest: np.ndarray, spaces: list[np.ndarray], tolerance: float) -> np.ndarray:
    """Of the first space's vectors that are not combinations of `rest`, one that lies in most of those that follow."""
    inside, found = spaces[0], None
    for space in spaces:
        outside = inside - (inside @ space.T) @ space
        mixtures, sizes, _ = np.linalg.svd(outside, full_matrices=False)
        inside = mixtures.T[sizes <= tolerance] @ inside
        if not len(inside):
            break
        new = inside - (inside @ rest.T) @ rest
        mixtures, sizes, _ = np.linalg.svd(new, full_matrices=False)
        if sizes[0] <= np.sqrt(tolerance) and found is not None:
            break
        found = mixtures.T[0] @ inside
    assert found is not None  # the first space is in itself
    return found


def _one_missing(rest: np.ndarray, space: np.ndarray, tolerance: float) -> bool:
    """Whether one vector beside `rest`, orthonormal, is enough for all of `space`."""
    missing = np.linalg.svd(space - (space @ rest.T) @ rest, compute_uv=False)
    return len(missing) < 2 or missing[1] <= tolerance


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """A basis [r, size] of what `vectors` span; some may be 0."""
    norms = np.linalg.norm(vectors, axis=1)
    if not np.any(norms > 0):
        return np.zeros((0, vectors.shape[1]))
    _, sizes, directions = np.linalg.svd(vectors[norms > 0] / norms[norms > 0][:, None], full_matrices=False)
    return directions[sizes > RANK * sizes[:1]]


def _holds(vectors: np.ndarray, wanted: np.ndarray, tolerance: float) -> bool:
    """Whether all of `wanted`, of length 1, are combinations of `vectors`."""
    basis = _orthonormal(vectors)
    return float(np.abs(wanted - (wanted @ basis.T) @ basis).max()) <= tolerance


def _combination(known: np.ndarray, target: np.ndarray, tolerance: float) -> tuple[np.ndarray, bool]:
    """Coefficients [m] of `target` over `known`, and whether it is one."""
    norms = np.linalg.norm(known, axis=1)
    on = norms > 0
    size = np.linalg.norm(target)
    terms = np.zeros(len(known))
    if size == 0.0:
        return terms, True
    terms[on] = np.linalg.lstsq((known[on] / norms[on][:, None]).T, target / size, rcond=1e-14)[0] * size
    terms[np.abs(terms) < NOTHING * np.abs(terms).max()] = 0.0
    terms[on] /= norms[on]
    return terms, bool(np.linalg.norm(terms @ known - target) <= tolerance * size)
