"""What a source holds besides photographs, and is skipped: one rule for folders, tars and lists, at any depth.

Cameras, network drives and photograph programs leave thumbnails and deleted pictures beside the photographs. Read
as images they would be further people, or further images of a person. Nothing is skipped silently: a `Skips` counts
every kind and names the first few.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from facemetric.errors import plural

EXAMPLES = 5  # names of a kind that are shown
PHOTOGRAPHS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
IMAGE_ENDINGS = (*PHOTOGRAPHS, ".pgm", ".ppm", ".pbm", ".pnm")
PHONE_ENDINGS = (".heic", ".heif", ".avif")  # photographs of phones, read where their packages are installed

# Folders that are skipped, in lower case; beside them all whose names start with a dot (`.thumbnails` of Android
# and desktops, `.@__thumb` of QNAP, `.picasaoriginals`, `.Trashes`, `.webaxs_*` of Buffalo, `.stversions`).
# No name is listed that people could give to a person's folder by themselves (`Trash`, `Bin`, `Originals`, `Archive`
# of Google Takeout and of old Picasa): name the folders above them, or leave those identities out.
SYSTEM_FOLDERS = frozenset(
    (
        "@eadir",  # Synology: thumbnails SYNOPHOTO_THUMB_*.jpg of every photograph beside it
        "#recycle",  # Synology: deleted files
        "#snapshot",  # Synology: earlier states of the whole folder
        "@tmp",  # Synology
        "@__thumb",  # QNAP: thumbnails
        "@recycle",  # QNAP: deleted files
        "@recently-snapshot",  # QNAP: earlier states
        "@transcode",  # QNAP: smaller copies
        "network trash folder",  # macOS on shared drives
        "temporary items",  # macOS on shared drives
        "__macosx",  # macOS: beside what was unpacked from a zip
        "thevolumesettingsfolder",  # macOS
        "data.noindex",  # iPhoto: small copies
        "$recycle.bin",  # Windows: deleted files
        "recycler",  # Windows XP
        "recycled",  # Windows 98
        "system volume information",  # Windows: earlier states
        "lost+found",  # Linux: what a repair of the disk found
        "lightroom catalog",  # Adobe Lightroom: its catalogue and previews
        "thumbnail",  # galleries and phones
        "thumbnails",
        "thumbs",
    )
)
SYSTEM_ENDINGS = (
    ".lrdata",  # Adobe Lightroom: previews
    ".photoslibrary",  # Apple Photos: photographs, and their thumbnails beside them
    ".photolibrary",  # Apple iPhoto
    ".migratedphotolibrary",
    ".aplibrary",  # Apple Aperture
)
THUMBNAILS = ("synofile_thumb_", "synophoto_thumb_")  # files of Synology, copied out of their folder
NO_PHOTOGRAPHS = (".", *THUMBNAILS)  # macOS leaves `._1.jpg` beside `1.jpg`


class Kind(NamedTuple):
    """What is skipped, in the singular and in the plural."""

    one: str
    many: str


HIDDEN = Kind("hidden folder", "hidden folders")
SYSTEM = Kind(
    "folder of thumbnails, of deleted files or of the system",
    "folders of thumbnails, of deleted files or of the system",
)
THUMBNAIL = Kind("thumbnail of a network drive", "thumbnails of a network drive")
NO_IMAGE = Kind("file that is no image", "files that are no images")
UNREAD = Kind(
    "HEIC or AVIF file, which is not read (pip install 'facemetric[heic]', or convert it to JPEG)",
    "HEIC or AVIF files, which are not read (pip install 'facemetric[heic]', or convert them to JPEG)",
)
OUTSIDE = Kind("image outside an identity's folder", "images outside an identity's folder")
UNLABELLED = Kind("image without a label", "images without a label")
EMPTY = Kind("folder without an image", "folders without an image")
WALKED = Kind("link to a folder already walked", "links to a folder already walked")
BROKEN = Kind("broken link", "broken links")
DEVICE = Kind("pipe or device", "pipes and devices")
TWICE = Kind("image listed twice (the last counts)", "images listed twice (the last counts)")


class Skips:
    """Counts what is skipped, and keeps the first few names of each kind."""

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = {}
        self.examples: dict[Kind, list[str]] = {}
        self._folders: set[str] = set()

    def add(self, kind: Kind, name: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(name)

    def add_folder(self, kind: Kind, name: str) -> None:
        """A folder, once for all its files."""
        if name not in self._folders:
            self._folders.add(name)
            self.add(kind, name)

    def phrases(self) -> list[str]:
        """`3 broken links`, ... for each kind."""
        return [plural(count, *kind) for kind, count in self.counts.items()]

    def notes(self) -> list[str]:
        """A sentence for each kind: how many, and the first few."""
        shown = (
            ", ".join(self.examples[kind]) + (f" and {count - EXAMPLES:,} more" if count > EXAMPLES else "")
            for kind, count in self.counts.items()
        )
        return [f"skipped {phrase}: {names}" for phrase, names in zip(self.phrases(), shown, strict=True)]


def why_skip_folder(name: str) -> Kind | None:
    """Why a folder of this name is skipped, or None."""
    if name.startswith("."):
        return HIDDEN
    lower = name.lower()
    return SYSTEM if lower in SYSTEM_FOLDERS or lower.endswith(SYSTEM_ENDINGS) else None


def why_skip_file(leaf: str) -> Kind | None:
    """Why a file of this name is skipped, or None for an image."""
    lower = leaf.lower()
    if lower.startswith(NO_PHOTOGRAPHS):
        return THUMBNAIL if lower[0] == "s" and lower.endswith(IMAGE_ENDINGS) else NO_IMAGE
    if lower.endswith(IMAGE_ENDINGS):
        return None
    if not lower.endswith(PHONE_ENDINGS):
        return NO_IMAGE
    return None if _read_phones(lower[lower.rfind(".") :]) else UNREAD


@cache
def _read_phones(ending: str) -> bool:
    from facemetric.data.images import phones_read  # PIL, which lists of JPEGs do not need

    return phones_read(ending)


def skipped_folder(path: str) -> tuple[str, Kind] | None:
    """The path of a file up to the first folder that is skipped, and why; None where there is none."""
    folders = path.split("/")[:-1]
    for folder in folders:
        if kind := why_skip_folder(folder):
            return "/".join(folders[: folders.index(folder) + 1]), kind
    return None
