"""A model card: the README.md of weights, written from what their config.json holds, with the intervals.

What was not measured is not in it, and the card says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

WHERE = {  # of a figure's name, what it was measured on
    "val": "validation identities",
    "lfw": "LFW",
    "devtest": "LFW View 1, DevTest",
    "orl": "ORL",
}
FIGURES = (
    "tar_at_far_",
    "accuracy",
    "eer",
    "auc",
    "knn_accuracy",
)  # names of these end so, or go on with a FAR
ABSOLUTE = re.compile(r"(?<![\w:/])(?:~|[A-Za-z]:)?(?:[\\/][\w.+ -]+)+[\\/]")


def card(config: Mapping[str, Any], repo: str) -> str:
    """The text of a card for OWNER/NAME."""
    ours = config["facemetric"]
    name = repo.rpartition("/")[2]
    width, height = ours["preprocess"]["size"][1], ours["preprocess"]["size"][0]
    parts = [
        front_matter(),
        f"# {name}\n",
        f"{ours['embedding_size']} numbers, a unit vector, for a picture of {width} x {height} pixels: the cosine of "
        f"two says how alike they are. timm's {config['architecture']}, trained and measured with facemetric"
        f"{' ' + ours['version'] if ours.get('version') else ''}.\n",
        *use(config, repo),
        *figures_table(ours.get("metrics") or {}),
        *thresholds_table(ours.get("thresholds") or {}),
        *training(ours.get("provenance") or {}),
        LIMITS,
    ]
    return "\n".join(parts)


def with_front_matter(text: str) -> str:
    """A card of the author's own, with the lines that the Hub reads at its head where they are not there."""
    return text if text.startswith("---\n") else f"{front_matter()}\n{text}"


def front_matter() -> str:
    """What the Hub files a model by. A licence is the author's to name."""
    tags = ("facemetric", "timm", "metric-learning")
    lines = [
        "library_name: facemetric",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {t}" for t in tags),
    ]
    return "\n".join(["---", *lines, "---", ""])


LIMITS = """## Limits

What has no figure above was not measured: among it error rates by age, sex and origin, unless a line names them. A
threshold holds for pictures like those that it was chosen on. Not for identifying or watching people, nor where a wrong
answer harms someone.
"""


def use(config: Mapping[str, Any], repo: str) -> list[str]:
    """How the weights are used."""
    ours = config["facemetric"]
    far = min(
        (float(far) for far in ours.get("thresholds") or {}), default=None, key=lambda far: abs(far - 1e-3)
    )
    verify = (
        f"facemetric verify a.jpg b.jpg --weights hf-hub:{repo} --far {far:g}\n" if far is not None else ""
    )
    plain = (config.get("pretrained_cfg") or {}).get("notes")
    timm = (
        ""
        if plain
        else f'\ntimm.create_model("hf-hub:{repo}", pretrained=True)  # before normalising: plain timm\n'
    )
    return [
        "## Use\n",
        "```bash",
        f"{verify}facemetric cluster photos/ --weights hf-hub:{repo}",
        "```\n",
        "```python",
        "import facemetric as fm\n",
        f'vectors = fm.load_embedder("hf-hub:{repo}").embed(["a.jpg", "b.jpg"])',
        f"fm.similarity(vectors, vectors){chr(10) + timm if timm else ''}",
        "```\n",
    ]


def figures_table(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The measured figures, each with its interval where there is one."""
    rows = []
    for key, value in metrics.items():
        where, _, what = key.partition("_")
        if where not in WHERE or not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if not what.startswith(FIGURES[0]) and what not in FIGURES:
            continue
        interval = metrics.get(f"{key}_95")
        between = f"[{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "not computed"
        rows.append(f"| {WHERE[where]} | {in_words(what)} | {value:.4f} | {between} |")
    if not rows:
        yield "## Figures\n\nNone were measured.\n"
        return
    yield "## Figures\n"
    if metrics.get("flip"):
        yield "With the mirror image averaged in.\n"
    yield "| measured on | figure | value | 95 % interval over people |\n|---|---|---|---|"
    yield "\n".join(rows) + "\n"
    if any(key.startswith("val_") for key in metrics):
        yield "The validation identities were not trained on, but chose the epoch: read their figures as hopeful.\n"


def in_words(what: str) -> str:
    """`tar_at_far_0.01` -> `TAR at FAR = 0.01`."""
    if what.startswith(FIGURES[0]):
        return f"TAR at FAR = {what.removeprefix(FIGURES[0])}"
    return {"eer": "EER", "auc": "AUC", "knn_accuracy": "accuracy of the nearest neighbour"}.get(what, what)


def thresholds_table(thresholds: Mapping[str, Any]) -> Iterator[str]:
    """From which cosine a pair counts as one identity, and what that was chosen on."""
    if not thresholds:
        yield "## Thresholds\n\nNone are stored: `facemetric calibrate` chooses one on people never trained on.\n"
        return
    yield "## Thresholds\n"
    yield "| wanted FAR | cosine | FAR | TAR | images, identities | mirror image |\n|---|---|---|---|---|---|"

    def between(one: Mapping[str, Any], name: str, digits: str) -> str:
        low, high = one.get(f"{name}_interval_95") or (None, None)
        return f"{one[name]:{digits}}" + (f" [{low:{digits}}, {high:{digits}}]" if low is not None else "")

    for one in thresholds.values():
        yield (
            f"| {one['wanted_far']:g} | {between(one, 'threshold', '.4f')} | {between(one, 'far', '.2g')} | "
            f"{between(one, 'tar', '.3f')} | {one['images']:,}, {one['identities']:,} | "
            f"{'averaged in' if one.get('flip') else 'not used'} |"
        )
    chosen = {without_paths(str(one.get("chosen_on", "nobody knows"))) for one in thresholds.values()}
    yield f"\n95 % intervals over identities in brackets. Chosen on: {'; '.join(sorted(chosen))}.\n"


def training(provenance: Mapping[str, Any]) -> Iterator[str]:
    """How many images of how many identities, and with what."""
    yield "## Training\n"
    if not provenance.get("images"):
        yield "What they were trained on is not recorded.\n"
        return
    versions = ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items())
    yield (
        f"{provenance['images']:,} images of {provenance['identities']:,} identities, seed {provenance.get('seed')}"
        f"{'; ' + versions if versions else ''}. Every option is in `config.json`.\n"
    )


def without_paths(text: str) -> str:
    """A text with the names of files in place of their absolute paths."""
    return ABSOLUTE.sub("", text)
