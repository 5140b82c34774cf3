"""Weights on the Hugging Face Hub: brought by `hf-hub:OWNER/NAME`, and sent there.

Two files are brought and no other, `config.json` and `model.safetensors`, into huggingface_hub's own cache: neither can
run code. Nothing is asked of a network but for a name that begins with `hf-hub:`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from facemetric.errors import ConfigError, WeightsError, first_few
from facemetric.machine import progress_shown, say
from facemetric.model.weights.folder import CONFIG, HUB, MODEL, read_config

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"[\w./-]+")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".h5", ".keras")
SECONDS = 10  # that an answer of the Hub may take
FOUND: dict[
    tuple[str, str | None], Path
] = {}  # what this process has asked for: a name means the same to its end


@dataclass(frozen=True)
class Remote:
    """A repository as it is on the Hub: its commit, whether it is private, and a mark of each file's content."""

    commit: str
    private: bool
    files: Mapping[str, str]


def parse_name(name: str) -> tuple[str, str | None]:
    """(OWNER/NAME, revision or None) of `hf-hub:OWNER/NAME` or `hf-hub:OWNER/NAME@REVISION`."""
    repo, at, revision = name.removeprefix(HUB).partition("@")
    if not REPO.fullmatch(repo) or ".." in repo or (at and not REVISION.fullmatch(revision)):
        raise WeightsError(
            f"{name!r} names nothing on the Hub; needed is {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION"
        )
    return repo, revision or None


def hub_folder(name: str, *, cached: bool = False) -> Path:
    """The weights folder of `hf-hub:OWNER/NAME[@REVISION]` in the cache, brought there where it is not.

    `cached` asks no network. Without a network the copy that is in the cache is used, and a note says so.
    Raises WeightsError where the Hub has no such name, cannot be reached, or refuses; where the repository holds no
    weights of facemetric, or holds them only as a pickle, which could run code."""
    asked = repo, revision = parse_name(name)
    endpoint = os.environ.get("HF_ENDPOINT") or None  # of now: huggingface_hub keeps that of its import
    if cached:
        folder = in_cache(repo, revision)
        if folder is None:
            raise WeightsError(f"{name} is not in the cache")
        return folder
    if asked in FOUND and FOUND[asked].is_dir():
        return FOUND[asked]
    try:
        with quiet():
            remote = look_at(repo, revision, endpoint)
            check_files(name, remote)
            folder = bring(repo, CONFIG, revision, endpoint).parent  # the cache notes the commit of a branch
            check_config(name, folder)
            bring(repo, MODEL, folder.name, endpoint)
    except Exception as error:
        kept = in_cache(repo, revision) if is_no_network(error) else None
        if kept is None:
            raise hub_error(error, name) from error
        say(
            f"note: the Hub cannot be reached ({reason_of(error)}): {name} is the copy in the cache, {kept.name[:12]}"
        )
        folder = kept
    FOUND[asked] = folder
    return folder


def bring(repo: str, file: str, revision: str | None, endpoint: str | None) -> Path:
    """A file of a revision, from the cache where it is there."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo, file, revision=revision, endpoint=endpoint))


def in_cache(repo: str, revision: str | None) -> Path | None:
    """The folder of a revision in the cache, None where it is not there whole."""
    from huggingface_hub import try_to_load_from_cache

    files = [try_to_load_from_cache(repo, file, revision=revision) for file in (CONFIG, MODEL)]
    return Path(files[0]).parent if all(isinstance(file, str) for file in files) else None  # type: ignore[arg-type]


def look_at(repo: str, revision: str | None, endpoint: str | None, *, token: str | None = None) -> Remote:
    """What a repository holds. Raises huggingface_hub's errors."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    info = api.model_info(repo, revision=revision, timeout=SECONDS, files_metadata=True)
    files = {
        each.rfilename: str(getattr(each.lfs, "sha256", None) or each.blob_id) for each in info.siblings or ()
    }
    return Remote(str(info.sha), bool(info.private), files)


def check_files(name: str, remote: Remote) -> None:
    """Raise WeightsError unless the two files are there."""
    missing = [file for file in (CONFIG, MODEL) if file not in remote.files]
    if not missing:
        return
    pickles = [file for file in remote.files if file.lower().endswith(PICKLES)]
    if MODEL in missing and pickles:
        raise WeightsError(
            f"{name} has its weights as {first_few(pickles)} only, which can run code when it is opened, and no "
            f"{MODEL}: refused; ask its author for a {MODEL} of facemetric"
        )
    raise WeightsError(
        f"{name} holds no weights of facemetric: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not "
        f"among its files ({first_few(remote.files)}); name another"
    )


