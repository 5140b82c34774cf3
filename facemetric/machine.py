"""What of the machine is used: the device that computes, the processes that read, the terminal, signals and threads.

torch and tqdm are imported by the functions that need them: `facemetric --help` and a mistyped option need neither."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from facemetric.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

MIB = 2**20
_progress_shown = False
TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of mallopt(3) in glibc's malloc.h
MOST = 2**31 - 1


def import_timm() -> None:
    """Import torchvision and timm without torch._dynamo, a third of what a short command costs.

    While they are imported they take two functions of it, for detection models and one vision transformer. They get
    ones that call the true functions when they are called; everything else is the true module's."""
    if {"torchvision", "timm", "torch._dynamo"} & set(sys.modules):
        return
    import torch  # noqa: F401 (it may import torch._dynamo itself)

    if "torch._dynamo" in sys.modules:
        return

    def is_compile_supported(device_type: str) -> bool:
        return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)

    def disable(function: Any = None, *options: Any, **named: Any) -> Any:
        if not isinstance(function, FunctionType):
            return true_attribute("torch._dynamo", "disable")(function, *options, **named)

        @functools.wraps(function)
        def later(*arguments: Any, **keywords: Any) -> Any:
            disabled = importlib.import_module("torch._dynamo").disable(function, *options, **named)
            return disabled(*arguments, **keywords)

        return later

    names = ("torch._dynamo", "torch._dynamo.utils")

    def true_attribute(module: str, name: str) -> Any:
        if name.startswith("__"):  # whoever looks through sys.modules, as `inspect` does
            raise AttributeError(name)
        remove()
        return getattr(importlib.import_module(module), name)

    def remove() -> None:
        for name in names:
            if sys.modules.get(name) in stand_ins:
                del sys.modules[name]

    stand_ins = [ModuleType(name) for name in names]
    stand_ins[0].__path__ = []
    stand_ins[0].disable = disable  # type: ignore[attr-defined]
    stand_ins[1].is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
    for name, stand_in in zip(names, stand_ins, strict=True):
        stand_in.__getattr__ = functools.partial(true_attribute, name)  # type: ignore[method-assign]
        sys.modules[name] = stand_in
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    finally:
        remove()


def show_progress(on: bool = True) -> bool:
    """Switch what commands write on the terminal while they work, lines and progress bars, on or off.

    Off when facemetric is imported, so that scripts and notebooks stay quiet; the command line turns it on.
    Returns what it was before, to restore it."""
    global _progress_shown
    before, _progress_shown = _progress_shown, on
    return before


def progress_shown() -> bool:
    """Whether progress is to be shown (`show_progress`)."""
    return _progress_shown


def say(*lines: str) -> None:
    """Print lines on stdout where progress is shown, above a bar that is being drawn; nothing otherwise."""
    if not _progress_shown or not lines:
        return
    text = "\n".join(lines)
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text)
    else:
        print(text)
    sys.stdout.flush()


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    total: float | None = None,
    desc: str = "",
    unit: str = "it",
    unit_scale: bool = False,
    delay: float = 2.0,
) -> Any:
    """A tqdm bar over `items` (or of `total`, moved by `update`) that is gone when it ends.

    Silent where progress is not shown, stderr is no terminal, or `desc` is empty. `delay`: seconds until it appears."""
    from tqdm import tqdm

    quiet = None if _progress_shown and desc else True  # None: tqdm looks whether stderr is a terminal
    return tqdm(
        items,
        total=total,
        desc=desc,
        unit=unit,
        unit_scale=unit_scale,
        delay=delay,
        leave=False,
        disable=quiet,
    )


@dataclass
class Measured:
    """Wall time in seconds; the peak in MiB: of a CUDA device where one was used, else of the process (0: unknown)."""

    seconds: float = 0.0
    peak_mib: float = 0.0


@contextlib.contextmanager
def measuring(found: Measured) -> Iterator[None]:
    """Fill `found` with what the body takes, when it ends, even by an error."""
    import torch

    start, cuda = time.monotonic(), torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    give_back_freed_memory()  # else the body would seem to need what the one before it held
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the process's peak is from now on that of the body
    try:
        yield
    finally:
        found.seconds = time.monotonic() - start
        on_device = torch.cuda.max_memory_allocated() if cuda else 0
        found.peak_mib = (on_device or resident_peak()) / MIB


def resident_peak() -> int:
    """Bytes of memory that this process held at most since the peak was last reset; 0 where it is not Linux."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, to use them again; False where the C library is not glibc.

    glibc gives blocks above 32 MiB back to the kernel at once. The activations of a training step are such
    blocks, so that every layer would wait for new pages, filled with zeros: measured, a step of hgnetv2_b0 with
    128 images of 88 pixels takes an eighth less time without that, and no more memory at its peak."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, MOST))


def give_back_freed_memory() -> None:
    """Hand what this process has freed back to the kernel now, so that its peak from here on is that of new work."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def cuda_possible() -> bool:
    """Whether this machine may have a device for CUDA; torch, which knows, is not imported to learn that there is
    none."""
    if torch := sys.modules.get("torch"):
        return bool(torch.cuda.is_available())
    places = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")  # NVIDIA, under Windows, AMD
    return sys.platform != "darwin" and (sys.platform != "linux" or any(map(os.path.exists, places)))


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one. Raises ConfigError where it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {name!r}{did_you_mean(name, ['auto', 'cpu', 'cuda', 'cuda:0'])}"
        ) from error
    if device.type == "mps":
        raise ConfigError(
            f"the device {name}: losses and figures are added up in float64, which Apple's GPUs do not have; use cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"the device {name} is not supported; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"the device {name} was asked for, but torch {torch.__version__} finds no CUDA; use cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"the device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    return device


def processes() -> int:
    """Processes that torchrun started, on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_cores() -> int:
    """Cores for this process: those of the machine, shared out over the processes that torchrun started on it."""
    return max(1, (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def pick_workers(workers: int) -> int:
    """The number of reading processes: as asked for, or half its cores, 1 to 8; none where two train.

    There a second process takes from the training what it gives: measured on two cores, reading in place
    adds 10 % to a step of lcnet_050, a worker 0 to 5 % and a process more (tools/bench_loader.py --wall)."""
    if workers >= 0:
        return workers
    import torch

    cores = own_cores()
    if cores <= 2 and not torch.cuda.is_available():
        return 0
    return max(1, min(8, cores // 2))


def sigterm_handler(main_process: int) -> Callable[[int, Any], None]:
    """SIGTERM tidies up as Ctrl-C does; a training in its steps writes a checkpoint first (training/loop.py)."""

    def interrupt(number: int, frame: Any) -> None:
        if os.getpid() == main_process:
            raise KeyboardInterrupt
        os._exit(128 + number)  # a process that reads images

    return interrupt


def ignore_disk_error_in_thread(raised: Any) -> None:
    """TensorBoard's thread meets a full disk too: the main one says it, so this one is silent."""
    if not isinstance(raised.exc_value, OSError):
        threading.__excepthook__(raised)
