"""What a stranger who finds an adapter must know: above all that it needs this package, and which base model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .display import HIDDEN, is_plain


TAGS = ["knowledge-editing", "model-editing", "lifelong-editing"]
TEMPLATE = Path(__file__).with_name("model_card.md")
ADAPTER = "this/adapter"  # until it is pushed, it has no name that a stranger could use
BASE_MODEL = "fill/in/the/base/model"  # nor has a base model that is not on the Hub
MOST_ROWS, MOST_CHARACTERS = 50, 160
DATASET = "edits"


@dataclass(frozen=True)
class Method:
    """What a card tells of a method: its name, where it was published, how it edits, and why nothing can be merged."""

    name: str
    address: str
    how: str
    unmergeable: str


METHODS = {
    "LEMOE": Method(
        "LEMoE",
        "https://aclanthology.org/2024.emnlp-main.149/",
        "corrected one by one with {} (lifelong model editing by a mixture of experts)",
        "which expert acts depends on the prompt",
    ),
    "MEMOE": Method(
        "MEMoE",
        "https://arxiv.org/abs/2405.19086",
        "corrected together with {} (model editing by a mixture of experts that all edits share)",
        "which experts act depends on each token and its text",
    ),
    "ELDER": Method(
        "ELDER",
        "https://arxiv.org/abs/2408.11869",
        "corrected with {} (lifelong model editing by a mixture of LoRAs that all edits share)",
        "which LoRAs act depends on the prompt",
    ),
}


def complete_card(
    directory: Path,
    base_model: str | None,
    entries: list[dict],
    fingerprint: str | None = None,
    method: str = "LEMOE",
    deferral: bool = True,
) -> None:
    """
    Make a card of the README.md that PEFT has written beside an adapter, or bring up to date what it tells of the edits.

    PEFT's form is replaced where nobody has filled it in. In a card that people wrote, or changed, only the section of the
    edits is written anew, if it is still there, and usage is added, if `import lemoe_hf` is nowhere, or if the base model
    has got a name on the Hub since.

    Args:
        directory (`Path`): The adapter's folder.
        base_model (`str`, *optional*): Name or folder of its base model.
        entries (`list[dict]`): The adapter's ledger.
        fingerprint (`str`, *optional*): Digest of the base model's shape.
        method (`str`, *optional*, defaults to `"LEMOE"`): The adapter's type.
        deferral (`bool`, *optional*, defaults to `True`): Whether it leaves texts to the base model.
    """
    path = directory / "README.md"
    if not path.is_file():
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    complete_metadata(card.data, base_model)
    card.data.tags = sorted({*card.data.tags, method.lower()})
    new = render(base_model, entries, fingerprint=fingerprint, method=method, deferral=deferral)
    if is_blank_form(card.text):
        card.text = new
    else:
        if "import lemoe_hf" not in card.text or (BASE_MODEL in card.text and is_on_hub(base_model)):
            card.text = with_section(card.text, section(new, "How to use"))
        if section(card.text, "Edits"):
            card.text = with_section(card.text, section(new, "Edits"))
    card.text = card.text.rstrip() + "\n"
    card.save(path)


def write_figures(directory: Path, report: dict[str, Any]) -> None:
    """
    Write figures to the README.md beside an adapter, for people and for the Hub, in the place of earlier ones.

    Args:
        directory (`Path`): The adapter's folder.
        report (`dict`): From `EditEvaluator.report`, with the number of `edits_made` in the adapter.
    """
    card = ModelCard.load(directory / "README.md", ignore_metadata_errors=True)
    card.text = with_section(card.text, section(render(None, [], report), "Figures"))
    others = [result for result in card.data.eval_results or [] if result.dataset_type != DATASET]
    card.data.model_name = card.data.model_name or directory.resolve().name
    card.data.eval_results = others + [
        EvalResult(
            task_type="text-generation",
            dataset_type=DATASET,
            dataset_name=f"{report['num_edits']} edits, after {report['edits_made']} were made",
            metric_type=name,
            metric_name=f"{name} ({protocol_of(name)}, N = {report['num_edits']})",
            metric_value=value,
        )
        for name, value in report["measures"].items()
    ]
    card.save(directory / "README.md")


def keep_metadata(directory: Path, earlier: Path) -> None:
    """Give a card the tags, and the base model's name on the Hub, of an earlier one: PEFT replaces both with its own."""
    card = ModelCard.load(directory / "README.md", ignore_metadata_errors=True)
    before = ModelCard.load(earlier, ignore_metadata_errors=True)
    card.data.tags = [*(card.data.tags or []), *(before.data.tags or [])]
    complete_metadata(card.data, before.data.base_model)
    card.save(directory / "README.md")


