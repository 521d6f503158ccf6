"""The loop that trains any networks: shuffled epochs, one optimiser per group of parameters, warm-up and decay,
clipping, averages of the weights, saves that a kill cannot harm, exact resumption, by one process or several. What a
family of models adds is an :class:`Objective`.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoint import CONFIG_FILE, WEIGHTS_FILE, save
from ..config import check_flags
from ..errors import CheckpointError, ConfigError, DataError, OutOfMemoryError, TrainingError
from ..files import exists, held, make_folder, remove_leftovers, write_atomic
from ..runtime.device import out_of_memory
from .batch import Batch, Dataset
from .data import COUNTS, describe
from .distributed import Processes
from .objective import Objective, Step
from .optimizers import backward, gradients, optimizers, update
from .order import batches
from .order import mixed as _mix
from .order import seeded as _generator
from .run import STATE_FILE, Run, saved_run
from .settings import RunConfig
from .shares import check_drawn, check_shares, shared
from .state import RunState
from .stopping import STOPS, stop_between_steps
from .tensorboard import FOLDER as TENSORBOARD

LOSS_FILE = "loss.csv"
PREVIEWS = "previews"  # folder of the sheets that `on_preview` may draw
OnStep = Callable[[int, Mapping[str, float]], None]
RUN_FILES = (STATE_FILE, CONFIG_FILE, WEIGHTS_FILE, LOSS_FILE)


def train(
    networks: nn.ModuleDict,
    run: Run,
    objective: Objective,
    dataset: Dataset,
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    resume: bool = False,
    changed_data: bool = False,
    progress: bool = True,
    on_preview: Callable[[int, nn.ModuleDict], None] | None = None,
    on_step: OnStep | None = None,
    processes: Processes | None = None,
) -> nn.ModuleDict:
    """Train `networks` by `objective` on `dataset` into `folder`; returns the averages of those that are published.

    networks: by name; the parts of the run's spec are averaged and published as its model, the others (a
    discriminator) are kept in the run's state alone. run: its configuration, the spec of the model it makes and a
    description of the data; a resumed run is the folder's own. on_preview(step, averages) is called every
    `preview_every` steps and at the end; it must not change the networks. on_step(step, values) is called after every
    step with its losses and learning rates by name ("loss/NAME", "lr/NAME").

    processes: those that train together, each calling this with the same arguments; None is this one alone. Batches of
    `batch_size` are those of all of them together, and the run is the one that a process alone makes, but for rounding
    (and dropout, which each process draws for itself). The first one alone writes, and calls on_preview and on_step;
    `folder` must be seen by all. A Ctrl-C or SIGTERM that one of them gets stops all after the same step.

    The same seed, data and machine give the same weights, interrupted and resumed or not, on a CPU (GPU libraries add
    in varying order): every step draws its noise and dropouts from a generator seeded by (seed, step). Ctrl-C
    or SIGTERM ends the step, saves, and then raises KeyboardInterrupt or Terminated; a second one interrupts at once.
    Samples that cannot be read save the steps before them. changed_data: a resumed run may have fewer or more samples
    than it began with, in another order then; their shape and classes stay.

    Raises TrainingError where the loss is no number any more, which is never saved; WriteError where a save fails, and
    the one before it is whole; CheckpointError where `folder` holds a run or a model and `resume` is False, or no run
    and it is True, or another process trains there; DataError where the data of a resumed run is not as much, of
    the shape and of the classes it began with; ConfigError for a run that could not be resumed,
    a part of the spec that is no network, groups that do not cover the networks, or batches that cannot be shared
    among processes or by `accumulate`; OutOfMemoryError.
    """
    check_flags(resume=resume, changed_data=changed_data, progress=progress)
    folder, device = Path(folder), torch.device(device)
    processes = processes or Processes()
    with ExitStack() as held_here:

        def begin() -> Run:
            held_here.enter_context(_folder(folder, resume))
            if not held_here.enter_context(held(folder)):
                raise CheckpointError(
                    "another process is training in it; wait for it, or choose another folder",
                    argument=folder,
                )
            return _opened(folder, run, dataset, resume, changed_data)

        opened = processes.on_first(begin)
        if missing := [name for name in opened.spec.parts if name not in networks]:
            raise ConfigError(f"has no {missing[0]}, which is a part of the model", argument="networks")
        opened.encoded(folder)  # what could not be read back is refused before anything is trained
        check_shares(objective, networks, opened.config, processes)
        try:
            return _train(
                networks,
                opened,
                objective,
                dataset,
                folder,
                device,
                resume,
                progress,
                on_preview,
                on_step,
                processes,
            )
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, OutOfMemoryError) or not out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"memory ran out on {device} with batches of {opened.config.batch_size}; {_kept(folder)}. Begin "
                "again in another folder with a smaller --batch-size or with --accumulate, or --resume where there "
                "is more memory",
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
    networks: nn.ModuleDict,
    run: Run,
    objective: Objective,
    dataset: Dataset,
    folder: Path,
    device: torch.device,
    resume: bool,
    progress: bool,
    on_preview: Callable[[int, nn.ModuleDict], None] | None,
    on_step: OnStep | None,
    processes: Processes,
) -> nn.ModuleDict:
    """:func:`train`, in a folder that is this process's own, or the first one's."""
    config = run.config
    layout: dict[str, Any] = {"memory_format": torch.channels_last}
    networks = networks.to(device, **layout).train().requires_grad_(True)
    if not resume:
        first = _next(batches(dataset, objective, config, 0))
        assert first is not None  # a run has steps
        objective.start(networks, dataset, _step(_moved(first, device), config, 0))
        processes.copied(networks)
    averages = copy.deepcopy(nn.ModuleDict({name: networks[name] for name in run.spec.parts}))
    averages = averages.eval().requires_grad_(False)
    state = RunState(run, networks, averages, optimizers(objective, networks, config), [])
    if resume:
        state.restore(folder)
    if processes.first:
        remove_leftovers(folder, RUN_FILES)  # of a save that was killed
    if resume and processes.first:
        _publish(state, folder)  # a save that was killed may have got no further than the state

    if not processes.first:
        on_preview = on_step = None
    last, often = config.steps, config.preview_every if on_preview else 0

    def preview_due() -> bool:
        return often > 0 and (state.step % often == 0 or state.step == last)

    forked = [device] if device.type == "cuda" else []
    show = progress and processes.first
    bar = tqdm(total=last, initial=state.step, disable=not show, unit="step", smoothing=0.05)
    with bar, torch.random.fork_rng(forked), stop_between_steps(patient=processes.size > 1) as stopped:
        if resume and on_preview and preview_due():
            on_preview(state.step, averages)  # likewise: it follows the save
        saved = resume
        found = batches(dataset, objective, config, state.step, processes.rows(config.batch_size))
        while (batch := _next(found, lambda: _saved(state, folder, processes), processes)) is not None:
            rates = _train_step(state, objective, _moved(batch, device), processes)
            bar.update()
            bar.set_postfix(_recent(state, objective.unit), refresh=False)
            stop = _agreed(stopped(), processes)
            if not all(map(math.isfinite, state.losses[-1])):
                raise _diverged(state, folder)
            # A folder with a preview and no run could neither be resumed nor begun again.
            unsaved_preview = preview_due() and not saved
            if state.step % config.save_every == 0 or state.step == last or unsaved_preview or stop:
                _save(state, folder, processes)
                saved = True
            if on_step:
                on_step(state.step, _values(state, rates))
            if stop:
                raise stop(f"step {state.step} of {last} is done and saved")
            if on_preview and preview_due():
                on_preview(state.step, averages)
    return averages


def _agreed(stop: type[KeyboardInterrupt] | None, processes: Processes) -> type[KeyboardInterrupt] | None:
    """What a signal to this process or another one asks for."""
    kinds = [None, *STOPS.values()]
    return kinds[processes.largest(kinds.index(stop))]


def _values(state: RunState, rates: Mapping[str, float]) -> dict[str, float]:
    """The last step's losses and learning rates, for `on_step`."""
    losses = zip(state.optimizers, state.losses[-1], strict=True)
    return {
        **{f"loss/{name}": loss for name, loss in losses},
        **{f"lr/{name}": rate for name, rate in rates.items()},
    }


