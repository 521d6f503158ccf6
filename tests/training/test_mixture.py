"""What adversarial objectives learn of eight Gaussians in a few hundred steps, and what collapse looks like."""

from __future__ import annotations

import pytest
import torch

from fastgen.families.gan_recipe import mean_distance

from .mixture import COLLAPSE, MODES, OBJECTIVES, centres, covered, drawn, train


def test_all_modes_of_the_data_are_covered() -> None:
    """And of a point none but its own, or none."""
    x = drawn(2000, torch.Generator().manual_seed(0))
    modes, near = covered(x)
    assert modes == MODES
    assert near > 0.99
    assert covered(centres()[:1].expand(100, -1)) == (1, 1.0)
    assert covered(torch.zeros(100, 2)) == (0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["non-saturating, R1", "hinge, R1", "WGAN-GP"])
def test_what_an_objective_learns(name: str) -> None:
    """In 500 of the figure's 3,000 steps: at least 6 modes, and a variety like the data's."""
    config, lr = OBJECTIVES[name]
    *_, (_, x) = train(config, lr, 500)
    modes, _ = covered(x)
    real = drawn(2000, torch.Generator().manual_seed(0))
    assert modes >= 6
    assert mean_distance(x[:64]) == pytest.approx(mean_distance(real[:64]), rel=0.25)


@pytest.mark.slow
def test_collapse_shows_in_the_gauge() -> None:
    *_, (_, x) = train(*COLLAPSE, 600)
    real = drawn(2000, torch.Generator().manual_seed(0))
    assert mean_distance(x[:64]) < 0.5 * mean_distance(real[:64])
