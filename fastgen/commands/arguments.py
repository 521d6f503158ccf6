"""Arguments that several subcommands share: their types, and the model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ..families import FAMILIES, Family


def integer_ranges(text: str) -> list[int]:
    """``0-3,7`` -> [0, 1, 2, 3, 7]."""
    values: list[int] = []
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected numbers and ranges like 0-3,7, got {text!r}"
            ) from None
        if high < low or high - low >= 1_000_000 - len(values):
            raise argparse.ArgumentTypeError(
                f"{piece!r} is no range from low to high (at most a million in all)"
            )
        values += range(low, high + 1)
    return values


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def span(text: str) -> tuple[int, int]:
    """``0-8999`` -> (0, 8999)."""
    values = text.split("-")
    if len(values) != 2 or not all(v.strip().isdigit() for v in values):
        raise argparse.ArgumentTypeError(f"expected FIRST-LAST like 0-8999, got {text!r}")
    return int(values[0]), int(values[1])


def size(text: str) -> tuple[int, int]:
    """``64`` or ``48x64`` -> (height, width)."""
    values = text.lower().split("x")
    if len(values) > 2 or not all(v.isdigit() and int(v) > 0 for v in values):
        raise argparse.ArgumentTypeError(f"expected SIZE or HEIGHTxWIDTH, got {text!r}")
    return int(values[0]), int(values[-1])


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False, default: str | None = None) -> None:
    """The arguments that say which model runs where. default: it is an option, ``--model``, with this value."""
    what = "folder, zoo:NAME or hub id"
    if default is None:
        parser.add_argument("model", nargs="?" if optional else None, metavar="MODEL", help=what)
    else:
        parser.add_argument("-m", "--model", default=default, help=f"{what} (default {default})")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16 (default auto)")
    add_hub(parser)


def add_hub(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how a model comes from the hub."""
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--local-files-only", action="store_true", help="the hub's cache, never the network")


def load_model(
    args: argparse.Namespace, accept: Callable[[Family], None] | None = None
) -> tuple[Family, Any]:
    """The family and the engine of the model that `args` name, see `add_model`.

    accept: called with the family before weights are read; it may refuse it. Raises what ``fastgen.load`` does.
    """
    from ..api import load_accepted

    engine = load_accepted(
        args.model,
        accept,
        device=args.device,
        dtype=args.dtype or "auto",
        revision=args.revision,
        local_files_only=args.local_files_only,
    )
    return FAMILIES[engine.kind], engine


def given_flags(args: argparse.Namespace, names: Sequence[str]) -> str:
    """Those flags out of `names` (attributes of `args`) that were given, for a message: ``--scale, --no-captions``."""
    values = {name: getattr(args, name) for name in names}
    return flag_names([name for name, value in values.items() if value is not None and value is not False])


def flag_names(names: Sequence[str]) -> str:
    """``["guidance_scale", "eta"]`` -> ``--guidance-scale, --eta``, for a message."""
    return ", ".join("--" + name.replace("_", "-") for name in names)


def counted(count: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """`text` on one line and harmless to a terminal: it may quote an untrusted file, or a file's name."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
