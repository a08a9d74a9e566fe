"""An editor that learns, once for a base model, what prompts ask for, and gates its edits by that."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from facts import FACTS, editor_for, few_relations, learner, plain
from gated import watched
from lemoe_hf import Edit, LEMoEConfig, LifelongEditor
from lemoe_hf.editing import lemoe as lemoe_module
from lemoe_hf.editing import relations as learning
from lemoe_hf.editing.relations import counted, digest, embed_by, prompt_features, subject_columns, words_of_prompts
from lemoe_hf.editing.tokens import Calibration, tokenize_edit
from lemoe_hf.editing.wordings import Wordings
from lemoe_hf.routing.anchors import Anchors
from lemoe_hf.routing.relations import words_of
from lemoe_hf.routing.router import Asking, Router
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.text import NEAR
from lemoe_hf.routing.vocabulary import (
    CAPITAL,
    COLON,
    CONTINUES,
    HEADER,
    MARK,
    PRONOUN,
    PRONOUNS,
    SPECIAL,
    STOP,
    WORD,
    Vocabulary,
)
from tiny import PAD, adapter_state, assert_same, logits
from worded import vocabulary_of


# What is asked of the facts' subjects otherwise; and an edit that is found by its whole prompt alone.
OTHERS = [
    "Does Shmavon Vardanyan like tea?",
    "Where does Shmavon Vardanyan come from?",
    "Zembla has its seat of government in",
    "Who runs the Quorvex Institute?",
    "How old is the Quorvex Institute?",
    "Ulmenkirch is famous for",
    "When was Port Ellen founded?",
    "Tom Ashford was born in",
]
NAMELESS = Edit("two and two make", "five")


@pytest.fixture(scope="module", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("relations")
    with few_relations(str(home)):
        yield home


@pytest.fixture(scope="module")
def stored(tokenizer, cache_home) -> Path:
    """Learn for the tiny model that all tests use; the file in the cache."""
    before = set(cache_home.rglob("*"))
    asking_editor(tokenizer).prepare()
    (path,) = set(cache_home.rglob("*.safetensors")) - before
    return path


@pytest.fixture
def fails_to_learn(monkeypatch):
    def refuse(*args):
        raise AssertionError("learns again")

    monkeypatch.setattr(learning, "fit", refuse)


def asking_editor(tokenizer, arguments=None, **config) -> LifelongEditor:
    return editor_for(tokenizer, arguments or plain(max_steps=3), relation_gate=True, **config)


def answered(editor, prompts=OTHERS) -> list[bool]:
    """Which prompts an edit answers."""
    with editor.model.disable_adapter():
        base = logits_of(editor, prompts)
    return [not torch.equal(now, then) for now, then in zip(logits_of(editor, prompts), base, strict=True)]


def logits_of(editor, prompts) -> list[torch.Tensor]:
    """With labels, so that the whole text is a prompt, as for `generate`."""
    ids = [editor.tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in prompts]
    return [logits(editor.model, row, labels=torch.full_like(row, -100)) for row in ids]


def halfway(editor) -> float:
    """A threshold that lets through half of what is asked."""
    scores = sorted(editor.explain(prompt).relation_score for prompt in OTHERS)
    return torch.tensor((scores[3] + scores[4]) / 2).item()


# ------------------------------------------------------------------------------------------------------------- learning


@pytest.mark.usefixtures("stored", "fails_to_learn")
def test_what_was_learned_is_found_in_the_cache(tokenizer, stored):
    written = stored.stat().st_mtime_ns
    editor = asking_editor(tokenizer)
    editor.prepare()
    assert editor._lead.relations(editor.adapter_name).is_fitted
    assert editor._lead.relations(editor.adapter_name).thresholds.isfinite().all()
    assert stored.stat().st_mtime_ns == written
    asking_editor(tokenizer, layers_to_transform=[1]).prepare()  # wherever the bypass is
    other = asking_editor(tokenizer)
    other.root.get_input_embeddings().weight.data.mul_(torch.linspace(1, 2, other.root.config.hidden_size))
    with pytest.raises(AssertionError, match="learns again"):
        other.prepare()


def test_what_is_found_in_the_cache_is_what_was_learned(tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    first, second = asking_editor(tokenizer), asking_editor(tokenizer)
    for editor in (first, second):
        editor.prepare()
    assert_same(
        dict(second._lead.relations("default").named_buffers()),
        dict(first._lead.relations(first.adapter_name).named_buffers()),
    )
    assert_same(dict(vocabulary_in(second).named_buffers()), dict(vocabulary_in(first).named_buffers()))
    kind = vocabulary_in(first).kind
    (mark,), (stop,) = (tokenizer(text)["input_ids"] for text in ("?", "."))
    assert (kind(mark), kind(stop)) == (MARK | STOP, STOP)
    assert all(kind(token) == SPECIAL | STOP for token in tokenizer.all_special_ids)
    assert len(vocabulary_in(first).kinds) == len(tokenizer)
    # Those that older adapters kept are left empty.
    assert not any(
        len(getattr(first._lead.relations(first.adapter_name), name)) for name in ("marks", "stops", "continuing")
    )


def vocabulary_in(editor) -> Vocabulary:
    return editor.tuner.layers_of()[0].lemoe_vocabulary["default"]


def test_the_file_is_of_embeddings_and_wordings():
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))

    def name(words=((5, 6), (7,)), table=table, relation=(0, 1), kind=(0, 0), is_question=(True, True)):
        return digest(Wordings.of(words, lambda ids: table[ids], relation, kind, is_question))

    elsewhere = table.clone()
    elsewhere[8] += 1  # stands in none
    assert name(table=elsewhere) == name()
    others = {"words": ((5,), (6, 7))}, {"table": table + 1}, {"table": table.bfloat16()}, {"relation": (0, 0)}
    names = [name(), *(name(**other) for other in others), name(kind=(0, 1)), name(is_question=(True, False))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("failure", ["no folder", "no file"])
def test_a_cache_that_cannot_be_written_costs_a_warning(tokenizer, monkeypatch, tmp_path, failure):
    """`SafetensorError` is what `save_file` raises where it may not write."""
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file" if failure == "no folder" else tmp_path))
    if failure == "no file":
        monkeypatch.setattr(
            learning, "save_file", lambda *args: _raise(SafetensorError("I/O error: Permission denied"))
        )
    warnings = []
    monkeypatch.setattr(learning.logger, "warning", warnings.append)
    editor = asking_editor(tokenizer)
    editor.edit(FACTS[0])
    assert len(editor._lead.relations(editor.adapter_name)) == 1
    (warning,) = warnings
    assert "cannot be written" in warning


def _raise(error: BaseException):
    raise error


def features_of(editor, prompts, subjects, vocabulary: Vocabulary) -> torch.Tensor:
    return prompt_features(editor.root, editor.tuner.context, "default", prompts, subjects, vocabulary, PAD)


def test_features_of_adapters_from_before_are_of_words_and_of_each_prompts_last_token(tokenizer):
    """In any order and company, from the base model alone, and without running what lies above."""
    editor = asking_editor(tokenizer)
    taps, table = editor.tuner.context.taps["default"], editor.root.get_input_embeddings().weight
    ran, states = [], []
    for i, block in enumerate(editor.root.model.layers):
        block.register_forward_hook(lambda *args, i=i: ran.append(i))
    prompts, subjects = [[20, 21, 22, 23, 24], [30, 31], [40, 41, 42]] * 25, [(2, 3), (0, 0), (0, 0)] * 25
    words = [[21, 24], [31], [41, 42]]  # the first prompt begins with the end of another sentence
    together = features_of(editor, prompts, subjects, vocabulary_of(stops=(20,)))
    assert set(ran) == {0, 1, 2}  # the bypass is in layer 3
    for prompt, subject, said, features in zip(prompts[:3], subjects, words, together, strict=False):
        alone = features_of(editor, [prompt], [subject], vocabulary_of(stops=(20,)))[0]
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-4)
        hooks = [tap.register_forward_pre_hook(lambda block, args: states.append(args[0][0, -1])) for tap in taps]
        logits(editor.root, prompt)
        for hook in hooks:
            hook.remove()
        bag, *by_layer = features.unflatten(0, (1 + len(taps), -1))
        torch.testing.assert_close(bag, words_of(table[said]).mean(0), rtol=1e-4, atol=1e-4)
        for own, hidden in zip(by_layer, states[-len(taps) :], strict=True):
            torch.testing.assert_close(own * hidden.pow(2).mean().sqrt(), hidden, rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("config", [{}, {"edits_per_expert": 4, "expert_dim": 8}], ids=["alone", "shared"])
def test_every_edit_with_a_subject_leaves_a_key(tokenizer, config):
    editor = asking_editor(tokenizer, plain(max_steps=3, batch_size=3), **config)
    edits = [*FACTS[:2], NAMELESS, *FACTS[2:]]
    editor.edit(edits)
    relations = editor._lead.relations(editor.adapter_name)
    assert relations.edit.tolist() == [0, 1, 3, 4, 5, 6]
    assert relations.rows_of(torch.tensor([2])).tolist() == [-1]
    assert relations.threshold.tolist() == [relations.thresholds[0]] * 6  # of questions and of statements
    assert editor.config.num_relation_keys == 6
    assert editor.config.num_token_kinds == len(tokenizer)
    prompts = [tokenizer(fact.prompt)["input_ids"] for fact in FACTS]
    subjects = [
        subject_columns(tokenizer, fact.prompt, ids, fact.subject) for fact, ids in zip(FACTS, prompts, strict=True)
    ]
    words = words_of_prompts(prompts, subjects, vocabulary_in(editor))
    embedded = relations.embed_words(*counted(words, embed_by(editor.root)))
    torch.testing.assert_close(relations.keys.float(), embedded, rtol=0, atol=1e-2)


@pytest.mark.usefixtures("stored")
def test_a_stream_of_edits_leaves_the_keys_of_a_batch(tokenizer):
    stream, batch = asking_editor(tokenizer), asking_editor(tokenizer)
    for fact in FACTS[:3]:
        stream.edit(fact)
    batch.edit(FACTS[:3])
    torch.testing.assert_close(
        stream._lead.relations("default").keys, batch._lead.relations("default").keys, rtol=0, atol=1e-2
    )
    assert torch.equal(stream._lead.relations("default").threshold, batch._lead.relations("default").threshold)
    assert (
        stream._lead.relations("default").edit.tolist() == batch._lead.relations("default").edit.tolist() == [0, 1, 2]
    )


@pytest.mark.usefixtures("stored")
def test_a_training_that_fails_leaves_no_key(tokenizer, monkeypatch):
    editor = asking_editor(tokenizer)
    editor.edit(FACTS[:2])
    before = adapter_state(editor.model)
    with monkeypatch.context() as patch:
        patch.setattr(lemoe_module, "train_experts", lambda *args: _raise(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            editor.edit(FACTS[2:4])
    assert_same(adapter_state(editor.model), before)
    editor.edit(FACTS[4])
    assert editor._lead.relations(editor.adapter_name).edit.tolist() == [0, 1, 2]


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("edit", [0, 1, 2])
def test_undo_takes_the_key_along(tokenizer, edit):
    editor = asking_editor(tokenizer, relation_threshold=-1e9)
    editor.edit(FACTS[:3])
    before = dict(editor._lead.relations(editor.adapter_name).named_buffers())
    own = [prompt for prompt in OTHERS if FACTS[edit].subject in prompt]
    assert all(answered(editor, own))
    editor.undo(edit)
    kept = [row for row in range(3) if row != edit]
    for name in ("keys", "edit", "threshold"):
        assert torch.equal(getattr(editor._lead.relations(editor.adapter_name), name), before[name][kept]), name
    assert editor.config.num_relation_keys == 2
    assert not any(answered(editor, own))
    assert all(answered(editor, [fact.prompt for fact in (FACTS[row] for row in kept)]))
    editor.edit(FACTS[3])
    relations = editor._lead.relations(editor.adapter_name)
    assert len(relations) == len(relations.edit.unique()) == 3


# ------------------------------------------------------------------------------------------------------------- deciding


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(("threshold", "share"), [(-1e9, 1), (1e9, 0)])
def test_a_threshold_set_by_hand_is_obeyed(tokenizer, threshold, share):
    """But an edit's own prompt is always answered."""
    editor = asking_editor(tokenizer, relation_threshold=threshold)
    editor.edit(FACTS)
    assert answered(editor) == [bool(share)] * len(OTHERS)
    assert all(answered(editor, [fact.prompt for fact in FACTS]))


