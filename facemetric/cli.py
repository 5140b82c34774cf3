"""The words of the terminal: options in, text out. torch is imported when a command runs, not before.

Slips that can be told from the words alone are told first (`check_words`)."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import cyclopts
from cyclopts import App, Parameter

from facemetric.cli_words import (
    check_flags,
    check_processes,
    check_words,
    message_of,
    one_line,
    shown_default,
    with_config_file,
)
from facemetric.config import (
    AlignConfig,
    CalibrateConfig,
    CheckConfig,
    ClusterConfig,
    ConvertConfig,
    DemoConfig,
    EmbedConfig,
    EvalConfig,
    ExportConfig,
    FinetuneConfig,
    GalleryAddConfig,
    GalleryCheckConfig,
    GalleryListConfig,
    GalleryRemoveConfig,
    IdentifyConfig,
    PretrainConfig,
    PushConfig,
    RunConfig,
    RunsConfig,
    VerifyConfig,
    VisualizeConfig,
    check_ranges,
)
from facemetric.config.calls import on_terminal, show_flags
from facemetric.errors import FacemetricError
from facemetric.machine import ignore_disk_error_in_thread, show_progress, sigterm_handler

app = App(
    name="facemetric",
    help="Identity embeddings from folders of images: prepare (align, data check), train (pretrain,\n"
    "finetune), measure (eval, visualize), all of these from one recipe (run), use (calibrate, verify, embed,\n"
    "gallery, identify, cluster), hand on (export, push).\n\n"
    "Each command takes its options as flags or, with --config FILE, from a TOML file; flags win.",
    help_format="plaintext",
    version=metadata.version("facemetric"),
    default_parameter=Parameter(negative_iterable=(), consume_multiple=True, show_default=shown_default),
    suppress_keyboard_interrupt=False,  # main says what goes on
)
app.register_install_completion_command(help="Let the shell complete commands and options on Tab.")


@app.command
def pretrain(config: Annotated[PretrainConfig, Parameter(name="*")] = PretrainConfig()) -> None:
    """Stage one: train a backbone on DATA with cross-entropy on the identities."""
    check_words(config)
    from facemetric.training.pretrain import pretrain as run_stage

    run_stage(config)


@app.command
def finetune(config: Annotated[FinetuneConfig, Parameter(name="*")] = FinetuneConfig()) -> None:
    """Stage two: train a projection (or everything) on DATA with online triplets."""
    check_words(config)
    from facemetric.training.finetune import finetune as run_stage

    add_cwd_to_path()
    run_stage(config)


@app.command(name="eval")
def evaluate(config: Annotated[EvalConfig, Parameter(name="*")] = EvalConfig()) -> None:
    """Measure weights: verification on --pairs, nearest neighbours on --data."""
    check_words(config)
    from facemetric.commands.evaluating.eval import run_evaluate
    from facemetric.report.figures import evaluation_text

    print_once(evaluation_text(run_evaluate(config)))


@app.command
def run(config: Annotated[RunConfig, Parameter(name="*")] = RunConfig()) -> None:
    """Run a whole experiment: the stages of a RECIPE (TOML) in sequence, or with --set a table of such runs."""
    check_words(config)
    from facemetric.commands.run import run as run_recipe

    add_cwd_to_path()
    run_recipe(config)


data = App(name="data", help="Look after folders of images.")
app.command(data)


@data.command
def check(config: Annotated[CheckConfig, Parameter(name="*")] = CheckConfig()) -> None:
    """Look through DATA for duplicates, people with two names, wrong labels and people of a test set."""
    check_words(config)
    from facemetric.commands.checking.check import run_check

    add_cwd_to_path()
    print(run_check(config).text())


@data.command
def convert(config: Annotated[ConvertConfig, Parameter(name="*")] = ConvertConfig()) -> None:
    """Write DATA of any kind to tar shards, the images' bytes as they are; resumable."""
    from facemetric.commands.convert import check_convert, run_convert

    check_convert(config)
    print(run_convert(config).text())


