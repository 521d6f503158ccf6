"""The family of variational autoencoders."""

from __future__ import annotations

from . import vae_sample
from .family import Family
from .vae_recipe import RECIPES

FAMILY = Family(
    name="vae",
    engine="fastgen.engines.vae:VAEEngine",
    flags={"sample": vae_sample.FLAGS},
    sampling=vae_sample.SAMPLING,
    likelihood=True,
    models={
        "vae": "zoo:vae-mnist",
        "hvae": "random:hvae",
        "vector_vae": "random:vector_vae",
        "autoencoder_kl": "random:autoencoder_kl",
    },
    large=("random:vae", "random:sd-vae"),
    recipes=RECIPES,
)
