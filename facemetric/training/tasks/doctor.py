"""The doctor: names the illness of a triplet run while it trains, its cause and its remedy, in one line.

Each finding comes from means over WINDOW steps, so that one odd batch does not raise it, and is reported once in a
run. The thresholds:

collapse        The spread of unit embeddings is 1 - |mean|^2: 0 where all are one point, near 1 where they
                cover the sphere. Below 0.05 the mean angle to the mean is under 13 degrees, and identities
                cannot be apart by a margin of 0.2.
stuck           A hinge loss equal to its margin (within 2 %), or a soft margin's equal to log 2, with d_ap and
                d_an equal within 5 %, and at least two fifths of the triplets violating the margin: positives and
                negatives are told apart no better than by chance. Where hardly any violate it, the means are of those
                alone, and they lie about the margin in a good run too.
dead miner      No triplet, or pair, with a loss in a whole window: nothing is learned any more.
one class       Batches without a triplet at all: one identity, or no identity with two images.

Of a loss of pairs, `stuck` is that the mean cosines of genuine and of impostor pairs are equal within 5 % of 1 less
that of the latter. Of a loss of the user's own, which names neither, only the collapse can be seen. A
loss that is not finite is the loop's to stop (loop.py), before it reaches the weights.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from facemetric.training.validation import COLLAPSED

WINDOW = 20  # steps
NEAR_MARGIN = 0.02  # share of the margin
NEAR_EQUAL = 0.05  # share of d_an
AS_BY_CHANCE = 0.4  # share of triplets; where nothing is known, a margin is violated with a chance above 1/2


class Seen(NamedTuple):
    """What the doctor looks at in a step; -1 triplets looked at where the loss names none."""

    loss: float
    active: float
    valid: int
    d_ap: float
    d_an: float
    spread: float


class Doctor:
    """Watches steps; `say` gets each finding once."""

    def __init__(
        self,
        *,
        margin: float,
        soft: bool,
        miner: str,
        say: Callable[[str, str], None],
        loss: str = "triplet",
    ) -> None:
        self.margin, self.soft, self.miner, self.loss = margin, soft, miner, loss
        self.say = say
        self.milder = "all" if miner == "semihard" else "semihard"
        self.window: deque[Seen] = deque(maxlen=WINDOW)
        self.reported: set[str] = set()

    def watch(self, seen: Seen) -> None:
        """Take a step's figures into account, and say what they show."""
        self.window.append(seen)
        if len(self.window) < WINDOW:
            return
        for name, text in self.findings():
            if name not in self.reported:
                self.reported.add(name)
                self.say(name, text)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, so that it reports the same: the window, and what was reported."""
        return {"window": [tuple(seen) for seen in self.window], "said": sorted(self.reported)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.window = deque((Seen(*seen) for seen in state["window"]), maxlen=WINDOW)
        self.reported = set(state["said"])

    def findings(self) -> list[tuple[str, str]]:
        """(name, cause and remedy) of everything that the window shows."""
        mean = Seen(*(sum(column) / len(self.window) for column in zip(*self.window, strict=True)))
        if mean.valid < 0:
            return [self.collapse(mean.spread)] if mean.spread < COLLAPSED else []
        if not self.miner:
            return self.of_pairs(mean)
        if mean.valid == 0:
            return [
                (
                    "one class",
                    f"the last {WINDOW} batches held no triplet: one identity each, or single images; raise "
                    "--batch-size or lower --images-per-identity so that a batch holds two identities, one with "
                    "two images",
                )
            ]
        found = []
        if mean.spread < COLLAPSED:
            found.append(self.collapse(mean.spread))
        elif self.stuck(mean):
            target = "log 2" if self.soft else f"the margin {self.margin:g}"
            found.append(
                (
                    "stuck",
                    f"the loss stays at {target} ({mean.loss:.4f}), with d_ap {mean.d_ap:.3f} and d_an "
                    f"{mean.d_an:.3f} alike: identities are not told apart; start from pretrained weights, lower "
                    f"--lr, or mine with {self.milder}",
                )
            )
        if mean.active == 0:
            found.append(
                (
                    "dead miner",
                    f"no triplet had a loss in {WINDOW} steps: {self.miner} finds nothing to learn; raise --margin or "
                    f"--batch-size{'' if self.miner == 'hard' else ', mine with hard'}, or stop here",
                )
            )
        return found

    def of_pairs(self, mean: Seen) -> list[tuple[str, str]]:
        """What the window of a loss of pairs shows."""
        if mean.valid == 0:
            return [
                (
                    "one class",
                    f"no image of the last {WINDOW} batches had both a positive and a negative: one identity each, or "
                    "single images; raise --batch-size or lower --images-per-identity",
                )
            ]
        found = []
        if mean.spread < COLLAPSED:
            found.append(self.collapse(mean.spread))
        elif mean.d_an - mean.d_ap <= NEAR_EQUAL * mean.d_an:
            found.append(
                (
                    "stuck",
                    f"genuine and impostor pairs have the same mean cosine ({1 - mean.d_ap:.3f} and "
                    f"{1 - mean.d_an:.3f}): identities are not told apart; start from pretrained weights, or lower "
                    "--lr",
                )
            )
        if mean.active == 0:
            found.append(
                (
                    "dead miner",
                    f"no pair had a loss in {WINDOW} steps: {self.loss} finds nothing to learn; change its margin in "
                    "--loss-args, raise --batch-size, or stop here",
                )
            )
        return found

    def collapse(self, spread: float) -> tuple[str, str]:
        """The finding of embeddings that are nearly one point."""
        other = f", or mine with {self.milder} in place of {self.miner}" if self.miner else ""
        return (
            "collapse",
            f"the embeddings have collapsed to nearly one point (spread {spread:.3f} < {COLLAPSED}); lower --lr"
            f"{other}, and start again",
        )

    def stuck(self, mean: Seen) -> bool:
        """Whether the loss is where embeddings that know nothing put it."""
        target = math.log(2) if self.soft else self.margin
        at_target = abs(mean.loss - target) <= NEAR_MARGIN * target
        alike = abs(mean.d_ap - mean.d_an) <= NEAR_EQUAL * max(mean.d_an, 1e-6)
        return at_target and alike and mean.active >= AS_BY_CHANCE * mean.valid


def spread(emb_BD: Tensor) -> Tensor:
    """1 - |mean|^2 of unit embeddings (B, D): 0 where they are one point, near 1 where they cover the sphere."""
    return 1.0 - emb_BD.detach().float().mean(0).square().sum().double()


# What a step tells the doctor beside its figures: the spread, and triplets looked at where the loss names them.
SPREAD, VALID = "doctor/spread", "doctor/valid"


def see(figures: Mapping[str, float]) -> Seen:
    """A step's figures for the doctor, once they are read; without VALID where the loss names no triplets."""
    loss, apart = figures["loss"], figures[SPREAD]
    if VALID not in figures:
        return Seen(loss, 0.0, -1, 0.0, 0.0, apart)
    valid = int(figures[VALID])
    if "mean_positive" in figures:  # of pairs: cosines
        d_ap, d_an = 1 - figures["mean_positive"], 1 - figures["mean_negative"]
        return Seen(loss, valid * (loss > 0), valid, d_ap, d_an, apart)
    return Seen(
        loss=loss,
        active=figures["fraction_positive"] * valid,
        valid=valid,
        d_ap=figures["mean_d_ap"],
        d_an=figures["mean_d_an"],
        spread=apart,
    )
