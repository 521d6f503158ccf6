"""``fastgen interpolate``: an animation from one sample of a GAN or a diffusion model, or one image, to others."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..families import FAMILIES, Family
from ..families.family import given
from .arguments import add_model, given_flags, integer_ranges, load_model, positive
from .given_image import FAMILY as DIFFUSION
from .given_image import FLAGS, how, of_model
from .outputs import check_free, summary, writing

MODEL = "zoo:gan-mnist"


def add(subparsers: argparse._SubParsersAction) -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "interpolate",
        help="an animation from one sample of a GAN or a diffusion model to others",
        description="Writes a GIF that goes from the sample of one seed to that of the next and back to the first, "
        "along great circles of the latents, or along straight lines of the styles (--space w). Of a class-conditional "
        "model each frame shows all --labels. A diffusion model also takes image files (--images), which it encodes.",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="name.gif")
    add_model(parser, default=MODEL)
    parser.add_argument("--seeds", type=integer_ranges, metavar="0-3,9", help="(default 0-3)")
    parser.add_argument("--frames", type=positive, default=12, help="from one seed to the next (default 12)")
    parser.add_argument("--labels", help="classes, names or numbers: 0-9 or 3,7 (default: all, 10 at most)")
    parser.add_argument(
        "--scale", type=positive, default=2, help="factor by which images are enlarged (default 2)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    group = parser.add_argument_group("GANs")
    group.add_argument(
        "--space", choices=("z", "w"), help="w: straight lines of styles, of a style-based model (default z)"
    )
    add_truncation(group)
    group = parser.add_argument_group("diffusion models")
    group.add_argument("--images", nargs="+", type=Path, metavar="FILE", help="in place of --seeds")
    for flag in FLAGS:
        flag.add(group)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw and write; returns the exit code."""
    import torch

    from ..images import save_gif, to_pictures

    if args.images is not None and args.seeds is not None:
        raise ConfigError("give one of them", argument="--seeds, --images")
    if args.seeds is None and args.images is None:
        args.seeds = [0, 1, 2, 3]
    for name in ("seeds", "images"):
        if (values := getattr(args, name)) is not None and len(values) < 2:
            raise ConfigError("expected at least 2", argument=f"--{name}")
    if args.out.suffix.lower() != ".gif" or args.out.is_dir():
        raise ConfigError(f"expected a name that ends in .gif, got {args.out}", argument="--out")
    if not args.out.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {args.out.absolute().parent}", argument=args.out)
    check_free([args.out], args.overwrite)
    engine = load_model(args, lambda family: _accept(args, family))[1]
    labels = chosen_labels(engine, args.labels)
    if engine.kind == DIFFUSION and (engine.value_range is None or engine.shape[0] not in (1, 3)):
        raise ConfigError("draws no grey or RGB images", argument=args.model)
    options = _options(args, engine)
    started = time.perf_counter()
    rows = [engine.interpolate(frames=args.frames, labels=label, **options) for label in labels]
    if engine.kind == DIFFUSION:
        rows = [to_pictures(row, engine.value_range) for row in rows]
    frames = torch.stack(rows, dim=1)[:-1]  # the last one is the first again
    seconds = time.perf_counter() - started
    with writing([args.out], "frames", None):
        save_gif(list(frames.cpu()), args.out, columns=min(len(labels), 5), scale=args.scale, hold=80)
    print(summary(len(frames), "frame", _keys(args), engine.device, seconds, [args.out]))
    return 0


def _accept(args: argparse.Namespace, family: Family) -> None:
    """Whether models of `family` do this, with these flags. Raises ConfigError."""
    if family.name not in ("gan", DIFFUSION):
        raise ConfigError(
            f"is a {family.name} model; this command takes gan and {DIFFUSION} models", argument=args.model
        )
    flags = {
        "gan": ["space", *(flag.dest for flag in FAMILIES["gan"].flags["sample"])],
        DIFFUSION: ["images", *(flag.dest for flag in FLAGS)],
    }
    others = [
        name
        for names in flags.values()
        for name in names
        if name not in flags[family.name] and hasattr(args, name)
    ]
    if wrong := given_flags(args, others):
        raise ConfigError(f"is not for {family.name} models", argument=wrong)


def _options(args: argparse.Namespace, engine: Any) -> dict[str, Any]:
    """Keyword arguments of ``engine.interpolate``, but for frames and labels."""
    if engine.kind != DIFFUSION:
        if args.space == "w" and not engine.style_based:
            raise ConfigError(
                f"{args.model} has no styles; this is of StyleGAN and StyleGAN2", argument="--space"
            )
        options = truncation(args, engine, len(args.seeds))
        if isinstance(
            psi := options.get("truncation_psi"), list
        ):  # of the seeds; the way ends at the first again
            options["truncation_psi"] = [*psi, psi[0]]
        return {"seeds": [*args.seeds, args.seeds[0]], "space": args.space or "z", **options}
    if args.images is None:
        return {"seeds": [*args.seeds, args.seeds[0]], **how(args)}
    import torch

    from ..image_files import read_image_file

    read = [of_model(read_image_file(path, engine.shape[0]), engine) for path in args.images]
    return {"images": torch.stack([*read, read[0]]), **how(args)}


def _keys(args: argparse.Namespace) -> str:
    """What the animation goes between, for people."""
    if args.images is None:
        return f"seeds {args.seeds}"
    return f"images {', '.join(path.name for path in args.images)}"


def add_truncation(parser: argparse._ActionsContainer, helps: Mapping[str, str] | None = None) -> None:
    """The flags that ``fastgen sample`` has for GANs. helps: other texts for some of them, by name."""
    for flag in FAMILIES["gan"].flags["sample"]:
        options = {**flag.options, "help": (helps or {}).get(flag.name, flag.options["help"])}
        replace(flag, options=options).add(parser)


def truncation(args: argparse.Namespace, engine: Any, count: int) -> dict[str, Any]:
    """The values of those flags, as keyword arguments of the engine's, for `count` samples. Raises ConfigError."""
    family = FAMILIES["gan"]
    assert family.sampling is not None
    return family.sampling.of(engine).arguments(given(args, family.flags["sample"]), count)


def chosen_labels(engine: Any, text: str | None) -> list[str | int | None]:
    """The labels that ``--labels`` names, by default all, 10 at most; [None] without classes. ConfigError."""
    from ..engines.arguments import written_labels

    classes = engine.settings.num_classes if engine.kind == DIFFUSION else engine.classes
    if classes is None:
        if text is not None:
            raise ConfigError("this model has no classes", argument="--labels")
        return [None]
    if text is None:
        return list(range(min(classes, 10)))
    return list(written_labels(text, engine.settings.class_names))
