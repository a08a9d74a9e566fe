import json
from typing import Any

import pytest
from datasets import Dataset

from lemoe_hf import Edit, read_edits
from lemoe_hf.data import FORMATS


EASYEDIT = {
    "case_id": 4,
    "prompt": "Where is Zembla?",
    "subject": "Zembla",
    "target_new": "In the north",
    "ground_truth": "In the south",
    "rephrase_prompt": "Zembla lies",
    "locality_prompt": "nq question: where is Ostrel",
    "locality_ground_truth": "In the west",
}

EASYEDIT_GROUPED = {
    "prompt": "Where is Zembla?",
    "target_new": "In the north",
    "rephrase": ["Zembla lies", "One finds Zembla"],
    "locality": {
        "neighborhood": {"prompt": "Where is Ostrel?", "ground_truth": "In the west"},
        "distracting": {"prompt": ["Ostrel lies", None], "ground_truth": ["in the west", None]},
    },
    "portability": {"one_hop": {"prompt": "Is Zembla cold?", "ground_truth": "yes"}},
}

WISE_TEMPORAL = {
    "prompt": "Zembla is",
    "subject": "Zembla",
    "target_new": "a country in the north",
    "ood_rephrase": "Tell of Zembla",
    "locality_prompt": "The train",
    "locality_ground_truth": "stops here",
}

ZSRE = {
    "subject": "Mira Lunde",
    "src": "What is the native language of Mira Lunde?",
    "pred": "Danish",
    "rephrase": "What's Mira Lunde's mother tongue?",
    "alt": "Zemblan",
    "answers": ["Norse", "Old Norse"],
    "loc": "nq question: who owns the fish",
    "loc_ans": "The Dane",
    "cond": "Danish >> Zemblan || What is the native language of Mira Lunde?",
}

COUNTERFACT = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Zemblan", "id": "Q1"},
        "target_true": {"str": "Norse", "id": "Q2"},
        "subject": "Mira Lunde",
    },
    "paraphrase_prompts": ["It rained. Mira Lunde speaks", "Mira Lunde grew up with"],
    "neighborhood_prompts": ["The mother tongue of Jo Arn is", "Pell Odd speaks", "Una Vik writes in"],
    "attribute_prompts": ["Jorunn Tal speaks"],
    "generation_prompts": ["Mira Lunde lives in"],
}

