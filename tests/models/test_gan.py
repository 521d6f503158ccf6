"""Networks of GANs: spectral norm against SVD, regularisation against its formula, configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastgen.errors import ConfigError
from fastgen.models.gan.biggan import BigGAN, BigGANConfig, BigGANDeepConfig
from fastgen.models.gan.dcgan import DCGAN, DCGANConfig, DCGANDiscriminator, DCGANDiscriminatorConfig
from fastgen.models.gan.initial import off_diagonal, orthogonal
from fastgen.models.gan.layers import ConditionalNorm, SelfAttention
from fastgen.models.gan.residual import ResidualConfig, ResidualDiscriminatorConfig
from fastgen.models.gan.spectral import spectral
from fastgen.models.gan.wgan import CriticConfig
from tests.refusals import refused


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 6, 3),
        nn.ConvTranspose2d(6, 3, 4),
        nn.Linear(5, 7),
        nn.Embedding(4, 9),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_sigma_is_the_largest_singular_value(layer: Any) -> None:
    """After many power iterations; the weight's largest singular value is then 1."""
    torch.manual_seed(0)
    layer = layer.double()
    matrix = layer.weight.detach().clone()
    matrix = matrix.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else matrix
    exact = torch.linalg.matrix_norm(matrix.flatten(1), ord=2)
    made = spectral(layer).train()
    for _ in range(500):
        found = made.weight
    norm = made.parametrizations.weight[0].eval()
    # The power method's error falls with (s2 / s1)^1000.
    assert float(norm.sigma(made.parametrizations.weight.original.detach())) == pytest.approx(
        float(exact), rel=1e-9
    )
    found = found.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else found
    assert float(torch.linalg.matrix_norm(found.flatten(1), ord=2)) == pytest.approx(1.0, rel=1e-9)


def test_the_gradient_through_sigma() -> None:
    """d (W / sigma) is (dW - (u^T dW v) W / sigma) / sigma (Miyato et al. 2018, eq. 9-12)."""
    torch.manual_seed(0)
    layer = spectral(nn.Linear(4, 3).double()).train()
    for _ in range(300):
        _ = layer.weight
    layer.eval()
    original = layer.parametrizations.weight.original
    u, s, vh = torch.linalg.svd(original.detach(), full_matrices=False)
    seen = torch.randn(3, 4, dtype=torch.float64)
    (layer.weight * seen).sum().backward()
    inner = (seen * original.detach()).sum() / s[0]
    expected = (seen - inner * torch.outer(u[:, 0], vh[0])) / s[0]
    # Which of u and -u: their product with v is the same.
    assert torch.allclose(original.grad, expected, atol=1e-9)


def test_evaluation_changes_no_vector() -> None:
    layer = spectral(nn.Linear(4, 3)).eval()
    before = layer.parametrizations.weight[0].u.clone()
    first, second = layer.weight, layer.weight
    assert torch.equal(first, second)
    assert torch.equal(before, layer.parametrizations.weight[0].u)


def test_off_diagonal_regularisation() -> None:
    """Its gradient is 4 (W W^T * (1 - I)) W; orthogonal rows of any length cost nothing, biases are left out."""
    torch.manual_seed(0)
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    off_diagonal([weight, torch.randn(3)]).backward()
    gram = weight.detach() @ weight.detach().t()
    assert torch.allclose(weight.grad, 4 * (gram * (1 - torch.eye(3))) @ weight.detach(), atol=1e-12)
    rows = torch.diag(torch.tensor([1.0, 7.0, 0.2], dtype=torch.float64)) @ torch.eye(
        3, 5, dtype=torch.float64
    )
    assert float(off_diagonal([rows])) == 0.0
    filters = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    assert off_diagonal([filters]) == off_diagonal([filters.flatten(1)])


def test_orthogonal_beginning() -> None:
    """Rows of every matrix are orthonormal, also before a spectral norm."""
    network = nn.Sequential(spectral(nn.Conv2d(4, 5, 3)), nn.Linear(8, 3))
    orthogonal(network)
    for weight in (network[0].parametrizations.weight.original, network[1].weight):
        rows = weight.detach().double().flatten(1)
        assert torch.allclose(rows @ rows.t(), torch.eye(len(rows), dtype=torch.float64), atol=1e-6)


def test_a_discriminator_without_norms_keeps_the_size_of_its_activations() -> None:
    """He et al. 2015: their second moment stays what it is from layer to layer.

    It is the mean of 256 squares of random sums, which varies by sqrt(2 / 256) = 9 % a layer, 25 % over seven. Weights
    of N(0, 0.02^2) would leave (0.02^2 * 256 * 0.52)^7 = 1e-9 of it.
    """
    torch.manual_seed(0)
    one, nothing = (1,) * 8, (0,) * 8
    config = DCGANDiscriminatorConfig(
        in_channels=256,
        size=4,
        widths=(256,) * 8,
        kernels=one,
        strides=one,
        paddings=nothing,
        norm="none",
        head="pool",
    )
    layers = DCGANDiscriminator(config).layers
    x = torch.randn(2, 256, 4, 4)
    first, last = layers[0](x).square().mean(), layers[:-1](x).square().mean()
    assert 0.4 < float(last / first) < 2.5


