"""Images of the zoo, numbers of its flow and short training runs are to the bit what they were."""

from __future__ import annotations

import json

import pytest

from tests.zoo import digests

KEPT = json.loads(digests.FILE.read_text())
QUICK = ("ddpm ddim", "ddpm dpm++2m", "ddpm mixed", "glow log_prob", "glow sample", "train vector_flow")
# Other kernels add in another order: float32 sums of a few thousand terms differ by 1e-6 and less, and a sampler
# amplifies that by up to 100; bfloat16 by 2^16 as much.
NEAR = {"ddpm bfloat16": 0.05}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in digests.works()]
)
def test_results_are_as_recorded(name: str) -> None:
    found = digests.measure(digests.works()[name])
    kept = KEPT["digests"].get(digests.machine())
    if kept is not None:
        assert found["digest"] == kept[name]
    near = pytest.approx(KEPT["moments"][name], rel=NEAR.get(name, 1e-3), abs=NEAR.get(name, 1e-3))
    assert [found["mean"], found["std"]] == near


def test_every_record_has_its_work() -> None:
    for kept in (KEPT["moments"], *KEPT["digests"].values()):
        assert set(kept) == set(digests.works())