def _save(state: RunState, folder: Path, processes: Processes) -> None:
    """Save the run and publish its model. Raises TrainingError for weights that are not finite, and saves nothing."""
    if not all(bool(torch.isfinite(w).all()) for w in state.networks.parameters()):
        raise _diverged(state, folder)
    if processes.first:
        state.save(folder)
        _publish(state, folder)


def _saved(state: RunState, folder: Path, processes: Processes) -> int:
    """How many steps are saved, now."""
    if state.step:
        _save(state, folder, processes)
    return state.step


def _next(
    found: Iterator[Batch], saved: Callable[[], int] = lambda: 0, processes: Processes | None = None
) -> Batch | None:
    """The next of the batches `found`, None after the last one. A DataError calls `saved`, and says the way out.

    processes: those that take their batches together; an error of one of them is raised in all.
    """
    batch, error = None, None
    try:
        batch = next(found, None)
    except DataError as caught:
        error = caught
    if processes is not None:
        error = processes.data_error(error)
    if error is not None:
        steps = saved()
        way_out = (
            f"The {steps} steps before it are saved: put a whole image in its place and go on with --resume, or "
            "remove it and go on with --resume --changed-data"
            if steps
            else "Mend or remove it and begin again; nothing was trained yet"
        )
        raise DataError(f"{error.reason}. {way_out}", argument=error.argument) from error
    return batch


