"""The reverse step's kernel, in the interpreter or on the GPU: against float64, and within its own memory."""

import pytest
import torch

from fastgen_kernels import OPS, reverse_step, reverse_step_out, use
from fastgen_kernels.reverse_step import cases, kernel, reference

from .guards import guarded, outside

OP = OPS["reverse_step"]
SMALL = [case for case in OP.cases if not case.production or case.name == "mnist1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_in_place(kernel_device, case, dtype):
    arguments = case.make(torch.Generator().manual_seed(2), kernel_device, dtype)
    exact = OP.exact(**arguments)
    inputs = {name: guarded(arguments[name], float("nan"))[0] for name in ("F", "rows")}
    x, x_buffer = guarded(arguments["x"], 777.0)
    h, h_buffer = guarded(arguments["h"], 777.0)
    F = arguments["F"]
    blank = torch.full((F.shape[0], *x.shape[1:]), float("nan"), dtype=F.dtype, device=kernel_device)
    y, y_buffer = guarded(blank.contiguous(memory_format=reference.network_format(F)), 777.0)
    cursor, cursor_buffer = guarded(torch.full((len(x),), -7, dtype=torch.int32, device=kernel_device), -9)
    with use("triton"):
        reverse_step_out(
            x, h, inputs["F"], y, inputs["rows"], cursor, arguments["seeds"], learned=arguments["learned"]
        )
    worst = OP.errors(arguments, (x, h, y))
    print(case.name, dtype, {name: f"{value:.3f}" for name, value in worst.items()})
    assert max(worst.values()) <= 1.0
    assert exact[0].shape == x.shape
    assert cursor.tolist() == reference.integer_words(arguments["rows"])[:, 7].tolist()
    for view, buffer, fill in (
        (x, x_buffer, 777),
        (h, h_buffer, 777),
        (y, y_buffer, 777),
        (cursor, cursor_buffer, -9),
    ):
        assert (outside(buffer, view) == fill).all()


@pytest.mark.parametrize("slots", range(5))
@pytest.mark.parametrize(
    "options", [{}, {"guided": True, "learned": 1}, {"learned": 2, "channels_last": True}]
)
def test_variants(kernel_device, slots, options):
    generator = torch.Generator().manual_seed(slots)
    unused = (0,) if slots > 1 else ()
    arguments = cases.arguments(
        generator,
        kernel_device,
        torch.bfloat16,
        (2, 3, 4, 6),
        slots=slots,
        sliced=True,
        unused=unused,
        **options,
    )
    with use("triton"):
        worst = OP.errors(arguments)
    assert max(worst.values()) <= 1.0, worst


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("learned", [0, 1, 2])
def test_sweep(kernel_device, channels_last, guided, learned):
    worst: dict[str, float] = {}
    for slots in (0, 2, 4):
        for noise in ("some", "all"):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                for shape in ((1, 1, 2, 2), (3, 2, 12, 14)):
                    arguments = cases.arguments(
                        torch.Generator().manual_seed(slots),
                        kernel_device,
                        dtype,
                        shape,
                        slots=slots,
                        guided=guided,
                        learned=learned,
                        channels_last=channels_last,
                        noise=noise,
                    )
                    with use("triton"):
                        for name, value in OP.errors(arguments).items():
                            worst[name] = max(worst.get(name, 0.0), value)
    print({name: f"{value:.3f}" for name, value in worst.items()})
    assert max(worst.values()) <= 1.0


def test_both_launches_agree(kernel_device, monkeypatch):
    """Which tile a launch takes depends on the batch; a sample's bits do not."""
    arguments = cases.arguments(
        torch.Generator().manual_seed(0), kernel_device, torch.float32, (2, 2, 15, 20), slots=2
    )
    results = []
    for launch in (kernel.SMALL, kernel.LARGE):
        monkeypatch.setattr(kernel, "choose_launch", lambda batch, n, launch=launch: launch)
        with use("triton"):
            results.append(reverse_step(**arguments))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_nan_is_not_clipped_away(kernel_device):
    arguments = cases.arguments(torch.Generator().manual_seed(0), kernel_device, torch.float32, (1, 1, 2, 2))
    arguments["F"][0, 0, 0, 0] = float("nan")
    with use("triton"):
        assert reverse_step(**arguments)[0].isnan().sum() == 1


def test_launches_own_whole_noise_blocks():
    for launch in (kernel.SMALL, kernel.LARGE):
        assert launch.block // (32 * launch.num_warps) >= 4
    assert kernel.choose_launch(1, 3 * 32 * 32) == kernel.SMALL
    assert kernel.choose_launch(256, 3 * 32 * 32) == kernel.LARGE
