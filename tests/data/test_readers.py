import json

import pytest
from datasets import Dataset, DatasetDict

from lemoe_hf import Edit, read_edits


RECORDS = [
    {
        "prompt": "Where is Zembla?",
        "target_new": "In the north",
        "subject": "Zembla",
        "rephrase_prompt": "Zembla lies",
    },
    {"prompt": "Who leads Quorvex?", "target_new": "Mira", "locality_prompt": "Two and two", "ground_truth": "Jo"},
]


@pytest.fixture
def write(tmp_path):
    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "edits.jsonl"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_json_lines_and_a_json_list_give_the_same_edits(write):
    lines = read_edits(write("\n".join(map(json.dumps, RECORDS)) + "\n\n"))
    assert lines == [Edit(**record) for record in RECORDS]
    assert read_edits(write(json.dumps(RECORDS, indent=2))) == lines
    assert read_edits(str(write(json.dumps(RECORDS[0])))) == lines[:1]


def test_unknown_null_and_empty_keys_are_ignored(write):
    record = RECORDS[0] | {"portability": {"x": []}, "id": 7, "locality_prompt": None, "portability_prompt": []}
    assert read_edits(write(json.dumps(record))) == [Edit(**RECORDS[0])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_character_that_json_allows_in_a_text_is_read(write, encoding):
    record = {"prompt": "Where\u2028is\x85Zürich?", "target_new": "Über all"}
    path = write(json.dumps(record, ensure_ascii=False) + "\r\n" + json.dumps(RECORDS[0]), encoding)
    assert read_edits(path) == [Edit(**record), Edit(**RECORDS[0])]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "target_new": ', r"edits.jsonl, line 2: not JSON \(Expecting value\): '{\"prompt\""),
        (
            '["prompt"]',
            r"edits.jsonl, line 2: an edit is a JSON object with `prompt` and `target_new`; got \['prompt'\]",
        ),
        ('{"target_new": "b"}', r"edits.jsonl, line 2: the key `prompt` is missing; the record has \['target_new'\]"),
        ('{"prompt": "a", "target": "b"}', r"edits.jsonl, line 2: the key `target_new` is missing"),
        ('{"prompt": " ", "target_new": "b"}', r"edits.jsonl, line 2: `prompt` .* not empty; got ' '"),
        ('{"prompt": "a", "target_new": null}', r"edits.jsonl, line 2: `target_new` .* not empty; got None"),
        (
            '{"prompt": "a", "target_new": "b", "subject": "c"}',
            r"edits.jsonl, line 2: `subject` must be a part of `prompt`",
        ),
        (
            '{"prompt": "a", "target_new": "b", "subject": 3}',
            r"edits.jsonl, line 2: `subject` .* must be a text; got 3",
        ),
    ],
)
def test_a_bad_line_is_named(write, line, message):
    with pytest.raises(ValueError, match=message):
        read_edits(write(json.dumps(RECORDS[0]) + "\n" + line + "\n"))


def test_a_bad_record_of_a_list_is_named(write):
    with pytest.raises(ValueError, match=r"edits.jsonl, record 2: the key `prompt` is missing"):
        read_edits(write(json.dumps([RECORDS[0], {"target_new": "b"}])))
    with pytest.raises(ValueError, match=r"edits.jsonl, line 3: not JSON"):
        read_edits(write('[\n{"prompt": "a",\n "target_new" "b"}]'))


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_a_file_without_edits(write, text):
    with pytest.raises(ValueError, match=r"edits.jsonl holds no edits. Write one JSON object a line"):
        read_edits(write(text))


