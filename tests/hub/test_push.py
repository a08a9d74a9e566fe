"""Adapters go to the Hub and come back: the client is the real one, the Hub a server on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model

from facts import FACTS, UNRELATED, editor_for, learner, plain, targets
from hub.server import TOKEN, LoopbackHub
from lemoe_hf import Edit, LifelongEditor, read_edits
from lemoe_hf.evaluation import EditEvaluator
from tiny import adapter_state, assert_same, logits, tiny


REPO = "anna/facts"
FILES = {"adapter_model.safetensors", "adapter_config.json", "README.md", "edits.jsonl"}

pytestmark = pytest.mark.filterwarnings("ignore:The adapter's base model is")


@pytest.fixture
def editor(tokenizer) -> LifelongEditor:
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    return editor


def load(tokenizer, repo_id: str = REPO, **where) -> LifelongEditor:
    return LifelongEditor(PeftModel.from_pretrained(learner().unload(), repo_id, **where), tokenizer, plain())


def answers(editor: LifelongEditor, edits: list[Edit]) -> list[str]:
    return [text.strip() for text in editor.answers([edit.prompt for edit in edits], 8)]


def card_of(hub: LoopbackHub, revision: str = "main") -> ModelCard:
    return ModelCard(hub.files(REPO, revision)["README.md"].decode())


# ---------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("by", ["model", "editor"])
def test_what_is_pushed_is_what_you_had(hub, editor, tokenizer, by):
    pushed = editor.model if by == "model" else editor
    pushed.push_to_hub(REPO, token=TOKEN)
    assert hub.files(REPO).keys() - {".gitattributes"} == FILES
    loaded = load(tokenizer)
    assert_same(adapter_state(loaded.model), adapter_state(editor.model))
    assert loaded.edits() == editor.edits()
    assert answers(loaded, FACTS[:2]) == targets(FACTS[:2])


def test_the_files_of_people_and_of_machines_tell_the_same_edits(hub, editor, tmp_path):
    editor.push_to_hub(REPO)
    (tmp_path / "edits.jsonl").write_bytes(hub.files(REPO)["edits.jsonl"])
    assert read_edits(tmp_path / "edits.jsonl") == FACTS[:2]


def test_a_stranger_loads_it_in_a_new_process(hub, editor, tmp_path, tokenizer):
    """Nothing is patched there: the client finds the Hub by its environment, as with any mirror."""
    base = learner().unload()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    editor.push_to_hub(REPO)
    code = """
