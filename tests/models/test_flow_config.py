"""Configurations of flows: what does not fit is refused by name, and what is accepted can be built."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen.architectures import ARCHITECTURES
from fastgen.config import from_dict, to_dict
from fastgen.errors import ConfigError
from fastgen.models.flow.flow import Flow
from fastgen.models.flow.options import MAX_CHANNELS
from tests.models.flow_models import CONFIGS, GLOW, IMAGE, REALNVP, VECTOR

SMALL: dict[str, dict[str, Any]] = {
    "glow": GLOW,
    "realnvp": REALNVP,
    "nice": {"sample_size": (3, 3), "hidden_features": (4,)},
    "vector_flow": VECTOR,
}
FLOWS = list(SMALL)


def config(architecture: str, changes: dict[str, Any]) -> Any:
    values = {
        k: list(v) if isinstance(v, tuple) else v for k, v in {**SMALL[architecture], **changes}.items()
    }
    return from_dict(ARCHITECTURES[architecture].config, values, "flow")


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        (
            "glow",
            {"sample_size": [28, 28], "num_scales": 3},
            "28x28 cannot be squeezed 3 times: scale 2 has 7x7",
        ),
        ("glow", {"sample_size": [5, 4]}, "both sides must be even; pad the images"),
        ("glow", {"sample_size": [4]}, r"expected \(height, width\), got 1 numbers"),
        ("glow", {"sample_size": [4, 4, 4]}, "at most 2 items"),
        ("glow", {"sample_size": [0, 4]}, "expected 1 to 4096, got 0"),
        (
            "glow",
            {"sample_size": [4096, 4096], "num_scales": 8, "in_channels": 64},
            f"at most {MAX_CHANNELS} are built",
        ),
        ("glow", {"num_scales": 10**12}, "expected 1 to 8"),
        ("glow", {"steps_per_scale": 0}, "expected 1 to 128"),
        ("glow", {"hidden_channels": [8, 8, 8]}, "one number or one for each of the 2 scales, got 3"),
        ("glow", {"hidden_channels": []}, "one number or one for each of the 2 scales, got 0"),
        ("glow", {"hidden_channels": [1 << 40]}, "expected 1 to 4096"),
        ("glow", {"scale": "softplus"}, "expected one of exp, sigmoid, tanh, soft_clip, additive"),
        (
            "glow",
            {"scale": "exp", "scale_eps": 1e-3},
            "scale_eps: only the scale map sigmoid has it; scale is exp",
        ),
        ("glow", {"bound": 2.0}, "bound: only the scale map tanh has it"),
        ("glow", {"rescale": True}, "rescale: only the scale map tanh"),
        ("glow", {"slope": 0.5}, "slope: only the scale map soft_clip"),
        ("glow", {"slope": 0.0}, "slope: expected 1e-30 to 0.999"),
        ("glow", {"scale_eps": float("nan")}, "expected a finite number"),
        ("glow", {"alpha": 0.0}, "alpha: expected 1e-07 to 0.49"),
        ("glow", {"alpha": 0.5}, "alpha: expected 1e-07 to 0.49"),
        ("glow", {"levels": 1}, "levels: expected 2 to 65536, got 1"),
        ("glow", {"levels": 256.0}, "expected int"),
        ("glow", {"levels": None, "dequantisation": "variational"}, "variational needs levels"),
        ("glow", {"num_classes": 3}, "nothing would look at the labels"),
        (
            "glow",
            {"num_classes": 3, "prior": "conv", "class_priors": "none"},
            "nothing would look at the labels",
        ),
        ("glow", {"class_couplings": True}, "num_classes is null"),
        ("glow", {"network": "gated", "conv_border": 1.0}, "the network is gated, leave them out"),
        ("glow", {"steps_per_scale": 128, "network": "resnet", "blocks": 32}, "256 couplings of 32 blocks"),
        ("glow", {"channels": 3}, "unknown key channels; known: scale, "),
        (
            "glow",
            {"alpha": 0.3},
            "alpha: 0.3 would change nothing, only preprocessing logit reads it; leave it 0.05",
        ),
        ("glow", {"dequantisation_layers": 9}, "only dequantisation variational reads it; leave it 4"),
        ("glow", {"blocks": 7}, "blocks: 7 would change nothing, only network resnet or gated"),
        ("glow", {"network": "gated", "act_fn": "silu"}, "act_fn: silu would change nothing"),
        ("glow", {"leaky_slope": 0.5}, "leaky_slope: 0.5 would change nothing, only act_fn leaky_relu"),
        ("glow", {"prior_border": 1.0}, "prior_border: 1.0 would change nothing, only prior conv"),
        ("glow", {"class_priors": "all", "prior": "conv"}, "class_priors: all would change nothing"),
        (
            "realnvp",
            {"checkerboard": [2], "channelwise": [0], "channel_split": "mask"},
            "channel_split: mask would change nothing, only a channelwise coupling",
        ),
        (
            "realnvp",
            {"checkerboard": [2], "channelwise": [0], "squeeze_order": "pixel_major"},
            "squeeze_order: pixel_major would change nothing, only a squeeze",
        ),
        (
            "realnvp",
            {"checkerboard": [0], "channelwise": [2], "checkerboard_changes": 1},
            "only a checkerboard coupling reads it",
        ),
        ("nice", {"alpha": 0.1}, "alpha: 0.1 would change nothing"),
        ("vector_flow", {"blocks": 3}, "blocks: 3 would change nothing, only network residual"),
        ("vector_flow", {"leaky_slope": 0.5}, "only act_fn leaky_relu reads it"),
        (
            "realnvp",
            {"checkerboard": [1], "channelwise": [1, 0]},
            "one number per scale in both, at least one, got 1 and 2",
        ),
        ("realnvp", {"checkerboard": [], "channelwise": []}, "at least one, got 0 and 0"),
        ("realnvp", {"checkerboard": [1, 1], "channelwise": [0, 0]}, "cannot be halved without a squeeze"),
        (
            "realnvp",
            {"in_channels": 2, "checkerboard": [1, 1, 1], "channelwise": [0, 0, 0]},
            "scale 1 has one channel, which cannot be halved",
        ),
        ("realnvp", {"sample_size": [3, 3]}, "3x3 cannot be squeezed 1 times"),
        ("realnvp", {"checkerboard": [10**9, 1]}, "expected 0 to 64"),
        ("nice", {"sample_size": [1, 1]}, "images of 2 to 65536 elements, got 1"),
        (
            "nice",
            {"sample_size": [256, 256], "in_channels": 4},
            "images of 2 to 65536 elements, got 262144",
        ),
        ("nice", {"sample_size": [3]}, "got 1 numbers"),
        ("nice", {"prior": "conv"}, "expected one of logistic, standard"),
        ("vector_flow", {"features": 1}, "features: expected 2 to 4096, got 1"),
        ("vector_flow", {"features": True}, "expected int, got bool"),
        ("vector_flow", {"layers": []}, "layers: expected at least one"),
        ("vector_flow", {"layers": ["spline"]}, "expected one of coupling, actnorm, lu"),
        ("vector_flow", {"layers": ["coupling"] * 1025}, "at most 1024 items"),
        ("vector_flow", {"layers": ["coupling"] * 16, "steps": 65}, "16 layers times 65 steps, at most 1024"),
        (
            "vector_flow",
            {"network": "residual", "hidden_features": [8, 8]},
            "a residual network has one width",
        ),
        ("vector_flow", {"network": "residual", "steps": 256, "blocks": 64}, "more than 4096 blocks"),
        ("vector_flow", {"context_features": 2, "num_classes": 2}, "a context or labels, not both"),
        ("vector_flow", {"layers": ["lu"], "num_classes": 2}, "nothing would look at them"),
        ("vector_flow", {"class_priors": True, "prior": "learned"}, "class_priors: needs num_classes"),
        ("vector_flow", {"random_masks": True}, "random_masks: needs the split mask, got alternate"),
        ("vector_flow", {"linear_bias": True}, "there is no lu or plain"),
        ("vector_flow", {"separate_networks": True, "scale": "additive"}, "a shift only"),
        (
            "vector_flow",
            {"separate_networks": True, "parameters": "shift_scale"},
            "leave parameters scale_shift",
        ),
    ],
)
def test_what_does_not_fit_is_refused(architecture: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(architecture, changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_survives_json(name: str) -> None:
    kind = type(CONFIGS[name])
    assert from_dict(kind, to_dict(CONFIGS[name]), "flow") == CONFIGS[name]


def values(default: Any, metadata: Any) -> st.SearchStrategy[Any]:
    """Values that a field may have, and some that it may not."""
    if "choices" in metadata:
        one: st.SearchStrategy[Any] = st.sampled_from(metadata["choices"])
    elif isinstance(default, bool):
        one = st.booleans()
    elif isinstance(default, float):
        one = st.sampled_from([0.0, 1e-3, 0.5, 1.0, 1.7])
    else:
        low = int(metadata.get("low", 0))
        one = st.integers(low, min(low + 6, int(metadata.get("high", low + 6))))
    if isinstance(default, tuple):
        one = st.lists(one, max_size=3)
    return st.one_of(one, st.none(), st.sampled_from([-1, 10**9, "x", [], float("inf"), True]))


@pytest.mark.parametrize("architecture", FLOWS)
@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_any_config_builds_or_is_refused(architecture: str, draw: st.DataObject) -> None:
    """Nothing but a ConfigError; what builds keeps every element of its data in its latents."""
    base = to_dict(config(architecture, {}))
    fields = {f.name: f for f in ARCHITECTURES[architecture].config.__dataclass_fields__.values()}
    for name in draw.draw(st.lists(st.sampled_from(sorted(base)), max_size=3, unique=True)):
        default = base[name] if not isinstance(base[name], list) else tuple(base[name])
        base[name] = draw.draw(values(default, fields[name].metadata), label=name)
    try:
        made = from_dict(ARCHITECTURES[architecture].config, base, "flow")
    except ConfigError:
        return
    with torch.device("meta"):
        net = ARCHITECTURES[architecture].module(made)
    assert isinstance(net, Flow)
    assert sum(map(math.prod, net.latent_shapes)) == math.prod(net.data_shape)
    assert all(tensor.is_meta for tensor in net.state_dict().values())


def test_images_of_one_scale_and_channel_need_no_squeeze() -> None:
    """Odd sides are no hindrance where nothing is squeezed."""
    made = config("realnvp", {"sample_size": [5, 3], "checkerboard": [2], "channelwise": [0]})
    net = ARCHITECTURES["realnvp"].module(made)
    assert net.latent_shapes == [(1, 5, 3)]
    assert IMAGE["in_channels"] == 1
