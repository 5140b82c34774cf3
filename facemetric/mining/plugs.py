"""Losses from elsewhere: a function or a class of your own, or any loss of an installed pytorch-metric-learning.

my_module:function              called as function(embeddings, labels, **arguments)
my_module:Class                 made as Class(**arguments), with `identities` and `embedding_size` where it names
                                them, then called as loss(embeddings, labels); what it learns is trained and saved
pml:MultiSimilarityLoss         the loss of that name there; `miner`, `distance`, `reducer` and so on are tables:
                                miner = {class = "MultiSimilarityMiner", epsilon = 0.2}
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from facemetric.errors import ConfigError, did_you_mean
from facemetric.mining.miners import find_function

PML = "pytorch_metric_learning"
# Where a table's class is looked for, by the name of the argument.
PML_ROOMS = {
    "miner": ("miners",),
    "distance": ("distances",),
    "reducer": ("reducers",),
    "embedding_regularizer": ("regularizers",),
    "weight_regularizer": ("regularizers",),
}
SIZES = ("identities", "num_classes", "embedding_size")
ROOM_WORDS = {
    "losses": "loss",
    "miners": "miner",
    "distances": "distance",
    "reducers": "reducer",
    "regularizers": "regularizer",
}
NOT_MADE = (TypeError, ValueError, AssertionError, AttributeError, KeyError, NotImplementedError)

Function = Callable[[Tensor, Tensor], Any]
Make = Callable[[int, int], Function]  # from the numbers of identities and of an embedding


class Plug:
    """A loss from elsewhere: `function`, or `make` where it is made of sizes that the data tell."""

    def __init__(self, function: Function | None = None, make: Make | None = None) -> None:
        self.function, self.make = function, make


def find_plug(name: str, arguments: Mapping[str, Any]) -> Plug:
    """What "module:name" or "pml:Name" is, with its arguments.

    Errors: ConfigError for a module that does not import, a name it lacks, arguments that it does not take.
    """
    if name.startswith("pml:"):
        made = _pml(name.removeprefix("pml:"), arguments)
        return Plug(made) if isinstance(made, nn.Module) else Plug(make=made)
    found = find_function("loss", name)
    check_arguments(name, found, arguments, first=0 if isinstance(found, type) else 2)
    if not isinstance(found, type):
        return Plug(partial(found, **arguments) if arguments else found)
    sizes = [size for size in SIZES if size in inspect.signature(found).parameters]
    if sizes:
        return Plug(make=partial(_make, name, found, arguments))
    return Plug(_make(name, found, arguments, 0, 0))


def _make(
    name: str, kind: type, arguments: Mapping[str, Any], identities: int, embedding_size: int
) -> Function:
    """An object of a class, with the sizes that its signature names and nobody gave."""
    known = {"identities": identities, "num_classes": identities, "embedding_size": embedding_size}
    taken = {size: known[size] for size in SIZES if size in inspect.signature(kind).parameters}
    try:
        made: Function = kind(**(taken | dict(arguments)))
    except NOT_MADE as error:
        raise ConfigError(
            f"loss {name!r} cannot be made: {error}; give what it needs with --loss-args"
        ) from error
    if not callable(made):
        raise ConfigError(
            f"loss {name!r} is not callable; needed is __call__(embeddings, labels), or forward"
        )
    return made


def check_arguments(
    name: str, function: Callable[..., Any], arguments: Mapping[str, Any], first: int
) -> None:
    """Raises ConfigError for an argument that a function does not take; its `first` ones are given by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # some built-in functions have none
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [p.name for p in parameters[first:] if p.kind is not p.VAR_POSITIONAL and p.name not in SIZES]
    for argument in arguments:
        if argument not in known:
            nearest = did_you_mean(argument, known) if known else ": it takes none"
            raise ConfigError(f"loss {name!r} has no argument {argument!r}{nearest}")


def _pml(name: str, arguments: Mapping[str, Any]) -> nn.Module | Make:
    """A loss of pytorch-metric-learning, with its miner where there is one."""
    kind = _pml_class("losses", name)
    rest = {key: _pml_part(key, value) for key, value in arguments.items()}
    miner = rest.pop("miner", None)
    if miner is not None and not isinstance(miner, nn.Module):
        raise ConfigError(
            f'miner is {miner!r}; needed is a table such as miner = {{class = "MultiSimilarityMiner"}}'
        )

    def make(identities: int, embedding_size: int) -> nn.Module:
        made = _make(f"pml:{name}", kind, rest, identities, embedding_size)
        return PmlLoss(made, miner)  # type: ignore[arg-type]

    if name in ("CrossBatchMemory", "SelfSupervisedLoss"):
        raise ConfigError(
            f"loss 'pml:{name}' wraps another loss; name that one, with --memory for past batches where it has them"
        )
    if any(size in inspect.signature(kind).parameters for size in SIZES):
        return make
    return make(0, 0)


def _pml_room(room: str) -> Any:
    try:
        return importlib.import_module(f"{PML}.{room}")
    except ImportError as error:
        raise ConfigError(
            f"losses pml:NAME need pytorch-metric-learning ({error}); pip install 'facemetric[losses]'"
        ) from error


def _pml_class(room: str, name: str) -> type:
    """A class of one of its rooms. Raises ConfigError that names the nearest."""
    module = _pml_room(room)
    known = [
        key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("Base")
    ]
    if name not in known:
        raise ConfigError(
            f"pytorch-metric-learning has no {ROOM_WORDS[room]} {name!r}{did_you_mean(name, known)}"
        )
    found: type = getattr(module, name)
    return found


def _pml_part(key: str, value: Any) -> Any:
    """An argument as it is; a table with `class` as an object of that class."""
    if not isinstance(value, Mapping):
        return value
    if "class" not in value or key not in PML_ROOMS:
        raise ConfigError(
            f"{key} is {dict(value)!r}; a table needs a class, and is for {', '.join(PML_ROOMS)}"
        )
    kind = _pml_class(PML_ROOMS[key][0], str(value["class"]))
    arguments = {name: _pml_part(name, part) for name, part in value.items() if name != "class"}
    try:
        return kind(**arguments)
    except NOT_MADE as error:
        raise ConfigError(f"{key} {value['class']} cannot be made: {error}") from error


class PmlLoss(nn.Module):
    """A loss of pytorch-metric-learning behind its miner, as a function of embeddings and labels."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        if self.miner is None:
            found: Tensor = self.loss(embeddings_BD, labels_B)
        else:
            found = self.loss(embeddings_BD, labels_B, self.miner(embeddings_BD, labels_B))
        return found
