"""What serving costs beside the base model: decoding, prefill, and opening an adapter.

    python benchmarks/speed_serve.py --model FOLDER --data counterfact_3000.jsonl

The base model and the model with an adapter run in turn, and the median of the ratios is reported. Every row of a batch
is routed to another expert. Beyond the edits of the data, subjects are made by putting their words together anew; the
experts' weights are random, which costs the same. On a CPU, seconds of prefill and decoding are those of the process.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from report import RESULTS, command, device_name, now, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.editing.explanation import acting, looked_at
from lemoe_hf.editing.tokens import Calibration, tokenize_edit
from lemoe_hf.routing.relations import Relations


def generated_edits(path: str, num: int) -> list[Edit]:
    """The edits of a file, and as many more as it takes with subjects that mix the words of two."""
    edits = [edit for edit in read_edits(path) if edit.subject]
    draw = random.Random(0)
    seen = {edit.subject for edit in edits}
    while len(edits) < num:
        first, second = draw.choice(edits[:3000]), draw.choice(edits[:3000])
        subject = " ".join([*first.subject.split()[:1], *second.subject.split()[-1:]])
        if subject not in seen:
            seen.add(subject)
            prompt = first.prompt.replace(first.subject, subject)
            edits.append(Edit(prompt, second.target_new, subject=subject, rephrase_prompt=f"Tell me, {subject} is"))
    return edits[:num]


def filled(base, tokenizer, edits: list[Edit]) -> tuple[LifelongEditor, int]:
    """
    An editor of a model whose adapter holds edits, and the number of their anchors. The experts are random, every question
    about their subject reaches them, and without targets that tell the end of an answer they act on all that is decoded.
    """
    model = get_peft_model(base, LEMoEConfig(output_scale=0.1, relation_threshold=-1e9))
    editor = LifelongEditor(model, tokenizer)
    editor.prepare()
    tuner, calibration = model.base_model, Calibration(tokenizer)
    anchors, entries = [], []
    for i, edit in enumerate(edits):
        anchors += calibration.anchors(tokenize_edit(tokenizer, edit, 2**31), i, i)
        entries.append({"id": i, "expert": i, "edit": edit.to_dict()})
    if edits:
        layer = tuner.layers_of()[0]
        layer.open_experts("default", len(edits))
        torch.nn.init.normal_(layer.lemoe_open["default"].out_proj, std=0.02)
        tuner.commit(anchors, entries)
        keys = torch.randn(len(edits), Relations.num_directions)
        layer.remember("default", list(range(len(edits))), F.normalize(keys, dim=-1))
    model.eval()
    return editor, len(anchors)


@torch.no_grad()
def run(model, ids: torch.Tensor, num_tokens: int) -> tuple[float, float]:
    """Seconds of the prefill, and of a decoding step."""
    began = now(ids.device)
    output = model(input_ids=ids, use_cache=True)
    prefilled = now(ids.device)
    for _ in range(num_tokens):
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - began, (now(ids.device) - prefilled) / num_tokens


def prompts_of(tokenizer, edits: list[Edit], num: int, width: int, device) -> torch.Tensor:
    """Prompts of `width` tokens that end with a question about the subject of an edit, one row each."""
    filler = tokenizer("It was a quiet morning, and nobody in the house had anything to do. " * 20)["input_ids"]
    rows = []
    for edit in random.Random(1).sample(edits, num) if len(edits) >= num else edits * num:
        own = tokenizer(f" What is known about {edit.subject}?")["input_ids"][:width]
        rows.append(filler[: width - len(own)] + own)
    return torch.tensor(rows[:num], device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys, and subjects")
    parser.add_argument("--num-edits", type=int, nargs="+", default=[1, 100, 2000, 10_000, 20_000])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default=None, help="by default named after the run, under benchmarks/results")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    load = lambda: AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)  # noqa: E731
    plain = load().eval()
    everything = generated_edits(args.data, max(args.num_edits))
    rows = []
    for num in args.num_edits:
        edits = everything[:num]
        editor, num_anchors = filled(load(), tokenizer, edits)
        model = editor.model
        for batch in (1, 8):
            ids = prompts_of(tokenizer, edits, batch, args.prompt_tokens, args.device)
            reached = [acting(text) for text, _ in looked_at(editor, ids.tolist())]
            assert all(reached), "a row is not routed to any expert"
            for each in (plain, model):
                run(each, ids, 2)  # warm up
            pairs = [(run(model, ids, args.new_tokens), run(plain, ids, args.new_tokens)) for _ in range(args.pairs)]
            rows.append(
                {
                    "edits": num,
                    "anchors": num_anchors,
                    "batch": batch,
                    "prefill_ratio": statistics.median(edited[0] / base[0] for edited, base in pairs),
                    "decode_ratio": statistics.median(edited[1] / base[1] for edited, base in pairs),
                    "base_prefill_ms": 1000 * statistics.median(base[0] for _, base in pairs),
                    "base_decode_ms": 1000 * statistics.median(base[1] for _, base in pairs),
                }
            )
            print(rows[-1], flush=True)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            size = Path(folder, "adapter_model.safetensors").stat().st_size
            base = load()
            began = time.perf_counter()
            PeftModel.from_pretrained(base, folder)
            rows[-1] |= {"kb_per_edit": size / 1024 / num, "seconds_to_open": time.perf_counter() - began}
            print(
                f"{num} edits: {rows[-1]['kb_per_edit']:.1f} KB an edit, opened in {rows[-1]['seconds_to_open']:.2f} s"
            )

    report = {"command": command(), "device": device_name(args.device), "torch": torch.__version__, "rows": rows}
    stem = "speed_serve" if args.device == "cpu" else f"speed_serve_{args.device}_{args.dtype}"
    write(report, Path(args.output or RESULTS / f"{stem}.json"))


if __name__ == "__main__":
    main()