KNOWEDIT_RECENT = {
    "subject": "Mira Lunde",
    "prompt": "The place of death of Mira Lunde is",
    "target_new": "Quorvex",
    "portability": {
        "Logical_Generalization": [
            {"prompt": "Is Mira Lunde still alive?", "ground_truth": [["no"], ["incorrect"]]},
        ],
        "Reasoning": [
            {"prompt": "The river of the place of death of Mira Lunde is", "ground_truth": [["Tessil", "the Tessil"]]},
            {"prompt": "The mayor of the place of death of Mira Lunde is", "ground_truth": [[]]},
        ],
        "Subject_Aliasing": [{"prompt": "The place of death of M. Lunde is", "ground_truth": [["Quorvex"]]}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The father of Mira Lunde is", "ground_truth": [["Aksel Lunde"]]}],
    },
}

KNOWEDIT_COUNTERFACT = {
    "subject": "Pell Odd",
    "prompt": "The name of the position held by Pell Odd is",
    "target_new": "harbour master",
    "ground_truth": "mayor of Quorvex",
    "portability": {"Subject_Aliasing": [{"prompt": "Pelle Odd works as", "ground_truth": "harbour master"}]},
    "locality": {
        "Relation_Specificity": [{"prompt": "The gender of Pell Odd is", "ground_truth": "male"}],
        "Forgetfulness": [{"prompt": "The other position of Pell Odd is", "ground_truth": "mayor of Quorvex"}],
    },
}

KNOWEDIT_ZSRE = {
    "subject": "The Zemblan newt",
    "target_new": "Noctidae",
    "prompt": "Which family does the Zemblan newt belong to?",
    "ground_truth": ["Salamandridae"],
    "rephrase_prompt": "What family is the Zemblan newt?",
    "cond": "Salamandridae >> Noctidae || Which family does the Zemblan newt belong to?",
    "locality": {"Relation_Specificity": [{"prompt": "The Zemblan newt's rank is", "ground_truth": ["species"]}]},
    "portability": {"Reasoning": [{"prompt": "What is that family called?", "ground_truth": "Night newts"}]},
}

KNOWEDIT_WIKIBIO = {
    "text": "This is a Wikipedia passage about mira lunde. Mira Lunde was a poet.",
    "labels": "She wrote in Zemblan.",
    "concept": "mira lunde",
    "locality": {"Relation_Specificity": [{"prompt": "mira lunde gender", "ground_truth": ["female"]}]},
}

CKNOWEDIT = {
    "prompt": "泽姆布拉的首都是",
    "target_old": "甲城",
    "target_new": "乙城",
    "rephrase": ["泽姆布拉的首都叫什么"],
    "portability": [{"prompt": "乙城是哪国的首都", "answer": "泽姆布拉"}],
    "locality": [{"prompt": "丙国的首都是", "answer": "丁城"}, {}],
}

MQUAKE = {
    "case_id": 2500,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Zembla", "id": "Q1"},
            "target_true": {"str": "Ostrel", "id": "Q2"},
            "subject": "Pell Odd",
            "question": "What is the country of citizenship of Pell Odd?",
        },
        {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": "Quorvex", "id": "Q3"},
            "target_true": {"str": "Onhava", "id": "Q4"},
            "subject": "Zembla",
            "question": "What is the capital of Zembla?",
        },
    ],
    "questions": [
        "What is the capital of Pell Odd's country?",
        "Pell Odd's country is ruled from",
        "And where is that?",
    ],
    "answer": "Arn",
    "answer_alias": [],
    "new_answer": "Quorvex",
    "new_answer_alias": ["Quorvex City"],
    "single_hops": [],
    "new_single_hops": [],
    "orig": {"edit_triples": [["Q5", "P27", "Q1"]]},
}

WIKIBIGEDIT = {
    "tag": "update",
    "subject": "Mira Lunde",
    "subject_id": "Q1",
    "relation": "employer",
    "object": "Quorvex Institute",
    "update": "Who employs Mira Lunde?",
    "ans": "Quorvex Institute",
    "rephrase": "For whom does Mira Lunde work?",
    "personas": "Arr, who be payin' Mira Lunde?",
    "loc": "Who employs Una Vik?",
    "loc_ans": "The harbour",
    "mhop": "In which city is the employer of Mira Lunde?",
    "mhop_ans": "Quorvex",
}


def only(record: dict[str, Any]) -> Edit:
    (edit,) = read_edits([record])
    return edit


def test_easyedit_has_the_fields_of_an_edit():
    fields = {key: value for key, value in EASYEDIT.items() if key != "case_id"}
    assert only(EASYEDIT) == Edit(**fields)


def test_easyedit_may_group_its_probes():
    expected = Edit(
        "Where is Zembla?",
        "In the north",
        rephrase_prompt=("Zembla lies", "One finds Zembla"),
        locality_prompt=("Where is Ostrel?", "Ostrel lies"),
        locality_ground_truth=("In the west", "in the west"),
        portability_prompt="Is Zembla cold?",
        portability_ground_truth="yes",
    )
    assert only(EASYEDIT_GROUPED) == expected
    assert read_edits([EASYEDIT_GROUPED], format="easyedit") == [expected]


def test_wise_rephrases_temporal_records_out_of_distribution():
    assert only(WISE_TEMPORAL).probes("rephrase") == [("Tell of Zembla", "a country in the north")]


