"""Processes ended at random moments of editing and saving: what is on disk loads, holds the last commit, and goes on.

    python benchmarks/crash.py --kills 200

On a tiny random model of the tests, in forked processes. Three ends of four are aimed at the writing of a save. The kernel
ends a process, by a timer of its computing, so that a busy machine makes no difference: as with kill -9 nothing of it runs any
more.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from peft import PeftModel
from report import RESULTS, command, write


sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from facts import learner, plain
from lemoe_hf import Edit, LifelongEditor
from lemoe_hf.editing import save
from lemoe_hf.tuners.lemoe import LEMoELayer
from lemoe_hf.tuners.saved import digest_of_file
from tiny import byte_tokenizer


NAMES = ("Anna Berg", "Port Ellen", "Silver Lake", "Norland", "Tom Ashford", "Aldona", "Zembla", "Ulmenkirch")
EDITS = [Edit(f"Who knows {name}?", f"T{i}", subject=name) for i, name in enumerate(NAMES)]


def opened(folder: Path, tokenizer) -> LifelongEditor:
    model = learner()
    if save.holds_adapter(folder):
        model = PeftModel.from_pretrained(model.unload(), folder, is_trainable=True)
    return LifelongEditor(model, tokenizer, plain())


def run(folder: Path, tokenizer, tell) -> None:
    """Make the edits that are not there yet, and save each; `tell` of what is done."""
    with save.writing(folder, seconds=0):
        editor = opened(folder, tokenizer)
        for number in range(len(editor.edits()), len(EDITS)):
            editor.edit(EDITS[number])
            tell(b"s")  # about to save
            editor.save_pretrained(folder)
            tell(b"d")
    tell(b"e")


def killed(folder: Path, tokenizer, of_save: float, of_edit: float) -> tuple[bool, int]:
    """Run in a process that is killed. Whether it had ended before, and how many edits it had saved."""
    ours, its = os.pipe()
    in_save, saves = random.random() < 0.75, random.randint(1, 3)
    after = random.random() * (of_save if in_save else 3 * of_edit) + 1e-4
    process = os.fork()
    if not process:
        os.close(ours)
        told = []

        def tell(byte: bytes) -> None:
            os.write(its, byte)
            told.append(byte)
            if in_save and told.count(b"s") == saves:
                saves_left(after)

        def saves_left(seconds: float) -> None:
            # The kernel ends the process when it has computed for so long, wherever it is: nothing of it runs any more.
            signal.setitimer(signal.ITIMER_PROF, seconds)

        if not in_save:
            saves_left(after)
        try:
            run(folder, tokenizer, tell)
        finally:
            os._exit(1)
    os.close(its)
    os.waitpid(process, 0)
    told = b""
    while byte := os.read(ours, 64):
        told += byte
    os.close(ours)
    return b"e" in told, told.count(b"d")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=RESULTS / "crash.json", type=Path)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    tokenizer, found, examples = byte_tokenizer(), Counter(), []
    with tempfile.TemporaryDirectory() as name:
        whole, folder = Path(name, "whole"), Path(name, "killed")
        times: list[float] = []
        run(whole, tokenizer, lambda byte: times.append(time.process_time()))
        of_save = statistics.median(b - a for a, b in zip(times[:-1:2], times[1::2], strict=True))
        of_edit = (times[-1] - times[0]) / (len(EDITS) - 1)
        expected = digest_of_file(whole / save.WEIGHTS, LEMoELayer)
        saved = 0
        while found["kills"] < args.kills:
            ended, more = killed(folder, tokenizer, of_save, of_edit)
            saved, there = saved + more, -1
            found["kills"] += not ended
            try:
                editor = opened(folder, tokenizer)
                there = len(editor.edits())
                prompts = [entry["edit"] for entry in editor.edits()]
                found["not a prefix"] += prompts != [edit.to_dict() for edit in EDITS[:there]]
                found["commits lost"] += there < saved
                answers = [text.strip() for text in editor.answers([edit.prompt for edit in EDITS[:there]], 8)]
                found["wrong answers"] += answers != [edit.target_new for edit in EDITS[:there]]
                found["looks at what is there"] += 1
                found["before the first save"] += not there
            except Exception as error:
                found["cannot be loaded"] += 1
                examples.append(repr(error)[:300])
            saved = max(there, 0)
            if there == len(EDITS):
                found["runs completed"] += 1
                found["runs that end as an uninterrupted one"] += (
                    digest_of_file(folder / save.WEIGHTS, LEMoELayer) == expected
                )
                shutil.rmtree(folder)
                saved = 0
            fixed = {"command": command(), "seed": args.seed, "edits": len(EDITS), "torch": torch.__version__}
            write(fixed | {"counts": dict(found), "errors": examples[:20]}, args.output)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
