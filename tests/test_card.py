"""The card beside an adapter says how to load it, and leaves people's own words alone."""

from __future__ import annotations

from huggingface_hub import ModelCard

from lemoe_hf.card import write_figures
from tiny import edited


def test_a_plain_save_writes_a_card_that_tells_to_import_the_package(tmp_path):
    edited().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "import lemoe_hf" in card.text
    assert "More Information Needed" not in card.text
    assert card.data.library_name == "peft"
    assert {"lemoe", "model-editing"} <= set(card.data.tags)


def test_a_card_that_people_wrote_is_kept(tmp_path):
    edited().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.text = "# Our edits\n\nAsk Anna.\n"
    card.save(tmp_path / "README.md")
    for _ in range(2):
        edited().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "Ask Anna." in card.text
    assert card.text.count("import lemoe_hf") == 1
    assert "lemoe" in card.data.tags


REPORT = {
    "protocol": "after all edits",
    "num_edits": 3,
    "edits_made": 5,
    "measures": {"reliability": 2 / 3, "locality_exact": 1.0},
    "versions": {"lemoe_hf": "0.1.0", "torch": "2.9"},
}


def test_figures_stand_on_the_card_for_people_and_for_the_hub(tmp_path):
    edited().save_pretrained(tmp_path)
    write_figures(tmp_path, REPORT)
    card = ModelCard.load(tmp_path / "README.md")
    assert "Measured on 3 edits when the adapter held 5, after all edits; with lemoe_hf 0.1.0, torch 2.9." in card.text
    assert "| `reliability` | 0.6667 |\n| `locality_exact` | 1.0000 |\n" in card.text
    assert [(each.metric_type, each.metric_value) for each in card.data.eval_results] == [
        ("reliability", 2 / 3),
        ("locality_exact", 1.0),
    ]
    assert card.data.library_name == "peft"
    assert "import lemoe_hf" in card.text


def test_new_figures_take_the_place_of_old_ones_and_of_nothing_else(tmp_path):
    edited().save_pretrained(tmp_path)
    write_figures(tmp_path, REPORT)
    card = ModelCard.load(tmp_path / "README.md")
    card.text += "\n## Ask\n\nAnna.\n"
    card.save(tmp_path / "README.md")
    edited().save_pretrained(tmp_path)
    write_figures(tmp_path, REPORT | {"measures": {"reliability": 0.5}})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.count("## Figures") == card.text.count("## Limits") == card.text.count("Anna.") == 1
    assert "| `reliability` | 0.5000 |" in card.text
    assert "0.6667" not in card.text
    assert [each.metric_value for each in card.data.eval_results] == [0.5]
