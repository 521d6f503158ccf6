"""The sheets of images that a training run draws now and then."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..training.batch import Dataset
    from .family import Family
    from .recipe import Recipe

GAUGE = "gauge.csv"


def previewer(
    family: Family, recipe: Recipe, folder: Path, spec: Spec, dataset: Dataset
) -> Callable[[int, nn.ModuleDict], None]:
    """The `on_preview` of ``training.loop.train``: `recipe`'s sheet, drawn by the family's engine into `folder`."""

    def preview(step: int, averages: nn.ModuleDict) -> None:
        from ..files import make_folder, remove_leftovers, write_atomic
        from ..images import save_grid
        from ..training.loop import PREVIEWS

        # A copy in the networks' own dtype: an engine moves what it is given, and these are still in training.
        networks = copy.deepcopy(averages)
        device = next(networks.parameters()).device
        engine: Any = family.engine_class().from_spec(networks, spec, device=device, dtype="float32")
        images, columns = recipe.sheet(engine, dataset)
        make_folder(folder / PREVIEWS)
        path = folder / PREVIEWS / f"step-{step:07d}.png"
        remove_leftovers(path.parent, [path.name])  # of a run that was killed here
        save_grid(images, path, columns=columns)
        if numbers := recipe.gauge(engine, dataset):
            write_atomic(path.parent / GAUGE, gauged(path.parent / GAUGE, step, numbers).encode())

    return preview


def gauged(path: Path, step: int, numbers: Mapping[str, float]) -> str:
    """The lines of the gauge's file with those of `step`, which a run that goes on from an earlier save draws again."""
    rows = path.read_text().splitlines()[1:] if path.is_file() else []
    kept = [row for row in rows if row.partition(",")[0].isdigit() and int(row.partition(",")[0]) < step]
    new = ",".join([str(step), *(f"{value:.6f}" for value in numbers.values())])
    return "".join(f"{line}\n" for line in (",".join(["step", *numbers]), *kept, new))
