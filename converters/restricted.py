"""Pickles of NVlabs' torch_utils.persistence, read by a closed list of names: weights and plain values, no code.

Such a pickle holds, for each network and layer, the source text of its module, the name of its class, and its
attributes. Reading it as its project does compiles and runs that text. Here every name in the pickle stands for a
function of this file; a name that is not in `NAMES` is an error, the source text is a string like others, and what is
built is a tree of `Node`.
"""

from __future__ import annotations

import io
import mmap
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastgen.errors import CheckpointError

from .opening import check_extent, check_file
from .pickle_scan import scan

MARK = b"torch_utils.persistence"
OLD_MARK = b"dnnlib.tflib.network"  # of TensorFlow
SEARCHED = 1 << 20  # bytes from the beginning; the first network stands there
MAX_DEPTH, MAX_NODES = 16, 10_000
STORAGE_PICKLES = 5  # before the numbers: a magic one, a version, facts of the system, the storage, its key


@dataclass(frozen=True)
class Node:
    """A network or layer of the pickle. kind: the name of its class; attributes: those that are plain values."""

    kind: str
    attributes: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    children: Mapping[str, Node] = field(repr=False)

    def all_tensors(self) -> dict[str, Tensor]:
        """Its tensors and those within, by names with dots."""
        found = dict(self.tensors)
        for name, child in self.children.items():
            found |= {f"{name}.{inner}": tensor for inner, tensor in child.all_tensors().items()}
        return found

    def walk(self, name: str = "") -> list[tuple[str, Node]]:
        """Itself and all within, each with its name."""
        found = [(name, self)]
        for key, child in self.children.items():
            found += child.walk(f"{name}.{key}" if name else key)
        return found


def marked(path: Path) -> bytes | None:
    """Which of `MARK` and `OLD_MARK` stands in a pickle; None: neither, or it is none. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(SEARCHED)
    if not start.startswith(b"\x80"):
        return None
    return next((mark for mark in (MARK, OLD_MARK) if mark in start), None)


def read(path: Path) -> dict[str, Any]:
    """What lies at the top of the pickle: trees as `_Object`, for `tree`, and plain values.

    Raises CheckpointError for names that are not in the list, for what is damaged or ends early, for what `scan`
    refuses, and for nothing at the top that has names.
    """
    check_file(path)
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                scan(content)
            value = _Reader(file).load()
        except Exception as error:  # a damaged pickle raises any type of error
            raise _refusal(path, error) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"expected networks by name, got {type(value).__name__}", argument=path)
    return {name: inner for name, inner in value.items() if isinstance(name, str)}


def tree(value: Any, path: Path) -> Node:
    """The network that one of `read`'s values is, with its tensors read. Raises CheckpointError."""
    if not isinstance(value, _Object):
        raise CheckpointError(f"expected a network, got {type(value).__name__}", argument=path)
    try:
        made = _node(value, 0, [0])
    except CheckpointError:
        raise
    except Exception as error:  # of sizes and strides that do not go together, and of storages that are none
        raise _refusal(path, error) from error
    check_extent(path, made.all_tensors())
    return made


def _refusal(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, _RefusedName):
        return CheckpointError(
            f"holds {error.name}, which is no part of NVlabs' networks; nothing of a pickle is executed, and only "
            "weights and arguments are read",
            argument=path,
        )
    said = "it ends early" if isinstance(error, EOFError) else str(error).splitlines()[:1]
    return CheckpointError(
        f"is no whole pickle of networks: {type(error).__name__}: {said if isinstance(said, str) else ''.join(said)}; "
        "the download may be incomplete: fetch it again",
        argument=path,
    )


