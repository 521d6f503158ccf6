"""Files of flows that lack a tensor, or whose tensors claim what is not there: an error, never a guess."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgen.converters import CONVERTERS
from fastgen.converters.weights import Found, open_weights
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused

from . import test_flow_rosinality, test_flow_uva

State = dict[str, Tensor]


def nflows() -> State:
    from .test_flow_nflows import coupling, distributions, flow, transforms

    layers = [
        coupling([1, 0, 1, 0], context_features=1),
        transforms.LULinear(4),
        transforms.RandomPermutation(4),
        transforms.ActNorm(4),
        transforms.BatchNorm(4),
        transforms.PointwiseAffineTransform(torch.ones(4), torch.ones(4)),
        coupling([0, 1, 0, 1], context_features=1),
    ]
    return flow(*layers, base=distributions.DiagonalNormal([4])).state_dict()


def zuko() -> State:
    from .test_flow_zuko import made

    return made("odd, with a context").state_dict()


def normflows(name: str) -> Callable[[], State]:
    def state() -> State:
        from .test_flow_normflows import made

        return made(name).state_dict()

    return state


def rosinality() -> State:
    return test_flow_rosinality.TheirGlow(1, 2, 2, True, True).state


def uva() -> State:
    return test_flow_uva.made(variational=True)


# What a source has, and names that may be absent: they follow from others, or mean "trained" where they are.
SOURCES: dict[str, tuple[Callable[[], State], dict[str, Any], str]] = {
    "nflows": (nflows, {}, r"_distribution\._log_z"),
    "zuko": (zuko, {}, ""),
    "normflows blocks": (
        normflows("blocks, odd, sigmoid"),
        {},
        # Of layers that have no other tensor: without it they are taken for a swap, which the report says.
        r".*\.(eye|data_dep_init_done|W)",
    ),
    "normflows masked": (
        normflows("RealNVP, odd, tanh, ActNorm"),
        {"output_fn": "tanh"},
        r".*\.data_dep_init_done",
    ),
    "normflows Glow": (normflows("as published"), {}, r".*\.eye"),
    "rosinality": (rosinality, {"img_size": 8}, r".*\.(u_mask|l_mask|l_eye|initialized)"),
    "uva": (uva, {}, ""),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_tensor_is_missed(source: str, tmp_path: Path) -> None:
    name = source.split()[0]
    if name in ("nflows", "zuko", "normflows") and not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed")
    make, assume, redundant = SOURCES[source]
    state = {key: value.detach().clone() for key, value in make().items()}
    path = tmp_path / "flow.pt"
    torch.save(state, path)
    CONVERTERS[name].read(path, None, assume)
    silent = set()
    for lost in state:
        torch.save({key: value for key, value in state.items() if key != lost}, path)
        try:
            CONVERTERS[name].read(path, None, assume)
            silent.add(lost)
        except (CheckpointError, ConfigError):
            pass
    assert silent == {key for key in state if re.fullmatch(redundant, key)}


def saved(path: Path, value: Tensor, **others: Tensor) -> Path:
    torch.save({"weight": value, **others}, path / "flow.pt")
    return path / "flow.pt"


@pytest.mark.filterwarnings("ignore")  # of torch, about quantised and sparse tensors
@pytest.mark.parametrize(
    ("make", "mentions"),
    [
        (
            lambda: torch.zeros(1).expand(10**6, 2 * 10**5),
            ("800000000000", "4"),
        ),
        (
            lambda: torch.zeros(4).as_strided((3, 2), (1, 1)),
            ("[3, 2]", "24", "16"),
        ),
        (lambda: torch.zeros(10**12, 0), ("[1000000000000, 0]",)),
        (lambda: torch.eye(3).to_sparse(), ("torch.sparse_coo",)),
        (lambda: torch.eye(3).to_sparse_csr(), ("torch.sparse_csr",)),
        (lambda: torch.ones(10**9, device="meta"), ("meta",)),
        (lambda: torch.ones(3, dtype=torch.complex64), ("torch.complex64",)),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), ("torch.float8_e4m3fn",)),
        (
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            (),
        ),
    ],
)
def test_what_a_tensor_may_not_be(
    make: Callable[[], Tensor], mentions: tuple[str, ...], tmp_path: Path
) -> None:
    path = saved(tmp_path, make())
    with refused(CheckpointError, f"{path}: weight", *mentions):
        open_weights(Found((path,)))


def test_tensors_that_share_their_values(tmp_path: Path) -> None:
    """Views of one tensor, and a tensor under two names, are one; under a thousand names they are a bomb."""
    whole = torch.randn(6, 4)
    path = saved(tmp_path, whole, tied=whole, half=whole[:3], turned=whole.T)
    found = open_weights(Found((path,)))
    assert torch.equal(found.get("turned"), whole.T)
    large = torch.randn(1 << 16)
    path = saved(tmp_path, large, **{f"n{i}": large for i in range(1000)})
    with refused(CheckpointError, path):
        open_weights(Found((path,)))


def test_the_old_form_of_files(tmp_path: Path) -> None:
    """Of torch before 1.6: no zip archive, not mapped."""
    stream = io.BytesIO()
    torch.save({"a": torch.arange(3.0), "b": torch.ones(2, 2)}, stream, _use_new_zipfile_serialization=False)
    (tmp_path / "flow.pt").write_bytes(stream.getvalue())
    assert open_weights(Found((tmp_path / "flow.pt",))).get("a").tolist() == [0, 1, 2]
    torch.save(
        {"a": torch.zeros(1).expand(10**9)}, tmp_path / "flow.pt", _use_new_zipfile_serialization=False
    )
    with refused(CheckpointError, f"{tmp_path / 'flow.pt'}: a", "4"):
        open_weights(Found((tmp_path / "flow.pt",)))


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (
            "rosinality",
            "blocks.999999.flows.0.actnorm.loc",
            "blocks.2 is missing, but there is blocks.999999",
        ),
        ("rosinality", "blocks.0.flows.999999.actnorm.loc", "blocks.0.flows.2 is missing"),
        ("zuko", "transform.transforms.999999.mask", "transforms.3 is missing, but there is"),
        (
            "nflows",
            "_transform._transforms.999999._permutation",
            "has no tensors, so that a file does not say",
        ),
        ("nflows", "_transform._transforms.0.transform_net.blocks.999999.x", "blocks.2 is missing"),
        ("normflows Glow", "flows.999999.0.x", "flows.2 is missing, but there is flows.999999"),
        ("normflows Glow", "flows.0.999999.x", "flows.0.2 is missing, but there is flows.0.999999"),
        ("uva", "flows.999999.mask", "flows.4 has no tensors"),
        ("uva", "flows.0.flows.999999.mask", "flows.0.flows.2 is missing, but there is flows.0.flows.999999"),
    ],
)
def test_numbers_far_beyond_the_others(source: str, name: str, message: str, tmp_path: Path) -> None:
    kind = source.split()[0]
    if kind in ("nflows", "zuko", "normflows") and not importlib.util.find_spec(kind):
        pytest.skip(f"{kind} is not installed")
    make, assume, _ = SOURCES[source]
    torch.save({**make(), name: torch.zeros(1)}, tmp_path / "flow.pt")
    with pytest.raises((CheckpointError, ConfigError), match=message):
        CONVERTERS[kind].read(tmp_path / "flow.pt", None, assume)


def test_more_parts_than_are_built(tmp_path: Path) -> None:
    state = {**rosinality(), **{f"blocks.{i}.x": torch.zeros(1) for i in range(2, 9)}}
    torch.save(state, tmp_path / "flow.pt")
    with refused(ConfigError, tmp_path / "flow.pt", "blocks", "9", "8"):
        CONVERTERS["rosinality"].read(tmp_path / "flow.pt", None, {"img_size": 8})


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rosinality", "blocks.0.flows.0.invconv.w_p"),
        ("normflows Glow", "flows.0.0.flows.1.P"),
        ("normflows blocks", None),
    ],
)
def test_a_matrix_that_is_no_permutation(source: str, name: str | None, tmp_path: Path) -> None:
    kind = source.split()[0]
    if kind == "normflows" and not importlib.util.find_spec(kind):
        pytest.skip("normflows is not installed")
    make, assume, _ = SOURCES[source]
    state = make()
    name = name or next(key for key in state if key.endswith(".P"))
    d = len(state[name])
    identity = torch.eye(d)
    same_row = identity.clone()
    same_row[1] = identity[0]
    for wrong in (
        torch.ones(d, d),
        torch.zeros(d, d),
        2 * identity,
        identity + 0.3 * identity.roll(1, 0),
        same_row,
    ):
        torch.save({**state, name: wrong}, tmp_path / "flow.pt")
        with refused(CheckpointError, f"{tmp_path / 'flow.pt'}: {name}"):
            CONVERTERS[kind].read(tmp_path / "flow.pt", None, assume)
