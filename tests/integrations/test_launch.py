"""`accelerate launch` on two processes of the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel

from facts import FACTS, learner, targets
from lemoe_hf import LifelongEditor


LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


@pytest.fixture(scope="module")
def trained(base_folder, tokenizer, tmp_path_factory) -> LifelongEditor:
    """What two processes have trained together, of which each saw two prompts of four."""
    output, tests = tmp_path_factory.mktemp("launched"), Path(__file__).parents[1]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), environment.get("PYTHONPATH", "")])
    command = [sys.executable, *LAUNCH, str(tests / "integrations" / "launched.py"), str(base_folder), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return LifelongEditor(PeftModel.from_pretrained(learner().unload(), output), tokenizer)


def test_the_edits_of_both_processes_are_saved(trained):
    found = {(entry["edit"]["prompt"], entry["edit"]["target_new"]) for entry in trained.edits()}
    assert found == {(fact.prompt, fact.target_new) for fact in FACTS[:4]}
    assert [entry["id"] for entry in trained.edits()] == [0, 1, 2, 3]
    assert {entry["expert"] for entry in trained.edits()} == {0}


def test_the_edits_of_both_processes_answer(trained):
    answers = trained.answers([fact.prompt for fact in FACTS[:4]], 10)
    assert [text.strip() for text in answers] == targets(FACTS[:4])
    assert trained.explain(FACTS[4].prompt).deferred