def check_config(name: str, folder: Path) -> None:
    """Raise WeightsError unless the config.json is one of facemetric."""
    try:
        read_config(folder)
    except WeightsError as error:
        why = str(error).removeprefix(str(folder / CONFIG)).strip(" :")
        raise WeightsError(
            f"{name} holds no weights of facemetric: its {CONFIG} {why}; name another"
        ) from error


def blob_mark(content: bytes, *, lfs: bool) -> str:
    """A content's mark as the Hub has it: SHA-256 of a large file, git's own of a small one."""
    if lfs:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def same_content(content: bytes, mark: str) -> bool:
    """Whether a file on the Hub has this content."""
    return blob_mark(content, lfs=len(mark) == 64) == mark


def look_for(repo: str) -> Remote | None:
    """A repository to send to, None where there is none yet. Raises ConfigError without a token, WeightsError else."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not get_token():
        raise ConfigError(
            "no token of the Hub was found; log in (hf auth login), or set HF_TOKEN to one that may write"
        )
    try:
        return look_at(repo, None, os.environ.get("HF_ENDPOINT") or None)
    except GatedRepoError as error:
        raise hub_error(error, HUB + repo) from error
    except RepositoryNotFoundError:
        return None
    except Exception as error:
        raise hub_error(error, HUB + repo) from error


def send(
    repo: str, files: Mapping[str, bytes], *, message: str, on: Remote | None, private: bool
) -> tuple[str, str]:
    """Make the repository where there is none (`on` is None), and add files in one commit: (address, commit).

    Raises WeightsError where the Hub refuses, and where somebody else has changed the repository since `on`."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        with quiet():
            if on is None:
                api.create_repo(repo, private=private, exist_ok=False)
            done = api.create_commit(
                repo,
                [CommitOperationAdd(path, content) for path, content in files.items()],
                commit_message=message,
                parent_commit=on.commit if on is not None else None,
            )
    except Exception as error:
        raise hub_error(error, HUB + repo) from error
    return f"{api.endpoint}/{repo}", str(done.oid)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """huggingface_hub's progress bars are shown where ours are."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if progress_shown() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def is_no_network(error: BaseException) -> bool:
    """Whether an error says that no answer came: the libraries below huggingface_hub changed with its versions."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return status_of(error) in (502, 503, 504)
    library = type(error).__module__.partition(".")[0]
    return library in ("httpx", "httpx2", "httpcore", "requests", "urllib3") or isinstance(
        error, (OfflineModeIsEnabled, ConnectionError, TimeoutError)
    )


def status_of(error: BaseException) -> int:
    """The HTTP status of an error, 0 where it has none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def reason_of(error: BaseException) -> str:
    """An error of a library in a few words."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]


def hub_error(error: Exception, name: str) -> Exception:
    """The user's error for one of huggingface_hub; the error itself where it is a bug."""
    from huggingface_hub import errors

    repo, revision = parse_name(name)
    login = "log in (hf auth login), or set HF_TOKEN"
    status = status_of(error)
    if isinstance(error, WeightsError):
        return error
    if is_no_network(error):
        return WeightsError(
            f"{name}: the Hub cannot be reached ({reason_of(error)}), and the cache has no copy; connect, or name a "
            "weights folder"
        )
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(f"{name} is gated: accept its terms at its page on the Hub, then {login}")
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{HUB}{repo} has no revision {revision!r}; name a branch, tag or commit of it")
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(f"the Hub has no model {repo}, or it is private; mend the name, or {login}")
    if status == 401:
        return WeightsError(f"{name}: the Hub refuses the token; make another at its settings and {login}")
    if status == 403:
        return WeightsError(
            f"{name}: the token may not do this; make one that may write to {repo}, and {login}"
        )
    if status in (409, 412):
        return WeightsError(
            f"{repo} was changed or made by somebody else in the meantime; look at it, and push again"
        )
    if isinstance(error, (errors.HfHubHTTPError, OSError)):
        return WeightsError(
            f"{name}: the Hub did not answer as expected ({reason_of(error)}); try again later"
        )
    return error
