"""What one objective learns of MNIST in a minute."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import real
from tests.zoo.quality import HELD_OUT, TRAINING

from .digits import MARKS, OBJECTIVES, PAGE, judged, learn, networks

STEPS = 1200


@pytest.mark.slow
@pytest.mark.real
def test_hinge_loss_learns_digits_and_their_labels() -> None:
    """A third of the labels are seen right, of ten, and digits of a label differ (53 % and 0.64 when this was written).

    A generator that learns nothing of labels has one of ten right; one that draws a single digit of each label has no
    variety, and noise has more than digits have.
    """
    images, labels = real.mnist()
    objective = OBJECTIVES["hinge, spectral norm"]
    held_out = images[HELD_OUT], labels[HELD_OUT]
    agreement, _ = judged(networks(objective)["generator"].eval(), *held_out)
    assert agreement < 0.2
    made = learn(objective, images[TRAINING], labels[TRAINING], STEPS)
    agreement, variety = judged(made, *held_out)
    assert agreement >= 0.35
    assert 0.4 <= variety <= 1.15


@pytest.mark.slow
@pytest.mark.real
def test_what_variety_measures() -> None:
    """Real digits of other images have a variety of 1; a generator of one digit for each label of 0."""
    images, labels = real.mnist()

    class Fixed(torch.nn.Module):
        def __init__(self, pick: int | None) -> None:
            super().__init__()
            self.pick, self.random = pick, np.random.default_rng(0)

        def forward(self, z: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
            by_label = [np.flatnonzero(labels[TRAINING] == label) for label in range(10)]
            if self.pick is None:
                which = [self.random.choice(by_label[k]) for k in asked]
            else:
                which = [by_label[k][self.pick] for k in asked]
            return torch.tensor(images[which])[:, None].float() / 127.5 - 1

    held_out = images[HELD_OUT], labels[HELD_OUT]
    agreement, variety = judged(Fixed(None), *held_out)
    assert agreement > 0.95
    assert variety == pytest.approx(1, abs=0.05)
    assert judged(Fixed(0), *held_out)[1] == pytest.approx(0, abs=1e-6)


def test_the_page_states_that_every_objective_learns() -> None:
    """As `python -m tests.training.digits` has written it, of the steps that are given here."""
    table = PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [(name, steps) for name, steps, *_ in rows] == [
        (name, f"{objective.steps:,}") for name, objective in OBJECTIVES.items()
    ]
    for name, _, _, agreement, variety in rows:
        assert float(agreement.rstrip("%")) >= 80, name
        assert 0.7 <= float(variety) <= 1.05, name
