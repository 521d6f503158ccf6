"""The family of normalising flows."""

from __future__ import annotations

from .family import Family
from .flow_recipe import RECIPES

FAMILY = Family(
    name="flow",
    engine="fastgen.engines.flow:FlowEngine",
    models={
        "glow": "zoo:glow-mnist",
        "realnvp": "random:realnvp",
        "nice": "random:nice",
        "vector_flow": "random:vector_flow",
    },
    recipes=RECIPES,
)
