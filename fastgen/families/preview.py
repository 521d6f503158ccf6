"""The sheets of images that a training run draws now and then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ..checkpoint import Spec
    from ..training.batch import Dataset
    from .family import Family
    from .recipe import Recipe


def previewer(
    family: Family, recipe: Recipe, folder: Path, spec: Spec, dataset: Dataset
) -> Callable[[int, nn.ModuleDict], None]:
    """The `on_preview` of ``training.loop.train``: `recipe`'s sheet, drawn by the family's engine into `folder`."""

    def preview(step: int, averages: nn.ModuleDict) -> None:
        from ..files import make_folder, remove_leftovers
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

    return preview
