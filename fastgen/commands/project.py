"""``fastgen project``: the styles of a style-based GAN whose image comes closest to a picture."""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, renamed
from ..files import check_writable, write_atomic
from .arguments import add_model, positive
from .image_task import load_engine
from .layout import CELL
from .mix import check_style_based, made_by
from .outputs import add_reporting, check_free, check_places, report, summary, writing
from .plots import SUFFIXES, check_plot, save_figure
from .reconstruct import chosen_label

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "zoo:stylegan-mnist"
STEPS, RATE = 400, 0.1


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "project",
        help="find pictures among what a style-based GAN draws",
        description="Looks for styles whose images come close to picture files, by gradient descent, and writes a "
        "sheet: each picture as the model sees it, at its size, and what was found.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE", help="picture files")
    add_model(parser, default=MODEL)
    parser.add_argument("-o", "--out", type=Path, required=True, help="the sheet: name.png, .jpg or .webp")
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"of the descent (default {STEPS})")
    parser.add_argument(
        "--space",
        choices=("w", "w+"),
        default="w",
        help="w: one style for all layers (default); w+: a style for each, which comes closer to any picture",
    )
    parser.add_argument(
        "--label",
        help="the class, name or number, of all pictures, of a model that knows classes (default: of any class)",
    )
    parser.add_argument("--learning-rate", type=float, default=RATE, help=f"of Adam (default {RATE})")
    parser.add_argument("--noise-mode", choices=("const", "none"), default="const", help="(default const)")
    parser.add_argument("--seed", type=int, default=0, help="of where the descent begins (default 0)")
    parser.add_argument(
        "--styles", type=Path, metavar="NPZ", help="also write the styles: ws [n, num_ws, w_dim]"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help=f"also plot the losses ({', '.join(SUFFIXES)}; needs matplotlib)",
    )
    parser.add_argument("--scale", type=positive, help="enlarge images of the sheet by this whole factor")
    add_reporting(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look for the pictures; returns the exit code."""
    import torch
    from tqdm import tqdm

    from ..engines.gan.projection import ProjectionOptions
    from ..images import save_grid
    from .layout import is_sheet

    if not is_sheet(args.out):
        raise ConfigError("expected a name that ends in .png, .jpg, .jpeg or .webp", argument="--out")
    check_places(args.out, None, args.overwrite)
    files = [path for path in (args.out, args.styles, args.plot) if path is not None]
    if len({path.resolve() for path in files}) < len(files):
        raise ConfigError("expected different files", argument="--out, --styles, --plot")
    if args.plot is not None:
        check_plot(args.plot, args.overwrite)
    if args.styles is not None:
        if args.styles.suffix.lower() != ".npz":
            raise ConfigError(f"expected a name that ends in .npz, got {args.styles}", argument="--styles")
        if not args.styles.absolute().parent.is_dir():
            raise ConfigError(f"there is no folder {args.styles.absolute().parent}", argument=args.styles)
        if args.styles.is_dir():
            raise ConfigError("is a folder", argument=args.styles)
        check_free([args.styles], args.overwrite)
        check_writable(args.styles.absolute().parent)
    options: dict[str, Any] = {
        "steps": args.steps,
        "space": args.space,
        "seed": args.seed,
        "learning_rate": args.learning_rate,
        "noise_mode": args.noise_mode,
    }
    with renamed({name: "--" + name.replace("_", "-") for name in options}):
        ProjectionOptions(**options).check()
    engine = load_engine(args, "gan")
    check_style_based(engine, args.model)
    with renamed({"labels": "--label"}):
        label = None if args.label is None else chosen_label(engine, args.label)
    x = torch.cat([picture(path, engine.shape) for path in args.inputs])
    silent = args.quiet or args.json or not sys.stderr.isatty()
    started = time.perf_counter()
    with tqdm(total=args.steps, unit="step", disable=silent) as bar:
        found = engine.project(
            x,
            labels=label,
            **options,
            progress=lambda step, losses: bar.update(),
        )
    seconds = time.perf_counter() - started
    how_made = {"label": label, **options, "loss": found.loss.tolist(), "seeds": list(found.seeds)}
    metadata = {**made_by(engine), "project": {"inputs": list(map(str, args.inputs)), **how_made}}
    with writing(files, "images", None):
        pairs = torch.stack([x, found.images.cpu()], dim=1).flatten(0, 1)
        save_grid(
            pairs,
            args.out,
            columns=2,
            scale=args.scale or max(1, -(-CELL // engine.shape[2])),
            metadata=metadata,
        )
        if args.styles is not None:
            _save(found.ws, args.styles)
        if args.plot is not None:
            _plot(found.losses, [path.name for path in args.inputs], args.plot)
    losses = found.loss.tolist()
    facts = {"model": args.model, "inputs": list(map(str, args.inputs)), **how_made}
    how = f"{args.steps} steps in {args.space}, loss {', '.join(f'{value:.2g}' for value in losses)}"
    said = summary(len(x), "image", how, engine.device, seconds, files)
    report(facts, said, as_json=args.json, device=engine.device, files=files, seconds={"project": seconds})
    return 0


def picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A picture file as float32 [1, C, H, W] in [-1, 1], resized to `shape`. Raises DataError."""
    from torch.nn import functional as F

    from ..image_files import read_image_file

    if shape[0] not in (1, 3):
        raise ConfigError(
            f"this model draws images of {shape[0]} channels, files have 1 or 3", argument="model"
        )
    x = read_image_file(path, shape[0]).tensor()[None]
    return F.interpolate(x, shape[1:], mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)


def _save(ws: Tensor, path: Path) -> None:
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, ws=ws.numpy(force=True))
    write_atomic(path, buffer.getvalue())


def _plot(losses: Any, names: list[str], path: Path) -> None:
    """losses: [steps + 1, n]."""
    from matplotlib import pyplot

    with pyplot.rc_context({"font.size": 9}):
        figure, axis = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
        for i, name in enumerate(names):
            axis.plot(losses[:, i].numpy(), label=name, linewidth=1.2)
        axis.set(xlabel="step", ylabel="loss", yscale="log")
        axis.legend(fontsize=8)
        save_figure(figure, path)
