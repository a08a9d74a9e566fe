"""Rank-one edits: which layer WilKE's score chooses, and what is left of a model after edits and their roll-backs.

    python benchmarks/wilke.py --model FOLDER --layers 0 4 8 12
    python benchmarks/wilke.py --model FOLDER --layers 0 4 8 12 --data counterfact_3000.jsonl --facts 8

The first makes `wilke_scores.json`, the second `wilke_protocol.json`.

`scores`: for prompts that begin with a one-word subject and for others, the relative change of the weights at each layer with
one key throughout, and by how much it is larger under ROME's asymmetric key, for the same value; `failed` counts layers in
which the edit does not succeed. `protocol`: WilKE's (`lemoe_hf.evaluation.roll_back`) on facts of the data that the model
knows, with each fact edited at a fixed layer, and at the layer with the smallest change.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace

import torch
from report import RESULTS, command, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, RankOneArguments, RankOneEditor, read_edits, select_layer
from lemoe_hf.diagnostics import keys_of
from lemoe_hf.evaluation import known_facts, roll_back, versions


FIRST = [
    Edit("Paris is the capital of", "Norway", subject="Paris"),
    Edit("Germany is located in the continent of", "Africa", subject="Germany"),
    Edit("Nintendo is headquartered in", "Madrid", subject="Nintendo"),
]
MIDDLE = [
    Edit("The mother tongue of Danielle Darrieux is", "English", subject="Danielle Darrieux"),
    Edit("The headquarters of Nintendo Company are in", "Madrid", subject="Nintendo Company"),
    Edit("The capital of the United Kingdom is", "Oslo", subject="United Kingdom"),
]


def scores(model, tokenizer, edits: list[Edit], layers: list[int], arguments: RankOneArguments) -> list[dict]:
    rows = []
    for edit in edits:
        (updates,) = select_layer(model, tokenizer, edit, layers, replace(arguments, gate=False)).updates
        bare = keys_of(model, tokenizer, [edit], layers)
        # Both keys stand in the same closed form, once as the divisor of the same value.
        ratio = [abs(float(u.key @ u.left) / float(bare[u.layer][0] @ u.left)) for u in updates]
        change = [update.change for update in updates]
        rows.append(
            {
                "prompt": edit.prompt,
                "layers": layers,
                "change_unified": change,
                "ratio": ratio,
                "nll": [update.nll for update in updates],
                "failed": sum(not update.success for update in updates),
                "layer_unified": layers[min(range(len(layers)), key=lambda i: change[i])],
                "layer_rome": layers[min(range(len(layers)), key=lambda i: change[i] * ratio[i])],
                "layer_gated": min(((u.change, u.layer) for u in updates if u.success), default=(0.0, None))[1],
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", default=None, help="edits with subject and ground truth")
    parser.add_argument("--records", type=int, default=None, help="of the data, to look for known facts in")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 6, 9, 12], help="candidates")
    parser.add_argument("--rome-layer", type=int, default=6, help="the fixed layer")
    parser.add_argument("--facts", type=int, default=8, help="facts that are edited and rolled back")
    parser.add_argument("--untouched", type=int, default=32, help="facts that are not edited")
    parser.add_argument("--name", default=None, help="of the result")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    arguments = RankOneArguments()
    result = {"command": command(), "arguments": vars(arguments)}
    if args.data is None:
        result["scores"] = {
            name: scores(model, tokenizer, edits, args.layers, arguments)
            for name, edits in (("subject_first", FIRST), ("subject_within", MIDDLE))
        }
        write(result | {"versions": versions()}, RESULTS / f"{args.name or 'wilke_scores'}.json")
        return

    known = known_facts(model, tokenizer, read_edits(args.data)[: args.records], 32)
    drawn = random.Random(0).sample(known, min(len(known), args.facts + args.untouched))
    facts, untouched = drawn[: args.facts], drawn[args.facts :]
    result |= {"num_known": len(known), "num_untouched": len(untouched), "protocol": {}}
    variants = {
        "rome": RankOneArguments(layer=args.rome_layer, key="rome", gate=False),
        "one key, fixed layer": RankOneArguments(layer=args.rome_layer, gate=False),
        "smallest change": arguments,
    }
    for name, chosen in variants.items():
        began = time.process_time()
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        editor = RankOneEditor(base, tokenizer, chosen)
        if chosen.layer == "auto":
            editor.layers.candidates = args.layers
        rows = roll_back(editor, facts, untouched, at=(1, 2, 4, 8, 16), done=lambda row: print(row, flush=True))
        result["protocol"][name] = {
            "rows": rows,
            "layers": [made["layer"] for made in editor.edits()],
            "seconds_per_fact": (time.process_time() - began) / len(facts),
        }
        write(result | {"versions": versions()}, RESULTS / f"{args.name or 'wilke_protocol'}.json")


if __name__ == "__main__":
    main()
