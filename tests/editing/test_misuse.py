"""What users pass by mistake, and from where they call: right, or refused with a clear error."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel, get_peft_model

from facts import FACTS, editor_for, learner, plain, targets
from lemoe_hf import Edit, EditingArguments, LEMoEConfig, LifelongEditor, read_edits
from tiny import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def shared(tokenizer) -> LifelongEditor:
    """An editor that no test changes."""
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    return editor


def answered(editor: LifelongEditor, facts: list[Edit]) -> bool:
    return [text.strip() for text in editor.answers([fact.prompt for fact in facts], 8)] == targets(facts)


# ----------------------------------------------------------------------------------------------------- from where they call


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_edit_is_made_and_undone_wherever_it_is_asked_for(tokenizer, mode):
    editor = editor_for(tokenizer)
    with mode():
        editor.edit(FACTS[:2])
        editor.undo(0)
    editor.edit(FACTS[2])  # nothing is left that gradients could not go through
    assert answered(editor, FACTS[1:3])


def test_another_default_dtype_changes_nothing(tokenizer):
    expected, editor = editor_for(tokenizer), editor_for(tokenizer)
    expected.edit(FACTS[:2])
    torch.set_default_dtype(torch.bfloat16)
    try:
        editor.edit(FACTS[:2])
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    states = [each.model.base_model.layers_of()[0].lemoe_bank.state_dict() for each in (expected, editor)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_edits_are_not_made_where_others_are_left_out(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    with editor.without({0}), pytest.raises(ValueError, match=r"edits \[0\] are left out here. Leave `without`"):
        editor.edit(FACTS[1])
    editor.edit(FACTS[1])
    assert answered(editor, FACTS[:2])


# ----------------------------------------------------------------------------------------------------------- what they pass


@pytest.mark.parametrize("edits", [None, 5, [None], "Who?", {"prompt": "Who?"}])
def test_what_is_no_edit_is_called_so(shared, edits):
    with pytest.raises(TypeError, match="Edits must be lemoe_hf.Edit objects; got"):
        shared.edit(edits)


@pytest.mark.parametrize("field", ["prompt", "target_new", "subject", "rephrase_prompt"])
def test_half_a_character_is_no_text(field):
    fields = (
        {"prompt": "Who is A\ud800?", "target_new": "Anna"} if field in ("prompt", "subject") else {"prompt": "Who?"}
    )
    fields = {"target_new": "Anna"} | fields | {field: "A\ud800" if field != "prompt" else "Who is A\ud800?"}
    with pytest.raises(ValueError, match=r"of an edit holds half a character \('\\ud800' at \d+\)"):
        Edit(**fields)


def test_half_a_character_is_not_explained_and_not_answered(shared):
    with pytest.raises(ValueError, match="half a character"):
        shared.explain("Who is \udcff?")
    with pytest.raises(ValueError, match="half a character"):
        shared.answers(["Who is \udcff?"])


def test_a_prompt_without_tokens_is_not_answered(shared):
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        shared.answers(["Who?", ""])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contexts": "chat"}, "are several texts; got one, 'chat'"),
        ({"contexts": ("{bad}",)}, "texts with `{prompt}` or `{subject}` in them"),
        ({"contexts": ("{",)}, "Double a brace"),
        ({"contexts": ("Hello",)}, "texts with `{prompt}`"),
        ({"learning_rate": math.inf}, "`learning_rate` must be positive"),
        ({"learning_rate": math.nan}, "`learning_rate` must be positive"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EditingArguments(**settings)


@pytest.mark.parametrize(
    ("prompt", "target"), [("Who is Anna?", "<eos>"), ("Who is Anna?", "<pad><eos>"), ("<eos>", "Anna")]
)
def test_special_tokens_alone_are_no_text(shared, prompt, target):
    with pytest.raises(ValueError, match="holds special tokens alone"):
        shared.edit(Edit(prompt, target))


@pytest.mark.parametrize("edit_id", [True, 0.0, "0", None])
def test_what_is_no_identifier_undoes_nothing(shared, edit_id):
    with pytest.raises(TypeError, match="undone by its `id`, a whole number; got"):
        shared.undo(edit_id)


def test_a_folder_without_a_name_is_none(shared):
    with pytest.raises(ValueError, match="`save_directory` is empty"):
        shared.save_pretrained("")


def test_an_edit_that_was_not_learned_is_told_of(tokenizer):
    editor = editor_for(tokenizer, plain(learning_rate=1e30))
    with pytest.warns(UserWarning, match="1 of 1 edits were made and not learned"):
        editor.edit(FACTS[0])


def test_the_same_edit_twice_is_told_of(tokenizer):
    editor = editor_for(tokenizer)
    with pytest.warns(UserWarning, match="in this batch more than once: .*Shmavon"):
        editor.edit([FACTS[0], FACTS[0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "prompt": "b", "target_new": "c"}', "line 1: the key `prompt` is there twice"),
        ('[{"prompt": "a", "prompt": "b", "target_new": "c"}]', "the key `prompt` is there twice"),
        ("[" * 100_000, "recursion"),
        ('{"prompt": ' + "[" * 100_000, "line 1: .*recursion"),
        ('{"prompt": ' + "9" * 5000 + "}", "line 1: .*digits"),
    ],
    ids=["twice", "twice in a list", "nested", "nested line", "digits"],
)
def test_files_that_no_reader_can_make_sense_of(tmp_path, text, message):
    path = tmp_path / "edits.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"edits.jsonl.*{message}"):
        read_edits(path)


# -------------------------------------------------------------------------------------------------- what does not go with it


def test_a_base_model_without_weights_is_called_so(tokenizer):
    model = get_peft_model(tiny().to("meta"), LEMoEConfig())
    with pytest.raises(ValueError, match="on the device `meta`: it has shapes and no weights"):
        LifelongEditor(model, tokenizer, plain()).edit(FACTS[0])


def saved(tokenizer, folder):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    editor.save_pretrained(folder)
    return folder


def test_another_tokenizer_of_the_same_size_is_refused(tokenizer, tmp_path):
    other = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    vocabulary = other["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    swapped = type(tokenizer)(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(json.dumps(other)),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    model = PeftModel.from_pretrained(learner().unload(), saved(tokenizer, tmp_path))
    with pytest.raises(ValueError, match="made with another tokenizer.*Pass the tokenizer of the model"):
        LifelongEditor(model, swapped)
    assert answered(LifelongEditor(model, tokenizer), FACTS[:2])


def test_tokens_that_came_in_since_are_warned_of(tokenizer, tmp_path):
    more = byte_tokenizer()
    more.add_tokens(["Zembla"])
    model = PeftModel.from_pretrained(learner().unload(), saved(tokenizer, tmp_path))
    with pytest.warns(UserWarning, match="has 1 tokens more than when the edits were made .'Zembla'"):
        LifelongEditor(model, more)


def test_an_identifier_is_not_given_again_after_saving(tokenizer, tmp_path):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    editor.undo(1)
    editor.save_pretrained(tmp_path)
    loaded = LifelongEditor(
        PeftModel.from_pretrained(learner().unload(), tmp_path, is_trainable=True), tokenizer, plain()
    )
    assert [each.edit(FACTS[2]).ids for each in (editor, loaded)] == [[2], [2]]


def test_a_model_of_other_modules_is_called_another_one(tokenizer, tmp_path):
    saved(tokenizer, tmp_path)
    with pytest.warns(UserWarning, match="made for"), pytest.raises(ValueError, match="no such module.*Load the base"):
        PeftModel.from_pretrained(tiny("gpt2"), tmp_path)