@pytest.mark.usefixtures("stored", "fails_to_learn")
def test_without_the_gate_nothing_is_learned_or_stored(tokenizer):
    editor = editor_for(tokenizer, relation_gate=False)
    editor.edit(FACTS)
    assert not any("lemoe_relations" in name for name in adapter_state(editor.model))
    assert editor.config.num_relation_keys == 0
    assert all(answered(editor))
    found = editor.explain(OTHERS[0])
    assert (found.relation_score, found.relation_threshold) == (None, None)
    assert "asks" not in str(found)


@pytest.mark.usefixtures("stored")
def test_edits_made_without_the_gate_and_with_it_are_trained_alike(tokenizer):
    experts = []
    for gate in (True, False):
        editor = editor_for(tokenizer, relation_gate=gate)
        editor.edit(FACTS[:2])
        experts.append({name: tensor for name, tensor in adapter_state(editor.model).items() if "_bank" in name})
    assert_same(*experts)


def from_pretrained(editor, folder, **options) -> LifelongEditor:
    model = PeftModel.from_pretrained(learner().unload(), folder, **options)
    return LifelongEditor(model.eval(), editor.tokenizer, editor.arguments)


def load_adapter(editor, folder) -> LifelongEditor:
    """Beside an adapter that has learned and edited something else."""
    other = asking_editor(editor.tokenizer)
    other.edit([Edit("Zembla is ruled by", "Ottokar", subject="Zembla")])
    other.model.load_adapter(folder, "loaded")
    other.model.set_adapter("loaded")
    return LifelongEditor(other.model.eval(), editor.tokenizer, editor.arguments, "loaded")


