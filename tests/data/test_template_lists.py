"""Lists of templates as they are published: made-up files of the same forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from facemetric.data.template_lists import (
    TemplateList,
    TemplateNames,
    joined,
    read_template_pairs,
    read_templates,
)
from facemetric.errors import DataError


def images(*names: str) -> TemplateNames:
    return TemplateNames(np.array(names or ("img/1.jpg",)))


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def columns(found: TemplateList) -> list[tuple[str, ...]]:
    return list(
        zip(
            found.image.tolist(),
            found.template.tolist(),
            found.subject.tolist(),
            found.media.tolist(),
            strict=True,
        )
    )


IJB = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT\n"
ROWS = """1,11,img/3.jpg,7,1,2,30,40
1,11,frames/55_100.png,8,5,6,30,40
1,11,frames/55_101.png,8,5,7,30,40
2,12,frames/56_1.png,9,5,7,30,40
3,12,img/3.jpg,7,1,2,30,40
"""


def test_ijb_csv_takes_the_frames_of_a_video_for_one_medium(tmp_path: Path) -> None:
    found = read_templates(written(tmp_path, "ijbc_1N_gallery_G1.csv", IJB + ROWS), images())
    assert columns(found) == [
        ("img/3.jpg", "1", "11", ""),
        ("frames/55_100.png", "1", "11", "video 55"),
        ("frames/55_101.png", "1", "11", "video 55"),
        ("frames/56_1.png", "2", "12", "video 56"),
        ("img/3.jpg", "3", "12", ""),
    ]
    assert found.templates.tolist() == ["1", "2", "3"]
    assert np.isnan(found.quality).all()


def test_a_file_with_two_boxes_is_two_faces(tmp_path: Path) -> None:
    other = ROWS.replace("3,12,img/3.jpg,7,1,2,30,40", "3,12,img/3.jpg,7,90,2,30,40")
    with pytest.raises(
        DataError, match=r"line 6: img/3.jpg with a second box .*name a crop of its own for each face"
    ):
        read_templates(written(tmp_path, "probe.csv", IJB + other), images())


def test_own_columns(tmp_path: Path) -> None:
    text = "image;template;subject;media;quality\na/1.jpg;t;ann;v1;0.5\na/2.jpg;t;ann;;\n"
    found = read_templates(written(tmp_path, "own.csv", text), images())
    assert columns(found) == [("a/1.jpg", "t", "ann", "v1"), ("a/2.jpg", "t", "ann", "")]
    assert found.quality[0] == 0.5
    assert np.isnan(found.quality[1])


def test_the_text_forms_of_insightface_and_of_frte(tmp_path: Path) -> None:
    found = read_templates(
        written(tmp_path, "ijbc_face_tid_mid.txt", "1.jpg 1 69544\n2.jpg 1 69544\n3.jpg 2 7\n"), images()
    )
    assert columns(found) == [
        ("1.jpg", "1", "", "69544"),
        ("2.jpg", "1", "", "69544"),
        ("3.jpg", "2", "", "7"),
    ]
    text = "1 images/S001-01.ppm MUGSHOT\n1 images/S001-02.ppm MUGSHOT\n3 images/S002-01.ppm UNKNOWN\n"
    found = read_templates(written(tmp_path, "enroll.txt", text), images())
    assert columns(found) == [
        ("images/S001-01.ppm", "1", "", ""),
        ("images/S001-02.ppm", "1", "", ""),
        ("images/S002-01.ppm", "3", "", ""),
    ]


def nested(names: list[str]) -> np.ndarray:
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    return cells


def test_tinyface_and_its_distractors(tmp_path: Path) -> None:
    known = images(
        "Gallery_Match/7_1.jpg", "Gallery_Match/9_1.jpg", "Probe/7_1.jpg", "Gallery_Distractor/x.jpg"
    )
    file = tmp_path / "gallery_match_img_ID_pairs.mat"
    savemat(
        file, {"gallery_set": nested(["7_1.jpg", "9_1.jpg"]), "gallery_ids": np.array([[7], [9]], np.uint16)}
    )
    found = joined([read_templates(str(file), known), read_templates("Gallery_Distractor/*", known)])
    assert columns(found) == [
        ("Gallery_Match/7_1.jpg", "Gallery_Match/7_1.jpg", "7", ""),
        ("Gallery_Match/9_1.jpg", "Gallery_Match/9_1.jpg", "9", ""),
        ("Gallery_Distractor/x.jpg", "Gallery_Distractor/x.jpg", "only Gallery_Distractor/x.jpg", ""),
    ]
    savemat(tmp_path / "probe.mat", {"probe_set": nested(["7_1.jpg"]), "probe_ids": np.array([[7]])})
    assert columns(read_templates(str(tmp_path / "probe.mat"), known))[0][0] == "Probe/7_1.jpg"
    # SurvFace's names have no folder of TinyFace's.
    savemat(
        tmp_path / "m.mat", {"mated_probe_set": nested(["1_cam1_1.jpg"]), "mated_probe_ids": np.array([[1]])}
    )
    assert columns(read_templates(str(tmp_path / "m.mat"), known)) == [
        ("1_cam1_1.jpg", "1_cam1_1.jpg", "1", "")
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,subject\n1.jpg,a\n", "no column template among 'image, subject'"),
        ("a.csv", "image,template,subject\n", "a header but no images"),
        ("a.csv", "image,template,subject\n1.jpg,,a\n", "line 2: no image or no template"),
        ("a.csv", "image,template,subject\n1.jpg,1,a\n2.jpg,1,b\n", "template 1 is of 'a' and of 'b'"),
        ("a.csv", "image,template,quality\n1.jpg,1,good\n", "a quality that is no number"),
        ("a.csv", "image,template,quality\n1.jpg,1,-1\n", "a quality of -1.0; give 0 or more"),
        ("a.txt", "1.jpg 1\n", "line 1: '1.jpg 1'; needed `image template media`"),
        ("a.txt", "\n", "empty; needed a list of templates"),
        ("a.mat", "no matlab", "no readable .mat"),
    ],
)
def test_what_is_no_list(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_templates(written(tmp_path, name, text), images())


def test_lists_that_are_not_there_or_disagree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no-list.csv: no such list of templates"):
        read_templates("no-list.csv", images())
    with pytest.raises(DataError, match=r"no image of DATA has such a name; the first is 'img/1\.jpg'"):
        read_templates("Distractor/*", images())
    one = read_templates(written(tmp_path, "a.csv", "image,template,subject\n1.jpg,1,a\n"), images())
    two = read_templates(written(tmp_path, "b.csv", "image,template,subject\n2.jpg,1,a\n"), images())
    with pytest.raises(DataError, match=r"template 1 is in .*a.csv and in .*b.csv; name it once"):
        joined([one, two])
    savemat(tmp_path / "e.mat", {"features": np.zeros(3)})
    with pytest.raises(DataError, match=r"holds features; needed one ..._set of names"):
        read_templates(str(tmp_path / "e.mat"), images())


def test_pairs_of_templates(tmp_path: Path) -> None:
    listed = read_templates(written(tmp_path, "l.csv", IJB + ROWS), images())
    for name, text in (
        ("ijbc_11_G1_G2_matches.csv", "1,2\n2,3\n1,3\n"),
        ("ijbc_template_pair_label.txt", "1 2 0\n2 3 1\n1 3 0\n"),
        ("match.txt", "1.template 2.template\n2.template 3.template\n1 3.template\n"),
        ("own.csv", "image1_path,image2_path,label\n1,2,0\n2,3,1\n1,3,0\n"),
    ):
        pairs = read_template_pairs(Path(written(tmp_path, name, text)), listed)
        assert list(zip(pairs.paths_a, pairs.paths_b, pairs.same.tolist(), strict=True)) == [
            ("1", "2", False),
            ("2", "3", True),
            ("1", "3", False),
        ], name
    for text, message in (
        ("1 2 maybe\n", "label 'maybe'; write 1"),
        ("1 2 3 4\n", "4 columns"),
        ("1 9\n", "the subject of 1 of their templates is not known: 9"),
    ):
        with pytest.raises(DataError, match=message):
            read_template_pairs(Path(written(tmp_path, "bad.txt", text)), listed)
    with pytest.raises(DataError, match="no such pairs file"):
        read_template_pairs(tmp_path / "none.txt", listed)
