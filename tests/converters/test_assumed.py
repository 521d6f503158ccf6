"""What converters assume where a file says nothing, against the other projects' own signatures."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from typing import Any

import pytest
import torch

from fastgen.config import to_dict
from fastgen.converters import Report
from fastgen.converters.diffusers import scheduler, unet
from fastgen.converters.diffusers.rules import RULES
from fastgen.converters.flows import nflows, rosinality, uva, zuko
from fastgen.converters.flows.assumed import Assumed, Table
from fastgen.converters.flows.normflows import options as normflows
from fastgen.converters.gans import nvlabs, stylegan, stylegan2
from fastgen.diffusion import SOLVERS
from fastgen.diffusion.processes import process_from_config

from .test_diffusers_schedulers import scheduler_class

TABLES: dict[str, Table] = {
    "normflows": normflows.ASSUMED,
    "normflows' scale_map": normflows.SCALE_MAPS,
    "nflows": nflows.ASSUMED,
    "zuko": zuko.ASSUMED,
    "style-based-gan-pytorch": {"eps": stylegan.ASSUMED["eps"]},
}
PACKAGED = [(source, name) for source, table in TABLES.items() for name in table]
# Options that no class of theirs has: what a file could say, and does not, or that must be given.
OWN = {
    normflows.NormflowsOptions: {"scale_map", "layers", "height", "width", "levels"},  # scale_map: SCALE_MAPS
    nflows.NflowsOptions: set(),
    zuko.ZukoOptions: set(),
    rosinality.RosinalityOptions: {"img_size"},
    uva.UvaOptions: set(),
    stylegan.StyleGANOptions: {"size"},
    stylegan2.StyleGAN2Options: set(),
    nvlabs.NVlabsOptions: set(),
}
ASSUMED = {
    normflows.NormflowsOptions: normflows.ASSUMED,
    nflows.NflowsOptions: nflows.ASSUMED,
    zuko.ZukoOptions: zuko.ASSUMED,
    rosinality.RosinalityOptions: rosinality.ASSUMED,
    uva.UvaOptions: uva.ASSUMED,
    stylegan.StyleGANOptions: stylegan.ASSUMED,
    stylegan2.StyleGAN2Options: stylegan2.ASSUMED,
    nvlabs.NVlabsOptions: nvlabs.ASSUMED,
}


def found(path: str) -> Any:
    """An object by its full name, in whatever module of it there is."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            value = getattr(value, name)
        return value
    raise AssertionError(path)


def default(where: str) -> Any:
    """That of ``module.Class:parameter``."""
    path, parameter = where.split(":")
    value = inspect.signature(found(path)).parameters[parameter].default
    assert value is not inspect.Parameter.empty, where
    return value


@pytest.mark.parametrize(("source", "name"), PACKAGED)
def test_a_default_is_theirs_in_every_class_that_has_it(source: str, name: str) -> None:
    assumed = TABLES[source][name]
    assert assumed.where
    for where in assumed.where:
        pytest.importorskip(where.split(".")[0])
        theirs = default(where)
        if isinstance(assumed.theirs, str):
            assert theirs is found(assumed.theirs)
        else:
            assert theirs == (assumed.value if assumed.theirs is ... else assumed.theirs), where


@pytest.mark.parametrize("source", ["normflows", "nflows", "zuko"])
def test_no_other_class_has_another_default(source: str) -> None:
    """Every class of the package that is read, and has a parameter of that name, has the default that is assumed."""
    package = pytest.importorskip(source)
    read = {
        "normflows": "flows.AffineCouplingBlock flows.GlowBlock flows.MaskedAffineFlow flows.LULinearPermute "
        "flows.InvertibleAffine flows.Invertible1x1Conv flows.ActNorm flows.AffineConstFlow flows.Permute "
        "flows.mixing._LULinear nets.MLP nets.ConvNet2d MultiscaleFlow NormalizingFlow ClassCondFlow transforms.Logit "
        "distributions.GlowBase distributions.DiagGaussian distributions.ClassCondDiagGaussian",
        "nflows": "transforms.LULinear transforms.NaiveLinear transforms.ActNorm transforms.BatchNorm "
        "transforms.AffineCouplingTransform transforms.AdditiveCouplingTransform nn.nets.ResidualNet "
        "flows.SimpleRealNVP flows.Flow",
        "zuko": "flows.NICE flows.RealNVP flows.coupling.GeneralCouplingTransform nn.MLP "
        "transforms.MonotonicAffineTransform",
    }[source]
    names = {"eps": {"BatchNorm": "batch_norm_eps"}}
    table = TABLES[source]
    listed = {where for assumed in table.values() for where in assumed.where}
    for path in read.split():
        kind = found(f"{package.__name__}.{path}")
        for parameter in inspect.signature(kind).parameters.values():
            option = names.get(parameter.name, {}).get(kind.__name__, parameter.name)
            if option in table and parameter.default is not parameter.empty:
                assert f"{source}.{path}:{parameter.name}" in listed, (path, parameter.name)