def load_over(editor, folder) -> LifelongEditor:
    """In place of an adapter with fewer keys."""
    other = asking_editor(editor.tokenizer)
    other.edit(FACTS[5])
    other.model.load_adapter(folder, "default")
    return LifelongEditor(other.model.eval(), editor.tokenizer, editor.arguments)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    "load",
    [
        from_pretrained,
        lambda editor, folder: from_pretrained(editor, folder, low_cpu_mem_usage=True),
        load_adapter,
        load_over,
    ],
    ids=["from_pretrained", "low_cpu_mem_usage", "load_adapter", "load_over"],
)
def test_a_loaded_adapter_decides_as_the_saved_one_and_goes_on(tokenizer, tmp_path, monkeypatch, load):
    editor = asking_editor(tokenizer)
    editor.edit([*FACTS[:5], NAMELESS])
    middle = halfway_between_keys(editor)
    assert len(set(answered(editor))) == 2
    editor.save_pretrained(tmp_path)
    loaded = load(editor, tmp_path)
    monkeypatch.setattr(learning, "reference_relations", lambda: 1 / 0)  # there is nothing left to learn
    expected = dict(editor._lead.relations(editor.adapter_name).named_buffers())
    assert_same(dict(loaded._lead.relations(loaded.adapter_name).named_buffers()), expected)
    assert {name: tensor.dtype for name, tensor in loaded._lead.relations(loaded.adapter_name).named_buffers()} == {
        name: tensor.dtype for name, tensor in expected.items()
    }
    assert loaded.config.relation_threshold is None
    assert middle == loaded._lead.relations(loaded.adapter_name).threshold[0]
    for one, other in zip(logits_of(loaded, OTHERS), logits_of(editor, OTHERS), strict=True):
        assert torch.equal(one, other)
    for each in (loaded, editor):
        each.edit(FACTS[5])
    assert_same(
        dict(loaded._lead.relations(loaded.adapter_name).named_buffers()),
        dict(editor._lead.relations(editor.adapter_name).named_buffers()),
    )
    loaded.undo(0)
    assert loaded._lead.relations(loaded.adapter_name).edit.tolist() == [1, 2, 3, 4, 6]