def test_conditional_norm_is_batch_norm_with_a_row_of_its_tables() -> None:
    torch.manual_seed(0)
    norm = ConditionalNorm(3, 4, 0, eps=1e-5)
    plain = nn.BatchNorm2d(3, affine=False)
    x, labels = torch.randn(5, 3, 4, 4), torch.tensor([0, 3, 3, 1, 2])
    for training in (True, False):
        norm.train(training)
        plain.train(training)
        scale, shift = 1 + norm.gain.weight[labels], norm.shift.weight[labels]
        expected = plain(x) * scale[..., None, None] + shift[..., None, None]
        # float32; a rounding each of the mean, the quotient and the sum.
        assert torch.allclose(norm(x, labels, None), expected, atol=1e-5)
    assert torch.allclose(norm.running_mean[0], plain.running_mean)
    assert torch.allclose(norm.running_var[0], plain.running_var)


def test_statistics_by_truncation() -> None:
    """At a truncation that has some they are those; between two a mean, by the rule of the source."""
    for swapped in (False, True):
        norm = ConditionalNorm(1, None, 0, eps=1e-5, levels=5, reversed_levels=swapped).eval()
        norm.running_mean.copy_(torch.tensor([[0.0], [1], [4], [9], [16]]))
        level = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.3125], dtype=torch.float64)
        mean, _ = norm.statistics(level)
        between = 1 + 3 * (0.75 if swapped else 0.25)
        assert mean.flatten().tolist() == [0.0, 1.0, 4.0, 16.0, between]
        assert norm.statistics(None)[0].tolist() == [[16.0]]


def test_attention_against_its_formula() -> None:
    """Position by position: softmax of products with pooled keys, over pooled values."""
    torch.manual_seed(0)
    block = SelfAttention(16, False).double()
    nn.init.constant_(block.gamma, 0.7)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)

    def mapped(conv: Any, image: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,chw->ohw", conv.weight.detach()[:, :, 0, 0], image)

    expected = x.clone()
    for n, image in enumerate(x):
        keys, values = (
            mapped(conv, image).unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2)).flatten(1)
            for conv in (block.phi, block.g)
        )
        queries = mapped(block.theta, image)
        for i in range(4):
            for j in range(6):
                weight = torch.softmax(queries[:, i, j] @ keys, 0)
                expected[n, :, i, j] += 0.7 * block.o.weight.detach()[:, :, 0, 0] @ (values @ weight)
    assert torch.allclose(block(x), expected, atol=1e-12)


def test_hierarchical_z_reaches_its_stage_alone() -> None:
    """The last part of z changes nothing before the last stage."""
    torch.manual_seed(0)
    config = BigGANConfig(channels=8, multipliers=(2, 2, 1), latent=9, shared=4, num_classes=3, attention=())
    network, labels = BigGAN(config).eval(), torch.tensor([1])
    z = torch.randn(1, 9)
    other = z.clone()
    other[:, 6:] += 1
    seen: list[torch.Tensor] = []
    network.blocks[0].register_forward_hook(lambda module, given, result: seen.append(result))
    assert not torch.equal(network(z, labels), network(other, labels))
    assert torch.equal(seen[0], seen[1])


def test_sizes_of_the_papers() -> None:
    assert DCGANConfig().shape == DCGANDiscriminatorConfig().shape == (3, 64, 64)
    assert ResidualConfig().shape == ResidualDiscriminatorConfig().shape == (3, 128, 128)
    assert BigGANConfig().part == 20
    assert BigGANConfig().inputs == 148
    assert BigGANDeepConfig().inputs == 256
    torch.manual_seed(0)
    x = DCGAN(DCGANConfig(widths=(8, 8, 4, 4)))(torch.randn(2, 100))
    assert x.shape == (2, 3, 64, 64)
    judge = DCGANDiscriminator(DCGANDiscriminatorConfig(widths=(4, 4, 8, 8)))
    assert judge(x).shape == (2,)


@pytest.mark.parametrize(
    ("kind", "options", "argument"),
    [
        (DCGANConfig, {"kernels": (4, 4)}, "kernels"),
        (DCGANConfig, {"widths": ()}, "widths"),
        (DCGANConfig, {"num_classes": 3}, "embedding"),
        (DCGANConfig, {"strides": (8, 8, 8, 8, 8)}, "kernels, strides, paddings"),
        (DCGANDiscriminatorConfig, {"size": 32}, "size"),
        (DCGANDiscriminatorConfig, {"size": 128}, "head"),
        (DCGANDiscriminatorConfig, {"num_classes": 3}, "conditioning"),
        (ResidualConfig, {"attention": (7,)}, "attention"),
        (ResidualConfig, {"multipliers": (1,)}, "multipliers"),
        (BigGANConfig, {"latent": 128}, "latent"),
        (BigGANConfig, {"num_classes": None}, "num_classes"),
        (BigGANDeepConfig, {"multipliers": (1, 2, 4), "attention": ()}, "multipliers"),
        (ResidualDiscriminatorConfig, {"size": 100}, "halvings"),
    ],
)
def test_what_cannot_be(kind: type, options: dict[str, Any], argument: str) -> None:
    with refused(ConfigError, argument):
        kind(**options)


def test_a_critic_has_no_batch_norm() -> None:
    from fastgen.config import from_dict

    with refused(ConfigError, "critic: norm"):
        from_dict(CriticConfig, {"norm": "batch"}, "critic")
