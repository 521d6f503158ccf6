"""The fences see what they are for."""

import torch

from .guards import Fences, fenced, guarded, outside


def test_an_unwritten_element_holds_the_sentinel():
    with Fences() as fences:
        made = [
            torch.empty(3),
            torch.empty_like(torch.ones(2, 2)),
            torch.ones(1).new_empty(4, dtype=torch.int32),
        ]
        copy = torch.ones(5).clone()
    assert [value.flatten()[0].item() for value in made] == [777.0, 777.0, -99]
    assert (copy == 1).all()
    assert len(fences.allocations) == 4
    assert all(a.intact() for a in fences.allocations)


def test_a_write_outside_shows():
    with Fences() as fences:
        value = torch.empty(3)
    value.as_strided((4,), (1,)).fill_(0.0)
    assert not fences.allocations[0].intact()


def test_layouts_are_kept():
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    view, buffer = guarded(last, 0.0)
    assert view.stride() == last.stride()
    assert torch.equal(view, last)
    assert outside(buffer, view).eq(0).all()
    with Fences():
        assert torch.empty_like(last).stride() == last.stride()


def test_gaps_and_surroundings_of_inputs_are_nan():
    x = torch.zeros(4, 6)[:, ::2]
    found = fenced({"x": x, "eps": 1e-5})
    assert torch.equal(found["x"], x)
    assert found["x"].as_strided((1,), (1,), found["x"].storage_offset() + 1).isnan().all()
    assert found["eps"] == 1e-5
