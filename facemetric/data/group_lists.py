"""Lists of groups of images: those of an earlier clustering, corrections, and pairs that are one person or two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from facemetric.data.readers.csv import Table
from facemetric.errors import DataError, did_you_mean

CLUSTERS = "clusters.csv"
PAIR_COLUMNS = (("path_a", "path_b"), ("image1_path", "image2_path"))
YES = {"1": True, "yes": True, "true": True, "": False, "0": False, "no": False, "false": False}


class Member(NamedTuple):
    """A line of a list of groups: an image, the number of its group (-1: known by its name alone), the group's name,
    whether the image was confirmed there, and the line."""

    path: str
    number: int
    name: str
    confirmed: bool
    line: int


class GroupList(NamedTuple):
    """A file of groups. No image is in it twice, and no number has two names, nor a name two numbers."""

    file: Path
    members: tuple[Member, ...]

    def where(self, member: Member) -> str:
        """The place of a line, for a message."""
        return f"{self.file} line {member.line}"


class NamedPair(NamedTuple):
    """Two images, and the place of their line."""

    path_a: str
    path_b: str
    where: str


def read_clusters(earlier: str | Path) -> GroupList:
    """The groups of an earlier run: its out folder, or its clusters.csv."""
    path = Path(earlier)
    if path.is_dir():
        path = path / CLUSTERS
        if not path.is_file():
            raise DataError(
                f"{earlier} has no {CLUSTERS}; give the out folder of an earlier cluster, or its csv"
            )
    return _read_groups(path, confirmed=False)


def read_corrections(path: str | Path) -> GroupList:
    """Corrections: `path,cluster,name` a line, or `path,name`: each image is confirmed in its group.

    A line without a name and a number is refused, as is an image that is listed in two groups."""
    return _read_groups(Path(path), confirmed=True)


def read_link_pairs(path: str | Path) -> list[NamedPair]:
    """Pairs of images, `path_a,path_b` a line; a header is no must, further columns are skipped.

    Raises DataError for a line of fewer than two images, or of one image twice."""
    needed = "two images a line: path_a,path_b"
    with _opened(path, needed) as table:
        header = tuple(name.lower() for name in table.header)
        places = next(
            ([header.index(n) for n in names] for names in PAIR_COLUMNS if {*names} <= {*header}), None
        )
        pairs = [] if places or not header else [(table.header, table.line)]
        one, other = places or (0, 1)
        pairs += [(cells, table.line) for cells in table.rows()]
    found = []
    for cells, line in pairs:
        if len(cells) <= max(one, other) or not (cells[one] and cells[other]):
            raise DataError(f"{path} line {line}: names fewer than two images; needed {needed}")
        if cells[one] == cells[other]:
            raise DataError(f"{path} line {line}: names {cells[one]} twice; needed two images")
        found.append(NamedPair(cells[one], cells[other], f"{path} line {line}"))
    return found


def _read_groups(path: Path, *, confirmed: bool) -> GroupList:
    needed = "path,cluster,name"
    with _opened(path, needed) as table:
        places = table.columns
        if "path" not in places or not {"cluster", "name"} & set(places):
            lacking = "path" if "path" not in places else "cluster"
            raise DataError(
                f"{path}: no column {lacking!r} in its first line{did_you_mean(lacking, table.header)}; "
                f"needed is {needed}"
            )
        members = []
        for cells in table.rows():
            cell = {name: cells[place] for name, place in places.items()}
            members.append(_member(path, table.line, cell, confirmed))
    _check(path, members)
    return GroupList(path, tuple(members))


def _member(path: Path, line: int, cell: dict[str, str], confirmed: bool) -> Member:
    """A line's cells by column, looked through."""
    number, name = cell.get("cluster", ""), cell.get("name", "")
    where = f"{path} line {line}"
    if not cell["path"]:
        raise DataError(f"{where}: an empty path; name an image")
    if number and not (number.isascii() and number.isdigit()):
        raise DataError(f"{where}: the cluster is {number!r}; needed its number, as clusters.csv has it")
    if not number and not name:
        raise DataError(f"{where}: neither a cluster nor a name; give the number or the name of its group")
    sure = YES.get(cell.get("confirmed", "").lower())
    if sure is None:
        raise DataError(f"{where}: confirmed is {cell['confirmed']!r}; needed 1 or 0")
    return Member(cell["path"], int(number) if number else -1, name, sure or confirmed, line)


def _check(path: Path, members: list[Member]) -> None:
    """Raise DataError where an image is in two groups, or numbers and names do not go together."""
    image: dict[str, Member] = {}
    name_of: dict[int, Member] = {}
    number_of: dict[str, Member] = {}
    for member in members:
        before = image.setdefault(member.path, member)
        if (before.number, before.name) != (member.number, member.name):
            raise DataError(
                f"{path} lines {before.line} and {member.line}: {member.path} is in two groups, "
                f"{_group(before)} and {_group(member)}; take one of the lines out"
            )
        if member.number >= 0:
            before = name_of.setdefault(member.number, member)
            if before.name != member.name:
                raise DataError(
                    f"{path} lines {before.line} and {member.line}: cluster {member.number} has two names, "
                    f"{before.name!r} and {member.name!r}; give one"
                )
        if member.name:
            before = number_of.setdefault(member.name, member)
            if before.number != member.number:
                raise DataError(
                    f"{path} lines {before.line} and {member.line}: two clusters have the name {member.name!r}, "
                    f"{_group(before)} and {_group(member)}; give both the same number, or one another name"
                )


def _group(member: Member) -> str:
    return f"cluster {member.number}" if member.number >= 0 else repr(member.name)


@contextmanager
def _opened(path: str | Path, needed: str) -> Iterator[Table]:
    """The csv, whose faults are DataErrors."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield Table(path, file, needed)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 csv ({error}); save it as UTF-8 with {needed}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); needed a csv of {needed}") from None
