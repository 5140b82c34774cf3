"""A device that computes on the host and counts: launches, and what makes the host wait for the device.

    with counting() as counted:
        loss = miner(put(rows), labels)
    counted.launches, counted.waits

Its tensors hold real values, refuse to meet those of the CPU as a GPU's do, and take every branch for devices other
than the CPU. An operation is a launch (a GPU may need several for one); views and memory are none. It says nothing of
CUDA's own kernels, and nothing of their speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
except ImportError:
    pytest.skip("this torch is too old to be told of a device in Python", allow_module_level=True)

NAME = "pretend"
# torch learns of a device before its first backward or not at all, so that tests on it have a process of their own.
ALONE = os.environ.get("FACEMETRIC_COUNTING") == "1"
alone = pytest.mark.skipif(not ALONE, reason="run by the test beside it, in a process of its own")
DEVICE = torch.device("cpu")  # until the backend is registered
aten = torch.ops.aten

# Neither launches nor waits: memory, views, questions about shapes.
FREE = {
    *("detach", "alias", "view", "_unsafe_view", "_reshape_alias", "lift_fresh", "is_same_size", "is_pinned"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "set_", "resize_"),
}
# The host has to know their numbers, or how many there are, before it goes on.
WAITING = {
    *(
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
    ),
    *("bincount", "equal", "is_nonzero"),
}


@dataclass
class Counted:
    """What ran between the beginning and the end of `counting`."""

    operations: Counter[str] = field(default_factory=Counter)
    waited_for: Counter[str] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        return sum(self.operations.values())

    @property
    def waits(self) -> int:
        return sum(self.waited_for.values())


now = Counted()


class PretendTensor(torch.Tensor):
    """A tensor on the device; `numbers` are its own, on the host."""

    numbers: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> PretendTensor:
        shell = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
        made = torch.Tensor._make_subclass(cls, shell, False, dispatch_device=True)  # type: ignore[attr-defined]
        made.numbers = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.numbers})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME} tensor to numpy: use Tensor.cpu()")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def item(self) -> Any:
        return aten._local_scalar_dense.default(self)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    __index__ = __int__

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))

    def _parts(self, index: Any) -> tuple[torch.Tensor, list[Any]]:
        """The views of an index, and the tensors that are left to gather by: torch's own way asks for a driver."""
        found: torch.Tensor = self
        axis, gather = 0, []
        for part in index if isinstance(index, tuple) else (index,):
            if part is None:
                found, axis = found.unsqueeze(axis), axis + 1
            elif isinstance(part, slice):
                if part != slice(None):
                    found = aten.slice.Tensor(found, axis, part.start, part.stop, part.step or 1)
                axis += 1
            elif isinstance(part, int):
                found = found.select(axis, part)
            else:
                gather += [None] * (axis - len(gather)) + [torch.as_tensor(part)]
                axis += 1
        return found, gather

    def __getitem__(self, index: Any) -> Any:
        found, gather = self._parts(index)
        return aten.index.Tensor(found, gather) if gather else aten.alias.default(found)

    def __setitem__(self, index: Any, value: Any) -> None:
        found, gather = self._parts(index)
        if gather:
            value = value if isinstance(value, torch.Tensor) else self.new_full((), value)
            aten.index_put_.default(found, gather, value)
        elif isinstance(value, torch.Tensor):
            found.copy_(value)
        else:
            found.fill_(value)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the numbers of its tensors."""
    if func is torch.ops.prim.device.default:
        return DEVICE
    name, schema = func._schema.name.removeprefix("aten::"), func._schema
    leaves, spec = pytree.tree_flatten((args, kwargs))
    ours = any(isinstance(leaf, PretendTensor) for leaf in leaves)
    wanted = kwargs.get("device")
    to_device = wanted is not None and torch.device(wanted).type == NAME
    if not ours and not to_device:
        return func(*args, **kwargs)
    leaves_device = wanted is not None and not to_device
    _check(name, leaves, args)
    _count(name, schema, leaves, kwargs, leaves_device, uploads=to_device and not ours and name == "_to_copy")
    real, real_kwargs = pytree.tree_unflatten(
        [leaf.numbers if isinstance(leaf, PretendTensor) else leaf for leaf in leaves], spec
    )
    if wanted is not None:
        real_kwargs = real_kwargs | {"device": "cpu"}
    out = func(*real, **real_kwargs)
    written = [
        args[i] if i < len(args) else kwargs[argument.name]
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and (i < len(args) or argument.name in kwargs)
    ]
    if written and all(one.alias_info is not None and one.alias_info.is_write for one in schema.returns):
        return written[0] if len(schema.returns) <= 1 else tuple(written)
    if leaves_device or name == "_local_scalar_dense":
        return out
    return pytree.tree_map(lambda v: PretendTensor(v) if isinstance(v, torch.Tensor) else v, out)


def _check(name: str, leaves: list[Any], args: Any) -> None:
    """As on a GPU, a tensor of the CPU may take part where it is a number, or copied."""
    if name in ("copy_", "_to_copy"):
        return
    strays = [
        v for v in leaves if isinstance(v, torch.Tensor) and not isinstance(v, PretendTensor) and v.dim()
    ]
    if strays:
        raise RuntimeError(
            f"expected all tensors to be on the same device: {name} of {tuple(strays[0].shape)} on the CPU"
        )


def _count(
    name: str, schema: Any, leaves: list[Any], kwargs: dict[str, Any], leaves_device: bool, *, uploads: bool
) -> None:
    if (
        any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        or name in FREE
    ):
        return
    if name != "_local_scalar_dense":
        now.operations[name] += 1
    by_booleans = name.startswith("index") and any(
        isinstance(v, torch.Tensor) and v.dtype == torch.bool for v in leaves[1:]
    )
    crosses = leaves_device or uploads
    if name == "copy_":
        crosses = isinstance(leaves[0], PretendTensor) != isinstance(leaves[1], PretendTensor)
    if name in WAITING or (name in ("index", "index_put_") and by_booleans):
        now.waited_for[name] += 1
    elif crosses and not (uploads and kwargs.get("non_blocking")):
        now.waited_for["copy to the host" if leaves_device else "copy"] += 1


class Factories(TorchDispatchMode):
    """Tensors made with device="pretend"."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch's compiler, which nobody asks for here, takes seconds to import

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def put(values: torch.Tensor) -> torch.Tensor:
    """A copy on the device."""
    return PretendTensor(values.detach().clone())


@contextmanager
def counting() -> Iterator[Counted]:
    """Counts what runs on the device, and lets tensors be made there."""
    global now
    register()
    now = Counted()
    with Factories():
        yield now


def register() -> None:
    """Tells torch of the device, once for the process."""
    global DEVICE
    if DEVICE.type == NAME:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    DEVICE = torch.device(NAME, 0)


def run_alone(tests: str) -> None:
    """The tests marked `alone` of "file" or "file::test", in a new process."""
    if ALONE:
        pytest.skip("this is that process")
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", tests]
    ran = subprocess.run(
        words, env=os.environ | {"FACEMETRIC_COUNTING": "1"}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-1000:]
    assert " passed" in ran.stdout