def halfway_between_keys(editor) -> float:
    """Give every edit a threshold that lets through half of what is asked, and return it."""
    scores = sorted(editor.explain(prompt).relation_score for prompt in OTHERS[:-1])
    editor._lead.relations(editor.adapter_name).threshold.fill_((scores[2] + scores[3]) / 2)
    return editor._lead.relations(editor.adapter_name).threshold[0]


@pytest.mark.usefixtures("stored")
def test_a_threshold_of_the_config_is_saved(tokenizer, tmp_path):
    editor = asking_editor(tokenizer, relation_threshold=-1.25)
    editor.edit(FACTS[0])
    editor.save_pretrained(tmp_path)
    config = LEMoEConfig.from_pretrained(tmp_path)
    assert config.relation_threshold == -1.25
    assert config.relation_gate
    assert config.num_relation_keys == 1


# ------------------------------------------------------------------------------------------------------- looking at it


@pytest.fixture
def explained(tokenizer, stored) -> LifelongEditor:
    editor = asking_editor(tokenizer)
    editor.edit(FACTS)
    editor.config.relation_threshold = halfway(editor)
    return editor


def test_explain_tells_what_is_asked_and_from_which_score_on(explained):
    threshold = explained.config.relation_threshold
    for prompt, answers in zip(OTHERS, answered(explained), strict=True):
        found = explained.explain(prompt)
        assert found.deferred is not answers
        assert found.relation_threshold == threshold
        assert (found.relation_score >= threshold) is answers
        assert (found.entry is not None) is answers
        asks = f"asks for what it is about by {found.relation_score:.1f}, threshold {threshold:.1f}"
        if answers:
            assert FACTS[found.entry["id"]].subject in prompt
            assert str(found).endswith(f"; {asks}.")
        else:
            assert str(found).endswith(
                f"the base model answers ({found.matched!r} was edited, but the prompt {asks})."
            )
    assert sum(answered(explained)) == 4


