"""The family of super-resolution networks."""

from __future__ import annotations

from .family import Family
from .upscale_recipe import RECIPES

FAMILY = Family(
    name="upscale",
    engine="fastgen.engines.upscale:UpscaleEngine",
    use="fastgen upscale IMAGES -o FOLDER --model {}",
    models={
        "srresnet": "zoo:srgan-x4",
        "msrresnet": "random:msrresnet",
        "rrdbnet": "random:rrdbnet",
        "srvgg": "random:srvgg",
        "sr_discriminator": "zoo:srgan-x4",  # of no engine: training alone has it
    },
    large=("random:rrdbnet23",),
    recipes=RECIPES,
)
