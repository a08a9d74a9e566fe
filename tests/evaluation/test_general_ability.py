"""Tasks of lm-eval see the edits where they are asked for, and the base model's bits everywhere else."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from facts import FACTS, UNRELATED, editor_for
from lemoe_hf.evaluation import general_ability
from tiny import tiny


OTHERS = ["a blue door", "Oslo", "in the old mill", "nobody", "1911", "two", "Mr Finch"]
STRIPPED = [{"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}]


@pytest.fixture(autouse=True)
def _no_environment_report(monkeypatch):
    # lm-eval has pip list all packages with every result, which takes longer than these tasks.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="module")
def model(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS)
    return editor.model


@pytest.fixture
def task(tmp_path):
    """Makes a task of rows, which are written to a file of JSON lines."""

    def make(name: str, rows: list[dict], **config) -> dict:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"data_files": {"test": str(path)}, "cache_dir": str(tmp_path / "cache")}
        return {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **config}

    return make


@pytest.fixture
def choice(task):
    def make(name: str, rows: list[dict], **config) -> dict:
        texts = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
        return task(name, rows, output_type="multiple_choice", **texts, **config)

    return make


@torch.no_grad()
def log_likelihood(model, tokenizer, question: str, answer: str) -> float:
    ids = tokenizer(f"{question} {answer}", return_tensors="pt")["input_ids"]
    first = len(tokenizer(question)["input_ids"])
    scores = model(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
    return scores.gather(1, ids[0, first:, None]).sum().item()


def of_base(model, tokenizer, question: str, answer: str) -> float:
    with model.disable_adapter():
        return log_likelihood(model, tokenizer, question, answer)


def favourite(model, tokenizer, question: str, least: str) -> dict:
    """A choice between an answer and one that the base model finds likelier."""
    best = max(OTHERS, key=lambda answer: of_base(model, tokenizer, question, answer))
    assert of_base(model, tokenizer, question, best) > of_base(model, tokenizer, question, least)
    return {"question": question, "choices": [least, best]}


@pytest.fixture
def facts(model, tokenizer) -> list[dict]:
    """Choices between what was edited, which is right, and what the base model would say."""
    return [favourite(model, tokenizer, fact.prompt, fact.target_new) | {"gold": 0} for fact in FACTS]


@pytest.fixture
def unrelated(model, tokenizer) -> list[dict]:
    """Choices that no edit is about; in the first two the base model is right."""
    worst = [min(OTHERS, key=lambda answer: of_base(model, tokenizer, text, answer)) for text in UNRELATED]
    rows = [favourite(model, tokenizer, text, least) for text, least in zip(UNRELATED, worst, strict=True)]
    return [row | {"gold": gold} for row, gold in zip(rows, (1, 1, 0), strict=True)]


def test_edited_facts_are_chosen_by_the_edited_model_alone(model, tokenizer, choice, facts):
    found = general_ability(model, tokenizer, [choice("facts", facts)])
    assert (found["facts/acc"], found["facts/acc_base"], found["facts/unchanged"]) == (1.0, 0.0, 0.0)
    assert found.keys() == {f"facts/{name}" for name in ("acc", "acc_base", "acc_norm", "acc_norm_base", "unchanged")}


def test_other_questions_have_the_base_models_log_likelihoods_to_the_last_bit(model, tokenizer, choice, unrelated):
    found = general_ability(model, tokenizer, [choice("other", unrelated)])
    assert (found["other/acc"], found["other/acc_base"]) == (2 / 3, 2 / 3)
    assert found["other/acc_norm"] == found["other/acc_norm_base"]
    assert found["other/unchanged"] == 1.0


def test_in_one_batch_only_the_edited_facts_change(model, tokenizer, choice, facts, unrelated):
    mixed = [unrelated[0], *facts[:3], unrelated[1], *facts[3:], unrelated[2]]
    found = general_ability(model, tokenizer, [choice("mixed", mixed)], batch_size=4)
    assert (found["mixed/acc"], found["mixed/acc_base"]) == pytest.approx((8 / 9, 2 / 9))
    assert found["mixed/unchanged"] == pytest.approx(3 / 9)


def test_a_near_miss_is_a_change(model, tokenizer, choice, unrelated, monkeypatch):
    """Scores may be equal where log-likelihoods are not."""
    log_likelihoods, calls = HFLM.loglikelihood, []

    def last_bit(lm, requests, **options):
        responses = log_likelihoods(lm, requests, **options)
        calls.append(len(responses))
        if len(calls) == 1:  # of the edited model
            (score, greedy), *rest = responses
            return [(math.nextafter(score, 0), greedy), *rest]
        return responses

    monkeypatch.setattr(HFLM, "loglikelihood", last_bit)
    found = general_ability(model, tokenizer, [choice("other", unrelated)])
    assert calls == [6, 6]
    assert (found["other/acc"], found["other/unchanged"]) == (2 / 3, pytest.approx(2 / 3))


def test_generated_answers_are_those_of_the_edits(model, tokenizer, task):
    rows = [{"question": fact.prompt, "answer": fact.target_new} for fact in FACTS]
    rows += [{"question": text, "answer": "nothing of the kind"} for text in UNRELATED]
    config = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 10},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": STRIPPED,
    }
    found = general_ability(model, tokenizer, [task("free", rows, **config)], batch_size=4)
    assert found == {
        "free/exact_match,stripped": pytest.approx(6 / 9),
        "free/exact_match,stripped_base": 0.0,
        "free/unchanged": pytest.approx(3 / 9),
    }


def test_texts_without_an_edited_subject_keep_their_perplexity(model, tokenizer, task):
    config = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    far = task("far", [{"text": text} for text in UNRELATED], **config)
    near = task("near", [{"text": f"{UNRELATED[0]} {FACTS[1].prompt} north."}], **config)
    found = general_ability(model, tokenizer, [far, near])
    assert found["far/bits_per_byte"] == found["far/bits_per_byte_base"]
    assert found["near/bits_per_byte"] != found["near/bits_per_byte_base"]
    assert (found["far/unchanged"], found["near/unchanged"]) == (1.0, 0.0)


def test_documents_are_limited(model, tokenizer, choice, facts, unrelated):
    found = general_ability(model, tokenizer, [choice("mixed", [unrelated[2], facts[0], *unrelated[:2]])], limit=2)
    assert (found["mixed/acc"], found["mixed/acc_base"], found["mixed/unchanged"]) == (0.5, 0.0, 0.5)


def test_tasks_in_files_and_groups_of_them_are_those_of_lm_eval(model, tokenizer, choice, facts, unrelated, tmp_path):
    configs = {"facts": choice("facts", facts), "other": choice("other", unrelated), "again": choice("again", facts)}
    mean = {"metric": "acc", "weight_by_size": False}
    configs["both"] = {"group": "both", "task": ["facts", "other"], "aggregate_metric_list": [mean]}
    for name, config in configs.items():  # JSON is YAML
        (tmp_path / f"{name}.yaml").write_text(json.dumps(config))
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    found = general_ability(model, tokenizer, ["both", str(tmp_path / "again.yaml")], task_manager=manager)
    assert (found["both/acc"], found["both/acc_base"]) == pytest.approx((5 / 6, 1 / 3))
    assert (found["facts/acc"], found["other/acc"], found["again/acc"]) == (1.0, 2 / 3, 1.0)
    assert {name for name in found if "unchanged" in name} == {
        f"{name}/unchanged" for name in ("facts", "other", "again")
    }


def test_lm_eval_loads_an_adapter_by_its_folder(model, tokenizer, choice, facts, unrelated, tmp_path):
    base = tiny()
    base.get_output_embeddings().weight.data *= 4  # as in `learner`
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    arguments = f"pretrained={tmp_path / 'base'},peft={tmp_path / 'adapter'},dtype=float32,device=cpu"
    tasks = [choice("facts", facts), choice("other", unrelated)]
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate("hf", arguments, tasks, batch_size=4, bootstrap_iters=0, task_manager=manager)["results"]
    expected = general_ability(model, tokenizer, tasks, batch_size=4)
    for name in ("facts", "other"):
        assert found[name]["acc,none"] == expected[f"{name}/acc"]
        assert found[name]["acc_norm,none"] == expected[f"{name}/acc_norm"]


def test_the_model_is_left_as_it_was(model, tokenizer, choice, facts):
    modes = {name: module.training for name, module in model.named_modules()}
    model.base_model.model.model.layers[0].train()
    before = log_likelihood(model, tokenizer, FACTS[0].prompt, FACTS[0].target_new)
    general_ability(model, tokenizer, [choice("facts", facts)], limit=1)
    assert model.base_model.model.model.layers[0].training
    model.eval()
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert log_likelihood(model, tokenizer, FACTS[0].prompt, FACTS[0].target_new) == before
    assert before > of_base(model, tokenizer, FACTS[0].prompt, FACTS[0].target_new)


def test_without_lm_eval_an_error_tells_what_to_install(model, tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install lemoe_hf\[eval\]"):
        general_ability(model, tokenizer, ["arc_easy"])