@app.command
def align(config: Annotated[AlignConfig, Parameter(name="*")] = AlignConfig()) -> None:
    """Find the faces of PHOTOS, turn them upright, cut them to the template; resumable."""
    check_words(config)
    from facemetric.commands.align import run_align

    add_cwd_to_path()
    print(run_align(config).text())


@app.command
def embed(config: Annotated[EmbedConfig, Parameter(name="*")] = EmbedConfig()) -> None:
    """Embed the faces of DATA, photographs or crops, into one table: .parquet, .npz or .csv; resumable."""
    check_words(config)
    from facemetric.commands.vectors.embed import run_embed

    add_cwd_to_path()
    print_once(run_embed(config).text())


@app.command
def visualize(config: Annotated[VisualizeConfig, Parameter(name="*")] = VisualizeConfig()) -> None:
    """Show embeddings of DATA: TensorBoard's projector with pictures, and t-SNE."""
    check_words(config)
    from facemetric.commands.visualize import run_visualize

    run_visualize(config)


@app.command
def calibrate(config: Annotated[CalibrateConfig, Parameter(name="*")] = CalibrateConfig()) -> None:
    """Choose the threshold for a wanted FAR on people never trained on, and keep it with the weights."""
    check_words(config)
    from facemetric.commands.calibrate import run_calibrate

    print(run_calibrate(config).text())


@app.command
def verify(config: Annotated[VerifyConfig, Parameter(name="*")] = VerifyConfig()) -> None:
    """Say whether two images show one person, by a threshold that the weights hold."""
    check_words(config)
    from facemetric.commands.verify import run_verify

    add_cwd_to_path()
    verdict = run_verify(config)
    print(json.dumps(verdict.to_dict()) if config.json else verdict.text())


@app.command
def cluster(config: Annotated[ClusterConfig, Parameter(name="*")] = ClusterConfig()) -> None:
    """Group the images of DATA by person, without labels."""
    check_words(config)
    from facemetric.commands.clustering.cluster import run_cluster

    add_cwd_to_path()
    print(run_cluster(config).text())


gallery = App(name="gallery", help="People enrolled in a folder, for `facemetric identify`.")
app.command(gallery)


@gallery.command
def add(config: Annotated[GalleryAddConfig, Parameter(name="*")] = GalleryAddConfig()) -> None:
    """Enroll people in GALLERY from a folder of identities, or one person from --name NAME PHOTO..."""
    from facemetric.commands.gallery import check_add, run_add

    check_add(config)
    check_words(config)

    add_cwd_to_path()
    print(run_add(config).text())


@gallery.command(name="list")
def list_(config: Annotated[GalleryListConfig, Parameter(name="*")] = GalleryListConfig()) -> None:
    """List the people of GALLERY, or the photographs of those named, with the quality of their faces."""
    from facemetric.commands.gallery import run_list

    text, record = run_list(config)
    print(json.dumps(record) if config.json else text)


@gallery.command
def remove(config: Annotated[GalleryRemoveConfig, Parameter(name="*")] = GalleryRemoveConfig()) -> None:
    """Remove people, or --photos, from GALLERY and from the disk."""
    from facemetric.commands.gallery import run_remove

    print(run_remove(config))


@gallery.command(name="check")
def check_gallery(config: Annotated[GalleryCheckConfig, Parameter(name="*")] = GalleryCheckConfig()) -> None:
    """Look through GALLERY for damaged files, one picture under two names, people who look like one."""
    check_words(config)
    from facemetric.commands.gallery import run_check

    found = run_check(config)
    print(json.dumps(found.to_dict()) if config.json else found.text())


@app.command
def identify(config: Annotated[IdentifyConfig, Parameter(name="*")] = IdentifyConfig()) -> None:
    """Say who is on photographs, among the people of a gallery, or that it is nobody known."""
    from facemetric.commands.gallery import check_identify

    check_identify(config)
    check_words(config)
    from facemetric.commands.identifying.identify import run_identify

    add_cwd_to_path()
    found = run_identify(config)
    print_once(found.to_json() if config.json else found.text())


