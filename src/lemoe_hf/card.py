"""What a stranger who finds an adapter must know: above all to import this package before loading it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard


TAGS = ["lemoe", "knowledge-editing", "model-editing", "lifelong-editing"]

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


def complete_card(directory: Path, base_model: str | None) -> None:
    """Add tags and usage to the README.md that PEFT has written beside an adapter; what people wrote there stays."""
    path = directory / "README.md"
    if not path.is_file():
        return
    card = ModelCard.load(path, ignore_metadata_errors=True)
    card.data.tags = sorted({*(card.data.tags or []), *TAGS})
    if "import lemoe_hf" not in card.text:
        usage = USAGE.format(base=base_model or "the base model")
        marker = "## How to Get Started with the Model"
        start = card.text.find(marker)
        if start < 0:
            card.text = card.text.rstrip() + "\n\n" + usage
        else:
            end = card.text.find("\n## ", start + 1)
            card.text = card.text[:start] + usage + (card.text[end:] if end >= 0 else "")
    card.save(path)
