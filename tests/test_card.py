"""The card beside an adapter says how to load it, and leaves people's own words alone."""

from __future__ import annotations

from huggingface_hub import ModelCard

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
