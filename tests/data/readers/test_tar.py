"""Tars: every form that is written, and what is damaged, hostile or cut short."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import (
    deny,
    holds_its_name,
    member,
    message,
    names,
    pack,
    pack_people,
    put,
    tar_of,
)

from facemetric.data.index import read_index
from facemetric.data.readers import tar
from facemetric.data.readers.tar import walk_tar
from facemetric.errors import DataError, plural


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_agrees_with_tarfile(tmp_path: Path, form: int) -> None:
    long = "n" * 90 + "/" + "m" * 90 + ".jpg"
    members = {"./anna/a.jpg": b"x" * 511, "anna//b.jpg": b"", "anna/c.jpg": b"y" * 512, long: b"z" * 513}
    if form != tarfile.USTAR_FORMAT:
        members["ünï/" + "ö" * 200 + ".jpg"] = b"long and not ascii"
    index = read_index(pack(tmp_path / "a.tar", members, form))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = {m.name.replace("./", "").replace("//", "/"): (m.offset_data, m.size) for m in tar}
    assert {index.name(i): tuple(index.location(i)[1:]) for i in range(len(index))} == expected
    assert all(index.read(index.find(n)) == members.get(n, index.read(index.find(n))) for n in expected)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(
            st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=120
        ),
        st.binary(max_size=1500),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_tar_of_any_names(tmp_path: Path, found: dict[str, bytes], form: int) -> None:
    # `p`: no name is hidden or that of a system's folder.
    members = {f"p{name}p/i{n}.jpg": data for n, (name, data) in enumerate(found.items())}
    index = read_index(pack(tmp_path / "any.tar", members, form))
    assert {index.name(i): index.read(i) for i in range(len(index))} == members


def test_shards_share_identities(tmp_path: Path) -> None:
    pack_people(tmp_path / "0.tar", {"anna": ["a.jpg"], "bob": ["b.jpg"]})
    pack_people(tmp_path / "1.tar", {"anna": ["c.jpg"]})
    index = read_index(tmp_path)
    assert names(index) == ["anna/a.jpg", "anna/c.jpg", "bob/b.jpg"]
    assert holds_its_name(index)
    assert names(read_index([f"s={tmp_path}/0.tar", f"s={tmp_path}/1.tar"])) == [
        f"s/{n}" for n in names(index)
    ]


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (member("../evil.jpg"), "climbs with .."),
        (member("anna/../../evil.jpg"), "climbs with .."),
        (member("/etc/evil.jpg"), "absolute"),
        (member("anna/l.jpg", 0, tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (member("anna/h.jpg", 0, tarfile.LNKTYPE, "anna/a.jpg"), "hard link"),
        (member("anna/d.jpg", 0, tarfile.CHRTYPE), "device"),
        (member("anna/p.jpg", 0, tarfile.FIFOTYPE), "pipe"),
        (member("anna/s.jpg", 0, tarfile.GNUTYPE_SPARSE), "sparse"),
        (member("anna/v.jpg", 0, b"V"), "kind b'V'"),
    ],
)
def test_members_that_are_refused(tmp_path: Path, bad: tarfile.TarInfo, expected: str) -> None:
    told = message(tar_of(tmp_path / "a.tar", member("anna/a.jpg"), bad))
    assert "1 member refused" in told
    assert f"{bad.name} ({expected})" in told


def test_folders_and_other_files_in_a_tar(tmp_path: Path) -> None:
    parts = [member("anna", 0, tarfile.DIRTYPE), member("anna/a.jpg"), member("x.jpg"), member("anna/t.txt")]
    index = read_index(tar_of(tmp_path / "a.tar", *parts))
    assert index.name(0) == "anna/a.jpg"
    assert index.ignored == 2


def test_a_member_written_again_replaces_the_first(tmp_path: Path) -> None:
    index = read_index(tar_of(tmp_path / "a.tar", member("anna/a.jpg", 700), member("anna/a.jpg", 3)))
    assert len(index) == 1
    assert index.read(0) == b"ddd"
    assert "skipped 1 image listed twice (the last counts): anna/a.jpg" in index.notes[0]


def test_tar_cut_short_at_every_block(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", member("anna/a.jpg"), member("anna/b.jpg")).read_bytes()
    # Two members of a header and two blocks each, then the end marker.
    for size in [*range(0, 6 * 512 + 1, 256), 1, 511, 513, 6 * 512 - 1]:
        cut = put(tmp_path / "cut.tar", whole[:size])
        told = message(cut)
        complete = (size >= 512 + 700) + (size >= 4 * 512 + 700)
        assert f"cut short at byte {size}, after {plural(complete, 'whole member')}: copy" in told, size
    read_index(put(tmp_path / "cut.tar", whole[: 7 * 512]))


def test_a_tar_cut_in_the_middle_of_a_long_name(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", member("anna/1.jpg"), member("anna/" + "n" * 1500 + ".jpg"))
    whole = path.read_bytes()
    header = 512 + 1024  # of the long name, behind the first member
    assert whole[header + 156 : header + 157] == b"L"
    path.write_bytes(whole[: header + 512 + 700])
    assert message(path) == (
        f"{path}: cut short at byte {header + 1212}, after 1 whole member: copy or make it again"
    )


def test_tars_joined_by_cat(tmp_path: Path) -> None:
    one = tar_of(tmp_path / "a.tar", member("anna/a.jpg")).read_bytes()
    assert "goes on behind its end marker" in message(put(tmp_path / "b.tar", one + one))


def test_no_tar_and_damaged_tar(tmp_path: Path) -> None:
    assert "is no tar" in message(put(tmp_path / "a.tar", b"hello" * 1000))
    whole = bytearray(tar_of(tmp_path / "b.tar", member("anna/a.jpg"), member("anna/b.jpg")).read_bytes())
    whole[3 * 512 + 3] ^= 1  # a letter of the second name
    assert "is damaged at byte 1536, after 1 whole member:" in message(put(tmp_path / "b.tar", bytes(whole)))
    assert "holds no image" in message(tar_of(tmp_path / "c.tar"))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_packed_tars(tmp_path: Path, mode: str) -> None:
    for name in ("a.tar." + mode[2:], "a.tar"):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.addfile(member("anna/a.jpg"), io.BytesIO(b"d" * 700))
        assert "unpack it to" in message(tmp_path / name)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (header(b"a/b.jpg", b"-0000000012\0"), "is no tar"),
        (header(b"a/b.jpg", b"\xff" + b"\xff" * 11), "is no tar"),
        (header(b"a/b.jpg", b"\x80" + b"\x7f" * 11), "cut short"),
        (header(b"a/b.jpg", b"77777777777\0"), "cut short"),
        (header(b"long", b"77777777777\0", b"L"), "-byte name"),
        (header(b"pax", b"00000000010\0", b"x") + b"9 path=abc".ljust(512, b"\0"), "pax header"),
        (header(b"pax", b"00000000020\0", b"x") + b"0 path=a\n".ljust(512, b"\0"), "pax header"),
        (header(b"pax", b"00000000020\0", b"x") + b"xx path=a\n".ljust(512, b"\0"), "pax header"),
        (header(b"pax", b"00000000014\0", b"x") + b"12 size=-12\n".ljust(512, b"\0"), "pax header"),
    ],
)
def test_hostile_headers(tmp_path: Path, start: bytes, expected: str) -> None:
    assert expected in message(put(tmp_path / "a.tar", start + bytes(4096)))


def test_pax_size_and_global_header(tmp_path: Path) -> None:
    blocks = [
        header(b"g", b"00000000013\0", b"g") + b"11 a=bcde\n\0".ljust(512, b"\0"),
        header(b"x", b"00000000012\0", b"x") + b"10 size=3\n".ljust(512, b"\0"),
        header(b"a/b.jpg", b"00000000000\0") + b"abc".ljust(512, b"\0"),
        bytes(1024),
    ]
    index = read_index(put(tmp_path / "a.tar", b"".join(blocks)))
    assert index.read(0) == b"abc"


def test_a_sparse_member_is_refused_by_its_own_name(tmp_path: Path) -> None:
    info = member("GNUSparseFile.0/1.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "anna/1.jpg"}
    path = tar_of(tmp_path / "a.tar", info, form=tarfile.PAX_FORMAT)
    assert "1 member refused: anna/1.jpg (sparse)" in message(path)


def test_a_tar_that_shrinks_while_its_end_is_looked_at(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", member("anna/1.jpg"))
    with open(path, "rb") as file:
        tar._nothing_behind(str(path), file.fileno(), path.stat().st_size, path.stat().st_size + 1)
    assert [found.name for found in walk_tar(str(path))] == ["anna/1.jpg"]


def test_a_tar_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.tar")
    deny(monkeypatch, "open", path)
    assert message(path) == f"{path}: cannot be opened (Permission denied)"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6 * 512), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_tar_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    whole = bytearray(
        tar_of(tmp_path / "a.tar", member("anna/a.jpg"), member("bob/" + "n" * 120 + ".jpg")).read_bytes()
    )
    for place, value in changes:
        whole[place] = value
    path = put(tmp_path / "b.tar", bytes(whole))
    try:
        index = read_index(path)
    except DataError:
        return
    for i in range(len(index)):
        assert len(index.read(i)) == index.location(i).size