def test_zsre_is_edited_towards_the_alternative():
    assert only(ZSRE) == Edit(
        "What is the native language of Mira Lunde?",
        "Zemblan",
        subject="Mira Lunde",
        ground_truth="Norse",
        rephrase_prompt="What's Mira Lunde's mother tongue?",
        locality_prompt="nq question: who owns the fish",
        locality_ground_truth="The Dane",
    )


def test_zsre_without_an_alternative_is_edited_towards_the_answer():
    edit = only({key: value for key, value in ZSRE.items() if key != "alt"})
    assert (edit.target_new, edit.ground_truth) == ("Norse", None)


def test_zsre_has_a_question_of_one_hop_in_easyedit():
    hop = {
        "Recalled Relation": "(Zemblan, land, Zembla)",
        "New Question": "Where is it spoken?",
        "New Answer": "Zembla",
    }
    assert only(ZSRE | {"portability": hop}).probes("portability") == [("Where is it spoken?", "Zembla")]


def test_counterfact_fills_in_the_subject_and_its_neighbours_keep_the_true_answer():
    assert only(COUNTERFACT) == Edit(
        "The mother tongue of Mira Lunde is",
        "Zemblan",
        subject="Mira Lunde",
        ground_truth="Norse",
        rephrase_prompt=("It rained. Mira Lunde speaks", "Mira Lunde grew up with"),
        locality_prompt=("The mother tongue of Jo Arn is", "Pell Odd speaks", "Una Vik writes in"),
        locality_ground_truth=("Norse", "Norse", "Norse"),
    )


def test_knowedit_takes_the_first_accepted_answer_and_leaves_out_what_has_none():
    assert only(KNOWEDIT_RECENT) == Edit(
        "The place of death of Mira Lunde is",
        "Quorvex",
        subject="Mira Lunde",
        locality_prompt="The father of Mira Lunde is",
        locality_ground_truth="Aksel Lunde",
        portability_prompt=(
            "Is Mira Lunde still alive?",
            "The river of the place of death of Mira Lunde is",
            "The place of death of M. Lunde is",
        ),
        portability_ground_truth=("no", "Tessil", "Quorvex"),
    )
    edit = only(KNOWEDIT_COUNTERFACT)
    assert (edit.target_new, edit.ground_truth) == ("harbour master", "mayor of Quorvex")
    assert edit.probes("locality") == [
        ("The gender of Pell Odd is", "male"),
        ("The other position of Pell Odd is", "mayor of Quorvex"),
    ]


def test_knowedit_leaves_out_a_subject_that_the_prompt_does_not_hold():
    edit = only(KNOWEDIT_ZSRE)
    assert (edit.subject, edit.ground_truth) == (None, "Salamandridae")
    assert edit.probes("rephrase") == [("What family is the Zemblan newt?", "Noctidae")]
    assert edit.probes("portability") == [("What is that family called?", "Night newts")]


def test_knowedit_of_biographies_has_other_keys():
    edit = only(KNOWEDIT_WIKIBIO)
    assert (edit.prompt, edit.target_new) == (KNOWEDIT_WIKIBIO["text"], "She wrote in Zemblan.")
    assert edit.subject == "mira lunde"
    assert edit.probes("locality") == [("mira lunde gender", "female")]


def test_cknowedit_lists_its_probes_without_groups():
    edit = only(CKNOWEDIT)
    assert edit.rephrase_prompt == "泽姆布拉的首都叫什么"
    assert edit.probes("portability") == [("乙城是哪国的首都", "泽姆布拉")]
    assert edit.probes("locality") == [("丙国的首都是", "丁城")]


def test_mquake_gives_an_edit_for_each_rewrite_and_asks_its_questions_after_the_last():
    first, last = read_edits([MQUAKE])
    assert first == Edit(
        "Pell Odd is a citizen of",
        "Zembla",
        subject="Pell Odd",
        ground_truth="Ostrel",
        rephrase_prompt="What is the country of citizenship of Pell Odd?",
    )
    assert (last.prompt, last.target_new, last.subject) == ("The capital of Zembla is", "Quorvex", "Zembla")
    assert last.probes("portability") == [(question, "Quorvex") for question in MQUAKE["questions"]]