class _RefusedName(pickle.UnpicklingError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name if name.isprintable() and len(name) <= 120 else ascii(name[:120])


class _Function:
    """A function that a pickle may call. It has no attributes that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a function has no state")


class _Opaque:
    """A value that is not needed, such as a number of NumPy: whatever state it is given is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(dict):
    """EasyDict of dnnlib, as a plain dictionary."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True, slots=True, eq=False)
class _Object:
    """A network or layer: the name of its class, and its attributes."""

    kind: str
    state: dict[str, Any] = field(repr=False)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a network has no further state")


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """The numbers of tensors, as torch.save wrote them, not read yet. held: read ones, by the bytes they are of."""

    data: bytes = field(repr=False)
    held: dict[int, Any] = field(repr=False)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a storage has no further state")

    def numbers(self) -> Any:
        """A storage of PyTorch, of numbers of one type."""
        if id(self.data) not in self.held:
            if not self.data.startswith(b"\x80"):
                raise pickle.UnpicklingError("expected pickles of a storage")
            content = io.BytesIO(self.data)
            for _ in range(STORAGE_PICKLES):
                scan(content)
            found = torch.load(io.BytesIO(self.data), map_location="cpu", weights_only=True)
            if not isinstance(found, torch.storage.TypedStorage):
                raise pickle.UnpicklingError(f"expected a storage, got {type(found).__name__}")
            self.held[id(self.data)] = found
        return self.held[id(self.data)]


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A tensor that is not read yet."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a tensor has no further state")

    def made(self) -> Tensor:
        """The tensor. Raises UnpicklingError where it reaches out of its storage, which PyTorch would make longer."""
        numbers = self.storage.numbers()
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if 0 not in self.size and last >= len(numbers):
            raise pickle.UnpicklingError(
                f"a tensor of {list(self.size)} in a storage of {len(numbers)} numbers"
            )
        empty = torch.empty(0, dtype=numbers.dtype, device="cpu")
        return empty.set_(numbers._untyped_storage, self.offset, self.size, self.stride)


def _object(meta: Any) -> _Object:
    """A persistent object. Its source text, meta["module_src"], is looked at by nobody."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise pickle.UnpicklingError("expected the description of an object")
    kind, state = meta.get("class_name"), meta.get("state")
    if not isinstance(kind, str) or not isinstance(state, dict):
        raise pickle.UnpicklingError("expected the description of an object")
    return _Object(kind, state)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    """As torch._utils._rebuild_tensor_v2."""
    size, stride = tuple(size), tuple(stride)
    whole = all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    if not isinstance(storage, _Storage) or not whole or len(size) != len(stride):
        raise pickle.UnpicklingError("expected a storage, an offset, sizes and strides")
    return _Tensor(storage, offset, size, stride)


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    """As torch._utils._rebuild_parameter."""
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError("expected a tensor")
    return tensor


def _bytes(text: Any, encoding: Any) -> bytes:
    """As _codecs.encode, which stands for bytes in pickles of protocol 2."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("expected bytes as text")
    return text.encode("latin1")


def _size(*sizes: Any) -> tuple[int, ...]:
    """As torch.Size. Of ints alone: tuples made here would be nested unseen by `scan`."""
    found = tuple(*sizes)
    if not all(type(n) is int for n in found):
        raise pickle.UnpicklingError("expected sizes")
    return found


def _opaque(*_: Any) -> _Opaque:
    return _Opaque()


# Every name that a pickle may hold, and what it stands for here; `_load_from_bytes` needs the reader.
NAMES: Mapping[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Function(_object),
    ("dnnlib.util", "EasyDict"): _Dict,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
    ("collections", "OrderedDict"): _Function(lambda *items: dict(*items)),
    ("_codecs", "encode"): _Function(_bytes),
    ("builtins", "set"): _Function(lambda *items: set(*items)),
    ("__builtin__", "set"): _Function(lambda *items: set(*items)),
    ("builtins", "slice"): _Function(_opaque),
    ("torch", "Size"): _Function(_size),
    ("torch", "device"): _Function(_opaque),
    ("numpy.core.multiarray", "scalar"): _Function(_opaque),
    ("numpy._core.multiarray", "scalar"): _Function(_opaque),
    ("numpy.core.multiarray", "_reconstruct"): _Function(_opaque),
    ("numpy._core.multiarray", "_reconstruct"): _Function(_opaque),
    ("numpy", "dtype"): _Function(_opaque),
    ("numpy", "ndarray"): _Function(_opaque),
    **{("torch", name): _Opaque() for name in ("float16", "bfloat16", "float32", "float64", "int64")},
}


class _Reader(pickle.Unpickler):
    """Of `NAMES` alone; whatever a pickle asks for by name is looked up there, and nothing is imported."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.held: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _Function(self._storage)
        try:
            return NAMES[module, name]
        except KeyError:
            raise _RefusedName(f"{module}.{name}") from None

    def _storage(self, data: Any) -> _Storage:
        if type(data) is not bytes:
            raise pickle.UnpicklingError("expected the bytes of a storage")
        return _Storage(data, self.held)


def _node(value: _Object, depth: int, count: list[int]) -> Node:
    count[0] += 1
    if depth > MAX_DEPTH or count[0] > MAX_NODES:
        raise pickle.UnpicklingError("networks within networks without end")
    tensors: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        for name, tensor in _named(value.state.get(group, {})).items():
            if isinstance(tensor, _Tensor):
                tensors[name] = tensor.made()
            elif tensor is not None:
                raise pickle.UnpicklingError(f"{name} is {type(tensor).__name__}, expected a tensor")
    children = {}
    for name, child in _named(value.state.get("_modules", {})).items():
        if isinstance(child, _Object):
            children[name] = _node(child, depth + 1, count)
        elif child is not None:
            raise pickle.UnpicklingError(f"{name} is {type(child).__name__}, expected a layer")
    plain = {
        name: attribute
        for name, attribute in value.state.items()
        if isinstance(name, str) and not name.startswith("_") and _plain(attribute)
    }
    return Node(value.kind, plain, tensors, children)


def _named(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise pickle.UnpicklingError("expected tensors or layers by name")
    return values


def _plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)
