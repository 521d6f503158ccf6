"""conv_norm's kernels, in the interpreter or on the GPU: tiles, parts of sums, the norm in one launch or apart."""

from dataclasses import replace

import pytest
import torch

from bench import compile_gate
from fastgen_kernels import OPS, conv_norm, dependent_launch, use
from fastgen_kernels.conv_norm import cases, launch, plan
from fastgen_kernels.group_norm.cases import tolerance as norm_tolerance
from fastgen_kernels.patch_conv.layout import is_packed, is_ready

OP = OPS["conv_norm"]
TILES = {name: getattr(plan, name) for name in ("FEW", "HALF", "MEDIUM", "LARGE", "FULL_PRECISION")}
QUICK = [case for case in OP.cases if not case.production]


def make(device, shape=(2, 16, 5, 6), channels=8, size=3, dtype=torch.float32, seed=0, **options):
    return cases.arguments(
        torch.Generator().manual_seed(seed), device, dtype, shape, channels, size, **options
    )


def worst(arguments):
    with use("triton"):
        return max(OP.errors(arguments).values())


def with_plan(monkeypatch, **changes):
    choose = plan.choose
    monkeypatch.setattr(launch, "choose", lambda *given: replace(choose(*given), **changes))


@pytest.mark.parametrize(("name", "splits"), [*((name, 3) for name in TILES), ("MEDIUM", 1), ("LARGE", 1)])
def test_every_tile(kernel_device, monkeypatch, name, splits):
    """More pixels and channels than a tile, both with a rest; sums that begin in one input and end in the next."""
    with_plan(monkeypatch, tile=TILES[name], splits=splits)
    options = {"shortcut": (8, 24), "beside": 8, "groups": 4, "residual": True, "vectors": ("add",)}
    tile = TILES[name]
    height = tile.pixels // 8 + 1  # of two images, 4 pixels wide
    assert (
        worst(make(kernel_device, (2, 16, height, 4), tile.channels + 4, dtype=torch.float16, **options))
        <= 1.0
    )


@pytest.mark.parametrize("splits", [2, 5, 7, 32])
def test_parts_of_sums(kernel_device, monkeypatch, splits):
    """Of 14 steps, or fewer than there are parts."""
    with_plan(monkeypatch, splits=splits)
    assert worst(make(kernel_device, (1, 16, 3, 4), 8, shortcut=(24, 40), groups=2)) <= 1.0


@pytest.mark.parametrize("step", [16, 32, 64])
def test_steps_that_no_channels_fill(kernel_device, monkeypatch, step):
    with_plan(monkeypatch, step=step)
    assert worst(make(kernel_device, (1, 24, 3, 4), 8, beside=12, shortcut=(40, 5), groups=2)) <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_the_norm_is_that_of_the_map_that_is_stored(kernel_device, case, dtype):
    """Within the norm's own bound of the raw that came with it: sharper than both from the inputs."""
    arguments = case.make(torch.Generator().manual_seed(1), kernel_device, dtype)
    if arguments.get("num_groups") is None:
        pytest.skip("no norm")
    with use("triton"):
        raw, normed = conv_norm(**arguments)
    named = cases._norm(arguments, raw)
    exact = cases.norm_cases.exact(**named)
    (bound,) = norm_tolerance(exact, named)
    assert ((normed.double() - exact[0]).abs() / bound).max() <= 1.0


def test_one_launch_or_two_for_the_norm(kernel_device, monkeypatch):
    """Both ways, the same map; the norm within its bound each time."""
    arguments = make(kernel_device, (1, 16, 4, 6), 16, groups=4, skip=8, dtype=torch.bfloat16)
    with use("triton"):
        raw, normed = conv_norm(**arguments)
        monkeypatch.setattr(plan, "MOST_IN_REGISTERS", 1)
        monkeypatch.setattr(plan, "PLAIN_BLOCK", 1)
        apart = conv_norm(**arguments)
    assert torch.equal(raw, apart[0])
    assert OP.errors(arguments, apart)["normed"] <= 1.0
    torch.testing.assert_close(normed, apart[1])


def test_offsets_beyond_int32(kernel_device, monkeypatch):
    monkeypatch.setattr(launch, "MAX_SPAN", 1)
    assert worst(make(kernel_device, (3, 16, 3, 4), 8, beside=8, shortcut=(16,), groups=2)) <= 1.0
    assert worst(make(kernel_device, (3, 3, 3, 4), 8, groups=2, layout="first")) <= 1.0


def test_a_map_of_one_channel(kernel_device):
    """Which is NCHW and channels-last at once, as its skip is; together they are not."""
    assert worst(make(kernel_device, (2, 8, 4, 3), 1, 1, groups=1, skip=1)) <= 1.0


@pytest.mark.parametrize("layout", ["last", "first"])
def test_any_batch_of_one_image(kernel_device, layout):
    """One image for all, stride 0."""
    arguments = make(kernel_device, (1, 16, 3, 4), 8, groups=2, layout=layout)
    arguments["x"] = arguments["x"].expand(3, -1, -1, -1)
    assert worst(arguments) <= 1.0


def test_a_nan_spreads_over_its_neighbours(kernel_device):
    arguments = make(kernel_device, (1, 16, 6, 6), 4)
    arguments["x"][0, 3, 3, 3] = float("nan")
    with use("triton"):
        raw, _ = conv_norm(**arguments)
    assert raw.isnan().sum() == 4 * 9
    assert raw[0, :, 2:5, 2:5].isnan().all()


