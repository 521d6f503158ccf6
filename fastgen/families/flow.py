"""The family of normalising flows."""

from __future__ import annotations

from . import flow_sample
from .family import Family

FAMILY = Family(
    name="flow",
    engine="fastgen.engines.flow:FlowEngine",
    flags={"sample": flow_sample.FLAGS},
    sampling=flow_sample.SAMPLING,
    likelihood=True,
    models={
        "glow": "zoo:glow-mnist",
        "realnvp": "random:realnvp",
        "nice": "random:nice",
        "vector_flow": "random:vector_flow",
    },
)
