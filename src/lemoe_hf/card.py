"""What a stranger who finds an adapter must know: above all to import this package before loading it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard


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