import sys
import lemoe_hf
from lemoe_hf.generation import answers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, repo_id, prompt = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), repo_id)
print(answers(model, AutoTokenizer.from_pretrained(base), [prompt], 8)[0].strip())
"""
    output = in_a_new_process(hub, tmp_path, "-c", code, str(tmp_path / "base"), REPO, FACTS[0].prompt)
    assert output.returncode == 0, output.stderr
    assert output.stdout.strip().endswith(FACTS[0].target_new)


def in_a_new_process(hub: LoopbackHub, home: Path, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess:
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
    }
    return subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)


def test_what_the_client_asks_of_the_hub_when_a_new_process_pushes(hub, editor, tmp_path):
    editor.save_pretrained(tmp_path / "adapter")
    push = ["-m", "lemoe_hf.cli", "push", "--adapter", str(tmp_path / "adapter"), "--repo", REPO]
    refused = in_a_new_process(hub, tmp_path, *push, token="hf_of_somebody")
    assert refused.returncode != 0
    assert "Invalid credentials" in refused.stderr
    statuses = {status for _, _, status in hub.log}
    assert 401 in statuses
    assert min(statuses) >= 400
    assert not hub.repositories
    hub.log.clear()
    pushed = in_a_new_process(hub, tmp_path, *push)
    assert pushed.returncode == 0, pushed.stderr
    assert hub.files(REPO).keys() - {".gitattributes"} == FILES
    asked = [(method, re.sub("[0-9a-f]{64}", "SHA", path)) for method, path, status in hub.log if status < 400]
    in_order = [
        ("POST", "/api/repos/create"),
        ("POST", f"/api/models/{REPO}/preupload/main"),
        ("POST", f"/{REPO}.git/info/lfs/objects/batch"),
        ("PUT", "/large/SHA"),
        ("POST", f"/api/models/{REPO}/commit/main"),
    ]
    assert [each for each in asked if each in in_order] == in_order


def test_an_adapter_lies_in_a_folder_of_a_repository(hub, editor, tokenizer, tmp_path):
    editor.save_pretrained(tmp_path)
    hub_api = HfApi()
    hub_api.create_repo(REPO)
    hub_api.upload_folder(repo_id=REPO, folder_path=tmp_path, path_in_repo="facts/of/2026")
    loaded = load(tokenizer, subfolder="facts/of/2026")
    assert loaded.edits() == editor.edits()
    assert answers(loaded, FACTS[:2]) == targets(FACTS[:2])


def test_transformers_alone_loads_it_too(hub, editor):
    editor.push_to_hub(REPO)
    model = learner().unload()
    model.load_adapter(REPO)
    ids = editor.tokenizer(FACTS[0].prompt)["input_ids"]
    assert logits(model, ids).equal(logits(editor.model, ids))


def test_adapters_of_other_methods_are_pushed_as_before(hub):
    get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).push_to_hub(REPO)
    assert hub.files(REPO).keys() - {".gitattributes"} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    assert "lemoe" not in card_of(hub).content


def test_of_several_adapters_the_one_that_was_named_is_pushed(hub, editor, tokenizer):
    editor.model.add_adapter("french", learner().peft_config["default"])
    editor.model.set_adapter("french")
    LifelongEditor(editor.model, tokenizer).edit(FACTS[2])
    editor.model.push_to_hub(REPO)
    editor.model.push_to_hub("anna/first", adapter_name="default")
    assert load(tokenizer).edits()[0]["edit"] == FACTS[2].to_dict()
    assert load(tokenizer, "anna/first").edits() == editor.edits()


# --------------------------------------------------------------------------------------------------------- who may


def test_a_wrong_token_is_refused_with_the_clients_own_error(hub, editor):
    for push in (editor.push_to_hub, editor.model.push_to_hub):
        with pytest.raises(HfHubHTTPError, match="401 Unauthorized(?s:.*)Invalid credentials in Authorization header"):
            push(REPO, token="hf_of_somebody")
    assert not hub.repositories


def test_without_a_token_nothing_is_pushed(hub, editor, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HfHubHTTPError, match="401 Unauthorized(?s:.*)Invalid username or password"):
        editor.push_to_hub(REPO)
    assert not hub.repositories


def test_what_belongs_to_others_is_not_pushed_to(hub, editor):
    with pytest.raises(HfHubHTTPError, match="You don't have the rights to create a model"):
        editor.push_to_hub("bertha/facts")


def test_a_private_repository_is_read_with_a_token_only(hub, editor, tokenizer):
    editor.push_to_hub(REPO, private=True)
    assert hub.repositories[REPO].private
    with pytest.raises(RepositoryNotFoundError):
        HfApi().hf_hub_download(REPO, "adapter_config.json", token=False)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi().hf_hub_download(REPO, "adapter_config.json", token="hf_of_somebody")
    with pytest.raises(ValueError, match="Can't find 'adapter_config.json'"):
        load(tokenizer, token="hf_of_somebody")
    assert answers(load(tokenizer, token=TOKEN), FACTS[:2]) == targets(FACTS[:2])


# ------------------------------------------------------------------------------------------------------- revisions


def test_more_edits_make_a_new_revision_and_the_old_one_still_answers_as_it_did(hub, editor, tokenizer):
    old = editor.push_to_hub(REPO)
    editor.edit([FACTS[2], Edit(FACTS[0].prompt, "Zembla", subject=FACTS[0].subject)])
    new = editor.push_to_hub(REPO)
    assert old.oid != new.oid
    assert answers(load(tokenizer), FACTS[:3]) == ["Zembla", FACTS[1].target_new, FACTS[2].target_new]
    for revision in (old.oid, new.oid):
        loaded = load(tokenizer, revision=revision)
        assert len(loaded.edits()) == (2 if revision == old.oid else 4)
        assert answers(loaded, FACTS[:1]) == (["Yemen"] if revision == old.oid else ["Zembla"])


def test_what_transformers_takes_is_taken(hub, editor):
    editor.model.push_to_hub(REPO, tags=["zembla"], max_shard_size="1GB")
    assert {"zembla", "lemoe"} <= set(card_of(hub).data.tags)


def test_what_is_there_already_makes_no_revision(hub, editor):
    revisions = {editor.push_to_hub(REPO).oid for _ in range(3)}
    assert len(revisions) == 1
    assert editor.model.push_to_hub(REPO).oid in revisions


def test_a_revision_is_never_half_an_adapter(hub, editor):
    editor.push_to_hub(REPO)
    assert all(
        files.keys() in ({".gitattributes"}, {".gitattributes", *FILES})
        for files in hub.repositories[REPO].commits.values()
    )


def test_a_branch_leaves_the_main_one_alone(hub, editor, tokenizer):
    editor.push_to_hub(REPO)
    editor.edit(FACTS[2])
    editor.push_to_hub(REPO, revision="more/facts")
    assert len(load(tokenizer).edits()) == 2
    assert len(load(tokenizer, revision="more/facts").edits()) == 3


def test_a_pull_request_leaves_the_main_branch_alone(hub, editor, tokenizer):
    editor.push_to_hub(REPO)
    editor.edit(FACTS[2])
    proposed = editor.push_to_hub(REPO, create_pr=True)
    assert len(load(tokenizer).edits()) == 2
    assert len(load(tokenizer, revision=proposed.pr_revision).edits()) == 3


# -------------------------------------------------------------------------------------------------- texts kept back


def texts_of(edit: Edit) -> list[str]:
    return [edit.prompt, edit.target_new, edit.subject]


@pytest.mark.parametrize("by", ["model", "editor"])
def test_texts_that_are_kept_back_are_nowhere_in_what_is_pushed(hub, editor, by):
    fact = Edit(
        "Zembla borders on", "Kinbote", "Zembla", rephrase_prompt="Next to it is", locality_prompt="Is it dark?"
    )
    editor.edit(fact)
    pushed = editor.model if by == "model" else editor
    pushed.push_to_hub(REPO, push_edits=False)
    files = hub.files(REPO)
    assert files.keys() - {".gitattributes"} == FILES - {"edits.jsonl"}
    for text in [*texts_of(FACTS[0]), *texts_of(FACTS[1]), *texts_of(fact), "Next to it is", "Is it dark?"]:
        assert not [name for name, content in files.items() if text.encode() in content], text


def test_an_adapter_without_its_texts_answers_and_undoes_as_with_them(hub, editor, tokenizer):
    editor.push_to_hub(REPO, push_edits=False)
    loaded = load(tokenizer)
    assert loaded.edits() == [{"id": 0, "expert": 0}, {"id": 1, "expert": 1}]
    prompts = [*(fact.prompt for fact in FACTS[:2]), "Zembla has for its capital", *UNRELATED]
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        assert logits(loaded.model, ids).equal(logits(editor.model, ids))
        assert loaded.explain(prompt).expert == editor.explain(prompt).expert
    assert "edit 0 answers (its texts were not shared)" in str(loaded.explain(prompts[0]))
    assert loaded.undo(0) == {"id": 0, "expert": 0}
    editor.undo(0)
    assert answers(loaded, FACTS[:2]) == answers(editor, FACTS[:2])
    assert answers(loaded, FACTS[:1]) != targets(FACTS[:1])


def test_an_adapter_without_its_texts_goes_on_learning(hub, editor, tokenizer, tmp_path):
    editor.push_to_hub(REPO, push_edits=False)
    loaded = load(tokenizer, is_trainable=True)
    loaded.edit([FACTS[2], Edit(FACTS[0].prompt, "Zembla", subject=FACTS[0].subject)])
    assert answers(loaded, FACTS[:3]) == ["Zembla", FACTS[1].target_new, FACTS[2].target_new]
    loaded.save_pretrained(tmp_path)
    assert [edit.prompt for edit in read_edits(tmp_path / "edits.jsonl")] == [FACTS[2].prompt, FACTS[0].prompt]
    text = (tmp_path / "README.md").read_text()
    assert "Edits in this adapter: 4, of which 2 are listed here." in text
    assert "The texts of 2 were kept back" in text
    routing = EditEvaluator(FACTS[2:3], measures=["routing"])(loaded.model, tokenizer)
    assert routing["routed_prompt"] == 1.0


def test_an_open_expert_whose_texts_are_not_known_is_closed_before_the_next_edit(hub, tokenizer):
    """Its edits cannot be replayed, and must not be forgotten."""
    editor = editor_for(tokenizer, edits_per_expert=4)
    editor.edit(FACTS[:2])
    editor.push_to_hub(REPO, push_edits=False)
    loaded = load(tokenizer, is_trainable=True)
    loaded.edit(FACTS[2])
    assert [entry["expert"] for entry in loaded.edits()] == [0, 0, 1]
    assert answers(loaded, FACTS[:2]) == answers(editor, FACTS[:2])


def test_transformers_alone_loads_an_adapter_without_its_texts(hub, editor):
    """It takes all sizes from the config."""
    editor.push_to_hub(REPO, push_edits=False)
    learner().unload().load_adapter(REPO)


def test_edits_of_a_training_loop_are_pushed_as_they_are_known(hub, tokenizer):
    """The model alone knows their tokens, the editor can tell their texts, and kept back they are neither."""
    editor = editor_for(tokenizer)
    ids = tokenizer(FACTS[0].prompt + " " + FACTS[0].target_new, return_tensors="pt")["input_ids"]
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(tokenizer(FACTS[0].prompt)["input_ids"]), -100)
    editor.model.train()(input_ids=ids, labels=labels).loss.backward()
    editor.model.eval().commit()
    editor.model.push_to_hub(REPO)
    assert hub.files(REPO)["edits.jsonl"] == b""
    assert load(tokenizer).edits() == editor.edits()
    editor.push_to_hub(REPO)
    assert json.loads(hub.files(REPO)["edits.jsonl"])["prompt"] == FACTS[0].prompt
    editor.push_to_hub(REPO, push_edits=False)
    assert load(tokenizer).edits() == [{"id": 0, "expert": 0}]


def test_keeping_texts_back_is_not_encryption(hub, editor, tokenizer):
    """What the docstring and the card admit: prompts are found by their tokens, which anyone can read."""
    editor.push_to_hub(REPO, push_edits=False)
    anchors = load(tokenizer).tuner.layers_of()[0].lemoe_anchors["default"]
    assert FACTS[0].prompt in tokenizer.decode(anchors.tokens.tolist())
    assert "That is not encryption." in " ".join(card_of(hub).text.split())


def test_texts_that_were_pushed_before_are_taken_from_the_next_revision(hub, editor):
    editor.push_to_hub(REPO)
    assert FACTS[0].prompt in card_of(hub).text
    editor.push_to_hub(REPO, push_edits=False)
    assert "edits.jsonl" not in hub.files(REPO)
    assert FACTS[0].prompt not in card_of(hub).text
    editor.push_to_hub(REPO)
    assert FACTS[0].prompt in card_of(hub).text
    assert "edits.jsonl" in hub.files(REPO)


def test_keeping_texts_back_leaves_the_model_in_memory_as_it_was(hub, editor):
    state, edits = adapter_state(editor.model), editor.edits()
    editor.push_to_hub(REPO, push_edits=False)
    assert_same(adapter_state(editor.model), state)
    assert editor.edits() == edits
    assert editor.config.num_ledger_bytes == len(state[next(name for name in state if "lemoe_ledger" in name)])


# ------------------------------------------------------------------------------------------------------------ card


def test_the_card_tells_how_to_load_it_and_what_was_edited(hub, editor):
    editor.push_to_hub(REPO)
    card = card_of(hub)
    usage = card.text.partition("```python\n")[2]
    assert usage.startswith("import lemoe_hf")
    assert f'PeftModel.from_pretrained(base, "{REPO}")' in usage
    assert f"| 0 | {FACTS[0].prompt} | {FACTS[0].target_new} |" in card.text
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert {"lemoe", "knowledge-editing", "model-editing", "lifelong-editing"} <= set(card.data.tags)
    card.validate()


def test_what_people_wrote_on_the_hub_stays(hub, editor):
    editor.push_to_hub(REPO)
    card = card_of(hub)
    card.text = card.text.replace("## Limits", "## Who we are\n\nAsk Anna.\n\n## Limits")
    card.data.tags, card.data.license, card.data.base_model = [*card.data.tags, "towns"], "mit", "anna/base"
    card.push_to_hub(REPO)
    editor.edit(FACTS[2])
    editor.model.push_to_hub(REPO)
    card = card_of(hub)
    assert card.text.count("Ask Anna.") == card.text.count("## Limits") == card.text.count("## Edits") == 1
    assert {"towns", "lemoe"} <= set(card.data.tags)
    assert (card.data.license, card.data.base_model, card.data.base_model_relation) == ("mit", "anna/base", "adapter")
    assert f"| 2 | {FACTS[2].prompt} |" in card.text
    card.validate()


def test_a_base_model_that_only_this_machine_has_is_told_and_not_put_on_the_card(hub, tokenizer, tmp_path):
    learner().unload().save_pretrained(tmp_path / "base")
    editor = editor_for(tokenizer)
    editor.root.name_or_path = editor.config.base_model_name_or_path = str(tmp_path / "base")
    editor.edit(FACTS[0])
    with pytest.warns(UserWarning, match=r"base model is '.*base', which others cannot load"):
        editor.push_to_hub(REPO)
    assert str(tmp_path) not in card_of(hub).content
    told = f"was a local folder, `base` (LlamaForCausalLM, fingerprint `{editor.config.base_model_fingerprint}`)"
    assert told in card_of(hub).text
    assert 'base_model = "fill/in/the/base/model"\n' in card_of(hub).text
    assert json.loads(hub.files(REPO)["adapter_config.json"])["base_model_name_or_path"] == str(tmp_path / "base")


def test_the_server_refuses_a_card_that_the_hub_would_refuse(hub):
    with pytest.raises(ValueError, match="a/folder/of/mine.* is not valid. Use a model id"):
        ModelCard("---\nbase_model: a/folder/of/mine\n---\n").validate()