def test_explain_tells_the_edits_own_threshold_where_the_config_has_none(explained):
    explained.config.relation_threshold = None
    found = [explained.explain(prompt) for prompt in (OTHERS[0], OTHERS[2])]
    explained._lead.relations("default").threshold[1] += 1
    found.append(explained.explain(OTHERS[2]))
    threshold = explained._lead.relations("default").thresholds[0].item()
    assert [each.relation_threshold for each in found] == pytest.approx([threshold, threshold, threshold + 1])


def test_explain_asks_nothing_of_an_edits_own_prompt(explained):
    found = explained.explain(FACTS[1].prompt)
    assert found.entry["id"] == 1
    assert (found.relation_score, found.relation_threshold) == (None, None)
    assert "asks" not in str(found)


def test_a_longer_name_is_left_to_the_base_model(explained):
    """The longer one is asked for what was edited of the other."""
    explained.config.relation_threshold = -1e9
    prompts = ["Where is Zembla now?", "Where is Zembla Ashford now?", "Where is Zembla, Ashford, now?"]
    prompts += ["Where is Zemblander now?", "Where is Zembla1 now?", "Where are Zembla's laws?"]
    assert answered(explained, prompts) == [True, False, True, False, False, True]
    found = explained.explain(prompts[1])
    assert found.deferred
    assert str(found).endswith("the base model answers ('Zembla' was edited, but is part of a longer name here).")


