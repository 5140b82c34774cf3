"""`facemetric eval`: its figures against scikit-learn on the embeddings it wrote, and its files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from facemetric import evaluate, load_embedder
from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.embed import images_of
from facemetric.evaluation.table import EmbeddingTable

OPTIONS: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 16}


@pytest.fixture(scope="module")
def pairs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 pairs of the drawn faces in four folds, named from the folder that holds them."""
    index = read_index([str(faces)])
    drawn = make_pairs(index.identity, count=240, folds=4, seed=0)
    file = faces.parent / f"pairs_of_{faces.name}.csv"
    write_pairs(file, name_pairs(drawn, [f"{faces.name}/{index.name(i)}" for i in range(len(index))]))
    return file


@pytest.fixture(scope="module")
def scored(untrained: Path, faces: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation with pairs and neighbours."""
    out = tmp_path_factory.mktemp("eval") / "out"
    return evaluate(untrained, pairs=pairs, data=faces, out=out, **OPTIONS)


def scores_of(out: Path, pairs: Path) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, labels) of the pairs by hand, from embeddings.npz and the csv."""
    table = EmbeddingTable.load(out / "embeddings.npz")
    row = {str(path): i for i, path in enumerate(table.paths)}
    score, same = [], []
    with open(pairs, newline="") as file:
        for line in csv.DictReader(file):
            one, other = (row[line[name].split("/", 1)[1]] for name in ("image1_path", "image2_path"))
            score.append(float(table.embeddings[one] @ table.embeddings[other]))
            same.append(int(line["label"]))
    return np.array(score), np.array(same)


def test_verification_is_scikit_learns(scored: Any, pairs: Path) -> None:
    score, same = scores_of(scored.out, pairs)
    found = json.loads((scored.out / "metrics.json").read_text())["verification"]
    assert (found["genuine_pairs"], found["impostor_pairs"]) == (120, 120)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(same, score), abs=1e-9)
    far, tar, _ = sk.roc_curve(same, score, drop_intermediate=False)
    assert found["eer"] == pytest.approx(float(np.min(np.maximum(far, 1 - tar))), abs=0.01)
    assert found["tar_at_far"]["0.1"]["tar"] == pytest.approx(tar[far <= 0.1].max())
    assert found["tar_at_far"]["0.1"]["supported"] is True
    assert found["tar_at_far"]["0.001"]["supported"] is False
    assert found["tar_at_far"]["0.001"]["tar"] is None
    low, high = found["intervals_95"]["auc"]["low"], found["intervals_95"]["auc"]["high"]
    assert low < found["auc"] < high


def test_the_folds_of_the_file_are_used(scored: Any, pairs: Path) -> None:
    found = json.loads((scored.out / "metrics.json").read_text())["verification"]["accuracy"]
    assert found["folds_drawn_at_random"] is False
    score, same = scores_of(scored.out, pairs)
    with open(pairs, newline="") as file:
        fold = np.array([int(line["fold"]) for line in csv.DictReader(file)])
    assert len(found["folds"]) == len(set(fold.tolist())) == 4
    for i, number in enumerate(sorted(set(fold.tolist()))):
        here, threshold = fold == number, found["thresholds"][i] - 1e-6  # rounding
        assert found["folds"][i] == pytest.approx(np.mean((score[here] >= threshold) == same[here]))
        # Chosen on the other folds: no threshold does better there.
        best = max(np.mean((score[~here] >= t) == same[~here]) for t in score[~here])
        assert np.mean((score[~here] >= threshold) == same[~here]) == pytest.approx(best)
    assert found["mean"] == pytest.approx(np.mean(found["folds"]))


def test_neighbours_by_hand(scored: Any) -> None:
    table = EmbeddingTable.load(scored.out / "embeddings.npz")
    cosine = table.embeddings @ table.embeddings.T
    np.fill_diagonal(cosine, -2)
    right = table.identities[cosine.argmax(1)] == table.identities
    assert scored.neighbours.knn[1] == pytest.approx(right.mean())
    assert json.loads((scored.out / "metrics.json").read_text())["neighbours"]["queries"] == 96


