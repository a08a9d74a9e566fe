"""Edits in conversations: do they answer where they are asked for, and nowhere else?

    python benchmarks/conversation.py --model FOLDER --adapter FOLDER --work FOLDER --name conversation

The dialogues and the measures are those of `EditEvaluator`. What is computed is written to `--work` as it comes, and the same
command goes on where it was interrupted; `failed_NAME.jsonl` there has the dialogues whose last answer was not the right one.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from lifelong import finished, without_counts
from report import RESULTS, command, log_progress, write

from lemoe_hf import EditEvaluator, read_edits
from lemoe_hf.evaluation import versions
from lemoe_hf.evaluation.conversation import Conversation, Judged
from lemoe_hf.evaluation.dialogues import dialogues
from lemoe_hf.evaluation.journal import Journal


AT_ONCE = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the edits")
    parser.add_argument("--edits", default=None, help="by default those that the adapter tells")
    parser.add_argument("--num", type=int, default=None, help="measure the first so many, by default all")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--name", required=True, help="of the result")
    args = parser.parse_args()
    log_progress()

    editor, edits = finished(args.model, args.adapter)
    edits = (read_edits(args.edits) if args.edits else edits)[: args.num]
    model, tokenizer = editor.model, editor.tokenizer
    written = [dialogue for of_edit in dialogues(edits, edits) for dialogue in of_edit]
    measures = EditEvaluator(edits, AT_ONCE, measures=["conversation"], work=args.work)(model, tokenizer)
    journals = Journal(args.work, "base"), Journal(args.work, "answers")
    judged = list(Conversation(AT_ONCE, edits, *journals).judged(model, tokenizer, written))
    failed = [as_record(each, tokenizer) for each in judged if not each.is_right]
    (args.work / f"failed_{args.name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in failed))
    report = {
        "command": command(),
        "protocol": EditEvaluator.protocol,
        "num_edits": len(edits),
        "num_dialogues": len(written),
        "measured_on": Counter(dialogue.kind for dialogue in written),
        "measures": without_counts(measures),
        "versions": versions(),
    }
    print(json.dumps(report["measures"], indent=1))
    write(report, RESULTS / f"{args.name}.json")


def as_record(judged: Judged, tokenizer) -> dict:
    told = {"answer": tokenizer.decode(judged.answer), "expected": judged.expected}
    return {"kind": judged.dialogue.kind, **told, "messages": judged.dialogue.messages}


if __name__ == "__main__":
    main()