def complete_metadata(data: ModelCardData, base_model: str | None) -> None:
    """Add what the Hub lists adapters by, and the base model if its name can be one of the Hub."""
    known = next(filter(is_on_hub, (data.base_model, base_model)), None)
    tags = {tag for tag in data.tags or [] if not str(tag).startswith("base_model:adapter:")}
    data.library_name = "peft"
    data.pipeline_tag = data.pipeline_tag or "text-generation"
    data.tags = sorted(map(str, tags | {*TAGS, *([f"base_model:adapter:{known}"] if known else [])}))
    data.base_model = known
    data.base_model_relation = "adapter" if known else None


def is_on_hub(name: str | None) -> bool:
    """Whether a base model's name can be one of the Hub, and is no folder's."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name not in (None, ".") and re.fullmatch(r"[\w./-]+", name) is not None and not Path(name).exists()


def architecture_of(folder: Path) -> str | None:
    """The class of the model in a folder, if it is there and tells."""
    try:
        (name, *_) = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and name.isidentifier() else None


def render(
    base_model: str | None,
    entries: list[dict],
    report: dict[str, Any] | None = None,
    fingerprint: str | None = None,
    method: str = "LEMOE",
    deferral: bool = True,
) -> str:
    """The text of a card."""
    on_hub = is_on_hub(base_model)
    folder = Path(base_model or "").name
    base = base_model if on_hub else folder if is_plain(folder) else None  # a name, and neither text nor code
    known = [base_model and architecture_of(Path(base_model)), fingerprint and f"fingerprint `{fingerprint}`"]
    # Of edits of one prompt the last one answers.
    told = {entry["edit"]["prompt"].strip(): entry for entry in entries if "edit" in entry}
    rows = [
        {
            "id": entry["id"],
            "prompt": cell(entry["edit"]["prompt"]),
            "target_new": cell(entry["edit"]["target_new"]),
            "aliases": cell(", ".join(entry["edit"].get("aliases", ()))),
        }
        for entry in list(told.values())[-MOST_ROWS:]
    ]
    card = ModelCard.from_template(
        ModelCardData(),
        template_path=str(TEMPLATE),
        method=method,
        described=METHODS[method],
        base=base or "the base model",
        named=bool(base),
        on_hub=on_hub,
        known=", ".join(filter(None, known)),
        placeholder=BASE_MODEL,
        adapter=ADAPTER,
        peft_type=method,
        how=METHODS[method].how.format(f"[{METHODS[method].name}]({METHODS[method].address})"),
        unmergeable=METHODS[method].unmergeable,
        deferral=deferral,
        num_edits=len(entries),
        num_withheld=sum(entry.keys() <= {"id", "expert"} for entry in entries),
        rows=rows,
        report=report,
        peft_version=version("peft"),
        versions=", ".join(" ".join(package) for package in (report["versions"] if report else {}).items()),
    )
    return card.text


def cell(text: str) -> str:
    """A text for one cell of a table, which neither ends it nor is read as a tag, a link, an image or any other markup."""
    text = HIDDEN.sub("", " ".join(text.split()))
    text = text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
    return re.sub(r"[\\`*_\[\]!|~]", r"\\\g<0>", escape(text, quote=False))


def protocol_of(measure: str) -> str:
    if measure.startswith("free_"):
        return "greedy free generation"
    return "routing" if measure.startswith(("routed_", "deferred")) else "teacher-forced"


def is_blank_form(text: str) -> bool:
    """Whether this is PEFT's form, with nothing in it but what PEFT has put there."""
    form = set(ModelCard.from_template(ModelCardData()).text.splitlines())
    added = {line for line in text.splitlines() if line not in form}
    return all(line.startswith(("### Framework versions", "- PEFT ")) for line in added)


def section(text: str, title: str) -> str:
    """The section with a title, heading and all, up to the next heading; empty if there is none."""
    found = re.search(rf"^## {title}\s*?\n.*?(?=^#{{1,3}} |\Z)", text, re.MULTILINE | re.DOTALL)
    return found.group() if found else ""


def with_section(text: str, new: str) -> str:
    """A text with a section in the place of the one with the same heading, else before the limits, else at the end."""
    title, new = new.partition("\n")[0].removeprefix("## "), new.rstrip() + "\n\n"
    old, limits = section(text, title), section(text, "Limits")
    if old:
        return text.replace(old, new, 1)
    return text.replace(limits, new + limits, 1) if limits else f"{text.rstrip()}\n\n{new}"
