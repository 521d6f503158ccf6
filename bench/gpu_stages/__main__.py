"""One stage in a process of its own: `python -m bench.gpu_stages NAME --out FOLDER --until SECONDS`."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import signal
from pathlib import Path

from .stage import Stage


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one stage; bench.gpu_run calls this.")
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="on time.time()")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    options = dict(option.split("=", 1) for option in args.option)
    faulthandler.register(signal.SIGTERM, all_threads=True, chain=True)  # where it was when its time was over
    if args.dry:
        from tests.kernels import interpreter

        interpreter.install()  # Triton's own is wrong in places
    module = importlib.import_module(f"bench.gpu_stages.{args.name}")
    module.run(Stage(args.name, args.out, args.until, args.dry, options))


if __name__ == "__main__":
    main()
