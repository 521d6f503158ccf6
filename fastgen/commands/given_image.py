"""What ``fastgen edit`` and ``fastgen inpaint`` share: how to draw, and files as images of a diffusion model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..families import FAMILIES, GIF
from ..families.family import given
from .arguments import add_model
from .image_task import add_image_files, load_engine, record_of, run_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from ..image_files import ImageFile
    from .image_task import Task

MODEL = "zoo:ddpm-mnist"
FAMILY = "diffusion"
FLAGS = tuple(flag for flag in FAMILIES[FAMILY].flags["sample"] if flag is not GIF)


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which images become which files, and how they are drawn."""
    add_image_files(parser, batch=16)
    add_model(parser, default=MODEL)
    parser.add_argument("--label", help="the class, name or number, of all images (default: no label)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the noise, the same for each image (default 0)"
    )
    for flag in FLAGS:
        flag.add(parser)


def drawn(args: argparse.Namespace, tasks: Sequence[Task], settings: dict[str, Any], make: Any) -> int:
    """Make the images of `tasks` by make(engine, images [n, C, H, W], arguments), returns the exit code.

    settings: of the command, for the record.
    """
    from ..engines.arguments import class_number

    engine = load_engine(args, FAMILY)
    if engine.value_range is None or engine.shape[0] not in (1, 3):
        raise ConfigError("draws no grey or RGB images", argument=args.model)
    label, classes = None, engine.settings.num_classes
    if args.label is not None:
        if classes is None:
            raise ConfigError("this model has no classes", argument="--label")
        label = class_number(args.label, classes, engine.settings.class_names)
    arguments = how(args)

    def work(files: list[ImageFile]) -> Sequence[Tensor]:
        import torch

        from ..images import to_pictures

        images = torch.stack([of_model(file, engine) for file in files])
        seeds = [args.seed] * len(files)
        made = make(engine, images, {**arguments, "seeds": seeds, "labels": label})
        return list(to_pictures(made, engine.value_range))

    kept = {**settings, "label": label, "seed": args.seed, **arguments}
    return run_tasks(
        args,
        tasks,
        work,
        record=record_of(engine, kept),
        what=args.model,
        device=engine.device,
        channels=engine.shape[0],
    )


def how(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``sample`` that flags say, one value for all images. Raises ConfigError for several."""
    sampling = FAMILIES[FAMILY].sampling
    assert sampling is not None
    flags = given(args, FLAGS)
    if several := [
        name for name in ("solver", "steps", "guidance_scale", "eta") if "," in str(flags.get(name, ""))
    ]:
        raise ConfigError("expected one value, for all images", argument=f"--{several[0].replace('_', '-')}")
    return {name: value for name, value in sampling.arguments(flags, 1).items() if value is not None}


def of_model(file: ImageFile, engine: Any) -> Tensor:
    """An image as the model has them: float32 [C, H, W] of its size, in its value range."""
    from torch.nn import functional as F

    low, high = engine.value_range
    values = file.tensor()
    if file.size != tuple(engine.shape[1:]):
        values = F.interpolate(
            values[None], engine.shape[1:], mode="bilinear", antialias=True, align_corners=False
        )[0].clamp_(-1, 1)
    # To the bit what it is where the range is that of files.
    return values if (low, high) == (-1.0, 1.0) else low + (values + 1) * ((high - low) / 2)


def mask_of(path: Path, engine: Any) -> torch.Tensor:
    """A mask [1, H, W] of the model's size: 1 where the file is white, 0 where it is black."""
    from torch.nn import functional as F

    from ..image_files import read_image_file

    values = read_image_file(path, 1).pixels.float() / 255
    if tuple(values.shape[1:]) == tuple(engine.shape[1:]):
        return values
    return F.interpolate(values[None], engine.shape[1:], mode="bilinear", antialias=True)[0].clamp_(0, 1)
