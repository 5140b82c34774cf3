"""The people or images to train on, and those to validate on: what the lists and a draw make of DATA."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facemetric import distributed
from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig
from facemetric.data.batches import places_within
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.lists import apply_lists, check_identities, read_identity_list, unknown_note
from facemetric.distributed import say
from facemetric.errors import ConfigError, DataError, FacemetricError, plural
from facemetric.faces.align import AlignOptions, cut_faces
from facemetric.faces.template import SIDE
from facemetric.model.pictures import crop_side
from facemetric.model.weights.folder import find_weights, read_config

# What read_split reads: with these of a training's options its images can be split again.
SPLIT_OPTIONS = (
    "data",
    "merge",
    "leave_out",
    "leave_out_images",
    "case_twins",
    "align",
    "val_identities",
    "val_fraction",
    "val_by",
    "seed",
)


class Origin(NamedTuple):
    """Fingerprints: of all the data that was read, and of what the lists and the draw made of it."""

    data: str
    split: str


@dataclass(frozen=True)
class Split:
    """Images to train on, and images to validate on, never trained on (None where there are none)."""

    train: ImageIndex
    val: ImageIndex | None
    origin: Origin
    unlabelled: ImageIndex | None = None  # images to train on whose identity is not known
    closed: bool = False  # the validation images are of identities that are trained on
    known: bool = False  # the weights it begins with may have seen some of the validation identities


def read_split(config: StageConfig, run: Path | None = None, *, side: int = SIDE) -> Split:
    """Read DATA, merge, leave out, and split off the validation identities; says what it did in one line each.

    With --align the faces of photographs are cut into `run`, crops of `side` pixels, where they are not there yet."""
    index = read_index(config.data)
    for note in index.notes:
        say(note)
    fingerprint = index.fingerprint
    index = apply_lists(index, config.merge, config.leave_out, config.leave_out_images, say)
    check_identities(index, allow_case_twins=config.case_twins)
    unlabelled = read_unlabelled(config)
    if config.align:
        if run is None:
            raise ConfigError(
                "a training with --align is read with its run folder alone; cut the faces by `facemetric align`, and "
                "train on these"
            )
        index = faces_alone(index, run / "faces", side)
        if unlabelled is not None:
            unlabelled = faces_alone(unlabelled, run / "faces_unlabelled", side)
    val = None
    if config.val_identities:
        parted = index.split_identities(read_identity_list(config.val_identities), skip_unknown=True)
        index, val = parted.rest, parted.picked
        if parted.unknown:
            say(f"validation identities{unknown_note(parted.unknown, config.val_identities)}")
        if len(val) == 0:
            raise DataError(
                f"none of the identities of {config.val_identities} is in the data; mend the names"
            )
    elif config.val_fraction > 0 and config.val_by == "images":
        held = hold_back(index, config.val_fraction, config.seed)
        index, val = index.select(~held), index.select(held)
    elif config.val_fraction > 0:
        index, val = split_fraction(index, config.val_fraction, config.seed)
    check_identities(index, allow_case_twins=True)
    if val is not None:
        check_validation(val)
    say(f"training on {counted(index)}")
    if val is not None:
        whose = "the same identities" if config.val_by == "images" else "other identities"
        say(f"validating on {counted(val)} ({whose})")
    parts = [part.fingerprint for part in (index, val) if part is not None]
    origin = Origin(fingerprint, hashlib.sha256(" ".join(parts).encode()).hexdigest())
    return Split(index, val, origin, unlabelled, closed=config.val_by == "images")


def faces_alone(index: ImageIndex, out: Path, side: int) -> ImageIndex:
    """The faces of an index (`cut_faces`); process 0 cuts them, for all."""
    found = error = None
    if distributed.rank() == 0:
        try:
            found = cut_faces(index, out, AlignOptions(size=side, given="auto"))
            say(found.text() or f"every picture of {len(index):,} is an aligned crop: none is cut")
        except FacemetricError as wrong:
            error = wrong
    found, error = distributed.from_first((found, error))  # an error too: the others wait for one of them
    if error is not None:
        raise error
    return found.index


def read_unlabelled(config: StageConfig) -> ImageIndex | None:
    """The images of --unlabelled, without those of --leave-out-images."""
    if not config.unlabelled:
        return None
    index = read_index(config.unlabelled, loose=True)
    for note in index.notes:
        say(note)
    index = apply_lists(index, None, None, config.leave_out_images, say)
    say(f"learning from {plural(len(index), 'unlabelled image')} as well")
    return index


def counted(index: ImageIndex) -> str:
    """`1,200 images of 1 identity`."""
    return f"{plural(len(index), 'image')} of {plural(len(index.identities), 'identity', 'identities')}"


def split_for(config: PretrainConfig | FinetuneConfig) -> Split:
    """read_split, and a warning where --weights were trained on the same data, split otherwise: then validation
    people may be among those that they learned, and the figures of these are too good."""
    split = read_split(config, config.out, side=side_of(config) if config.align else SIDE)
    if not config.weights or split.val is None:
        return split
    past = read_config(find_weights(config.weights))["facemetric"].get("provenance") or {}
    same_data = past.get("data_fingerprint") == split.origin.data
    if not same_data or past.get("split_fingerprint") in (None, split.origin.split):
        return split
    say(
        f"warning: {config.weights} were trained on this data with another split, maybe on some of these validation "
        "identities, whose figures are then too good; give both stages the same lists, --val-fraction and --seed"
    )
    return replace(split, known=True)


def side_of(config: PretrainConfig | FinetuneConfig) -> int:
    """Side in pixels of the crops for the network that a training begins with."""
    pre = Preprocess()
    if config.weights:
        pre = Preprocess.from_dict(read_config(find_weights(config.weights))["facemetric"]["preprocess"])
    if config.image_size:
        pre = replace(pre, size=(config.image_size, config.image_size))
    return crop_side(replace(pre, crop=config.crop) if any(config.crop) else pre)


def split_fraction(index: ImageIndex, fraction: float, seed: int) -> tuple[ImageIndex, ImageIndex]:
    """(train, validation): a share of the identities, drawn from the seed; at least two, and two stay."""
    total = len(index.identities)
    if total < 4:
        raise DataError(
            f"{plural(total, 'identity', 'identities')} cannot be split into training and validation (2 + 2 are "
            "needed); "
            "add identities, or set --val-fraction 0"
        )
    count = min(max(2, round(fraction * total)), total - 2)
    picked = np.zeros(total, bool)
    # Identities with two images and more first: verification needs genuine pairs.
    order = np.random.default_rng([seed, 7]).permutation(total)
    order = order[np.argsort(index.counts()[order] < 2, kind="stable")]
    picked[order[:count]] = True
    mask = picked[index.identity]
    return index.select(~mask), index.select(mask)


def hold_back(index: ImageIndex, fraction: float, seed: int) -> np.ndarray:
    """Mask (N,) of images kept from training, at most half of an identity's."""
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(index))
    identity = index.identity[order]
    allowed = order[places_within(identity) < index.counts()[identity] // 2]
    held = np.zeros(len(index), bool)
    held[rng.permutation(allowed)[: round(fraction * len(index))]] = True
    return held


def check_validation(val: ImageIndex) -> None:
    """Raise DataError unless there are genuine and impostor pairs to validate on."""
    if len(val.identities) < 2 or val.counts().max() < 2:
        raise DataError(
            f"validation has {counted(val)}; at least two identities, one with two images, are needed: add images, "
            "name others with --val-identities, or set --val-fraction 0"
        )
