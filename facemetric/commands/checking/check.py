"""What `facemetric data check` does: look for doubles, wrong labels and leaks, write lists, delete nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np

from facemetric.commands.checking.checked import Checked, CheckFigures, PeopleFigures, Search
from facemetric.commands.checking.findings import (
    ONE_PERSON,
    TEST_PERSON,
    Finding,
    Side,
    alike_findings,
    find_images,
    label_findings,
    lists,
    name_findings,
    unsure_kinds,
    with_quality,
)
from facemetric.commands.checking.sheets import draw_check_sheets
from facemetric.commands.embedding import (
    TEST,
    announced,
    bad_images_of,
    check_config,
    faces_of_data,
    list_bad,
)
from facemetric.commands.out_folder import claim_out, results_come
from facemetric.config import CheckConfig, check_least, config_dict, require
from facemetric.config.calls import takes_options
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.lists import apply_lists
from facemetric.errors import DataError
from facemetric.evaluation.audit.hashes import read_frequencies
from facemetric.evaluation.audit.labels import centred, judge_images
from facemetric.evaluation.audit.people import alike_across, alike_identities
from facemetric.evaluation.embed import embed_index, mirror_scores
from facemetric.files import write_text_whole
from facemetric.machine import pick_device, pick_workers, say
from facemetric.model.weights.opened import open_weights
from facemetric.model.weights.save_load import load_embedder

SAME_PHOTOGRAPH = (
    0.05  # of the images are less like their own mirror image than the cosine asked of a duplicate
)


@takes_options(CheckConfig)
def check_data(config: CheckConfig) -> Checked:
    """Look for duplicates, identities of one person, wrong labels and leaks; the options are those of CheckConfig.

    `check_data("faces", weights="runs/finetune")` is `facemetric data check faces --weights runs/finetune`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_check(config)


def run_check(config: CheckConfig) -> Checked:
    """check_data, from a config."""
    require(bool(config.data), "no DATA was given; name an image folder, a csv or .tar files")
    check_config(config)
    for name in ("mislabelled", "chance"):
        value = getattr(config, name)
        require(0 <= value <= 1, f"--{name} is {value}; choose 0..1")
    check_least(config, {"sheets": 0})
    weights = open_weights(config.weights) if config.weights else None  # before images are read
    index = announced(read_index(config.data))
    against = announced(read_index(config.against), f"{TEST}: ") if config.against else None
    claim_out(config, weights=weights, images=index, against=against)
    index = apply_lists(index, config.merge, config.leave_out, config.leave_out_images, say)
    train = read_side(config, index)
    test = None if against is None else read_side(config, against, TEST)
    mirror_cosine = np.inf
    if config.weights:
        train, test, mirror_cosine = embed_sides(config, train, test)
    findings, copies = find_images(train, test, mirror_cosine, config.seed)
    if test is not None:
        findings += name_findings(train.images, test.images)
    people = PeopleFigures()
    if train.embeddings is not None:
        more, people = find_people(config, train, test)
        findings = findings + more
    findings = with_quality(findings, train.quality, {} if test is None else test.quality)
    images, identities = len(train.images), len(train.images.identities)
    found = dict(Counter(f.kind for f in findings))
    searches = {ONE_PERSON: people.one_person, TEST_PERSON: people.person_in_test}
    expected = {kind: of.expected_by_chance or 0.0 for kind, of in searches.items() if of is not None}
    unsure = unsure_kinds(found, expected, identities)
    figures = CheckFigures(images, identities, copies, people, found, unsure)
    checked = Checked(findings, figures, config.out)
    results_come(config)
    write(config, checked, train.images, None if test is None else test.images)
    return checked


def read_side(config: CheckConfig, index: ImageIndex, of: str = "") -> Side:
    """The hashes of a set, of DATA (`of` is empty) or another; unreadable images are listed and left out.

    Raises DataError above --max-bad."""
    quality: dict[str, float] = {}
    if config.weights:
        index, quality = faces_of_data(config, index, config.out / (f"{of}_faces" if of else "faces"))
    read = read_frequencies(index, workers=pick_workers(config.workers), progress="hashing")
    path = bad_images_of(config.out, of)
    list_bad(index, read.bad, path, max_bad=config.max_bad, outcome="not checked", of=of)
    if not read.bad:
        return Side(index, read.values, quality=quality)
    readable = np.ones(len(index), bool)
    readable[[row for row, _ in read.bad]] = False
    return Side(index.select(readable), read.values[readable], quality=quality)


def embed_sides(config: CheckConfig, train: Side, test: Side | None) -> tuple[Side, Side | None, float]:
    """Both sets with embeddings, and the cosine that one photograph has with itself: its mirror image says."""
    embedder = load_embedder(config.weights, pick_device(config.device))
    size, workers = config.batch_size, pick_workers(config.workers)

    def embeddings(index: ImageIndex) -> np.ndarray:
        embedded = embed_index(
            embedder, index, batch_size=size, workers=workers, flip=config.flip, progress="embedding"
        )
        for row, reason in embedded.bad:  # they were read for the hashes: rows and embeddings would not agree
            raise DataError(f"{index.name(row)} could be read at first and then not ({reason}); check again")
        return embedded.table.embeddings

    table = embeddings(train.images)
    mean_D = table.mean(0)
    mirror = mirror_scores(embedder, train.images, mean_D, batch_size=size, workers=workers, seed=config.seed)
    train = train._replace(embeddings=centred(table, mean_D))
    if test is not None:
        test = test._replace(embeddings=centred(embeddings(test.images), mean_D))
    return train, test, float(np.nanquantile(mirror, SAME_PHOTOGRAPH))


def find_people(config: CheckConfig, train: Side, test: Side | None) -> tuple[list[Finding], PeopleFigures]:
    """Identities of one person, wrong labels, and people of the test set: what takes embeddings."""
    assert train.embeddings is not None
    identity = train.images.identity
    findings: list[Finding] = []
    figures = PeopleFigures()
    if len(train.images.identities) > 1:
        alike = alike_identities(train.embeddings, identity, chance=config.chance, seed=config.seed)
        judged = judge_images(train.embeddings, identity)
        findings += alike_findings(alike, train.images) + label_findings(
            judged, train.images, config.mislabelled
        )
        # An image of somebody else is above any share of strangers as often as below it: those above half of
        # them are half of those there can be.
        figures = PeopleFigures(
            Search.of(alike), int(np.isfinite(judged.above).sum()), 2 * int((judged.above > 0.5).sum())
        )
    if test is not None and test.embeddings is not None:
        across = alike_across(
            train.embeddings,
            identity,
            test.embeddings,
            test.images.identity,
            chance=config.chance,
            seed=config.seed,
        )
        findings += alike_findings(across, train.images, test.images)
        figures = replace(figures, person_in_test=Search.of(across))
    return findings, figures


def write(config: CheckConfig, checked: Checked, index: ImageIndex, test: ImageIndex | None) -> None:
    """findings.csv, the lists, check.json, and the picture sheets."""
    record = {"figures": checked.figures.to_dict(), "options": config_dict(config)}
    files = lists(checked.findings, index, checked.figures.in_no_list) | {
        "check.json": json.dumps(record, indent=2, allow_nan=False) + "\n"
    }
    for name, text in files.items():
        write_text_whole(config.out / name, text)
    draw_check_sheets(config.out, checked.findings, index, test, pages=config.sheets)
