"""Edits in an ELDER adapter, in batches of four, measured on the final model; and what its codes tell apart.

    python benchmarks/elder.py --model FOLDER --data zsre_1000.jsonl --num-edits 24 --name elder_names

Beside reliability, generality and locality: at each Hamming threshold the share of edits, of their rephrasings, of their
locality prompts and of the package's everyday prompts whose code is nearer to an edit's; and the mean distance between the
stored codes and what was allocated.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import fields, replace

import torch
from peft import PeftConfig, get_peft_model
from report import RESULTS, command, log_progress, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import EditEvaluator, ELDERConfig, LifelongEditor, read_edits
from lemoe_hf.data.reference import reference_prompts
from lemoe_hf.evaluation import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--num-edits", type=int, default=100)
    parser.add_argument("--paper", action="store_true", help="the published setting")
    parser.add_argument("--config", type=json.loads, default={}, help="of ELDERConfig, as JSON")
    parser.add_argument("--arguments", type=json.loads, default={}, help="of EditingArguments, as JSON")
    parser.add_argument("--name", required=True, help="of the result")
    args = parser.parse_args()
    log_progress()

    edits = read_edits(args.data)[: args.num_edits]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    config = ELDERConfig.paper(**args.config) if args.paper else ELDERConfig(**args.config)
    editor = LifelongEditor(get_peft_model(base, config).eval(), tokenizer)
    arguments = replace(editor.arguments, **args.arguments)
    editor = LifelongEditor(editor.model, tokenizer, arguments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = editor.edit(edits)
    measures = EditEvaluator(edits, 32, measures=["reliability", "generality", "locality"])(editor.model, tokenizer)
    report = {
        "command": command(),
        "protocol": EditEvaluator.protocol,
        "num_edits": len(edits),
        "edits_per_step": arguments.batch_size,
        "measures": measures,
        "codes": codes(editor, edits),
        "loss_when_made": sum(record["loss"] for record in result.records) / len(edits),
        "steps_per_batch": sum(record["steps"] for record in result.records) / len(edits),
        "seconds_per_edit": result.seconds / len(edits),
        "warnings": sorted({str(each.message) for each in told if "Hamming" in str(each.message)})[-1:],
        "threshold": config.threshold_in_use if config.deferral_by == "hamming" else None,
        "config": settings_of(config),
        "arguments": vars(arguments),
        "versions": versions(),
    }
    print(
        json.dumps({key: report[key] for key in ("measures", "codes", "loss_when_made", "steps_per_batch")}, indent=1)
    )
    write(report, RESULTS / f"{args.name}.json")


def codes(editor: LifelongEditor, edits: list) -> dict:
    """What the codes of different texts tell apart."""
    name, lead, procedure = editor.adapter_name, editor.tuner.layers_of(editor.adapter_name)[0], editor._procedure
    stored = lead.codes(name)
    num_layers, num_experts = len(lead.mixed(name)), editor.config.num_experts
    allocated = torch.zeros(len(stored), num_layers, num_experts).scatter(
        -1, stored.allocated.view(len(stored), num_layers, -1).long(), 1.0
    )
    groups = {
        "edits": [edit.prompt for edit in edits],
        "rephrasings": [prompt for edit in edits for prompt, _ in edit.probes("rephrase")],
        "locality prompts": [prompt for edit in edits for prompt, _ in edit.probes("locality")],
        "everyday prompts": list(reference_prompts()),
    }
    queries = {key: procedure.queries_of(editor.tokenizer(prompts)["input_ids"]) for key, prompts in groups.items()}
    distances = {key: lead.distance(name, each) for key, each in queries.items()}
    return {
        "from_stored_to_allocated": (allocated.flatten(1) != stored.codes).float().sum(1).mean().item(),
        "distinct_codes": len(stored.codes.unique(dim=0)),
        "mean_distance": {key: each.mean().item() for key, each in distances.items()},
        "accepted": {
            threshold: {key: (each < threshold).float().mean().item() for key, each in distances.items()}
            for threshold in (2, 4, 6, 8, 10, 12, 14)
        },
    }


def settings_of(config: ELDERConfig) -> dict:
    """The settings of the method: not what every PEFT config has, nor what follows from the edits."""
    own = {field.name for field in fields(ELDERConfig)} - {field.name for field in fields(PeftConfig)}
    said = {key: value for key, value in config.to_dict().items() if key in own}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}


if __name__ == "__main__":
    main()
