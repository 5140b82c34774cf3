"""What `facemetric calibrate` does: thresholds for wanted FARs into the weights' config.json."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from facemetric.commands.embedding import announced, check_config, embed_data
from facemetric.config import CalibrateConfig, require
from facemetric.config.calls import takes_options
from facemetric.data.index import ImageIndex, parse_source, read_index
from facemetric.data.lists import apply_lists, check_identities, read_identity_list
from facemetric.errors import WeightsError
from facemetric.evaluation.embed import usual_size
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.thresholds import Stored, Threshold, choose_thresholds, store_thresholds
from facemetric.model.weights_folder import find_weights, read_config
from facemetric.training.validation import CHOSEN_ON

TRAINED_ON = "the data that the weights were trained on: on new people expect a higher FAR and a lower TAR"


class Calibrated(NamedTuple):
    """The thresholds that were stored, in the order of the FARs that were asked for, and where."""

    thresholds: tuple[Threshold, ...]
    chosen_on: str
    config: Path


@takes_options(CalibrateConfig)
def calibrate(config: CalibrateConfig) -> Calibrated:
    """Choose thresholds on DATA and store them with the weights; the options are those of CalibrateConfig.

    `calibrate("faces_never_seen", weights="runs/finetune", far=1e-3)` is
    `facemetric calibrate faces_never_seen --weights runs/finetune --far 1e-3`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_calibrate(config)


def run_calibrate(config: CalibrateConfig) -> Calibrated:
    """calibrate, from a config."""
    check_config(config)
    require(
        bool(config.data), "no DATA was given; name images of people that the weights were not trained on"
    )
    require(bool(config.far), "no FAR was given; name one or more, such as --far 1e-3")
    for far in config.far:
        require(0 < far <= 1, f"--far is {far}; it is a share above 0, such as 1e-3")
    folder = find_weights(config.weights)
    index = announced(read_index(config.data))
    index = apply_lists(index, config.merge, None, None, print)
    if config.identities:
        index = index.split_identities(read_identity_list(config.identities)).picked
    check_identities(index, allow_case_twins=config.case_twins)
    table = embed_data(config, index)
    thresholds = choose_thresholds(table.embeddings, table.identities, config.far, seed=config.seed)
    chosen_on = kinship(config, index, folder)
    size = usual_size(index)
    path = store_thresholds(
        folder, [Stored(t, config.flip, chosen_on, index.fingerprint, size) for t in thresholds]
    )
    print("\n".join(text_of(t) for t in thresholds))
    first = thresholds[0]
    print(f"chosen on {first.images:,} images of {first.identities:,} people: {chosen_on}")
    print(f"stored in {path}")
    return Calibrated(thresholds, chosen_on, path)


def text_of(found: Threshold) -> str:
    """A threshold in a line."""

    def between(interval: Interval, digits: str) -> str:
        return f"{interval.value:{digits}} [{interval.low:{digits}}, {interval.high:{digits}}]"

    return (
        f"FAR {found.wanted_far:g}: accept a cosine of {between(found.threshold, '.4f')}, "
        f"with FAR {between(found.far, '.2g')} and TAR {between(found.tar, '.4f')}"
    )


def kinship(config: CalibrateConfig, index: ImageIndex, folder: Path) -> str:
    """In words, whether these people helped to make the weights, as far as the provenance tells."""
    mine = {os.path.realpath(parse_source(text).path) for text in config.data}
    for past in lineage(folder):
        options = past.get("options") or {}
        theirs = {os.path.realpath(parse_source(text).path) for text in options.get("data", ())}
        if past.get("data_fingerprint") == index.fingerprint:
            return TRAINED_ON
        if not mine & theirs:
            continue
        if not config.identities:
            return TRAINED_ON
        listed = options.get("val_identities")
        if listed and os.path.realpath(listed) == os.path.realpath(config.identities):
            return CHOSEN_ON
        return f"identities of {config.identities} in data that the weights were trained on; see that they were not"
    names = ", ".join(parse_source(text).path.name for text in config.data)
    return f"{names}, which the weights do not name as their training data"


def lineage(folder: Path) -> Iterator[dict[str, Any]]:
    """The provenance of weights, then of the weights that they began with, as far back as these are there."""
    seen = set()
    while os.path.realpath(folder) not in seen:
        seen.add(os.path.realpath(folder))
        past = read_config(folder)["facemetric"].get("provenance") or {}
        yield past
        try:
            folder = find_weights((past.get("options") or {}).get("weights") or "")
        except WeightsError:
            return
