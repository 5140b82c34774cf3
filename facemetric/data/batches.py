"""Which images make a batch: shuffled, or P identities x K images.

The order is a pure function of (seed, epoch). The global batch is the same for every world size; each rank
takes its slice of it, at most one image more than another. Making an epoch costs a sort of the index, a step
costs the same for any size of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from facemetric.errors import ConfigError, plural

SHUFFLED, IDENTITIES = 1, 2  # so that two samplers of one seed do not share their random numbers


class Steps(Sequence[np.ndarray]):
    """The row arrays (int64) of the steps of one epoch, cut from `order` when asked for."""

    def __init__(self, order: np.ndarray, bounds: tuple[int, int], share: tuple[int, int]) -> None:
        self.order = order
        self.batch_size, self.steps = bounds
        self.rank, self.world_size = share

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]
        if not -self.steps <= step < self.steps:
            raise IndexError(step)
        return self.own(self.rows(step % self.steps))

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[step] for step in range(self.steps))

    def rows(self, step: int) -> np.ndarray:
        """The global batch of a step."""
        return self.order[step * self.batch_size : (step + 1) * self.batch_size]

    def own(self, of_batch: np.ndarray) -> np.ndarray:
        """This rank's part of what the global batch has: its rows, or anything drawn for them."""
        return _slice(of_batch, self.rank, self.world_size)


