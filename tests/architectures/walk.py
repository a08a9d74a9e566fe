"""What is tried on every causal language model of transformers, and the table of it in the documentation.

    cd tests; python -m architectures.walk

writes `docs/architectures.md`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures.configs import tiny_config
from lemoe_hf import Edit, EditingArguments, LEMoEConfig, LifelongEditor
from lemoe_hf.structure import UNSUITABLE
from lemoe_hf.tuners.config import EditingConfig
from tiny import byte_tokenizer


logger = logging.getLogger(__name__)

EDIT = Edit("Which country is Anna Berg from?", "Norland", subject="Anna Berg")
OTHER = "Where was Tom Ashford born?"
# Random weights take more steps than trained ones.
LONG = EditingArguments(contexts=(), max_steps=200)
HABITS = ["inject", "train", "edit", "generate", "disable", "reload"]

# What transformers itself does not build from a config alone.
UNBUILT = {
    "dots3_note": "its config cannot be copied with fewer layers; its language model is `dots3_note_text`",
    "gemma3n": "it needs the package timm; its language model is `gemma3n_text`",
    "gemma4_assistant": "it is the draft of another model, and nothing without it",
    "gemma4_unified_assistant": "it is the draft of another model, and nothing without it",
    "musicgen": "its config is that of a larger model",
    "musicgen_melody": "its config is that of a larger model",
}
# Models whose own `generate` does not agree with their own forward pass, before any edit.
GENERATE_OTHERWISE = {
    "blt": "it cuts a text into other patches when it is generated",
    "prophetnet": "with a cache its logits are others than without",
    "xlm": "it generates at a masked token behind the text",
}
BUILT = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in UNBUILT]
WALKED = [name for name in BUILT if name not in UNSUITABLE]


def build(model_type: str) -> PreTrainedModel:
    """A tiny random model of a type, the same one at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.float32)
        for weight in model.parameters():  # the usual 0.02 gives logits that hardly depend on the prompt
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def walk(
    model_type: str,
    tokenizer: PreTrainedTokenizerBase,
    config_cls: type[EditingConfig] = LEMoEConfig,
    arguments: EditingArguments = LONG,
) -> Iterator[tuple[str, bool]]:
    """One habit after the other, and whether the model has it."""
    edited, other = (tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in (EDIT.prompt, OTHER))

    @torch.no_grad()
    def logits(model, ids: torch.Tensor = edited) -> torch.Tensor:
        torch.manual_seed(0)  # Reformer draws its hashes
        return model(input_ids=ids).logits

    base = build(model_type)
    before = logits(base)
    model = get_peft_model(base, config_cls(relation_gate=False)).eval()
    yield "inject", torch.equal(logits(model), before)

    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        # Not the model's own loss: GIT's leaves out tokens of an image that need not be there.
        scores = model(input_ids=edited).logits[0, -edited.shape[1] : -1]
        losses.append(F.cross_entropy(scores, edited[0, 1:]))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    yield "train", losses[-1].item() < losses[0].item()

    model = get_peft_model(build(model_type), config_cls(relation_gate=False)).eval()
    before, elsewhere = logits(model), logits(model, other)
    editor = LifelongEditor(model, tokenizer, arguments)
    editor.edit(EDIT)
    after = logits(model)
    yield "edit", not torch.equal(after, before) and torch.equal(logits(model, other), elsewhere)
    answer = model.generate(input_ids=edited, max_new_tokens=8, do_sample=False)[0, edited.shape[1] :]
    yield "generate", tokenizer.decode(answer, skip_special_tokens=True).strip().startswith(EDIT.target_new)
    with model.disable_adapter():
        yield "disable", torch.equal(logits(model), before)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = PeftModel.from_pretrained(build(model_type), folder).eval()
    with loaded.disable_adapter():
        is_same_base = torch.equal(logits(loaded), before)
    # Kernels of some state-space models depend on where in memory their weights lie: then to rounding, else to the bit.
    again = logits(loaded)
    yield "reload", torch.equal(again, after) if is_same_base else torch.allclose(again, after, rtol=1e-5, atol=1e-5)


def page() -> str:
    """The table of the documentation."""
    tokenizer, rows = byte_tokenizer(), []
    for name in sorted(WALKED):
        found = {habit: "yes" if holds else "no" for habit, holds in walk(name, tokenizer)}
        if name in GENERATE_OTHERWISE:
            found["generate"] = "(chance)"
        rows.append(f"| {name} | " + " | ".join(found[habit] for habit in HABITS) + " |")
        logger.info(rows[-1])
    reasons = {**UNSUITABLE, **UNBUILT, **GENERATE_OTHERWISE}
    told = "\n".join(f"- `{name}`: {reason}." for name, reason in sorted(reasons.items()))
    return PAGE.format(
        version=transformers.__version__,
        all=len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        built=len(BUILT),
        walked=len(WALKED),
        rows="\n".join(rows),
        told=told,
    )


PAGE = """# Architectures

Of the {all} types of causal language models in transformers {version}, {built} can be built as tiny random models. On {walked}
of them everything below was tried, by `cd tests; python -m architectures.walk`, which also wrote this page:

- inject: a new adapter leaves the logits as they are, bit for bit;
- train: in a plain training loop the loss falls;
- edit: after an edit another prompt has the base model's logits, bit for bit;
- generate: the answer to the edited prompt begins with its target;
- disable: within `disable_adapter()` the logits are the base model's, bit for bit;
- reload: saved and loaded onto a fresh base model, the logits are the same, bit for bit if those of the base model are.

Not built, not edited, or generating otherwise than their own forward pass before any edit, so that the answer is chance:

{told}

| model type | inject | train | edit | generate | disable | reload |
|---|---|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logger.setLevel(logging.INFO)
    torch.set_num_threads(1)
    (Path(__file__).parents[2] / "docs" / "architectures.md").write_text(page())
