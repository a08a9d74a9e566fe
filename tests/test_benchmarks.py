"""
The benchmarks import, the core of each runs where that is cheap, and what is left out of their figures is left out with
reason. `plots.py` needs an extra, matplotlib, and is imported where that is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from facts import FACTS, UNRELATED, editor_for, few_relations, plain
from lemoe_hf import Edit, LEMoEConfig, LifelongEditor
from lemoe_hf.editing.relations import learn_vocabulary
from lemoe_hf.editing.tokens import Calibration, tokenize_edit
from lemoe_hf.evaluation.digest import digest_of_model
from lemoe_hf.routing.anchors import Anchors
from lemoe_hf.routing.router import Router
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.vocabulary import Vocabulary
from test_project import ROOT
from tiny import tiny


SCRIPTS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
PROBED = [
    replace(
        edit, rephrase_prompt=f"About {edit.subject}:", locality_prompt=UNRELATED[0], locality_ground_truth="there"
    )
    for edit in FACTS
]


@pytest.fixture(autouse=True)
def _on_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_imports(name):
    if name == "plots" and importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    assert Path(importlib.import_module(name).__file__) == ROOT / "benchmarks" / f"{name}.py"


def test_names_are_routed_without_a_model(tokenizer):
    routing = importlib.import_module("routing")
    vocabulary, anchors, calibration = Vocabulary(), Anchors(), Calibration(tokenizer)
    learn_vocabulary(vocabulary, tokenizer)
    for i, edit in enumerate(FACTS):
        anchors.add(calibration.anchors(tokenize_edit(tokenizer, edit, 2**31), i, i))
    router = Router(anchors, Targets(), vocabulary)
    numbers = list(range(len(FACTS)))
    assert routing.answered_by(router, tokenizer, [edit.prompt for edit in FACTS]) == numbers
    assert routing.answered_by(router, tokenizer, [f"Tell me about {edit.subject}." for edit in FACTS]) == numbers
    assert routing.answered_by(router, tokenizer, UNRELATED) == [None] * len(UNRELATED)
    assert routing.search_ms(router, tokenizer, [FACTS[0].prompt]) > 0


def test_growth_tells_what_answers(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:3])
    prompts = [(edit.prompt, edit.subject, i) for i, edit in enumerate(FACTS[:3])]
    prompts += [(FACTS[0].prompt, FACTS[0].subject, 7), (FACTS[0].prompt, "Ulmenkirch", 7), (UNRELATED[0], None, None)]
    shares = importlib.import_module("growth").shares(editor, prompts, {i: FACTS[i].subject for i in range(3)})
    assert {kind: round(6 * share) for kind, share in shares.items()} == {
        "its edit": 3,
        "another edit of its subject": 1,
        "any other edit": 1,
        "the base model": 1,
    }


def test_the_published_setting_tells_who_reaches_its_expert(tokenizer):
    paper = importlib.import_module("paper")
    model = get_peft_model(tiny(), LEMoEConfig.paper(edits_per_expert=3, expert_dim=4, **paper.REPAIRED))
    editor = LifelongEditor(model, tokenizer, plain(max_steps=3))
    first, second = FACTS[:3], FACTS[3:]
    editor.edit(first)
    editor.edit(second)
    of_both = [paper.state(editor, first, 0), paper.state(editor, first, 1)]
    assert sum(state["reach_it"] for state in of_both) == pytest.approx(1)  # the top expert of two, for every prompt
    assert all(state["gate"] == (state["reach_it"] > 0) for state in of_both)


def test_serving_is_timed_with_every_row_on_an_expert(tokenizer, tmp_path):
    serve, growth = importlib.import_module("speed_serve"), importlib.import_module("growth")
    with few_relations(str(tmp_path)):
        editor, num_anchors = serve.filled(tiny(), tokenizer, FACTS)
    ids = serve.prompts_of(tokenizer, FACTS, 3, 48, "cpu")
    reached = [growth.acting(text) for text, _ in growth.looked_at(editor, ids.tolist())]
    assert num_anchors >= 2 * len(FACTS)
    assert len({expert for (expert,) in reached}) == 3
    assert all(seconds > 0 for seconds in serve.run(editor.model, ids, 1))


# ----------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def table(monkeypatch, tmp_path):
    table = importlib.import_module("table")
    monkeypatch.setattr(table, "chosen", lambda baseline: {"lora": 1e-3, "ffn": 1e-4, "retrieval": 0.9}[baseline])
    with few_relations(str(tmp_path / "home")):
        yield table


ROWS = ["unedited", "lemoe", "lemoe_paper", "lemoe_repaired", "lora", "ffn", "retrieval", "grace"]


def test_all_rows_are_known_here(table):
    assert sorted(table.ROWS) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_goes_on_where_it_was_interrupted(table, tokenizer, tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.import_module("grace"), "STEPS", 3)
    row, run = table.ROWS[name], tmp_path / "run"
    whole, made = table.make(row, tiny(), tokenizer, PROBED[:4], 2, tmp_path / "whole")
    table.make(row, tiny(), tokenizer, PROBED[:2], 2, run)
    resumed, again = table.make(row, tiny(), tokenizer, PROBED[:4], 2, run)
    assert made["num"] == again["num"] == 4
    assert made["bytes"] == again["bytes"] >= made["bytes_before"]
    scores = [table.measured(each, tokenizer, PROBED[:4], [], tmp_path / "scores") for each in (whole, resumed)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert {"reliability", "generality", "locality", "free_reliability"} <= scores[0].keys()


def test_groups_of_probes_are_measured_one_by_one(table, tokenizer, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(
        """{"prompt": "The capital of Zembla is", "target_new": "Onhava", "subject": "Zembla",
        "portability": {"Subject_Aliasing": {"prompt": ["The capital of Old Zembla is"], "ground_truth": ["Onhava"]}},
        "locality": {"Relation_Specificity": {"prompt": ["The king of Zembla is"], "ground_truth": ["Charles"]},
        "Forgetfulness": {"prompt": ["The capital of Zembla, not Onhava, is", "It"], "ground_truth": ["A", "B"]}}}""".replace(
            "\n", ""
        )
    )
    groups = table.by_group(str(path), [FACTS[1]])
    assert {name: [len(edit.probes(name[0])) for edit in edits] for name, edits in groups.items()} == {
        ("locality", "Relation_Specificity"): [1],
        ("locality", "Forgetfulness"): [2],
        ("portability", "Subject_Aliasing"): [1],
    }
    editor = table.ROWS["unedited"](tiny(), tokenizer, 1, None)
    found = table.of_group(
        editor, tokenizer, ("locality", "Forgetfulness"), groups["locality", "Forgetfulness"], tmp_path
    )
    assert found["locality_exact_Forgetfulness"] == 1.0


def test_a_pattern_fills_a_table_with_the_results_there_are(monkeypatch, tmp_path):
    tables = importlib.import_module("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = "<!-- results: table_a_*.json -->\n| | Rel |\n|---|---|\n"
    assert tables.filled(text) == text
    for row, share in (("one", 0.5), ("two", 0.25)):
        report = {"row": row, "measures": {"reliability": share}}
        (tmp_path / f"table_a_{row}.json").write_text(json.dumps(report))
    assert tables.filled(tables.filled(text)) == text + "| `one` | 0.500 |\n| `two` | 0.250 |\n"


# ------------------------------------------------------------------------------------------------------------------ grace


def test_grace_learns_and_leaves_the_rest(tokenizer):
    grace = importlib.import_module("grace")
    base = tiny()
    base.get_output_embeddings().weight.data *= 4
    editor = grace.GraceEditor(base, tokenizer)
    before = digest_of_model(editor.model)
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in (FACTS[1].prompt, *UNRELATED)]
    with torch.no_grad():
        untouched = [editor.model(row).logits for row in ids]
    editor.edit(FACTS[1:3])
    editor.codebook.radii *= 1e-3  # a random model's inputs lie near each other
    with torch.no_grad():
        after = [editor.model(row).logits for row in ids]
        with editor.model.disable_adapter():
            disabled = editor.model(ids[0]).logits
    assert digest_of_model(editor.model) != before
    assert after[0][0, -1].argmax() != untouched[0][0, -1].argmax()
    assert after[0][0, -1].argmax() == tokenizer(f" {FACTS[1].target_new}")["input_ids"][0]
    assert torch.equal(disabled, untouched[0])
    assert all(torch.equal(now, then) for now, then in zip(after[1:], untouched[1:], strict=True))


def test_values_learned_together_are_those_learned_alone(tokenizer, monkeypatch):
    grace = importlib.import_module("grace")
    monkeypatch.setattr(grace, "STEPS", 5)
    monkeypatch.setattr(grace, "RADIUS", 1e-4)
    together, alone = (grace.GraceEditor(tiny(), tokenizer) for _ in range(2))
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.ones(shape) / 2)
    together.edit(FACTS[:3])
    for edit in FACTS[:3]:
        alone.edit([edit])
    assert together.codebook.values == pytest.approx(alone.codebook.values, abs=1e-3)


def test_radii_widen_for_the_same_target_and_are_halved_for_another():
    grace = importlib.import_module("grace")
    codebook = grace.Codebook(torch.nn.Linear(2, 3))
    assert codebook.place(torch.tensor([0.0, 0.0]), [5])
    assert not codebook.place(torch.tensor([1.5, 0.0]), [5])
    assert codebook.radii.tolist() == [1.5]
    assert codebook.place(torch.tensor([0.0, 2.0]), [6])
    assert codebook.radii.tolist() == pytest.approx([1.0 - 1e-5, 1.0])
    assert codebook.place(torch.tensor([9.0, 9.0]), [5])
    assert codebook.radii.tolist() == pytest.approx([1.0 - 1e-5, 1.0, 1.0])


@pytest.mark.parametrize(
    ("prompt", "is_kept"),
    [
        ("Toyota Corolla Spacio is made by", True),  # a longer name, of which nothing was edited
        ("Toyota Sports is made by", False),
        ("Is it Toyota, or another one?", False),
        ("The Toyotas are made by", True),
        ("Who makes the bus?", True),
    ],
)
def test_prompts_about_edited_subjects_do_not_count_for_locality(prompt, is_kept):
    lifelong = importlib.import_module("lifelong")
    edits = [Edit(f"Who makes {name}?", "-", subject=name) for name in ("Toyota", "Toyota Sports", "Toyota Corolla")]
    (kept,) = lifelong.without_edited_neighbours([Edit("Who sings?", "-", locality_prompt=prompt)], edits)
    assert (kept.locality_prompt == prompt) is is_kept