def test_a_file_that_is_no_text(write):
    with pytest.raises(ValueError, match=r"edits.jsonl: not a text in UTF-8 .* byte 16"):
        read_edits(write('{"prompt": "Is Zürich big?", "target_new": "b"}', "latin-1"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.jsonl"):
        read_edits(tmp_path / "missing.jsonl")


def test_records_are_read_from_any_iterable():
    edits = [Edit(**record) for record in RECORDS]
    assert read_edits(RECORDS) == read_edits(iter(RECORDS)) == edits
    assert read_edits(Dataset.from_list(RECORDS[:1])) == edits[:1]
    with pytest.raises(ValueError, match=r"^record 2: the key `prompt` is missing"):
        read_edits([RECORDS[0], {"target_new": "b"}])
    with pytest.raises(ValueError, match=r"^The source holds no edits"):
        read_edits([])


def test_every_record_is_told_by_its_own_keys():
    mixed = [{"src": "Where is Zembla?", "alt": "North"}, RECORDS[1] | {"src": "somewhere"}]
    assert read_edits(mixed) == [Edit("Where is Zembla?", "North"), Edit(**RECORDS[1])]


def test_a_format_can_be_named():
    record = {"prompt": "a", "target_new": "b", "update": "c", "ans": "d"}
    assert read_edits([record]) == [Edit("a", "b")]
    assert read_edits([record], format="wikibigedit") == [Edit("c", "d")]
    with pytest.raises(ValueError, match=r"There is no format 'zrse'. Take one of \['counterfact', 'easyedit', "):
        read_edits([record], format="zrse")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"src": "Where is Zembla?"},
            r"line 1 \(read as `zsre`\): the key `alt` is missing; the record has \['src'\]",
        ),
        ({"src": "Where is Zembla?", "alt": ""}, r"line 1 \(read as `zsre`\): `target_new` .* not empty; got ''"),
        (
            {"requested_rewrite": "x"},
            r"line 1 \(read as `counterfact`\): a value is of another form .* \(string indices",
        ),
        ({"prompt": "a", "target_new": "b", "portability": {"x": "y"}}, r"line 1: a value is of another form"),
        (
            {"requested_rewrite": [{"prompt": "{} is", "subject": "Zembla"}], "questions": []},
            r"line 1 \(read as `mquake`\): the key `target_true` is missing",
        ),
    ],
)
def test_a_bad_record_of_any_format_is_named(write, record, message):
    with pytest.raises(ValueError, match=rf"edits.jsonl, {message}"):
        read_edits(write(json.dumps(record)))


def test_what_is_no_list_of_records_says_what_to_pass():
    record = {"prompt": "Where is Zembla?", "target_new": "In the north"}
    for wrong in (record, DatasetDict(train=Dataset.from_list([record]))):
        with pytest.raises(ValueError, match=r"list; got a mapping with the keys .*dataset\['train'\]"):
            read_edits(wrong)


ALIASED = {
    "easyedit": {"prompt": "Who leads Zembla?", "target_new": "x", "subject": "Zembla", "aliases": ["Nova"]},
    "knowedit": {
        "prompt": "Who leads Zembla?",
        "target_new": "x",
        "subject": "Zembla",
        "locality": {},
        "subject_aliases": ["Nova", "it", "?"],
    },
    "zsre": {"src": "Who leads Zembla?", "alt": "x", "subject": "Zembla", "aliases": "Nova"},
    "counterfact": {
        "requested_rewrite": {
            "prompt": "Who leads {}?",
            "subject": "Zembla",
            "target_new": {"str": "x"},
            "target_true": {"str": "y"},
            "subject_alias": ["Nova"],
        }
    },
    "mquake": {
        "requested_rewrite": [
            {
                "prompt": "Who leads {}?",
                "subject": "Zembla",
                "target_new": {"str": "x"},
                "target_true": {"str": "y"},
                "question": "Who?",
                "aliases": ["Nova"],
            }
        ],
        "questions": ["Why?"],
        "new_answer": "z",
    },
    "wikibigedit": {"update": "Who leads Zembla?", "ans": "x", "subject": "Zembla", "aliases": ["Nova"]},
    "ultraeditbench": {"prompt": "Who leads Zembla?", "ans": "x", "subject": "Zembla", "aliases": ["Nova"]},
}


@pytest.mark.parametrize("format", ALIASED)
def test_aliases_are_read(format):
    (edit,) = read_edits([ALIASED[format]])
    assert edit.aliases == ("Nova",)


def test_a_wrong_alias_in_a_file_is_an_error_that_tells_where(tmp_path):
    path = tmp_path / "edits.jsonl"
    path.write_text('{"prompt": "Who leads Zembla?", "target_new": "x", "subject": "Zembla", "aliases": ["?"]}')
    with pytest.raises(ValueError, match="line 1: The alias '.' of the edit 'Who leads Zembla.' has no letters"):
        read_edits(path)


def test_aliases_of_a_subject_that_is_not_in_the_prompt_are_left_out():
    (edit,) = read_edits([ALIASED["zsre"] | {"subject": "Rome"}])
    assert (edit.subject, edit.aliases) == (None, None)