def test_the_files_are_there(scored: Any, untrained: Path) -> None:
    assert (scored.out / "roc.png").read_bytes().startswith(b"\x89PNG")
    with open(scored.out / "roc.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert [float(points[0]["far"]), float(points[0]["tar"])] == [0, 0]
    assert [float(points[-1]["far"]), float(points[-1]["tar"])] == [1, 1]
    record = json.loads((scored.out / "metrics.json").read_text())
    assert record["weights"]["architecture"] == "test_resnet"
    assert record["weights"]["sha256"] == json.loads((untrained / "config.json").read_text())["sha256"]
    assert record["options"]["weights"] == str(untrained)
    assert not list(scored.out.glob("*.new"))


def test_the_table_says_what_was_measured(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(untrained, pairs=pairs, data=faces, out=tmp_path / "out", **OPTIONS)
    lines = capsys.readouterr().out.splitlines()

    def value(name: str) -> str:
        return next(line.removeprefix(name).strip() for line in lines if line.startswith(name))

    assert value("pairs") == "120 genuine, 120 impostor"
    assert value("AUC").startswith(f"{found.verification.auc:.4f}")
    assert value("EER").startswith(f"{found.verification.eer:.4f}")
    assert value("accuracy, mean of 4 folds").startswith(f"{found.verification.accuracy.mean:.4f}")
    assert "deviation over folds: sample" in value("accuracy, mean of 4 folds")
    assert f"population {found.verification.accuracy.deviation_population:.4f}" in value(
        "accuracy, mean of 4"
    )
    assert "needs 1,000 impostor pairs, there are 120 (lowest FAR 0.0083)" in value("TAR @ FAR=0.001")
    assert value("kNN accuracy, k=1").startswith(f"{found.neighbours.knn[1]:.4f}")
    assert value("written to") == str(tmp_path / "out")


def test_pairs_alone_read_their_images_beside_the_file(
    scored: Any, untrained: Path, pairs: Path, tmp_path: Path
) -> None:
    found = evaluate(untrained, pairs=pairs, out=tmp_path / "out", **OPTIONS)
    assert found.neighbours is None
    assert found.verification.auc == pytest.approx(scored.verification.auc, abs=1e-4)
    assert "neighbours" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_embeddings_in_place_of_weights(scored: Any, pairs: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=scored.out / "embeddings.npz", pairs=pairs, out=tmp_path / "out")
    assert found.verification.to_dict() == scored.verification.to_dict()
    assert found.neighbours == scored.neighbours


def test_flip_is_the_mean_with_the_mirror_image(untrained: Path, faces: Path, tmp_path: Path) -> None:
    evaluate(untrained, data=faces, out=tmp_path / "out", flip=True, **OPTIONS)
    table = EmbeddingTable.load(tmp_path / "out" / "embeddings.npz")
    embedder, index = load_embedder(untrained), read_index([str(faces)])
    with torch.no_grad():
        for rows, images, _ in images_of(embedder, index, 16, 0, ""):
            expected = embedder(images) + embedder(torch.flip(images, dims=[3]))
            expected = expected / expected.norm(dim=1, keepdim=True)
            np.testing.assert_allclose(table.embeddings[rows], expected, atol=1e-5)


def test_folds_are_drawn_where_the_pairs_have_none(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(pairs, newline="") as file:
        lines = [[line["image1_path"], line["image2_path"], line["label"]] for line in csv.DictReader(file)]
    plain = pairs.with_name("plain.csv")
    plain.write_text("\n".join(",".join(line) for line in [["path_a", "path_b", "same"], *lines]) + "\n")
    runs = [
        evaluate(untrained, pairs=plain, out=tmp_path / str(i), folds=5, seed=seed, **OPTIONS)
        for i, seed in enumerate((1, 1, 2))
    ]
    plain.unlink()
    accuracies = [run.verification.accuracy for run in runs]
    assert accuracies[0].drawn
    assert len(accuracies[0].accuracies) == 5
    assert accuracies[0].accuracies.tolist() == accuracies[1].accuracies.tolist()
    assert accuracies[0].accuracies.tolist() != accuracies[2].accuracies.tolist()
    assert "folds drawn at random" in capsys.readouterr().out


def test_no_neighbours_where_all_are_alone(
    untrained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in sorted(faces.iterdir())[:3]:
        (tmp_path / "single" / folder.name).mkdir(parents=True)
        shutil.copy(sorted(folder.iterdir())[0], tmp_path / "single" / folder.name)
    found = evaluate(untrained, data=tmp_path / "single", out=tmp_path / "out", **OPTIONS)
    assert found.neighbours is None
    assert "no nearest neighbours" in capsys.readouterr().out


def test_a_mended_image_is_no_longer_listed(untrained: Path, faces: Path, tmp_path: Path) -> None:
    for folder in sorted(faces.iterdir())[:3]:
        shutil.copytree(folder, tmp_path / "some" / folder.name)
    image = sorted((tmp_path / "some").rglob("*.*"))[0]
    whole = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 18 images are bad"):
        evaluate(untrained, data=tmp_path / "some", out=tmp_path / "out", **OPTIONS)
    assert image.name in (tmp_path / "out" / "bad_images.csv").read_text()
    image.write_bytes(whole)
    evaluate(untrained, data=tmp_path / "some", out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "bad_images.csv").exists()


def test_what_cannot_be_scored(untrained: Path, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of --weights and --embeddings"):
        evaluate(data=faces, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing to score"):
        evaluate(untrained, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="--folds is 1"):
        evaluate(untrained, data=faces, folds=1, out=tmp_path / "out")
