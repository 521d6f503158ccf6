"""Hypothesis strategies for what may be in a file that nobody vouches for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

DEEP: Any = []
for _ in range(100):
    DEEP = [DEEP]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([10**9, -(10**9), 2**31, 2**63, 2**64, 10**40, 10**400, 4096, 1_000_000]),
    st.floats(),
    st.floats(-2, 2),
    st.text(max_size=8),
    st.text(st.characters(categories=["Cs", "Cc"]), max_size=3),
    st.sampled_from(
        ["DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "unet", "diffusion", "ddim", "linear", "x" * 10**5]
    ),
)
VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5), s, max_size=3),
        max_leaves=6,
    ),
    st.lists(st.integers(1, 4096), max_size=9),
    st.just(DEEP),
)


def fresh(draw: Callable) -> Any:
    """A value of its own, that may itself be changed."""
    return copy.deepcopy(draw(VALUES))


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value within `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in places(v, (*path, key)))]


@st.composite
def mutated(draw: Callable, original: Any) -> Any:
    """`original` (JSON types) with one to three values replaced, removed, renamed, added or swapped."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                value = fresh(draw)
            elif isinstance(value, dict):
                value[draw(st.text(max_size=5))] = fresh(draw)
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        act = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add", "swap"]))
        if act == "replace":
            holder[path[-1]] = fresh(draw)
        elif act == "remove":
            del holder[path[-1]]
        elif act == "swap":
            other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
            holder[path[-1]], holder[other] = holder[other], holder[path[-1]]
        elif isinstance(holder, list):
            holder.insert(draw(st.integers(0, len(holder))), fresh(draw))
        elif act == "rename":
            holder[draw(st.text(max_size=5))] = holder.pop(path[-1])
        else:
            holder[draw(st.text(max_size=5))] = fresh(draw)
    return value


@st.composite
def broken(draw: Callable, data: bytes) -> bytes:
    """`data` with bytes flipped, cut off, put in, doubled, or all of it replaced."""
    act = draw(st.sampled_from(["flip", "flip", "cut", "append", "insert", "double", "other"]))
    if act == "flip":
        out = bytearray(data)
        for _ in range(draw(st.integers(1, 8))):
            out[draw(st.one_of(st.integers(0, len(data) - 1), st.integers(0, min(len(data), 4096) - 1)))] ^= (
                draw(st.integers(1, 255))
            )
        return bytes(out)
    at = draw(st.one_of(st.integers(0, len(data)), st.integers(0, min(64, len(data)))))
    if act == "cut":
        return data[:at]
    if act == "append":
        return data + draw(st.binary(min_size=1, max_size=64))
    if act == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=64)) + data[at:]
    if act == "double":
        return data[:at] + data
    return draw(st.binary(max_size=200))


@st.composite
def broken_tensors(draw: Callable, data: bytes) -> bytes:
    """A safetensors file `data` with another header, another length of it, other values, tensors or bytes."""
    act = draw(st.sampled_from(["bytes", "header", "header", "length", "twice", "values", "swap"]))
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    if act == "values":  # not a number among them now and then
        word = draw(st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\x01\x02\x03\x04"]))
        at = 4 * draw(st.integers(0, len(rest) // 4 - 1))
        return data[: 8 + length] + rest[:at] + word + rest[at + 4 :]
    if act == "bytes":
        return draw(broken(data))
    if act == "length":
        claimed = draw(st.one_of(st.integers(0, 2 * length), st.integers(0, 2**64 - 1)))
        return claimed.to_bytes(8, "little") + text + rest
    if act == "twice":
        text = text.rstrip()[:-1] + b"," + text.strip()[1:]
    elif act == "swap":
        header = json.loads(text)
        one, other = (draw(st.sampled_from(sorted(set(header) - {"__metadata__"}))) for _ in range(2))
        header[one], header[other] = header[other], header[one]
        text = as_json(header)
    else:
        text = as_json(draw(mutated(json.loads(text))))
    return len(text).to_bytes(8, "little") + text + rest


def as_json(value: Any) -> bytes:
    """JSON as other programs might write it: NaN and half surrogate pairs are let through."""
    return json.dumps(value).encode()
