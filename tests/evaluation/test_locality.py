"""The base model runs once; by how much an edited one differs is told exactly all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peft import PeftModel

from facts import FACTS, editor_for
from lemoe_hf import EditEvaluator
from lemoe_hf.evaluation.forced import ForcedBatch
from lemoe_hf.evaluation.journal import Journal


EDITS = [
    replace(FACTS[0], locality_prompt=("The train stops in", "My sister bought"), locality_ground_truth=("a", "it")),
    replace(FACTS[1], locality_prompt="Where is the lake?"),
    replace(FACTS[2], locality_prompt="Is Zembla far?"),
]
FAR = ["The train stops in", "My sister bought", "Where is the lake?"]


def editor_of(tokenizer, *edits):
    editor = editor_for(tokenizer)
    for edit in edits:
        editor.edit(edit)
    return editor


@pytest.fixture
def base_runs(monkeypatch) -> list[int]:
    """Number of texts of each batch that the base model has run on."""
    runs, logits = [], ForcedBatch.logits

    def counted(batch: ForcedBatch, model: PeftModel):
        if model.get_model_status().enabled is False:
            runs.append(len(batch.ids))
        return logits(batch, model)

    monkeypatch.setattr(ForcedBatch, "logits", counted)
    return runs


def locality(editor, tokenizer, work=None, edits=EDITS, batch_size=16) -> dict[str, float]:
    return EditEvaluator(edits, batch_size, measures=["locality"], work=work)(editor.model, tokenizer)


def test_other_adapters_that_change_nothing_need_no_base_model(tokenizer, tmp_path, base_runs):
    for edit in (FACTS[3], FACTS[4], FACTS[5]):
        found = locality(editor_of(tokenizer, edit), tokenizer, tmp_path, batch_size=2)
        assert (found["locality"], found["locality_exact"], found["locality_kl"]) == (1.0, 1.0, 0.0)
    assert base_runs == [2, 2]


def test_within_one_evaluator_the_base_model_runs_once_as_well(tokenizer, base_runs):
    evaluate = EditEvaluator(EDITS, measures=["locality"])
    assert evaluate(editor_of(tokenizer, FACTS[3]).model, tokenizer)["locality_exact"] == 1.0
    assert evaluate(editor_of(tokenizer, FACTS[4]).model, tokenizer)["locality_exact"] == 1.0
    assert base_runs == [4]


def test_what_has_changed_is_measured_alike_with_the_base_models_outputs_kept(tokenizer, tmp_path, base_runs):
    changed = editor_of(tokenizer, FACTS[1])
    expected = locality(changed, tokenizer, batch_size=2)
    assert expected["locality_kl"] > 0
    # Of three edits one has two prompts, and one the only prompt that has changed.
    assert expected["locality_exact"] == pytest.approx(2 / 3)
    locality(editor_of(tokenizer, FACTS[3]), tokenizer, tmp_path, batch_size=2)
    base_runs.clear()
    assert locality(changed, tokenizer, tmp_path, batch_size=2) == expected
    assert base_runs == [2], "only the batch with the changed prompt"


def test_a_changed_prompt_counts_as_its_share_of_an_edits_prompts(tokenizer):
    edit = replace(FACTS[2], locality_prompt=(*FAR, "Is Zembla far?"))
    found = locality(editor_of(tokenizer, FACTS[1]), tokenizer, edits=[edit])
    assert found["locality_exact"] == 0.75


def test_another_digest_is_no_proof_of_a_change(tokenizer, tmp_path, base_runs):
    """The last bits of logits hang on what else is in a batch: what differs is compared with the same batch."""
    locality(editor_of(tokenizer, FACTS[3]), tokenizer, tmp_path)
    kept = Journal(tmp_path, "base")
    kept.write([(key, "of another batch", "0123456789abcdef") for key in kept])
    for edit in (FACTS[4], FACTS[5]):
        assert locality(editor_of(tokenizer, edit), tokenizer, tmp_path)["locality_exact"] == 1.0
    assert base_runs == [4, 4], "the latest digests count"