def chunks(count: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Steps:
    """All of `count` rows in their order, the last batch smaller: for embedding."""
    _check(batch_size, rank, world_size)
    return Steps(np.arange(count), (batch_size, -(-count // batch_size)), (rank, world_size))


class ShuffledBatches:
    """Every row once an epoch, in another order each time; or at most `cap` rows of each label, drawn again
    each time.

    `labels` (N,) are the rows' identities; `cap` 0 takes all. `batch_size` is that of all ranks together. With
    `drop_last` the rows that do not fill a batch wait for another epoch, as batch statistics of a few images
    are bad ones.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        cap: int = 0,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(batch_size, rank, world_size)
        self.labels, self.cap = np.asarray(labels), cap
        self.count = len(labels)
        if cap:
            self.count = int(np.minimum(np.unique(self.labels, return_counts=True)[1], cap).sum())
        if self.count < (batch_size if drop_last else 1):
            raise ConfigError(
                f"{plural(self.count, 'image')}, a batch needs {batch_size}; lower --batch-size to {self.count}"
            )
        self.batch_size, self.seed, self.share = batch_size, seed, (rank, world_size)
        self.steps = self.count // batch_size if drop_last else -(-self.count // batch_size)

    def epoch(self, epoch: int) -> Steps:
        """The steps of an epoch."""
        generator = _generator(self.seed, epoch, SHUFFLED)
        order = generator.permutation(len(self.labels))
        if self.cap:  # the first ones of each identity; shuffled again, as those of a rich one stand early
            order = generator.permutation(order[places_within(self.labels[order]) < self.cap])
        return Steps(order, (self.batch_size, self.steps), self.share)


class IdentityBatches:
    """P identities x K images a batch.

    The identities of an epoch walk through shuffled rounds, so that each comes as often as any other, and
    never twice in a batch. In each round an identity gives its next K images, in an order shuffled for the
    epoch; one with fewer than K gives all it has. `steps` = 0 takes ceil(N / (P K)) steps, about as many
    images as there are. Source of the sampling: Hermans et al. 2017, arXiv:1703.07737, section 2.
    """

    def __init__(
        self,
        labels: np.ndarray,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int,
        *,
        steps: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(identities_per_batch * images_per_identity, rank, world_size)
        self.p, self.k = identities_per_batch, images_per_identity
        _, self.labels = np.unique(np.asarray(labels), return_inverse=True)
        self.counts = np.bincount(self.labels)
        found = len(self.counts)
        if found < self.p:
            raise ConfigError(
                f"{plural(found, 'identity', 'identities')}, the batch needs {self.p}; ask for {found} or less"
            )
        self.starts = np.cumsum(self.counts) - self.counts
        self.seed, self.share = seed, (rank, world_size)
        self.steps = steps or -(-len(self.labels) // (self.p * self.k))

    def epoch(self, epoch: int, alike: np.ndarray | None = None, group: int = 0) -> IdentitySteps:
        """The steps of an epoch; `alike` (C, k), the identities most like each, nearest first, come in groups of
        `group` that are in one batch."""
        generator = _generator(self.seed, epoch, IDENTITIES)
        shuffled = generator.permutation(len(self.labels))
        order = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        rounds = identity_rounds(generator, len(self.counts), self.p, self.steps, alike, group)
        return IdentitySteps(self, order, rounds)


class IdentitySteps(Steps):
    """`order` (N,): rows by identity, shuffled within each; `rounds` (steps P,): the identities in turn."""

    def __init__(self, batches: IdentityBatches, order: np.ndarray, rounds: np.ndarray) -> None:
        super().__init__(order, (batches.p, batches.steps), batches.share)
        self.rounds, self.k = rounds, batches.k
        self.starts, self.counts = batches.starts, batches.counts

    def rows(self, step: int) -> np.ndarray:
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        identities = self.rounds[places]
        counts = self.counts[identities]
        turn = places // len(self.counts)  # each round holds each identity once
        nth = np.arange(self.k)
        picked = self.starts[identities][:, None] + (turn[:, None] * self.k + nth) % counts[:, None]
        return self.order[picked[nth < counts[:, None]]]


def places_within(labels: np.ndarray) -> np.ndarray:
    """The place of each row among those of its label, int64 (N,): 0 for the first that comes."""
    grouped = np.argsort(labels, kind="stable")
    _, counts = np.unique(labels, return_counts=True)
    places = np.empty(len(labels), np.int64)
    places[grouped] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return places


def identity_rounds(
    generator: np.random.Generator,
    identities: int,
    per_batch: int,
    steps: int,
    alike: np.ndarray | None = None,
    group: int = 0,
) -> np.ndarray:
    """(steps per_batch,) identities in shuffled rounds, none twice in one batch; with `alike`, in shuffled groups.

    Where a batch spans two rounds, those the first round gave to it are moved behind in the second.
    """
    rounds: list[np.ndarray] = []
    length = 0
    while length < steps * per_batch:
        fresh = generator.permutation(identities) if alike is None else grouped(generator, alike, group)
        begun = length % per_batch  # of the batch that the last round left unfinished
        if begun:
            taken = np.isin(fresh, rounds[-1][-begun:])
            head = np.flatnonzero(taken[: per_batch - begun])
            free = np.flatnonzero(~taken[per_batch - begun :])[: len(head)] + per_batch - begun
            fresh[head], fresh[free] = fresh[free], fresh[head]
        rounds.append(fresh)
        length += identities
    return np.concatenate(rounds)[: steps * per_batch]


def grouped(generator: np.random.Generator, alike: np.ndarray, group: int) -> np.ndarray:
    """All C identities once, in shuffled groups of at most `group`: one drawn at random, then those of its `alike`
    (C, k), nearest first, that are in no group yet."""
    free = np.ones(len(alike), bool)
    groups = []
    for identity in generator.permutation(len(alike)).tolist():
        if not free[identity]:
            continue
        free[identity] = False
        near = alike[identity]
        near = near[free[near]][: group - 1]
        free[near] = False
        groups.append(np.concatenate([[identity], near]))
    return np.concatenate([groups[i] for i in generator.permutation(len(groups))]).astype(np.int64)


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, purpose))


def _slice(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's part: sizes differ by one at most."""
    if world_size == 1:
        return rows
    return rows[len(rows) * rank // world_size : len(rows) * (rank + 1) // world_size]


def _check(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} images; at least 1 is needed")
    if world_size > 1 and batch_size < 2 * world_size:
        raise ConfigError(
            f"a batch of {batch_size} images on {world_size} processes; each needs two: start at most "
            f"{max(1, batch_size // 2)}, or raise --batch-size"
        )
    assert 0 <= rank < world_size
