"""--compare catches a slowdown, and is not fooled by a machine that is busier than before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from fastgen.bench import tables
from fastgen.bench.results import Results, Row
from fastgen.bench.timing import Timing
from fastgen.errors import ConfigError

HERE = {"device": "d", "threads": 2, "features": "avx2"}


def run(own: Sequence[float], eager: Sequence[float] | None = None, **changes: object) -> Results:
    baselines = {} if eager is None else {"eager": Timing.of(eager)}
    row = Row("kernels", "op", "case", "float32", 0.5, Timing.of(own), baselines)
    return Results(dict(HERE), [dataclasses.replace(row, **changes)])


STEADY = (1.0, 1.01, 0.99, 1.02, 0.98)


def verdict(old: Results, new: Results) -> tables.Verdict:
    (found,) = tables.compare(old, new)
    return found


def scaled(values: Sequence[float], factor: float) -> list[float]:
    return [factor * value for value in values]


@pytest.mark.parametrize("eager", [None, STEADY])
def test_a_slowdown_of_30_per_cent_is_caught(eager: Sequence[float] | None) -> None:
    found = verdict(run(STEADY, eager), run(scaled(STEADY, 1.3), eager))
    assert found.state == "slower"
    assert found.change == pytest.approx(1.3, rel=0.02)


def test_a_busier_machine_is_no_slowdown_and_hides_none() -> None:
    """Twice as slow altogether: by the ratio to plain PyTorch nothing happened, or 30 per cent did."""
    old, eager = run(STEADY, STEADY), scaled(STEADY, 2.0)
    assert verdict(old, run(scaled(STEADY, 2.0), eager)).state == "same"
    assert verdict(old, run(scaled(STEADY, 2.6), eager)).state == "slower"
    assert verdict(old, run(scaled(STEADY, 0.65), scaled(STEADY, 0.5))).state == "slower"  # and a quieter one


def test_noise_is_called_unsure() -> None:
    noisy = (0.7, 0.9, 1.3, 1.6, 2.5)
    found = verdict(run((0.8, 0.9, 1.0, 1.4, 1.5)), run(noisy))
    assert found.state == "unsure"
    assert found.change == pytest.approx(1.3)


def test_the_threshold_is_the_users() -> None:
    old, new = run(STEADY), run(scaled(STEADY, 1.1))
    assert tables.compare(old, new, 0.15)[0].state == "same"
    assert tables.compare(old, new, 0.05)[0].state == "slower"


def test_faster_wrong_and_gone() -> None:
    assert verdict(run(STEADY), run(scaled(STEADY, 0.5))).state == "faster"
    assert verdict(run(STEADY), run(STEADY, error=2.0, seconds=None)).state == "wrong"
    assert verdict(run(STEADY), run(STEADY, seconds=None)).state == "gone"
    assert tables.compare(run(STEADY), Results(dict(HERE))) == []  # another suite ran


def test_another_machine_is_refused() -> None:
    other = Results({**HERE, "threads": 8})
    with pytest.raises(ConfigError) as error:
        tables.compare(run(STEADY), other)
    assert error.value.argument == "--compare"


def test_the_report_names_what_changed() -> None:
    said = tables.report(tables.compare(run(STEADY, STEADY), run(scaled(STEADY, 1.3), STEADY)), 0.15)
    assert said.splitlines()[0].startswith("slower   1.3")
    assert "over eager: kernels op case float32" in said
    assert said.splitlines()[-1] == "compared by more than 15%: 1 slower"
    assert tables.report([], 0.15) == "compared by more than 15%: no case is in both runs"
