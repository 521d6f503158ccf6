"""The loop that trains any reference network: shuffled epochs, warm-up and decay, clipping, an average of the weights,
saves that a kill cannot harm, exact resumption. What a family of models adds is an :class:`Objective`.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import CONFIG_FILE, WEIGHTS_FILE, save
from ..errors import CheckpointError, DataError, OutOfMemoryError, Terminated, TrainingError
from ..files import exists, held, make_folder, remove_leftovers, write_atomic
from ..runtime.device import out_of_memory
from .data import Dataset, describe
from .run import STATE_FILE, Run, RunState, saved_run
from .settings import RunConfig

LOSS_FILE = "loss.csv"
PREVIEWS = "previews"  # folder of the sheets that `on_preview` may draw
RUN_FILES = (STATE_FILE, CONFIG_FILE, WEIGHTS_FILE, LOSS_FILE)
STOPS: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@dataclass(frozen=True)
class Step:
    """What a step of the run is made of.

    x: the objective's inputs [B, ...], on the module's device. label: int64 [B], on the CPU, or None. generator: of the
    CPU, seeded for the step; all that is random is drawn from it there, so that a GPU run sees what a CPU run sees.
    """

    x: Tensor
    label: Tensor | None
    generator: torch.Generator
    config: RunConfig

    def autocast(self) -> torch.autocast:
        """The precision that the run's networks run in."""
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


class Objective(Protocol):
    """What a family of models adds to the loop."""

    @property
    def unit(self) -> str:
        """What `loss` counts in, for the progress bar."""

    def inputs(self, batch: Tensor) -> Tensor:
        """A batch of the data set, as it came, -> what the network is trained on; on the CPU."""

    def start(self, module: nn.Module, dataset: Dataset, step: Step) -> None:
        """Before the first step of a new run: what the data decides about the network."""

    def loss(self, module: nn.Module, step: Step) -> Tensor:
        """The number to descend, to be differentiated."""


def train(
    module: nn.Module,
    run: Run,
    objective: Objective,
    dataset: Dataset,
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    progress: bool = True,
    on_preview: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train `module` by `objective` on `dataset` into `folder`; returns the averaged network.

    run: its configuration, the spec of the model it makes (one part: the averaged network) and a description of the
    data; a resumed run is the folder's own. on_preview(step, averaged network) is called every `preview_every` steps
    and at the end; it must not change the network.

    The same seed, data and machine give the same weights, interrupted and resumed or not, on a CPU (GPU libraries add
    in varying order): every step draws its noise and dropouts from a generator seeded by (seed, step). Ctrl-C
    or SIGTERM ends the step, saves, and then raises KeyboardInterrupt or Terminated; a second one interrupts at once.

    Raises TrainingError where the loss is no number any more, which is never saved; WriteError where a save fails, and
    the one before it is whole; CheckpointError where `folder` holds a run or a model and `resume` is False, or no run
    and it is True, or another process trains there; DataError where the data of a resumed run is not as much, of
    the shape and of the classes it began with; ConfigError for a run that could not be resumed; OutOfMemoryError.
    """
    folder, device = Path(folder), torch.device(device)
    with _folder(folder, resume), held(folder) as alone:
        if not alone:
            raise CheckpointError(
                "another process is training in it; wait for it, or choose another folder", argument=folder
            )
        run = _opened(folder, run, dataset, resume)
        run.encoded(folder)  # what could not be read back is refused before anything is trained
        try:
            return _train(module, run, objective, dataset, folder, device, resume, progress, on_preview)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, OutOfMemoryError) or not out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"memory ran out on {device} with batches of {run.config.batch_size}; {_kept(folder)}. "
                "Begin again in another folder with a smaller --batch-size, or --resume where there is more memory",
                argument=folder,
            ) from error


@contextmanager
def _folder(folder: Path, resume: bool) -> Iterator[None]:
    """A new run's folder is made; where the run fails with nothing in it, it goes again."""
    made = not resume and not exists(folder)
    if not resume:
        make_folder(folder, parents=True)
    try:
        yield
    except BaseException:
        if made:
            with suppress(OSError):  # not empty, and kept
                folder.rmdir()
        raise


def _train(
    module: nn.Module,
    run: Run,
    objective: Objective,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    resume: bool,
    progress: bool,
    on_preview: Callable[[int, nn.Module], None] | None,
) -> nn.Module:
    """:func:`train`, in a folder that is this process's own."""
    config = run.config
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    module = module.to(device, **layout).train().requires_grad_(True)
    if not resume:
        x, label = next(batches(dataset, objective, config, 0))
        objective.start(module, dataset, Step(x.to(device), label, _generator(config.seed, 0), config))
    ema = copy.deepcopy(module).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99), fused=True
    )
    state = RunState(run, module, ema, optimizer, [])
    if resume:
        state.restore(folder)
    remove_leftovers(folder, RUN_FILES)  # of a save that was killed
    if resume:
        _publish(state, folder)  # a save that was killed may have got no further than the state

    last, often = config.steps, config.preview_every if on_preview else 0

    def preview_due() -> bool:
        return often > 0 and (state.step % often == 0 or state.step == last)

    forked = [device] if device.type == "cuda" else []
    bar = tqdm(total=last, initial=state.step, disable=not progress, unit="step", smoothing=0.05)
    with bar, torch.random.fork_rng(forked), _stop_between_steps() as stopped:
        if resume and on_preview and preview_due():
            on_preview(state.step, ema)  # likewise: it follows the save
        saved = resume
        for x, label in batches(dataset, objective, config, state.step):
            _train_step(state, objective, x.to(device), label)
            bar.update()
            bar.set_postfix({objective.unit: f"{_recent(state.losses):.4f}"}, refresh=False)
            stop = stopped()
            if not math.isfinite(state.losses[-1]):
                raise _diverged(state, folder)
            # A folder with a preview and no run could neither be resumed nor begun again.
            first = preview_due() and not saved
            if state.step % config.save_every == 0 or state.step == last or first or stop:
                if not all(bool(torch.isfinite(w).all()) for w in module.parameters()):
                    raise _diverged(state, folder)
                state.save(folder)
                _publish(state, folder)
                saved = True
            if stop:
                raise stop(f"step {state.step} of {last} is done and saved")
            if on_preview and preview_due():
                on_preview(state.step, ema)
    return ema


