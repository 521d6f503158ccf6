"""Files of weights as sources, from the outside: `fastgen.load`, `fastgen.convert` and the command line."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fastgen
from fastgen.cli import main
from fastgen.converters.flows.nflows import NflowsOptions
from fastgen.converters.flows.normflows.options import NormflowsOptions
from fastgen.converters.flows.rosinality import RosinalityOptions
from fastgen.converters.flows.uva import UvaOptions
from fastgen.converters.flows.zuko import ZukoOptions
from fastgen.errors import CheckpointError, ConfigError
from tests.refusals import refused

PAGE = Path(__file__).parents[2] / "docs" / "from-other-flows.md"
OPTIONS = {
    "normflows": NormflowsOptions,
    "nflows": NflowsOptions,
    "zuko": ZukoOptions,
    "rosinality": RosinalityOptions,
    "uva": UvaOptions,
}


def state(d: int = 3) -> dict[str, Tensor]:
    """zuko's RealNVP with one coupling, a perceptron without hidden layers."""
    mask = torch.arange(d) % 2 == 0
    kept = int(mask.sum())
    torch.manual_seed(0)
    return {
        "transform.transforms.0.mask": mask,
        "transform.transforms.0.hyper.0.weight": torch.randn(2 * (d - kept), kept),
        "transform.transforms.0.hyper.0.bias": torch.randn(2 * (d - kept)),
        "base.loc": torch.zeros(d),
        "base.scale": torch.ones(d),
    }


@pytest.mark.parametrize("name", ["flow.pt", "flow.safetensors", "flow.ckpt"])
def test_convert_and_load(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {k: v.to(torch.uint8) if v.dtype == torch.bool else v for k, v in state().items()}
    if name.endswith("safetensors"):
        save_file(values, tmp_path / name)
    else:
        torch.save({"state_dict": state(), "epoch": 1} if name.endswith("ckpt") else state(), tmp_path / name)
    assert (
        main(["convert", str(tmp_path / name), str(tmp_path / "ours"), "--assume", "slope=0.01", "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["mapped"] == ["slope = 0.01"]
    ours = fastgen.load(tmp_path / "ours", device="cpu")
    assert ours.flow.config.slope == 0.01
    direct = fastgen.load(tmp_path / name, device="cpu", assume={"slope": 0.01})
    x = torch.randn(4, 3)
    assert torch.equal(ours.log_prob(x), direct.log_prob(x))
    assert ours.describe()["converted"]["mapped"] == ["slope = 0.01"]


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    torch.save({"weight": torch.ones(1)}, path)
    with refused(CheckpointError, path):
        fastgen.load(path)
    torch.save(nn.Linear(1, 1), path)
    with refused(CheckpointError, path):
        fastgen.load(path)
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:500])
    with refused(CheckpointError, path, "torch.save"):
        fastgen.load(path)
    path.write_bytes(b"")
    with refused(CheckpointError, path):
        fastgen.load(path)


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "flow.pt")
    fastgen.convert(tmp_path / "flow.pt", tmp_path / "ours")
    calls: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "flow.pt", {"variant": "fp16"}, "variant"),
        (tmp_path / "ours", {"assume": {"slope": 0.1}}, "assume"),
        (nn.Linear(1, 1), {}, "torch.nn.modules.linear.Linear"),
        (nn.Linear(1, 1), {"variant": "fp16"}, "revision, variant"),
    ]
    for source, arguments, argument in calls:
        with refused(ConfigError, argument):
            fastgen.load(source, **arguments)
    assert main(["convert", str(tmp_path / "flow.pt"), str(tmp_path / "x"), "--assume", "slope"]) != 0
    assert not (tmp_path / "x").exists()


def test_the_page_names_every_option() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert set(dict(rows)) == set(OPTIONS)
    for source, said in rows:
        for field in fields(OPTIONS[source]):
            assert f"`{field.name}`" in said, (source, field.name)
            default = re.search(rf"`{field.name}` ([^,(]+)", said)
            if default and default[1].strip():
                want = field.default if isinstance(field.default, str) else format(field.default, "g")
                assert default[1].strip() == want, (source, field.name)
