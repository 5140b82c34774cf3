"""A device that is none: tensors say `pretend:0`, their numbers lie on the host, and what would make the host wait for
a GPU is counted, with the line that asked for it.

Code takes the branches of a GPU on it; mixing devices raises, as there. It is no evidence of CUDA's own kernels. torch
knows it from `start` on to the end of the process, so that tests run it in a child."""

from __future__ import annotations

import collections
import traceback
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
# Operators whose result's size depends on the numbers.
SIZED_BY_VALUES = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave",
}
INDEXING = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}
waits: collections.Counter[str] = collections.Counter()  # by "what file:line"


def wait(what: str) -> None:
    """Count a synchronisation, and where it came from."""
    frames = [frame for frame in traceback.extract_stack() if "/facemetric/" in frame.filename]
    place = f"{frames[-1].filename.split('/facemetric/')[-1]}:{frames[-1].lineno}" if frames else "elsewhere"
    waits[f"{what} {place}"] += 1


def available() -> bool:
    """Whether this torch can have such a device."""
    return hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")


def start() -> torch.device:
    """Make the device known to torch; once in a process."""

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    class Module(torch.utils.backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16]

    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    plain = torch.tensor

    def tensor(*values: Any, device: Any = None, **options: Any) -> Any:
        made = plain(*values, **options)
        if device is None or torch.device(device).type != NAME:
            return made
        wait("upload of numbers")
        return OnDevice(made)

    torch.tensor = tensor  # type: ignore[assignment]
    return torch.device(NAME, 0)


class OnDevice(torch.Tensor):
    """A tensor of the device: an empty shell for torch, with the numbers beside it."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        shell = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shell, requires_grad, dispatch_device=True)  # type: ignore[attr-defined]
        made.host = real
        return made

    def __init__(self, real: torch.Tensor, requires_grad: bool = False) -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({tuple(self.host.shape)}, {self.host.dtype})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor of a device is no numpy array; .cpu() first")

    __array__ = numpy

    def item(self) -> Any:
        wait("item")
        return self.host.item()

    def tolist(self) -> Any:
        wait("tolist")
        return self.host.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    __index__ = __int__

    def __bool__(self) -> bool:
        return bool(self.item())

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __getitem__(self, at: Any) -> Any:
        view, rest = _views(self, at)
        return torch.ops.aten.index.Tensor(view, rest) if rest else view

    def __setitem__(self, at: Any, value: Any) -> None:
        view, rest = _views(self, at)
        if not isinstance(value, torch.Tensor):
            if not rest:
                torch.ops.aten.fill_.Scalar(view, value)
                return
            value = OnDevice(torch.full((), value, dtype=self.host.dtype))
        if rest:
            torch.ops.aten.index_put_.default(view, rest, value)
        else:
            torch.ops.aten.copy_.default(view, value)

    def new_tensor(self, data: Any, **options: Any) -> Any:
        wait("upload of numbers")
        return OnDevice(torch.tensor(data, dtype=options.get("dtype", self.host.dtype)))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Watched(TorchDispatchMode):
    """Within it tensors can be made on the device, and brought there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def _views(tensor: Any, at: Any) -> tuple[Any, list[Any]]:
    """Python's indexing as operators: slices and numbers done, index tensors left over."""
    parts = list(at) if isinstance(at, tuple) else [at]
    if Ellipsis in [part for part in parts if not isinstance(part, torch.Tensor)]:
        here = next(i for i, part in enumerate(parts) if part is Ellipsis)
        used = sum(part is not None and part is not Ellipsis for part in parts)
        parts[here : here + 1] = [slice(None)] * (tensor.dim() - used)
    aten, dim, rest, view = torch.ops.aten, 0, [], aten_alias(tensor)
    for part in parts:
        if part is None:
            view, dim = aten.unsqueeze.default(view, dim), dim + 1
        elif isinstance(part, slice):
            if part != slice(None):
                view = aten.slice.Tensor(view, dim, part.start, part.stop, part.step or 1)
            dim += 1
        elif isinstance(part, int):
            view = aten.select.int(view, dim, part)
        else:
            rest += [None] * (dim - len(rest)) + [torch.as_tensor(part)]
            dim += 1
    return view, rest


def aten_alias(tensor: Any) -> Any:
    """The tensor once more, as a view of its own."""
    return torch.ops.aten.alias.default(tensor)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator on the host's numbers, counted where it would wait."""
    if func is torch.ops.prim.device.default:
        return torch.device(NAME, 0)
    name = func._schema.name
    flat, spec = pytree.tree_flatten((args, kwargs))
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if not any(isinstance(part, OnDevice) for part in flat) and (device is None or device.type != NAME):
        return func(*args, **kwargs)
    look(func, name, args, flat, kwargs)
    real, named = pytree.tree_unflatten([p.host if isinstance(p, OnDevice) else p for p in flat], spec)
    if device is not None:
        named = {key: value for key, value in named.items() if key != "pin_memory"} | {"device": "cpu"}
    found = func(*real, **named)
    schema = func._schema
    if schema.returns and all(r.alias_info is not None and r.alias_info.is_write for r in schema.returns):
        given = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
        written = [given[a.name] for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        return written[0] if len(schema.returns) == 1 else tuple(written)
    if name == "aten::_local_scalar_dense" or (device is not None and device.type == "cpu"):
        return found
    return pytree.tree_map(lambda v: OnDevice(v) if isinstance(v, torch.Tensor) else v, found)


def look(func: Any, name: str, args: Any, flat: list[Any], kwargs: dict[str, Any]) -> None:
    """Raise for operands on two devices; count what waits."""
    copies = name in ("aten::copy_", "aten::_to_copy")
    ours = [isinstance(part, OnDevice) for part in flat if isinstance(part, torch.Tensor)]
    if copies and not kwargs.get("non_blocking", name == "aten::copy_" and len(args) > 2 and args[2]):
        sides = set(ours[:2])
        if name == "aten::_to_copy" and kwargs.get("device") is not None:
            sides.add(torch.device(kwargs["device"]).type == NAME)
        if len(sides) == 2:
            wait("copy")
    elif not copies:
        for part in flat:
            if isinstance(part, torch.Tensor) and not isinstance(part, OnDevice) and part.dim():
                if name not in INDEXING:
                    raise RuntimeError(f"operands on two devices: {name}")
                wait("index on the host")
    if name in SIZED_BY_VALUES or name == "aten::_local_scalar_dense":
        wait(name)
    if name in INDEXING and any(
        isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in args[1]
    ):
        wait("index of booleans")
