"""What a stranger who finds an adapter must know: above all to import this package before loading it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard


TAGS = ["lemoe", "knowledge-editing", "model-editing", "lifelong-editing"]

INTRODUCTION = """# Edits of {base}

Facts that the language model {base} gets wrong, or that have changed since it was trained, corrected one by one with LEMoE
(lifelong model editing by a mixture of experts, EMNLP 2024) and kept beside its weights, which are not changed. The edits
are listed in `edits.jsonl`, if whoever made them shared it.

"""

USAGE = """## How to use

This adapter needs the package `lemoe_hf`, which must be imported first. Without it PEFT knows no `LEMOE` and can only raise
`KeyError: 'LEMOE'`.

```python
# pip install lemoe_hf
import lemoe_hf
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "this/adapter")
```

Prompts that no edit is about get the base model's own logits. `with model.disable_adapter():` gives the base model for all.
"""

LIMITS = """
## Limits

A question that names an edited subject and asks for something else goes to the base model, as far as the wording tells the
two apart: mostly, not always. Subjects are found as they were written, not by synonyms or translations. The adapter cannot
be merged into the model: which expert acts depends on the prompt. It answers as it did only on the
base model that it was made for.
"""

FIGURES = """## Figures

Measured on {num_edits} edits when the adapter held {edits_made}, {protocol}; with {versions}.

| measure | value |
|---|---|
{rows}
"""


def complete_card(directory: Path, base_model: str | None) -> None:
    """
    Add tags and usage to the README.md beside an adapter.

    PEFT's form is replaced where nobody has filled it in; what people wrote stays.
    """
    path = directory / "README.md"
    if not path.is_file():
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    card.data.tags = sorted({*(card.data.tags or []), *TAGS})
    base = base_model or "the base model"
    if card.text.lstrip().startswith("# Model Card for Model ID"):
        card.text = INTRODUCTION.format(base=base) + USAGE.format(base=base) + LIMITS
    elif "import lemoe_hf" not in card.text:
        card.text = card.text.rstrip() + "\n\n" + USAGE.format(base=base)
    card.save(path)


def write_figures(directory: Path, report: dict[str, Any]) -> None:
    """
    Write figures to the README.md beside an adapter, for people and for the Hub, in the place of earlier ones.

    Args:
        directory (`Path`): The adapter's folder.
        report (`dict`): From `EditEvaluator.report`, with the number of `edits_made` in the adapter.
    """
    card = ModelCard.load(directory / "README.md", ignore_metadata_errors=True)
    rows = "\n".join(f"| `{name}` | {value:.4f} |" for name, value in report["measures"].items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    section = FIGURES.format(**report | {"rows": rows, "versions": versions})
    others = re.sub(r"^## Figures\n.*?(?=^## |\Z)", "", card.text, flags=re.MULTILINE | re.DOTALL)
    card.text = f"{others.rstrip()}\n\n{section}"
    card.data.model_name = directory.resolve().name
    card.data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="edits",
            dataset_name=f"{report['num_edits']} edits",
            metric_type=name,
            metric_value=value,
        )
        for name, value in report["measures"].items()
    ]
    card.save(directory / "README.md")