def test_which_plan():
    """The levels of the CIFAR-10 U-Net at batch 1, in bfloat16."""

    def chosen(pixels, channels, *terms, norm=True, cores=True, size=2):
        return plan.choose(pixels, channels, terms, size, cores, norm)

    assert chosen(1024, 128, (9, 128)) == plan.Plan(plan.MEDIUM, 64, 4)
    assert chosen(1024, 128, (9, 128), (1, 256), (1, 128)) == plan.Plan(plan.MEDIUM, 64, 4)
    assert chosen(256, 256, (9, 256)) == plan.Plan(plan.MEDIUM, 64, 8)
    assert chosen(64, 256, (9, 256)) == plan.Plan(plan.HALF, 64, 12)
    assert chosen(16, 256, (9, 256)) == plan.Plan(plan.FEW, 64, 18)
    assert chosen(256, 768, (1, 256), norm=False) == plan.Plan(plan.HALF, 64, 1)  # attention: one launch
    assert chosen(256, 256, (1, 256)).splits > 1
    assert chosen(4096, 128, (9, 128)) == plan.Plan(plan.MEDIUM, 64, 1)  # four images
    assert chosen(65536, 128, (9, 128)) == plan.Plan(plan.LARGE, 64, 1)
    assert chosen(1024, 128, (9, 8)).step == 16
    assert chosen(1024, 128, (9, 96)).step == 32  # 64 would compute a third more
    assert chosen(1024, 128, (9, 128), size=4).step == 32
    assert chosen(1024, 128, (9, 128), size=4, cores=False).tile == plan.FULL_PRECISION


@pytest.mark.parametrize("tiles", [1, 3, 8, 16, 32, 131, 132, 4000])
@pytest.mark.parametrize("steps", [1, 5, 18, 36, 88])
def test_no_part_is_empty(tiles, steps):
    splits = plan.choose_splits(tiles, steps)
    shares = [(i + 1) * steps // splits - i * steps // splits for i in range(splits)]
    assert min(shares) >= 1
    assert sum(shares) == steps
    assert splits == 1 or tiles * splits <= 2 * plan.MULTIPROCESSORS


def test_which_finish():
    assert plan.finish(1024, 4, 4) == plan.Finish(1024, 4, 1, 8)
    assert plan.finish(16, 8, 18) == plan.Finish(16, 8, 32, 8)
    assert plan.finish(1024, 16, 4) == plan.Finish(1024, 16, 1, 16)
    assert plan.finish(1024, 17, 4) is None
    assert plan.finish(100, 12, 1) == plan.Finish(128, 16, 1, 4)
    for pixels, group, splits in ((1, 1, 1), (3, 5, 2), (10**6, None, 3)):
        block = plan.finish(pixels, group, splits)
        assert 1 <= block.num_warps <= 16


def test_dependent_launch_is_a_switch(kernel_device):
    """On a GPU the bits are the same with it; the interpreter, which has no launches, is not asked."""
    if kernel_device.type == "cpu" or torch.cuda.get_device_capability(kernel_device) < (9, 0):
        pytest.skip("programmatic dependent launch takes sm_90")
    for case in QUICK:
        arguments = case.make(torch.Generator().manual_seed(2), kernel_device, torch.bfloat16)
        plain = conv_norm(**arguments)
        with dependent_launch():
            for _ in range(3):
                again = conv_norm(**arguments)
        for a, b in zip(plain, again, strict=True):
            assert torch.equal(a, b), case.name


@pytest.mark.slow
@pytest.mark.parametrize("triton", ["installed", "oldest"])
def test_dependent_launches_compile(triton):
    from .test_compile_gate import folder

    reports = compile_gate.compiled(["conv_norm"], folder(triton), module="tests.kernels.dependent")
    assert {report["kernel"] for report in reports} == {"product_kernel", "finish_kernel"}
    for report in reports:
        assert report["waits"] == report["allows"] == 1, report
        assert report["prefetches"] == (report["kernel"] == "product_kernel") * report["weights"], report
    assert compile_gate.judge(reports) == []


@pytest.mark.slow
def test_full_precision_within_budget():
    reports = compile_gate.compiled(["conv_norm"], module="tests.kernels.full_precision")
    assert {report["architecture"] for report in reports} == {80, 90, 100}
    assert any(report["full_precision_dots"] for report in reports)
    assert compile_gate.judge(reports) == []


class Counted:
    """Stands in for a kernel: launches are counted, and nothing runs."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *_, **__: self.seen.append(self.name)


def test_launches_of_the_cifar_u_net(monkeypatch):
    """Two kernels a half of a block, at every level; one for attention's three products. Nothing is copied."""
    seen: list[str] = []
    for name in ("product", "finish"):
        monkeypatch.setattr(launch, f"{name}_kernel", Counted(name, seen))
    monkeypatch.setattr(launch, "ready", lambda x: x if is_ready(x) else seen.append("copy"))
    monkeypatch.setattr(
        launch, "pack_weight", lambda weight: weight if is_packed(weight) else seen.append("copy")
    )
    monkeypatch.setattr(launch.norm_kernel, "launch", lambda *_: seen.append("norm") or torch.empty(0))
    for case in OP.cases:
        if case.name.startswith("cifar"):
            seen.clear()
            OP.fused(**case.make(torch.Generator(), torch.device("cpu"), torch.bfloat16))
            one = {"cifar16_qkv": ["product"], "cifar32_first_4": ["product", "norm"]}
            assert seen == one.get(case.name, ["product", "finish"]), case.name