def _opened(folder: Path, run: Run, dataset: Dataset, resume: bool, changed_data: bool) -> Run:
    """The run to train: `run`, or the one in `folder` that goes on. Nothing in `folder` is replaced by another's."""
    earlier = saved_run(folder)
    if earlier is None:
        if resume:
            raise CheckpointError("no training run to resume in it", argument=folder)
        if present := [name for name in (*RUN_FILES, PREVIEWS, TENSORBOARD) if exists(folder / name)]:
            raise CheckpointError(
                f"holds {', '.join(present)} already; choose another folder", argument=folder
            )
        return run
    if not resume:
        raise CheckpointError("holds a training run; resume it, or choose another folder", argument=folder)
    found = describe(dataset)
    for name in {**earlier.data, **found}:
        counts = name in COUNTS and name in earlier.data and name in found
        if earlier.data.get(name) != found.get(name) and not (counts and changed_data):
            how = ". If that is right, go on with --resume --changed-data" if counts else ""
            raise DataError(
                f"its run began with {name} {earlier.data.get(name)}, the data now has {found.get(name)}{how}",
                argument=folder,
            )
    return dataclasses.replace(earlier, data=found) if changed_data else earlier


def _diverged(state: RunState, folder: Path) -> TrainingError:
    """Nothing that is not finite may replace the last save."""
    return TrainingError(
        f"training has diverged: loss or weights of step {state.step} are not finite; {_kept(folder)}. "
        "Begin again with a smaller --lr, a longer --warmup or a smaller --grad-clip",
        argument=folder,
    )


def _kept(folder: Path) -> str:
    return "its last save is kept" if exists(folder / STATE_FILE) else "nothing was saved"


def _moved(batch: Batch, device: torch.device) -> Batch:
    """Labels stay on the CPU, where an objective changes them."""
    target = None if batch.target is None else batch.target.to(device)
    return Batch(batch.x.to(device), batch.label, target)


def _step(batch: Batch, config: RunConfig, number: int) -> Step:
    return Step(batch.x, batch.label, _generator(config.seed, number), config, batch.target, number)