@pytest.mark.parametrize("text", [" Vice", " Émile", "ardo", "L", "sen", "1", "ön"])
def test_a_name_goes_on(text):
    assert learning.goes_on(text)


@pytest.mark.parametrize("text", ["s", "'s", " vice", " 1", ".", " ", "", "京", " 京"])
def test_a_name_ends(text):
    assert not learning.goes_on(text)


def learned(tokenizer) -> tuple[Vocabulary, dict[str, int]]:
    """What an adapter learns of a tokenizer, and the kind of each token by its text."""
    vocabulary = Vocabulary()
    learning.learn_vocabulary(vocabulary, tokenizer)
    return vocabulary, {tokenizer.decode([token]): kind for token, kind in enumerate(vocabulary.kinds.tolist())}


def of_kind(kinds: dict[str, int], kind: int) -> set[str]:
    return {text for text, own in kinds.items() if own & kind}


def test_what_tokens_are(tokenizer):
    _, kinds = learned(tokenizer)
    assert {"?"} <= of_kind(kinds, MARK) < of_kind(kinds, STOP)
    assert {".", "!", "\n", tokenizer.eos_token} <= of_kind(kinds, STOP)
    assert set(tokenizer.all_special_tokens) == of_kind(kinds, SPECIAL)
    assert {":"} == of_kind(kinds, COLON)
    assert not of_kind(kinds, HEADER)
    assert {"a", "1", " Berg"} <= of_kind(kinds, WORD)
    assert not {",", ".", "?", " ", "\n", '"', *tokenizer.all_special_tokens} & of_kind(kinds, WORD)
    words = {text for text in of_kind(kinds, CONTINUES) if len(text) > 1}
    assert words >= {" A", " Ber", " Berg", " Tom", " Ashfor", " Ashford"}
    assert not any(text[0] == " " and not text[1:2].isupper() for text in words)
    assert {" A", " Tom", " Ashford"} <= of_kind(kinds, CAPITAL) <= of_kind(kinds, CONTINUES)
    assert not {"A", "T", " a", " 1", "."} & of_kind(kinds, CAPITAL)
    assert of_kind(kinds, PRONOUN) == {text for text in kinds if text.strip().lower() in PRONOUNS} > {"it"}