def _opened(folder: Path, run: Run, dataset: Dataset, resume: bool) -> Run:
    """The run to train: `run`, or the one in `folder` that goes on. Nothing in `folder` is replaced by another's."""
    earlier = saved_run(folder)
    if earlier is None:
        if resume:
            raise CheckpointError("no training run to resume in it", argument=folder)
        if there := [name for name in (*RUN_FILES, PREVIEWS) if exists(folder / name)]:
            raise CheckpointError(f"holds {', '.join(there)} already; choose another folder", argument=folder)
        return run
    if not resume:
        raise CheckpointError("holds a training run; resume it, or choose another folder", argument=folder)
    for name, value in describe(dataset).items():
        if earlier.data.get(name) != value:
            raise DataError(
                f"its run began with {name} {earlier.data.get(name)}, the data now has {value}",
                argument=folder,
            )
    return earlier


@contextmanager
def _stop_between_steps() -> Iterator[Callable[[], type[KeyboardInterrupt] | None]]:
    """The first Ctrl-C or SIGTERM is only noted, so that no step is left half done; the second interrupts at once.

    Yields a function that says what was noted: the exception that stands for it, or None.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only the main thread gets signals
        before = {number: signal.getsignal(number) for number in STOPS}
    # A job in the background, whose shell has it ignore Ctrl-C, goes on; so does a handler from outside Python (None).
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    noted: list[int] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: STOPS[noted[0]] if noted else None
    finally:
        restore()


def _diverged(state: RunState, folder: Path) -> TrainingError:
    """Nothing that is not finite may replace the last save."""
    return TrainingError(
        f"training has diverged: loss or weights of step {state.step} are not finite; {_kept(folder)}. "
        "Begin again with a smaller --lr, a longer --warmup or a smaller --grad-clip",
        argument=folder,
    )


def _kept(folder: Path) -> str:
    return "its last save is kept" if exists(folder / STATE_FILE) else "nothing was saved"


def batches(
    dataset: Dataset, objective: Objective, config: RunConfig, start: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches `start`..`config.steps` of one endless stream of shuffled epochs: the objective's inputs, labels."""
    epoch, order = -1, torch.empty(0, dtype=torch.long)
    for step in range(start, config.steps):
        indices = []
        for position in range(step * config.batch_size, (step + 1) * config.batch_size):
            if position // len(dataset) != epoch:
                epoch = position // len(dataset)
                order = torch.randperm(len(dataset), generator=_generator(config.seed, -1 - epoch))
            indices.append(int(order[position % len(dataset)]))
        batch, labels = dataset.batch(indices)
        x = objective.inputs(batch)
        if config.flip:
            mirror = torch.rand(len(x), generator=_generator(config.seed, step, salt=1)) < 0.5
            x[mirror] = x[mirror].flip(-1)
        yield x, labels


def _train_step(state: RunState, objective: Objective, x: Tensor, label: Tensor | None) -> None:
    config = state.run.config
    torch.manual_seed(_mix(config.seed, state.step, salt=2))  # dropout layers use the global generator
    loss = objective.loss(state.module, Step(x, label, _generator(config.seed, state.step), config))
    loss.backward()
    if config.grad_clip:
        nn.utils.clip_grad_norm_(state.module.parameters(), config.grad_clip)
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * rate(state.step, config)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)

    # Early on the average forgets faster, or it would keep the random start for 1 / (1 - decay) steps.
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.parameters()), list(state.module.parameters()), 1 - decay)
    state.losses.append(loss.item())


def rate(step: int, config: RunConfig) -> float:
    """Linear warm-up, then a cosine down to zero: a factor of the learning rate."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def _publish(state: RunState, folder: Path) -> None:
    """The model as it is now, and the losses that led there."""
    spec = state.run.spec
    (part,) = spec.parts
    dtype = torch.float16 if state.run.config.weights_dtype == "float16" else torch.float32
    weights = {
        name for name, _ in state.ema.named_parameters()
    }  # buffers, such as an order of channels, stay exact
    tensors = {n: t.to(dtype) if n in weights else t for n, t in state.ema.state_dict().items()}
    save(folder, spec, {f"{part}.{name}": t for name, t in tensors.items()})
    rows = "".join(f"{i + 1},{loss:.6f}\n" for i, loss in enumerate(state.losses))
    write_atomic(folder / LOSS_FILE, ("step,loss\n" + rows).encode())


def _recent(losses: list[float]) -> float:
    tail = losses[-50:]
    return sum(tail) / len(tail)


def _mix(seed: int, step: int, salt: int = 0) -> int:
    """A 63-bit seed from (seed, step, salt): splitmix64's finaliser, so that neighbours are unrelated."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + salt * 0xD6E8FEB86659FD93) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) >> 1


def _generator(seed: int, step: int, salt: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(_mix(seed, step, salt))
