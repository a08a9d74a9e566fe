import copy
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from facts import FACTS, UNRELATED, answers, editor_for, learner, logits_of, plain, targets
from gated import watched
from lemoe_hf import Edit, EditingArguments, EditingError, LEMoEConfig, LifelongEditor
from lemoe_hf.editing import lemoe_training as training
from tiny import PAD, adapter_state, assert_same, committed, edits_state, tiny


def lead(editor):
    return editor.tuner.layers_of(editor.adapter_name)[0]


def routed_edit(editor, prompt: str) -> int | None:
    entry = editor.explain(prompt).entry
    return entry and entry["id"]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# ------------------------------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"expert": "ffn"},
        {"family": "gpt2", "expert_dim": 8},
        {"edits_per_expert": 3, "expert_dim": 16},
        {"edits_per_expert": 3, "expert": "ffn", "expert_dim": 16},
        {"edits_per_expert": 4, "expert_dim": 16},
        {"layers_to_transform": [1, 3]},
        {"expert_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_edits_are_answered_and_everything_else_is_the_base_model(tokenizer, config):
    editor = editor_for(tokenizer, plain(max_steps=60), **config)
    base = logits_of(editor, UNRELATED)
    result = editor.edit(FACTS)
    assert answers(editor, FACTS) == targets(FACTS)
    assert [routed_edit(editor, fact.prompt) for fact in FACTS] == result.ids == list(range(6))
    assert all_equal(logits_of(editor, UNRELATED), base)


def test_a_single_edit_need_not_be_a_list(tokenizer):
    editor = editor_for(tokenizer)
    result = editor.edit(FACTS[0])
    assert len(result) == 1
    assert answers(editor, FACTS[:1]) == ["Yemen"]


def test_records_tell_what_was_done(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    result = editor.edit(FACTS[2:4])
    assert [record["id"] for record in result.records] == [2, 3]
    assert [record["expert"] for record in result.records] == [2, 3]
    assert [record["edit"] for record in result.records] == [fact.to_dict() for fact in FACTS[2:4]]
    assert all(0 < record["loss"] <= 0.03 or record["steps"] == 30 for record in result.records)
    assert all(1 <= record["steps"] <= 30 for record in result.records)
    assert result.seconds > 0


def test_an_edit_stops_by_itself(tokenizer):
    result = editor_for(tokenizer, plain(stop_loss=0.5)).edit(FACTS)
    assert len({record["steps"] for record in result.records}) > 1
    assert all(record["loss"] <= 0.5 for record in result.records)
    # What it keeps is the expert of that moment, not one that trained on beside the others.
    alone = editor_for(tokenizer, plain(stop_loss=0.5)).edit(FACTS[3])
    assert alone.records[0]["steps"] == result.records[3]["steps"]
    assert alone.records[0]["loss"] == pytest.approx(result.records[3]["loss"], rel=1e-3)


@pytest.mark.parametrize("config", [{}, {"edits_per_expert": 2, "expert_dim": 16}])
def test_later_edits_change_nothing_of_earlier_ones(tokenizer, config):
    editor = editor_for(tokenizer, **config)
    editor.edit(FACTS[:4])
    before, stored = logits_of(editor, [fact.prompt for fact in FACTS[:4]]), committed(editor.model)
    editor.edit(FACTS[4:])
    assert all_equal(logits_of(editor, [fact.prompt for fact in FACTS[:4]]), before)
    now = committed(editor.model)
    assert_same({name: now[name][: len(tensor)] for name, tensor in stored.items()}, stored)


def test_an_edit_holds_in_the_contexts_that_it_is_learned_in(tokenizer):
    contexts = ("Complete: {prompt} ...?", "What about {subject}?")
    prompts = [context.format(prompt=FACTS[1].prompt, subject=FACTS[1].subject) for context in contexts]
    bare = editor_for(tokenizer)
    wide = editor_for(tokenizer, EditingArguments(contexts=contexts, max_steps=100))
    for editor in (bare, wide):
        editor.edit(FACTS[1])
        assert answers(editor, FACTS[1:2]) == ["Onhava"]
    with_prompt, with_subject = (text.strip() for text in wide.answers(prompts, 10))
    assert with_prompt == "Onhava"
    assert with_subject.startswith("Onhava")  # where the text ends is learned behind whole prompts
    assert not any(text.strip().startswith("Onhava") for text in bare.answers(prompts, 10))


def test_a_tokenizer_without_an_end_of_text(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    editor = editor_for(endless)
    editor.edit(FACTS[1])
    assert answers(editor, FACTS[1:2])[0].startswith("Onhava")


def test_a_stream_of_single_edits_and_one_batch_end_in_the_same_adapter(tokenizer):
    stream, batch, groups = (editor_for(tokenizer, plain(batch_size=size)) for size in (64, 64, 4))
    for fact in FACTS:
        stream.edit(fact)
    batch.edit(FACTS)
    groups.edit(FACTS)
    for other in (batch, groups):
        assert other.edits() == stream.edits()
        expected = committed(stream.model)
        for name, tensor in committed(other.model).items():
            if "_anchors" in name:
                assert torch.equal(tensor, expected[name]), name
            else:
                torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def test_editing_a_prompt_again_supersedes(tokenizer):
    editor = editor_for(tokenizer)
    first = editor.edit(FACTS[0])
    second = editor.edit(Edit(FACTS[0].prompt, "Oman", subject=FACTS[0].subject))
    assert answers(editor, FACTS[:1]) == ["Oman"]
    assert routed_edit(editor, FACTS[0].prompt) == second.ids[0]
    editor.undo(second.ids[0])
    assert answers(editor, FACTS[:1]) == ["Yemen"]
    assert routed_edit(editor, FACTS[0].prompt) == first.ids[0]


def test_the_same_edit_twice_in_one_batch_is_no_contradiction(tokenizer):
    editor = editor_for(tokenizer)
    assert editor.edit([FACTS[0], FACTS[0]]).ids == [0, 1]
    assert answers(editor, FACTS[:1]) == ["Yemen"]


def test_several_layers_are_edited_together(tokenizer):
    editor = editor_for(tokenizer, layers_to_transform=[1, 3])
    editor.edit(FACTS)
    banks = [layer.lemoe_bank["default"] for layer in editor.tuner.layers_of()]
    assert [len(bank) for bank in banks] == [6, 6]
    assert all(bank.out_proj.abs().amax((1, 2)).min() > 0 for bank in banks)


# --------------------------------------------------------------------------------------------- several edits an expert


def test_an_expert_fills_up_over_several_calls_and_is_committed_when_full(tokenizer):
    editor = editor_for(tokenizer, plain(max_steps=60), edits_per_expert=3, expert_dim=16)
    editor.edit(FACTS[:2])
    assert len(lead(editor).lemoe_bank["default"]) == 0
    assert editor.tuner.has_open_edits()
    assert answers(editor, FACTS[:2]) == targets(FACTS[:2])
    editor.edit(FACTS[2:4])
    assert len(lead(editor).lemoe_bank["default"]) == 1
    editor.edit(FACTS[4:])
    assert len(lead(editor).lemoe_bank["default"]) == 2
    assert not editor.tuner.has_open_edits()
    assert [entry["expert"] for entry in editor.edits()] == [0, 0, 0, 1, 1, 1]
    assert [editor.explain(fact.prompt).expert for fact in FACTS] == [0, 0, 0, 1, 1, 1]
    assert answers(editor, FACTS) == targets(FACTS)


def test_a_superseded_edit_is_not_replayed(tokenizer):
    editor = editor_for(tokenizer, plain(max_steps=60), edits_per_expert=4, expert_dim=16)
    editor.edit(FACTS[0])
    editor.edit(Edit(FACTS[0].prompt, "Oman", subject=FACTS[0].subject))
    assert answers(editor, FACTS[:1]) == ["Oman"]
    editor.edit(FACTS[1])
    assert answers(editor, FACTS[:2]) == ["Oman", "Onhava"]


def test_an_open_expert_survives_saving_and_goes_on(tokenizer, tmp_path):
    arguments = plain(max_steps=60)
    editor = editor_for(tokenizer, arguments, edits_per_expert=3, expert_dim=16)
    editor.edit(FACTS[:2])
    editor.save_pretrained(tmp_path)
    base = learner().unload()
    loaded = LifelongEditor(PeftModel.from_pretrained(base, tmp_path), tokenizer, arguments)
    assert answers(loaded, FACTS[:2]) == targets(FACTS[:2])
    loaded.edit(FACTS[2])
    editor.edit(FACTS[2])
    assert_same(committed(loaded.model), committed(editor.model))
    assert loaded.edits() == editor.edits()


# ---------------------------------------------------------------------------------------------------------- kv anchors


def test_kv_anchor_routes_by_the_router(tokenizer):
    editor = editor_for(tokenizer, plain(stop_loss=0.001, max_steps=100), routing="kv_anchor")
    base = logits_of(editor, UNRELATED)
    editor.edit(FACTS[:2])
    assert answers(editor, FACTS[:2]) == targets(FACTS[:2])
    assert all_equal(logits_of(editor, UNRELATED), base)
    replayed = lambda: sorted(lead(editor).lemoe_router_bank["default"].anchor_expert.tolist())  # noqa: E731
    assert replayed() == [0, 1]
    editor.edit(FACTS[2:4])
    assert replayed() == [0, 1, 2, 3]


def test_kv_anchor_finds_every_edit_of_a_large_batch(tokenizer):
    editor = editor_for(tokenizer, routing="kv_anchor")
    editor.edit(FACTS)
    assert [editor.explain(fact.prompt).expert for fact in FACTS] == list(range(6))


@pytest.mark.parametrize("replay", [True, False])
def test_kv_anchor_keeps_earlier_edits_where_they_are_replayed(tokenizer, replay):
    """A projection that keeps training moves old prompts."""
    editor = editor_for(tokenizer, routing="kv_anchor", projection="shared", router_replay=replay)
    editor.edit(FACTS[:3])
    editor.edit(FACTS[3:])
    experts = [editor.explain(fact.prompt).expert for fact in FACTS]
    assert experts[3:] == [3, 4, 5]
    assert (experts[:3] == [0, 1, 2]) is replay


def test_kv_anchor_edits_a_prompt_again_and_takes_it_back(tokenizer):
    editor = editor_for(tokenizer, routing="kv_anchor")
    base = logits_of(editor, [FACTS[0].prompt])
    editor.edit(FACTS[:2])
    editor.edit(Edit(FACTS[0].prompt, "Oman", subject=FACTS[0].subject))
    assert answers(editor, FACTS[:2]) == ["Oman", "Onhava"]
    assert sorted(lead(editor).lemoe_router_bank["default"].anchor_expert.tolist()) == [1, 2]
    editor.undo(2)
    assert answers(editor, FACTS[:2]) == targets(FACTS[:2])
    editor.undo(0)
    assert all_equal(logits_of(editor, [FACTS[0].prompt]), base)
    editor.edit(FACTS[2])
    assert answers(editor, FACTS[1:3]) == targets(FACTS[1:3])


def test_kv_anchor_fills_an_expert(tokenizer):
    arguments = plain(max_steps=60)
    editor = editor_for(tokenizer, arguments, routing="kv_anchor", edits_per_expert=3, expert_dim=16)
    editor.edit(FACTS[:2])
    assert answers(editor, FACTS[:2]) == targets(FACTS[:2])
    editor.edit(FACTS[2])
    assert answers(editor, FACTS[:3]) == targets(FACTS[:3])
    assert len(lead(editor).lemoe_bank["default"]) == 1
    assert lead(editor).lemoe_router_bank["default"].anchor_expert.tolist() == [0, 0, 0]


def test_the_published_setting_edits(tokenizer):
    config = LEMoEConfig.paper(edits_per_expert=2).to_dict()
    keys = (
        "expert",
        "expert_dim",
        "edits_per_expert",
        "normalize",
        "routing",
        "gate_value",
        "projection",
        "train_route",
    )
    editor = editor_for(
        tokenizer,
        plain(learning_rate=0.02, relative=False, max_steps=60),
        router_loss=0.0,
        router_replay=False,
        deferral=False,
        **{key: config[key] for key in keys},
    )
    editor.edit(FACTS[:2])
    assert answers(editor, FACTS[:2]) == targets(FACTS[:2])
    assert LifelongEditor(editor.model, tokenizer).arguments == EditingArguments.paper()


# ---------------------------------------------------------------------------------------------- what is left untouched


def random_state():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def test_the_global_random_state_is_left_alone_and_does_not_matter(tokenizer):
    states = []
    for seed in (1, 2):
        editor = editor_for(tokenizer)
        torch.manual_seed(seed)
        random.seed(seed)
        before = random_state()
        editor.edit(FACTS[:2])
        assert random_state() == before
        states.append(adapter_state(editor.model))
    assert_same(*states)


@pytest.mark.parametrize("config", [{}, {"edits_per_expert": 2}])
def test_the_seed_is_an_argument(tokenizer, config):
    experts = []
    for seed in (0, 0, 1):
        editor = editor_for(tokenizer, plain(seed=seed), **config)
        editor.edit(FACTS[:2])
        experts.append(lead(editor).lemoe_bank["default"].in_proj)
    assert torch.equal(experts[0], experts[1])
    assert not torch.equal(experts[0], experts[2])


@pytest.mark.parametrize("mode", [True, False])
def test_the_training_mode_is_restored(tokenizer, mode):
    editor = editor_for(tokenizer)
    editor.model.train(mode)
    result = editor.edit(FACTS[0])
    assert result.after == ["Yemen"]
    assert all(module.training is mode for module in editor.root.modules())
    with pytest.raises(ValueError, match="no edits"):
        editor.edit([])
    assert all(module.training is mode for module in editor.root.modules())


@pytest.mark.parametrize("trainable", [True, False])
def test_what_is_trainable_stays_so(tokenizer, tmp_path, trainable):
    editor_for(tokenizer).model.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(learner().unload(), tmp_path, is_trainable=trainable)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert any(before.values()) is trainable
    LifelongEditor(model, tokenizer).edit(FACTS[0])
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert all(weight.grad is None for weight in model.parameters())


def test_the_base_model_is_not_changed(tokenizer):
    editor = editor_for(tokenizer)
    before = {name: weight.clone() for name, weight in editor.root.state_dict().items() if "lemoe_" not in name}
    editor.edit(FACTS)
    after = editor.root.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_output_scale_is_measured_once_and_saved(tokenizer, tmp_path):
    editor = editor_for(tokenizer)
    assert editor.config.output_scale is None
    editor.edit(FACTS[0])
    scale = editor.config.output_scale
    assert scale > 0
    editor.edit(FACTS[1])
    assert editor.config.output_scale == scale
    editor.save_pretrained(tmp_path)
    assert LEMoEConfig.from_pretrained(tmp_path).output_scale == scale
    assert editor_for(tokenizer, normalize=False).edit(FACTS[0]).editor.config.output_scale is None


def test_the_output_scale_is_the_mean_absolute_output_of_the_ffn(tokenizer):
    editor = editor_for(tokenizer)
    lead(editor).base_layer.register_forward_hook(lambda module, args, output: torch.full_like(output, -3.0))
    editor.edit(FACTS[0])
    assert editor.config.output_scale == pytest.approx(3.0)


def test_the_output_scale_of_a_layer_wrapped_whole_is_what_it_adds(tokenizer):
    """Its output holds all that came before, which in trained models is many times as large."""
    editor = editor_for(tokenizer, family="opt")
    lead(editor).base_layer.register_forward_hook(lambda module, args, output: args[0] - 3.0)
    editor.edit(FACTS[0])
    assert editor.config.output_scale == pytest.approx(3.0)


# ------------------------------------------------------------------------------------------------------- looking at it


def test_explain(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS)
    found = editor.explain("Does Shmavon Vardanyan like tea?")
    assert not found.deferred
    assert (found.entry["id"], found.expert, found.score) == (0, 0, 1.0)
    assert found.matched.strip() == "Shmavon Vardanyan"
    assert "edit 0 answers ('Which country is Shmavon Vardanyan from?' -> 'Yemen'), expert 0" in str(found)

    other = editor.explain("%%%")
    assert other.deferred
    assert (other.entry, other.expert, other.threshold) == (None, None, None)
    assert "the base model answers (nothing like it was edited)" in str(other)


def test_explain_tells_a_near_miss(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS)
    ids = editor.tokenizer(" Quorvex Institute")["input_ids"]
    near = editor.explain("Meet me at the" + editor.tokenizer.decode(ids[: int(len(ids) * 0.6)]) + " now")
    assert near.deferred
    assert 0.3 < near.score < near.threshold
    assert f"scores {near.score:.2f}, below its threshold of {near.threshold:.2f}" in str(near)


def test_explain_names_the_expert_that_the_router_chose(tokenizer):
    editor = editor_for(tokenizer, routing="kv_anchor", router_loss=0.0)
    editor.edit(FACTS)
    chosen = []
    layer = lead(editor)
    layer.base_layer.register_forward_hook(
        lambda *args: chosen.append(int(layer.context.acting("default").experts[0, 0]))
    )
    logits_of(editor, [fact.prompt for fact in FACTS])
    expected = list(chosen)
    assert [editor.explain(fact.prompt).expert for fact in FACTS] == expected
    assert expected != [entry["expert"] for entry in editor.edits()], "choose facts on which the router errs"


def test_without_is_as_if_the_edits_had_not_been_made(tokenizer):
    editor = editor_for(tokenizer)
    base = logits_of(editor, [fact.prompt for fact in FACTS])
    editor.edit(FACTS)
    state, after = adapter_state(editor.model), logits_of(editor, [fact.prompt for fact in FACTS])
    with editor.without({1, 3}):
        inside = logits_of(editor, [fact.prompt for fact in FACTS])
    assert [torch.equal(a, b) for a, b in zip(inside, base, strict=True)] == [False, True, False, True, False, False]
    assert [torch.equal(a, b) for a, b in zip(inside, after, strict=True)] == [True, False, True, False, True, True]
    with pytest.raises(RuntimeError, match="inside"), editor.without({0}):
        raise RuntimeError("inside")
    assert_same(adapter_state(editor.model), state)


def test_undo_is_exact(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    state = edits_state(editor.model)
    editor.edit(FACTS[2])
    assert editor.undo(2)["edit"] == FACTS[2].to_dict()
    assert_same(edits_state(editor.model), state)

    prompts = [fact.prompt for fact in FACTS[:2]] + UNRELATED
    before = logits_of(editor, prompts)
    editor.undo(0)
    after = logits_of(editor, prompts)
    with editor.model.disable_adapter():
        assert torch.equal(after[0], logits_of(editor, prompts[:1])[0])
    assert all_equal(after[1:], before[1:])
    assert [(entry["id"], entry["expert"]) for entry in editor.edits()] == [(1, 0)]
    assert editor.edit(FACTS[3]).ids[0] > 1
    assert answers(editor, [FACTS[1], FACTS[3]]) == ["Onhava", "Wupp"]


def test_what_edits_answer_is_stored_in_every_spelling_and_taken_back_with_them(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    stored = lead(editor).lemoe_targets["default"]
    for edit, fact in enumerate(FACTS[:2]):
        spelled = [tuple(tokenizer(form)["input_ids"]) for form in (fact.target_new, " " + fact.target_new)]
        assert set(spelled) <= set(stored.of(edit))
        assert {tokenizer.decode(tokens).strip() for tokens in stored.of(edit)} == {fact.target_new}
    kept = stored.of(1)
    editor.undo(0)
    left = lead(editor).lemoe_targets["default"]
    assert (left.of(0), left.of(1)) == ((), kept)
    assert editor.config.num_targets == len(kept)


def test_an_edit_ends_with_its_target(tokenizer):
    """What is decoded behind it is the base model's again, but for the token that follows the target."""
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    ids = tokenizer(FACTS[0].prompt)["input_ids"]
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": PAD}
    with watched(editor.model) as acting:
        text = editor.model.generate(input_ids=torch.tensor([ids]), **options)[0].tolist()
    target = tokenizer(" " + FACTS[0].target_new)["input_ids"]
    assert text[len(ids) : len(ids) + len(target)] == target
    end = len(ids) + len(target)
    assert acting == [[0 if len(ids) - 1 <= column < end else -1 for column in range(len(ids) + 19)]]


def test_undo_in_a_shared_expert_leaves_its_other_edits(tokenizer):
    editor = editor_for(tokenizer, edits_per_expert=3, expert_dim=16)
    editor.edit(FACTS[:3])
    before = logits_of(editor, [fact.prompt for fact in FACTS[:3]])
    editor.undo(1)
    after = logits_of(editor, [fact.prompt for fact in FACTS[:3]])
    assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [True, False, True]
    assert routed_edit(editor, FACTS[1].prompt) is None


def test_undo_of_all_edits_of_an_open_expert_forgets_what_it_learned(tokenizer):
    editor = editor_for(tokenizer, edits_per_expert=3, expert_dim=16)
    editor.prepare()
    state = edits_state(editor.model)
    editor.edit(FACTS[:2])
    editor.undo(0)
    editor.undo(1)
    assert_same(edits_state(editor.model), state)


def test_undo_of_an_unknown_edit(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    state = adapter_state(editor.model)
    with pytest.raises(KeyError, match=r"There is no edit 7; the ledger has \[0, 1\]"):
        editor.undo(7)
    assert_same(adapter_state(editor.model), state)


def test_any_character_survives_in_the_ledger(tokenizer):
    editor = editor_for(tokenizer)
    fact = Edit("Where\u2028is\x85Zürich\n the 2nd 🏔?", "Über all")
    editor.edit(fact)
    assert editor.edits() == [{"id": 0, "expert": 0, "edit": fact.to_dict()}]


def test_edits_of_a_plain_training_loop_are_listed_and_kept(tokenizer):
    editor = editor_for(tokenizer)
    prompt, target = (
        editor.tokenizer(text, return_tensors="pt")["input_ids"] for text in (FACTS[1].prompt, " Onhava")
    )
    ids = torch.cat([prompt, target], 1)
    labels = torch.cat([torch.full_like(prompt, -100), target], 1)
    model = editor.model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    entry = {"id": 0, "expert": 0, "edit": {"prompt": FACTS[1].prompt, "target_new": "Onhava"}}
    assert editor.edits() == [entry]
    # An edit by the editor leaves alone what a loop has learned and not committed.
    editor.edit(FACTS[0])
    assert editor.edits()[0] == entry
    assert [text[:6] for text in answers(editor, FACTS[:2])] == ["Yemen", "Onhava"]


def test_a_training_loop_may_have_overfilled_the_open_expert(tokenizer):
    editor = editor_for(tokenizer, plain(max_steps=60), edits_per_expert=2, expert_dim=16)
    batch = editor.tokenizer([fact.prompt for fact in FACTS[:3]], return_tensors="pt", padding=True)
    labels = torch.where(batch["attention_mask"].cumsum(1) >= 5, batch["input_ids"], -100)
    editor.model.train()(**batch, labels=labels).loss.backward()
    editor.model.eval()
    editor.edit(FACTS[3:5])
    assert [entry["expert"] for entry in editor.edits()] == [0, 0, 0, 1, 1]
    assert answers(editor, FACTS[3:5]) == targets(FACTS[3:5])


# ---------------------------------------------------------------------------------------------------------- thresholds


def test_a_threshold_set_by_hand_is_obeyed_and_saved(tokenizer, tmp_path):
    near = "Meet me at the Quorvex Institte now"
    strict, loose = editor_for(tokenizer, threshold=0.99), editor_for(tokenizer, threshold=0.9)
    for editor in (strict, loose):
        editor.edit(FACTS[2])
    assert strict.explain(near).deferred
    assert routed_edit(loose, near) == 0
    loose.save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(learner().unload(), tmp_path)
    assert model.peft_config["default"].threshold == 0.9
    assert routed_edit(LifelongEditor(model, tokenizer), near) == 0


@pytest.mark.parametrize("prompt", ["I met shmavon vardanyan there", "shmavon vardanyan", "(Shmavon Vardanyan)"])
def test_other_spellings_of_the_subject_are_found(tokenizer, prompt):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    assert routed_edit(editor, prompt) == 0


def test_a_subject_that_is_not_given_is_found(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(Edit(FACTS[2].prompt, FACTS[2].target_new))
    assert routed_edit(editor, "Is the Quorvex Institute large?") == 0


def test_common_words_are_no_subject(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(Edit("The Who come from", "Bonn", subject="The Who"))
    assert routed_edit(editor, "Everybody likes The Who, they say") == 0
    assert editor.explain("This is the author of the book").deferred
    assert editor.explain("It was the whole truth, said the who").entry is None


# ----------------------------------------------------------------------------------------------------------- bad input


def test_an_empty_list(tokenizer):
    with pytest.raises(ValueError, match="There are no edits to make: the list is empty"):
        editor_for(tokenizer).edit([])


def test_something_that_is_no_edit(tokenizer):
    with pytest.raises(TypeError, match=r"lemoe_hf.Edit objects; got dict: \{'prompt': 'a'\}"):
        editor_for(tokenizer).edit([FACTS[0], {"prompt": "a"}])
    with pytest.raises(TypeError, match=r"lemoe_hf.Edit objects; got str: 'Where is Zembla"):
        editor_for(tokenizer).edit("Where is Zembla?")


def test_one_prompt_with_two_targets(tokenizer):
    editor = editor_for(tokenizer)
    state = adapter_state(editor.model)
    with pytest.raises(
        ValueError, match="'Where is it[?] ' is in this batch twice, with the targets 'here' and 'there'"
    ):
        editor.edit([FACTS[0], Edit("Where is it?", "here"), Edit("Where is it? ", "there")])
    assert_same(adapter_state(editor.model), state)


def test_a_target_without_tokens(tokenizer):
    silent = copy.deepcopy(tokenizer)
    silent.backend_tokenizer.normalizer = None
    from tokenizers import Regex, normalizers

    silent.backend_tokenizer.normalizer = normalizers.Replace(Regex(" ?~+"), "")
    with pytest.raises(ValueError, match="`target_new` '~~' of 'Where is it[?]' has no tokens in this tokenizer"):
        editor_for(silent).edit(Edit("Where is it?", "~~"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_longer_than_the_context(tokenizer, family):
    editor = editor_for(tokenizer, plain(max_steps=2), family=family)
    target = len(tokenizer(" %")["input_ids"])
    state = adapter_state(editor.model)
    longest = 512 - target - 1  # there is the end of the text as well
    assert len(tokenizer("%" * longest)["input_ids"]) == longest
    with pytest.raises(
        ValueError, match=rf"has {longest + 1} tokens and {target} for its target, .*context holds 512"
    ):
        editor.edit([FACTS[0], Edit("%" * (longest + 1), "%")])
    assert_same(adapter_state(editor.model), state)
    assert len(editor.edit(Edit("%" * longest, "%"))) == 1


def test_a_tokenizer_without_padding(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    with pytest.raises(ValueError, match=r"has no padding token.*pad_token = tokenizer.eos_token"):
        editor_for(bare)


def test_a_model_without_the_adapter(tokenizer):
    with pytest.raises(TypeError, match=r"needs a PeftModel with an adapter of lemoe_hf; got LlamaForCausalLM"):
        LifelongEditor(tiny(), tokenizer)
    other = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"needs a PeftModel with an adapter of lemoe_hf; got PeftModel"):
        LifelongEditor(other, tokenizer)


def test_an_adapter_that_is_not_there_or_not_active(tokenizer):
    model = learner()
    with pytest.raises(ValueError, match="There is no adapter 'french'; the model has default"):
        LifelongEditor(model, tokenizer, adapter_name="french")
    model.add_adapter("french", LEMoEConfig())
    editor = LifelongEditor(model, tokenizer, plain(max_steps=100), adapter_name="french")
    with pytest.raises(ValueError, match=r"'french' is not active.*set_adapter\('french'\)"):
        editor.edit(FACTS[0])
    model.set_adapter("french")
    editor.edit(FACTS[0])
    assert answers(editor, FACTS[:1]) == ["Yemen"]
    with model.disable_adapter(), pytest.raises(ValueError, match="disabled"):
        editor.edit(FACTS[1])


@pytest.mark.parametrize("name", ["learning_rate", "max_steps", "batch_size"])
def test_arguments_must_be_positive(name):
    with pytest.raises(ValueError, match=rf"`{name}` must be positive; got 0"):
        EditingArguments(**{name: 0})


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    "config", [{}, {"edits_per_expert": 3}, {"routing": "kv_anchor"}, {"layers_to_transform": [1, 3]}], ids=str
)
def test_a_breakdown_in_training_is_rolled_back(tokenizer, monkeypatch, config):
    editor = editor_for(tokenizer, **config)
    editor.edit(FACTS[:2])
    state, settings, entries = adapter_state(editor.model), editor.config.to_dict(), editor.edits()
    step_losses, steps = training.step_losses, []

    def losses(*args):
        steps.append(1)
        losses, extra = step_losses(*args)
        return losses * (torch.nan if len(steps) == 4 else 1.0), extra

    monkeypatch.setattr(training, "step_losses", losses)
    with pytest.raises(EditingError, match="The loss became nan after 3 steps. Nothing of this batch was kept") as e:
        editor.edit(FACTS[2:4])
    assert FACTS[2].prompt in str(e.value)
    assert_same(adapter_state(editor.model), state)
    assert editor.config.to_dict() == settings
    assert editor.edits() == entries
    editor.edit(FACTS[2:4])
    assert len(editor.edits()) == 4


def test_a_learning_rate_that_is_far_too_high(tokenizer):
    editor = editor_for(tokenizer, edits_per_expert=3)
    editor.edit(FACTS[:2])
    state = adapter_state(editor.model)
    editor.arguments.learning_rate = 1e30
    with pytest.raises(EditingError, match=r"The loss became nan after \d+ steps. Nothing of this batch was kept"):
        editor.edit(FACTS[2])
    assert_same(adapter_state(editor.model), state)


def test_only_the_edits_that_broke_down_are_named(tokenizer, monkeypatch):
    def losses(tuner, name, batch):
        losses, extra = step_losses(tuner, name, batch)
        return torch.where(batch.expert == 1, torch.nan, losses), extra

    step_losses = training.step_losses
    monkeypatch.setattr(training, "step_losses", losses)
    with pytest.raises(EditingError, match="nan after 0 steps") as error:
        editor_for(tokenizer).edit(FACTS[:3])
    assert [fact.prompt in str(error.value) for fact in FACTS[:3]] == [False, True, False]


@pytest.mark.parametrize("config", [{}, {"edits_per_expert": 2, "expert_dim": 16}])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_earlier_groups_stay_and_an_interrupted_one_leaves_no_trace(tokenizer, monkeypatch, failure, config):
    editor = editor_for(tokenizer, plain(batch_size=2), **config)
    states, calls = [], []

    def losses(tuner, name, batch):
        calls.append(len(editor.edits()))
        if len(editor.edits()) == 4 and calls.count(4) == 5:
            raise failure
        return step_losses(tuner, name, batch)

    def commit(*args):
        records = make(*args)
        states.append(adapter_state(editor.model))
        return records

    step_losses, make = training.step_losses, editor._make
    monkeypatch.setattr(training, "step_losses", losses)
    monkeypatch.setattr(editor, "_make", commit)
    with pytest.raises(failure):
        editor.edit(FACTS)
    assert len(states) == 2
    assert_same(adapter_state(editor.model), states[-1])
    assert [entry["id"] for entry in editor.edits()] == [0, 1, 2, 3]
    assert answers(editor, FACTS[:4]) == targets(FACTS[:4])
    assert not any("forward" in vars(module) for module in editor.root.modules())


def test_a_failure_while_anchors_are_made_leaves_no_trace(tokenizer, monkeypatch):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    state = adapter_state(editor.model)
    monkeypatch.setattr(editor._calibration, "anchors", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        editor.edit(FACTS[1:3])
    assert_same(adapter_state(editor.model), state)


def test_padding_does_not_matter(tokenizer):
    """Edits of very different lengths, trained side by side, come out as alone."""
    short, long = (
        Edit("Zembla?", "no", subject="Zembla"),
        Edit("Is it true that " * 8 + "Zog is", "tall", subject="Zog"),
    )
    together, alone = editor_for(tokenizer), editor_for(tokenizer)
    assert tokenizer.pad_token_id == PAD
    losses = [record["loss"] for record in together.edit([short, long]).records]
    assert losses == pytest.approx([alone.edit(edit).records[0]["loss"] for edit in (short, long)], rel=1e-3)


def test_prompts_longer_than_the_attention_window_are_run_as_a_whole(tokenizer):
    """Whether keys and values can be reused is found out once; how long the texts may be for it is checked every time."""
    editor = editor_for(tokenizer, family="gemma3")
    editor.edit(FACTS[0])
    filler = "It rains here, and there, all the day. " * 12
    late = Edit(filler + "The capital of Zembla is", "Onhava", subject="Zembla")
    early = Edit("Zog says:", filler, subject="Zog")
    lengths = [(len(each.prompt), len(each.target)) for each in editor._procedure.tokenized([late, early])]
    assert all(256 < sum(length) < 510 for length in lengths)  # each fits, and not what they have together
    assert lengths[0][0] > 256 > lengths[1][0]
    for edits, from_start in (([late], True), ([late, early], False), ([FACTS[1]], True)):
        procedure = editor._procedure
        items = procedure.tokenized(edits)
        batch, _ = procedure.trunk.run(procedure.samples(items, range(len(items))))
        assert (batch.reuse, batch.from_start) == (True, from_start)
    editor.edit([late, early])
    for edit in (late, early):
        assert editor.explain(edit.prompt).entry["edit"]["prompt"] == edit.prompt
