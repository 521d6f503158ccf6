"""The one rule of closeness: at most a few times what rounding costs, by root mean square and, if asked, by element."""

from __future__ import annotations

import pytest
import torch

from fastgen.engines.closeness import TIMES, Closeness, deviation, rms, spread

GENERATOR = torch.Generator().manual_seed(0)
EXACT = torch.randn(4, 100, generator=GENERATOR, dtype=torch.float64)
OFF = 1e-4 * torch.randn(4, 100, generator=GENERATOR, dtype=torch.float64)
RULE = Closeness(EXACT, [(EXACT + OFF).float()])


def test_as_close_as_rounding_is_within_the_bound() -> None:
    for again in (EXACT, EXACT - OFF, EXACT + OFF.flip(0)):
        assert RULE.error(again.float()) <= 1.0
    assert RULE.error((EXACT - OFF).float()) == pytest.approx(2 / (TIMES + 1), rel=1e-3)


def test_farther_than_that_is_outside() -> None:
    for times in (TIMES + 0.1, 100.0):
        assert RULE.error((EXACT + times * OFF).float()) > 1.0
    assert RULE.error((EXACT + times * OFF).float(), slack=1.0) < 1.0


def test_a_single_element_counts_where_peaks_do() -> None:
    one = EXACT + OFF
    one[2, 3] += 12 * OFF.abs().max()
    assert RULE.error(one.float()) <= 1.0
    assert RULE.error(one.float(), peak=True) > 1.0
    assert RULE.error((EXACT - OFF).float(), peak=True) <= 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_or_of_another_shape_is_infinitely_far(value: float) -> None:
    wrong = EXACT.float()
    wrong[0, 0] = value
    assert RULE.error(wrong) == float("inf")
    assert RULE.error(EXACT[:, :50].float()) == float("inf")


def test_where_rounding_costs_nothing_some_roundings_of_the_greatest_value_are_allowed() -> None:
    exact = torch.ones(2, 8, dtype=torch.float64)
    rule = Closeness(exact, [exact.float()])
    assert rule.error((exact * (1 + 2**-23)).float()) <= 1.0
    assert rule.error((exact * (1 + 2**-19)).float()) > 1.0
    assert Closeness(0 * exact, [0 * exact.float()]).error(exact.float()) == float("inf")


def test_a_few_samples_stand_for_a_batch_and_the_rest_is_held_against_plain_pytorch() -> None:
    index = spread(9, 3)
    assert index == [0, 4, 8]
    exact = EXACT.repeat(3, 1)[:9]
    plain = (exact + OFF.repeat(3, 1)[:9]).float()
    rule = Closeness(exact[index], [plain], index)
    assert rule.error(plain) <= 1.0
    other = plain.clone()
    other[3] += 1.0  # no sample of the index
    assert rule.error(other) > 1.0


def test_deviation_is_relative_to_the_greatest_value() -> None:
    assert deviation(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 5.0])) == pytest.approx(0.1)
    assert deviation(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert deviation(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert rms(torch.zeros(0)) == 0.0