def test_what_goes_on_with_a_name_of_a_tokenizer_that_decodes_a_token_without_its_space():
    words = ["<unk>", "a", "▁a", "▁The", "▁the", "The", "▁Émile", "?", "▁?", "s", "1", "▁1", "京"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    vocabulary, _ = learned(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    going_on = [word for word, kind in zip(words, vocabulary.kinds.tolist(), strict=True) if kind & CONTINUES]
    assert going_on == ["a", "▁The", "The", "▁Émile", "1"]
    marks = [word for word, kind in zip(words, vocabulary.kinds.tolist(), strict=True) if kind & MARK]
    assert marks == ["?", "▁?"]


NEW_YORK = "New York City is large."
QUESTIONS = {
    "Who is the mayor of Chicago?": False,
    "Who is the mayor of it?": True,
    "Who is the mayor of that Chicago?": True,
    "Who is the Governor?": False,
    "Who is the Mayor?": True,
    "who is the mayor?": True,
    "Who is the mayor of New York City and of Chicago?": True,
}


@pytest.mark.parametrize(("question", "is_about"), QUESTIONS.items(), ids=QUESTIONS)
def test_a_question_that_names_another_is_about_that(question, is_about):
    """Not about what an earlier sentence has named, unless it says so, or the edit's own prompt names the other."""
    edit = Edit("The Mayor of New York City is", "Mira", subject="New York City")
    texts = [NEW_YORK, edit.prompt, *QUESTIONS]
    words = dict.fromkeys(f"▁{word.strip('.?')}" for text in texts for word in text.split())
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<unk>", ".", "?", "▁a", *words])}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    vocabulary, _ = learned(tokenizer)
    anchors = Anchors()
    anchors.add(Calibration(tokenizer).anchors(tokenize_edit(tokenizer, edit, 64), 0, 0))
    text = learning.text_of(tokenizer(f"{NEW_YORK} {question}")["input_ids"], vocabulary)
    assert tokenizer.unk_token_id not in text.ids
    text.ends, text.prompt = {len(text) - 1}, len(text)
    asking = Asking(text, 0)
    Router(anchors, Targets(), vocabulary).questions([asking])
    assert [bool(each.options) for each in asking.questions] == [is_about]


CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat(tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def test_where_an_answer_begins_in_a_conversation(tokenizer, chat):
    vocabulary, kinds = learned(chat)
    assert chat.decode(vocabulary.reply_tokens) == "<|end|>\n<|start|>assistant\n"
    assert of_kind(kinds, HEADER) == {"<|start|>"}
    assert learned(tokenizer)[0].reply_tokens == ()
    turns = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "It is he."}]
    text = learning.text_of(chat.apply_chat_template(turns)["input_ids"], vocabulary)
    assert [chat.decode(text.ids[column + 1 :]) for column in text.replies] == ["It is he.<|end|>\n"]
    said = [token for token, says in zip(text.ids, text.content, strict=True) if says]
    assert chat.decode(said).replace(" ", "") == "WhoisitItishe"


def test_a_conversation_asks_where_its_last_turn_ends(chat):
    """And an edit acts there like behind the prompt alone, until it has been said; not where the user's question ends."""
    editor = editor_for(chat)
    editor.root.resize_token_embeddings(len(chat))
    editor.edit(FACTS[0])
    turns = [{"role": "user", "content": f"Hello. {FACTS[0].prompt}"}]
    ids = chat.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    answer = chat(FACTS[0].target_new, add_special_tokens=False)["input_ids"]
    behind = chat("<|end|>\nThen", add_special_tokens=False)["input_ids"]
    with watched(editor.model) as acting:
        whole = [*ids, *answer, *behind]
        labels = torch.tensor([[-100] * len(ids) + answer + behind])
        logits(editor.model, whole, labels=labels)
    answering = range(len(ids) - 1, len(ids) + len(answer))
    assert acting[0] == [0 if column in answering else -1 for column in range(len(whole))]


def test_explain_names_the_nearest_of_several_edits_of_a_subject(explained):
    """Whether one of them answers or none."""
    explained.edit(Edit("Zembla was founded in the year", "1200", subject="Zembla"))
    scores = []
    for without in (6, 1):
        with explained.without({without}):
            scores.append(explained.explain(OTHERS[2]).relation_score)
    assert max(scores) - min(scores) > NEAR
    best = scores.index(max(scores))
    for threshold in (-1e9, 1e9):
        explained.config.relation_threshold = threshold
        found = explained.explain(OTHERS[2])
        assert found.relation_score == pytest.approx(max(scores), abs=1e-3)
        assert found.deferred is (threshold > 0)
        assert found.deferred or found.entry["id"] == (1, 6)[best]


def test_explain_scores_the_question_that_decided(explained):
    """Which may end at a question mark, before the prompt does."""
    question = OTHERS[1]
    asked = explained.explain(question).relation_score
    explained.config.relation_threshold = asked - 0.1
    found = explained.explain(f"{question} Answer:")
    assert not found.deferred
    assert found.relation_score == pytest.approx(asked, abs=1e-3)


@pytest.mark.usefixtures("stored")
def test_explain_in_training_mode_is_that_of_the_model_that_answers(tokenizer):
    """GPT-2 drops out hidden states while it is trained."""
    editor = asking_editor(tokenizer, family="gpt2")
    editor.edit(FACTS[0])
    expected = editor.explain(OTHERS[0])
    editor.model.train()
    assert editor.explain(OTHERS[0]) == expected