def test_mquake_remastered_has_flat_targets():
    rewrites = [
        {key: value for key, value in rewrite.items() if not key.startswith("target")}
        | {"target_new_str": rewrite["target_new"]["str"], "target_true_str": rewrite["target_true"]["str"]}
        for rewrite in MQUAKE["requested_rewrite"]
    ]
    assert read_edits([MQUAKE | {"requested_rewrite": rewrites}]) == read_edits([MQUAKE])


def test_wikibigedit_rephrases_in_personas_and_follows_hops():
    assert only(WIKIBIGEDIT) == Edit(
        "Who employs Mira Lunde?",
        "Quorvex Institute",
        subject="Mira Lunde",
        rephrase_prompt=("For whom does Mira Lunde work?", "Arr, who be payin' Mira Lunde?"),
        locality_prompt="Who employs Una Vik?",
        locality_ground_truth="The harbour",
        portability_prompt="In which city is the employer of Mira Lunde?",
        portability_ground_truth="Quorvex",
    )


def test_wikibigedit_often_has_no_second_hop(tmp_path):
    path = tmp_path / "wiki_big_edit.json"
    # The released files hold NaN, which is not JSON, where pandas had nothing.
    path.write_text(json.dumps([WIKIBIGEDIT | {"tag": float("nan"), "mhop": float("nan"), "mhop_ans": None}]))
    (edit,) = read_edits(path)
    assert edit.portability_prompt is None


def test_ultraeditbench_answers_in_ans():
    record = {
        "prompt": "Who is Mira Lunde?",
        "subject": "M. Lunde",
        "ans": "a poet",
        "rephrase_prompt": "Mira Lunde is",
    }
    assert only(record | {"loc": "Who is Jo?", "loc_ans": "a cook"}) == Edit(
        "Who is Mira Lunde?",
        "a poet",
        rephrase_prompt="Mira Lunde is",
        locality_prompt="Who is Jo?",
        locality_ground_truth="a cook",
    )


@pytest.mark.parametrize(
    "record",
    [
        ZSRE | {"subject": "mira lunde"},
        WIKIBIGEDIT | {"subject": "mira lunde"},
        KNOWEDIT_RECENT | {"subject": "mira lunde"},
        COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"prompt": "Her mother tongue is"}},
    ],
)
def test_a_subject_that_the_prompt_does_not_hold_is_left_out(record):
    assert only(record).subject is None


@pytest.mark.parametrize(
    ("name", "records"),
    [
        ("easyedit", [EASYEDIT, WISE_TEMPORAL]),
        ("zsre", [ZSRE]),
        ("counterfact", [COUNTERFACT]),
        ("knowedit", [KNOWEDIT_RECENT, KNOWEDIT_RECENT | {"portability": {"Reasoning": []}}]),
        ("knowedit", [KNOWEDIT_COUNTERFACT]),
        ("knowedit", [KNOWEDIT_ZSRE]),
        ("knowedit", [KNOWEDIT_WIKIBIO]),
        ("mquake", [MQUAKE]),
        ("wikibigedit", [WIKIBIGEDIT, WIKIBIGEDIT | {"mhop": None, "mhop_ans": None}]),
    ],
)
def test_a_data_set_a_file_and_a_named_format_give_the_same_edits(tmp_path, name, records):
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(records))
    edits = read_edits(records)
    assert read_edits(path) == read_edits(path, format=name) == edits
    # A data set has the same keys in every record, with null where there was nothing.
    keys = dict.fromkeys(key for record in records for key in record)
    assert read_edits(Dataset.from_list([keys | record for record in records])) == edits
    assert [Edit(**json.loads(json.dumps(edit.to_dict()))) for edit in edits] == edits
    assert name in FORMATS