def test_projects_that_are_no_packages() -> None:
    """Quoted from their source; the comments beside the tables say where."""
    # rosinality/glow-pytorch, train.py: parser.add_argument("--n_bits", default=5, type=int, help="number of bits")
    assert rosinality.RosinalityOptions().n_bits == 5
    # train.py's --img_size has a default, 64, that most runs overrule: it must be given.
    assert rosinality.RosinalityOptions().img_size == 0
    # UvA deep learning tutorial 11: class Dequantization: def __init__(self, alpha=1e-5, quants=256)
    assert (uva.UvaOptions().alpha, uva.UvaOptions().quants) == (1e-5, 256)
    # rosinality/style-based-gan-pytorch, generate.py: for i in range(10): ... torch.randn(1024, 512)
    assert stylegan.StyleGANOptions().mean_samples == 10240
    # rosinality/stylegan2-pytorch, model.py: class Generator: lr_mlp=0.01; generate.py: --truncation_mean default 4096
    assert (stylegan2.StyleGAN2Options().lr_mlp, stylegan2.StyleGAN2Options().truncation_mean) == (0.01, 4096)
    # NVlabs/stylegan2-ada-pytorch, training/networks.py: (w.square().sum(dim=[2,3,4]) + 1e-8).rsqrt()
    assert nvlabs.NVlabsOptions().eps == 1e-8


@pytest.mark.parametrize("options", OWN, ids=lambda kind: kind.__name__)
def test_every_option_is_in_its_table(options: Any) -> None:
    names = {field.name for field in fields(options)}
    assert names == {*ASSUMED[options], *OWN[options]}
    for name, assumed in ASSUMED[options].items():
        assert isinstance(assumed, Assumed)
        assert getattr(options(), name) == assumed.value
        assert bool(assumed.where) != bool(assumed.source)


def test_the_scale_of_nflows_couplings() -> None:
    """sigmoid(x + 2) + 0.001, which is in no option."""
    transforms = pytest.importorskip("nflows.transforms")
    from nflows.nn.nets import ResidualNet

    layer = transforms.AffineCouplingTransform([1, 0], lambda i, o: ResidualNet(i, o, hidden_features=4))
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)[:, None]
    scale, _ = layer._scale_and_shift(torch.cat([torch.zeros_like(x), x], 1))
    torch.testing.assert_close(scale, torch.sigmoid(x + 2) + 1e-3, rtol=1e-12, atol=0)


def test_zukos_activation_of_none_is_relu() -> None:
    pytest.importorskip("zuko")
    from zuko.nn import MLP

    assert type(MLP(2, 2)[1]) is torch.nn.ReLU


def test_a_unets_defaults() -> None:
    """Every parameter of UNet2DModel but the size of the images, which must be said."""
    diffusers = pytest.importorskip("diffusers")
    theirs = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in inspect.signature(diffusers.UNet2DModel.__init__).parameters.items()
        if name not in ("self", "sample_size")
    }
    ours = to_dict(unet.to_config({"sample_size": 32}, "x", Report()))
    assert {name: value for name, value in ours.items() if name != "sample_size"} == theirs


@pytest.mark.parametrize("name", RULES)
def test_a_schedulers_defaults_are_those_of_its_class(name: str) -> None:
    """A file that says nothing but the class, and one with every parameter of its signature: one model."""
    pytest.importorskip("diffusers")
    parameters = inspect.signature(scheduler_class(name).__init__).parameters
    theirs = {
        key: list(p.default) if isinstance(p.default, tuple) else p.default
        for key, p in parameters.items()
        if key != "self"
    }
    models = []
    for said in ({}, theirs):
        settings = scheduler.to_settings({"_class_name": name, **said}, "x", Report())
        checked = SOLVERS[settings["solver"]].check(settings["solver_options"] or {})
        rest = {key: settings[key] for key in settings.keys() - {"schedule", "solver_options"}}
        models.append((process_from_config(settings["schedule"]), checked, rest))
    assert models[0] == models[1]


def test_pipelines_defaults() -> None:
    diffusers = pytest.importorskip("diffusers")
    for name, steps in scheduler.PIPELINE_STEPS.items():
        assert steps == default(f"diffusers.{name}.__call__:num_inference_steps")
    assert SOLVERS["ddim"].check({}).eta == default("diffusers.DDIMPipeline.__call__:eta")
    steps = inspect.signature(diffusers.ConsistencyModelPipeline.__call__).parameters["num_inference_steps"]
    assert RULES["CMStochasticIterativeScheduler"].steps == steps.default
