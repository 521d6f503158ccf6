"""``fastgen reconstruct``: images through the latents of a variational autoencoder and back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .arguments import add_model, positive
from .image_task import add_image_files, load_engine, plan, record_of, run_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..image_files import ImageFile

MODEL = "zoo:vae-mnist"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "reconstruct",
        help="images through a VAE's latents and back",
        description="Encodes image files, and folders of them, and decodes the means of their latents. A model of "
        "images of one size gets them resized to it; an AutoencoderKL takes any size. What is done already is "
        "skipped; a file that fails is reported, and the others are done.",
    )
    add_image_files(parser, batch=16)
    add_model(parser, default=MODEL)
    parser.add_argument(
        "--label", help="the class, name or number, of all images, of a model that knows classes"
    )
    parser.add_argument(
        "--tile", type=positive, metavar="PIXELS", help="an AutoencoderKL works in tiles of this side"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reconstruct what `args` name; returns the exit code."""
    tasks = plan(args)
    engine = load_engine(args, "vae")
    if not engine.images or engine.shape[0] not in (1, 3):
        raise ConfigError("models no grey or RGB images", argument=args.model)
    label = chosen_label(engine, args.label)

    def work(files: list[ImageFile]) -> Sequence[Tensor]:
        return reconstructed(engine, [file.tensor() for file in files], label, args.tile)

    settings = {"command": "reconstruct", "label": label, "tile": args.tile}
    return run_tasks(
        args,
        tasks,
        work,
        record=record_of(engine, settings),
        what=args.model,
        device=engine.device,
        channels=engine.shape[0],
    )


def chosen_label(engine: Any, label: str | None) -> int | None:
    """The number of the class that ``--label`` names. Raises ConfigError where the model needs one, or has none."""
    from ..engines.arguments import class_number

    classes = engine.describe()["classes"]
    if (label is None) != (classes is None):
        said = (
            "this model has no classes"
            if classes is None
            else f"this model needs one of its {classes} classes"
        )
        raise ConfigError(said, argument="--label")
    return None if label is None else class_number(label, classes, engine.settings.class_names)


def reconstructed(
    engine: Any, images: Sequence[Tensor], label: int | None, tile: int | None
) -> Sequence[Tensor]:
    """Reconstructions of images float [C, H, W] in [-1, 1] of any sizes."""
    import torch
    from torch.nn import functional as F

    multiple = engine.vae.multiple
    if multiple is None:
        if tile is not None:
            raise ConfigError("this model takes images of one size, as a whole", argument="--tile")
        size = engine.shape[1:]
        resized = [
            F.interpolate(x[None], size, mode="bilinear", antialias=True, align_corners=False) for x in images
        ]
        found: Tensor = engine.reconstruct(torch.cat(resized), labels=label)
        return list(found)
    made = []
    for x in images:
        height, width = x.shape[1:]
        # Edges are repeated up to the next multiple, and cut off again.
        padded = F.pad(x[None], (0, -width % multiple, 0, -height % multiple), mode="replicate")
        (normal,) = engine.encode(padded, tile=tile)
        made.append(engine.decode(normal.mean, tile=tile)[0, :, :height, :width].clamp(-1, 1))
    return made
