"""`facemetric calibrate`: thresholds for wanted FARs into the weights' config.json."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facemetric.commands.embedding import announced, check_config, embed_data, seen_in_training
from facemetric.commands.out_folder import claim_out, results_come
from facemetric.config import CalibrateConfig, VerifyConfig, require
from facemetric.config.calls import takes_options
from facemetric.data.index import ImageIndex, parse_source, read_index
from facemetric.data.lists import apply_lists, check_identities, read_identity_list
from facemetric.errors import WeightsError, given, plural
from facemetric.evaluation.answers import PEOPLE, Answers, choose_answers, store_answers
from facemetric.evaluation.embed import usual_size
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.thresholds import CalibratedThreshold, Stored, choose_thresholds, store_thresholds
from facemetric.machine import say
from facemetric.model.weights.folder import (
    check_copy,
    copy_weights,
    find_weights,
    is_shipped,
    name_of_copy,
    read_config,
)
from facemetric.model.weights.opened import open_weights
from facemetric.training.validation import CHOSEN_ON

TRAINED_ON = "the data that the weights were trained on: on new people expect a higher FAR and a lower TAR"


@dataclass(frozen=True)
class Calibrated:
    """The thresholds that were stored, in the order of the FARs that were asked for, and where.

    `weights` is the folder to verify with: that of the weights, or a copy of shipped ones. `notes`: sentences for
    the user."""

    thresholds: tuple[CalibratedThreshold, ...] = field(repr=False)
    chosen_on: str
    config: Path
    notes: tuple[str, ...] = ()
    answers: Answers | None = field(default=None, repr=False)

    @property
    def weights(self) -> Path:
        """The weights folder that holds the thresholds."""
        return self.config.parent

    def text(self) -> str:
        """Notes, a line for each threshold, then what they were chosen on, where they are, and the command that uses
        them: verify does not find a copy of shipped weights under their name."""
        first, usual = self.thresholds[0], VerifyConfig().far
        fars = sorted((t.wanted_far for t in self.thresholds), reverse=True)
        far = min(fars, key=lambda far: round(abs(math.log(far / usual)), 6))  # of two as near, the larger
        lines = [
            *self.notes,
            *map(text_of, self.thresholds),
            *(answers_text(self.answers) if self.answers is not None else ()),
            f"chosen on {plural(first.images, 'image')} of {plural(first.identities, 'person', 'people')}: "
            f"{self.chosen_on}",
            f"stored in {self.config}",
            f"use: facemetric verify A.jpg B.jpg {shlex.join(['--weights', str(self.weights)])} "
            f"--far {far:g}",
        ]
        return "\n".join(lines)


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
    weights = open_weights(config.weights)
    keep_in = folder = weights.folder
    if name := name_of_copy(folder):
        keep_in = config.out / name
        require(
            not name_of_copy(keep_in),
            f"{given('--out', config.out)} holds the shipped weights themselves; name another",
        )
        check_copy(folder, keep_in)
    index = announced(read_index(config.data))
    index = apply_lists(index, config.merge, None, None, say)
    if config.identities:
        index = index.split_identities(read_identity_list(config.identities)).picked
    check_identities(index, allow_case_twins=config.case_twins)
    seen = seen_in_training(weights, index)
    claim_out(config, weights=weights, images=index)
    table = embed_data(config, index, weights)
    thresholds = choose_thresholds(table.embeddings, table.identities, config.far, seed=config.seed)
    chosen_on = kinship(config, index, folder)
    warning = seen.text(config.weights) if seen is not None else ""
    if seen is not None and warning and chosen_on != TRAINED_ON:
        chosen_on += f"; but {seen.found} of {seen.looked_at} images looked at are training images of theirs, or copies"
    size = usual_size(index)
    results_come(config)
    if keep_in != folder:
        copy_weights(folder, keep_in)
        whose = "shipped weights" if is_shipped(folder) else "weights of the Hub"
        say(f"{whose} are not changed: your copy with the thresholds is --weights {keep_in}")
    mark = index.fingerprint
    answers = choose_answers(
        table.embeddings, table.identities, flip=config.flip, data_fingerprint=mark, seed=config.seed
    )
    store_answers(keep_in, answers)
    path = store_thresholds(keep_in, [Stored(t, config.flip, chosen_on, mark, size) for t in thresholds])
    return Calibrated(thresholds, chosen_on, path, (warning,) if warning else (), answers)


def text_of(found: CalibratedThreshold) -> str:
    """A threshold in a line."""

    def between(interval: Interval, digits: str) -> str:
        return f"{interval.value:{digits}} [{interval.low:{digits}}, {interval.high:{digits}}]"

    return (
        f"FAR {found.wanted_far:g}: accept a cosine of {between(found.threshold, '.4f')}, "
        f"with FAR {between(found.far, '.2g')} and TAR {between(found.tar, '.4f')}"
    )


def answers_text(answers: Answers) -> list[str]:
    """What `verify` answers by beside the thresholds, in a line each."""
    lines = [
        f"FRR {each.wanted_frr:g}: different people below a cosine of {each.threshold:.4f}, with FRR "
        f"{each.frr.value:.2g} [{each.frr.low:.2g}, {each.frr.high:.2g}]"
        for each in answers.lower
    ]
    if answers.probability is None:
        return [
            *lines,
            f"no probability: it takes {PEOPLE} people, and two images of some in each half of them",
        ]
    return [*lines, f"probability of one person: wrong by {answers.probability.error:.3f} on people held out"]


def kinship(config: CalibrateConfig, index: ImageIndex, folder: Path) -> str:
    """In words, whether these people helped to make the weights, as far as the provenance tells."""
    mine = real_paths(config.data)
    for past in lineage(folder):
        options = past.get("options") or {}
        labelled, unlabelled = (real_paths(options.get(name) or ()) for name in ("data", "unlabelled"))
        if past.get("data_fingerprint") == index.fingerprint:
            return TRAINED_ON
        if not mine & (labelled | unlabelled):
            continue
        if not config.identities:
            return TRAINED_ON
        listed = options.get("val_identities")
        same_list = listed and os.path.realpath(listed) == os.path.realpath(config.identities)
        if same_list and not mine & unlabelled:  # of these all images are trained on
            return CHOSEN_ON
        return f"identities of {config.identities} in data that the weights were trained on; see that they were not"
    names = ", ".join(parse_source(text).path.name for text in config.data)
    return f"{names}, which the weights do not name as their training data"


def real_paths(sources: Iterable[str]) -> set[str]:
    """Where the sources of DATA, or of --unlabelled, are."""
    return {os.path.realpath(parse_source(text).path) for text in sources}


def lineage(folder: Path) -> Iterator[dict[str, Any]]:
    """The provenance of weights, then of the weights that they began with, as far back as these are there."""
    seen = set()
    while os.path.realpath(folder) not in seen:
        seen.add(os.path.realpath(folder))
        past = read_config(folder)["facemetric"].get("provenance") or {}
        yield past
        try:
            folder = find_weights((past.get("options") or {}).get("weights") or "", fetch=False)
        except WeightsError:
            return