def _train_step(
    state: RunState, objective: Objective, batch: Batch, processes: Processes
) -> dict[str, float]:
    """One step of the run, of this process' own samples `batch`; returns the learning rate of each group."""
    config, number = state.run.config, state.step
    # Dropout layers use the global generator; no two processes the same numbers.
    torch.manual_seed(_mix(config.seed, number, salt=2 + processes.rank))
    steps = shared(batch, config, number, processes, lambda: _generator(config.seed, number))
    found: dict[str, list[Tensor]] = {name: [] for name in state.optimizers}
    rates = {}
    losses = [objective.losses(state.networks, step) for step in steps]
    while drawn := [following for each in losses if (following := _loss(each, found, len(steps), state))]:
        (name, *others) = {name for name, _ in drawn}
        if others or len(drawn) < len(steps):
            raise ConfigError("shares of a batch have other losses than others", argument="losses")
        check_drawn(steps)
        optimizer = state.optimizers[name]
        processes.mean(gradients(optimizer))
        rates[name] = update(optimizer, number, config)
        mean = drawn[0][1] if len(steps) == 1 else torch.stack([loss for _, loss in drawn]).mean()
        found[name].append(mean)
    if idle := [name for name, losses in found.items() if not losses]:
        raise ConfigError(f"the group {idle[0]} got none in step {state.step + 1}", argument="losses")

    # Early on the average forgets faster, or it would keep the random start for 1 / (1 - decay) steps.
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    published = state.published
    with torch.no_grad():
        torch._foreach_lerp_(list(state.averages.parameters()), list(published.parameters()), 1 - decay)
        for average, buffer in zip(state.averages.buffers(), published.buffers(), strict=True):
            average.copy_(buffer)  # what a batch norm has seen is an average already
    total = torch.stack([loss.double() for losses in found.values() for loss in losses])
    processes.mean([total])
    values = total.tolist()
    counts = [len(losses) for losses in found.values()]
    ends = list(itertools.accumulate(counts))
    state.losses.append(tuple(sum(values[e - n : e]) / n for e, n in zip(ends, counts, strict=True)))
    return rates


def _loss(
    losses: Iterator[tuple[str, Tensor]], known: Mapping[str, Any], shares: int, state: RunState
) -> tuple[str, Tensor] | None:
    """The next loss of a share, its gradients added to its group's; None where there are no more."""
    if (following := next(losses, None)) is None:
        return None
    name, loss = following
    if name not in known:
        raise ConfigError(f"{name} is none of the groups {', '.join(known)}", argument="losses")
    backward(state.optimizers[name], loss if shares == 1 else loss / shares)
    return name, loss.detach()


def _publish(state: RunState, folder: Path) -> None:
    """The model as it is now, and the losses that led there."""
    dtype = torch.float16 if state.run.config.weights_dtype == "float16" else torch.float32
    # buffers, such as an order of channels, stay exact
    weights = {name for name, _ in state.averages.named_parameters()}
    tensors = {n: t.to(dtype) if n in weights else t for n, t in state.averages.state_dict().items()}
    save(folder, state.run.spec, tensors)
    columns = list(state.optimizers) if len(state.optimizers) > 1 else ["loss"]
    rows = (",".join([str(i + 1), *(f"{loss:.6f}" for loss in row)]) for i, row in enumerate(state.losses))
    write_atomic(
        folder / LOSS_FILE, "".join(f"{line}\n" for line in (",".join(["step", *columns]), *rows)).encode()
    )


def _recent(state: RunState, unit: str) -> dict[str, str]:
    """The mean of the last losses of each group, for the progress bar."""
    names = list(state.optimizers) if len(state.optimizers) > 1 else [unit]
    tail = state.losses[-50:]
    return {
        name: f"{sum(column) / len(tail):.4f}"
        for name, column in zip(names, zip(*tail, strict=True), strict=True)
    }