@app.command
def export(config: Annotated[ExportConfig, Parameter(name="*")] = ExportConfig()) -> None:
    """Write weights as one ONNX file that takes crops as they are, and compare it with torch."""
    check_words(config)
    from facemetric.commands.export import export_text, run_export

    print(export_text(run_export(config)))


@app.command
def push(config: Annotated[PushConfig, Parameter(name="*")] = PushConfig()) -> None:
    """Send weights and a card of their figures to the Hugging Face Hub; what is sent is shown first."""
    check_ranges(config)
    from facemetric.commands.push import run_push

    print(run_push(config).text())


@app.command
def demo(config: Annotated[DemoConfig, Parameter(name="*")] = DemoConfig()) -> None:
    """Draw faces, pretrain, finetune and eval on people never seen: the whole story in a minute and a half."""
    check_words(config)
    from facemetric.commands.demo import run_demo

    run_demo(config)


@app.command
def heads() -> None:
    """List the heads that pretrain can learn identities with; use one with --head NAME."""
    from facemetric.model.heads import heads_text

    print(heads_text())


@app.command
def weights() -> None:
    """List the weights that come with facemetric: size, speed and accuracy; use one with --weights NAME."""
    from facemetric.commands.listings import list_weights

    list_weights()


@app.command
def runs(config: Annotated[RunsConfig, Parameter(name="*")] = RunsConfig()) -> None:
    """List the training runs below FOLDER: running, finished, stopped or interrupted, and their best figures."""
    from facemetric.commands.listings import list_runs

    list_runs(config)


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point: exit status 0, or 2 with one line on stderr for what the user can mend."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may be no UTF-8, and so may the terminal
            stream.reconfigure(errors="backslashreplace")
    before, threading.excepthook = threading.excepthook, ignore_disk_error_in_thread
    shown_before, flags_before = show_progress(True), show_flags(True)
    with_signal = threading.current_thread() is threading.main_thread()
    terminate = signal.signal(signal.SIGTERM, sigterm_handler(os.getpid())) if with_signal else None
    try:
        rest = with_config_file(list(sys.argv[1:] if tokens is None else tokens), app)
        check_processes(rest)
        check_flags(rest, app)
        app(rest, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except cyclopts.CycloptsError as error:
        fail(message_of(error, app))
    except FacemetricError as error:
        fail(one_line(on_terminal(str(error))))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and nobody_reads():
            raise SystemExit(128 + signal.SIGPIPE) from None  # as other programs end before `| head`
        if error.filename is None and error.errno is None:
            raise  # not the file system's: a bug keeps its traceback
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some of the disk" if full else "mend the path, or name another --out"
        fail(f"{error.strerror or error}{where}; {remedy}")
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's own, which may not be imported yet
            raise
        fail(
            f"the GPU ran out of memory ({str(error).splitlines()[0]}); free some of it, lower --batch-size, or choose "
            "--device cpu"
        )
    except KeyboardInterrupt:
        fail("interrupted; a training goes on from its last checkpoint with --resume")
    finally:
        threading.excepthook = before
        show_progress(shown_before)
        show_flags(flags_before)
        if with_signal:
            signal.signal(signal.SIGTERM, terminate)


def print_once(text: str) -> None:
    """Print a result; of several processes under torchrun the first does."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def nobody_reads() -> bool:
    """Whether the program that stdout goes to has ended; what is left to print goes nowhere then."""
    stdout = 1
    pipe = select.poll()
    pipe.register(stdout, 0)
    ended = any(events & select.POLLERR for _, events in pipe.poll(0))
    if ended:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return ended


def add_cwd_to_path() -> None:
    """Let --miner MODULE:FUNCTION find a module in the folder that the command is run from."""
    if "" not in sys.path:
        sys.path.append("")  # last: a file of the user's hides no module of others


def fail(message: str) -> None:
    """One line on stderr, exit status 2."""
    sys.stderr.write(f"facemetric: {message}\n")
    sys.stderr.flush()
    raise SystemExit(2)


if __name__ == "__main__":
    main()
