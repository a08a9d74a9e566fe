"""Quality against bytes: what an edit's expert may look like.

    python benchmarks/size.py --model FOLDER --data zsre_1000.jsonl

Bytes are those of the expert alone. What is not a setting of the package is imitated: experts in int8 by rounding them
after the edits, an in-projection that all experts share by keeping theirs, which all begin alike, from being trained.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from peft import get_peft_model
from report import RESULTS, command, write
from speed_edit import known_edit_generality
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import LEMoEConfig, LEMoELayer, LifelongEditor, read_edits
from lemoe_hf.evaluation import teacher_forced


def lora(rank: int) -> dict:
    return {"expert": "lora", "expert_dim": rank}


def ffn(width: int) -> dict:
    return {"expert": "ffn", "expert_dim": width}


# Name, config, whether the in-projection is shared, bits a weight after the edits.
VARIANTS = [
    ("LoRA 1, bf16", lora(1), False, 16),
    ("LoRA 2, bf16", lora(2), False, 16),
    ("LoRA 4, bf16 (default)", lora(4), False, 16),
    ("LoRA 4, fp32", lora(4) | {"expert_dtype": "float32"}, False, 32),
    ("LoRA 4, int8", lora(4), False, 8),
    ("LoRA 8, bf16", lora(8), False, 16),
    ("LoRA 8, shared in-projection, bf16", lora(8), True, 16),
    ("gated FFN 4, bf16", ffn(4), False, 16),
    ("gated FFN 16, bf16", ffn(16), False, 16),
]


def round_to_int8(experts) -> None:
    """Each column of each expert to 255 levels."""
    for name, weight in experts.weights().items():
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        experts.set(name, ((weight / scale).round() * scale).to(weight.dtype))


def share_in_projection(editor: LifelongEditor) -> None:
    open_experts = LEMoELayer.open_experts

    def opened(layer, *args, **kwargs):
        open_experts(layer, *args, **kwargs)
        weight = layer.lemoe_open[args[0]].in_proj.requires_grad_(True)
        weight.register_hook(torch.zeros_like)

    for layer in editor.tuner.layers_of():
        layer.open_experts = opened.__get__(layer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--num-edits", type=int, default=100)
    parser.add_argument("--output", default=RESULTS / "size.json", type=Path)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    edits = read_edits(args.data)[: args.num_edits]
    prompts, targets = [edit.prompt for edit in edits], [edit.target_new for edit in edits]
    rows = []
    for name, config, shared, bits in VARIANTS:
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        editor = LifelongEditor(get_peft_model(base, LEMoEConfig(**config)), tokenizer)
        if shared:
            share_in_projection(editor)
        result = editor.edit(edits)
        bank = editor.tuner.layers_of()[0].lemoe_bank["default"]
        if shared:
            assert (bank.in_proj == bank.in_proj[:1]).all()
        if bits == 8:
            round_to_int8(bank)
        own = [weight for key, weight in bank.weights().items() if not (shared and key == "in_proj")]
        measures = {
            "kb_per_edit": sum(weight[0].numel() for weight in own) * bits / 8 / 1024,
            "steps_per_edit": statistics.mean(record["steps"] for record in result.records),
            "reliability": statistics.mean(teacher_forced(editor.model, tokenizer, prompts, targets)),
            "generality_right_expert": known_edit_generality(editor, edits),
        }
        rows.append({"name": name, "measures": measures})
        print(rows[-1], flush=True)
        write({"command": command(), "rows": rows}, args.output)


if __name__ == "__main__":
    main()
