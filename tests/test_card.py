"""The card beside an adapter says how to load it, and leaves people's own words alone."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_eval_result
from transformers import LlamaConfig

from facts import FACTS, editor_for
from lemoe_hf.card import complete_card, render, write_figures
from tiny import edited, prompts_of, put_edits


CARDS = Path(__file__).parent.parent / "model_cards"


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


# ------------------------------------------------------------------------------------------------------------ edits


def told(num: int, prompt: str = "Who is {}?", target: str = "Anna") -> list[dict]:
    return [{"id": i, "expert": i, "edit": {"prompt": prompt.format(i), "target_new": target}} for i in range(num)]


def completed(
    folder: Path, entries: list[dict], base_model: str | None = "anna/base", fingerprint: str | None = None
) -> ModelCard:
    ModelCard.from_template(ModelCardData()).save(folder / "README.md")
    complete_card(folder, base_model, entries, fingerprint)
    return ModelCard.load(folder / "README.md")


def rows_of(card: ModelCard) -> list[str]:
    return re.findall(r"^\| \d+ \|.*$", card.text, flags=re.MULTILINE)


def test_a_plain_save_lists_the_edits(tmp_path):
    model = edited()
    put_edits(model, prompts_of(2))
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    first = " ".join(map(str, prompts_of(2)[0]))
    assert rows_of(card)[0] == f"| 0 | {first} | yes |"
    assert len(rows_of(card)) == 2
    put_edits(model, prompts_of(3)[2:])
    model.save_pretrained(tmp_path)
    assert len(rows_of(ModelCard.load(tmp_path / "README.md"))) == 3


def test_of_many_edits_the_last_fifty_are_listed(tmp_path):
    card = completed(tmp_path, told(711))
    assert [row.split(" | ")[0] for row in rows_of(card)] == [f"| {i}" for i in range(661, 711)]
    assert "Edits in this adapter: 711, of which 50 are listed here." in card.text


def test_an_edit_that_was_superseded_is_not_listed(tmp_path):
    later = {"id": 2, "expert": 2, "edit": {"prompt": "Who is 0? ", "target_new": "Bertha"}}
    assert rows_of(completed(tmp_path, [*told(2), later])) == [
        "| 2 | Who is 0? | Bertha |",
        "| 1 | Who is 1? | Anna |",
    ]


def test_a_text_cannot_break_the_table(tmp_path):
    card = completed(tmp_path, told(1, prompt="a | b\n# <|user|> {}\n" + "z" * 200, target="<b>&"))
    (row,) = rows_of(card)
    assert row.startswith("| 0 | a \\| b # &lt;\\|user\\|&gt; 0 zzz")
    assert row.endswith("zzz… | &lt;b&gt;&amp; |")
    assert "## Limits" in card.text


def test_edits_of_which_only_tokens_are_known_are_counted(tmp_path):
    entries = [*told(1), {"id": 1, "expert": 1, "prompt_ids": [5], "target_ids": [6]}]
    text = completed(tmp_path, entries).text
    assert "Edits in this adapter: 2, of which 1 are listed here." in text
    assert "kept back" not in text


CODE = 'x")\nimport os; os.system("echo pwned")\nm = ("y'


@pytest.mark.parametrize("name", [CODE, "anna/base\n", "/tmp/`x`", "../..", "<b>", "![x](http://y)", "\x1b[2J"])
def test_the_name_of_a_base_model_is_no_code(tmp_path, name):
    text = completed(tmp_path, told(1), name).text
    assert "os.system" not in text
    assert 'base_model = "fill/in/the/base/model"' in text
    assert not re.search(r"^# Edits of .*[`<!\x1b]", text, re.MULTILINE)


def test_a_text_is_no_image_no_link_and_no_control(tmp_path):
    target = "![x](http://y) [a](http://b) \\| `c` \x1b[2J\u202e"
    (row,) = rows_of(completed(tmp_path, told(1, target=target)))
    assert row == r"| 0 | Who is 0? | \!\[x\](http://y) \[a\](http://b) \\\| \`c\` \[2J |"


def test_what_a_base_model_says_of_itself_is_shown_only_if_it_is_a_name(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for told_of in ('{"architectures": ["x` <script>"]}', '{"architectures": 5}', "[]", "{", "[" * 100_000):
        (base / "config.json").write_text(told_of)
        assert "was a local folder, `base`. Fill in" in completed(tmp_path, told(1), str(base)).text


# ------------------------------------------------------------------------------------------------ what people write


def test_a_form_that_somebody_has_begun_to_fill_in_is_not_thrown_away(tmp_path):
    card = ModelCard.from_template(ModelCardData(), developers="Anna")
    card.save(tmp_path / "README.md")
    complete_card(tmp_path, "anna/base", told(1))
    text = (tmp_path / "README.md").read_text()
    assert "- **Developed by:** Anna" in text
    assert text.count("import lemoe_hf") == 1


def test_a_list_of_edits_that_somebody_has_removed_does_not_come_back(tmp_path):
    card = completed(tmp_path, told(1))
    card.text = re.sub(r"## Edits.*?(?=## Limits)", "", card.text, flags=re.DOTALL)
    card.save(tmp_path / "README.md")
    complete_card(tmp_path, "anna/base", told(2))
    assert not rows_of(ModelCard.load(tmp_path / "README.md"))


def test_metadata_that_people_wrote_survives_a_second_save(tokenizer, tmp_path):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    editor.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.tags, card.data.license, card.data.base_model = [*card.data.tags, "towns"], "mit", "anna/base"
    card.save(tmp_path / "README.md")
    write_figures(tmp_path, REPORT)
    editor.edit(FACTS[1])
    editor.save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert {"towns", "lemoe", "base_model:adapter:anna/base"} <= set(data.tags)
    assert (data.license, data.base_model, data.base_model_relation) == ("mit", "anna/base", "adapter")
    assert len(data.eval_results) == len(REPORT["measures"])


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_second_save_changes_nothing_but_the_list_of_edits(tokenizer, tmp_path, newline):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    editor.save_pretrained(tmp_path)
    write_figures(tmp_path, REPORT)
    readme = tmp_path / "README.md"
    readme.write_bytes(readme.read_bytes().replace(b"\n", newline.encode()))
    before = readme.read_text()
    editor.edit(FACTS[1])
    editor.save_pretrained(tmp_path)
    after = readme.read_text()
    row = f"| 1 | {FACTS[1].prompt} | {FACTS[1].target_new} |\n"
    assert after == before.replace("adapter: 1", "adapter: 2").replace("\n\n## Figures", f"\n{row}\n## Figures")


# --------------------------------------------------------------------------------------------------------- metadata


def test_the_base_model_stands_in_the_metadata_by_its_name_on_the_hub(tmp_path):
    card = completed(tmp_path, told(1), "anna/base")
    assert (card.data.base_model, card.data.base_model_relation) == ("anna/base", "adapter")
    assert "base_model:adapter:anna/base" in card.data.tags
    assert 'base_model = "anna/base"\n' in card.text
    assert "local folder" not in card.text


@pytest.mark.parametrize("folder", [".", "models/base"])
def test_a_folder_is_no_name_of_a_base_model_on_the_hub(tmp_path, monkeypatch, folder):
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / folder), folder):
        card = completed(tmp_path, told(1), name)
        assert card.data.base_model is None
        assert not [tag for tag in card.data.tags if tag.startswith("base_model")]
        assert str(tmp_path) not in card.content
        assert f'"{folder}"' not in card.text
        assert 'base_model = "fill/in/the/base/model"\n' in card.text


def test_of_a_base_model_in_a_folder_the_card_tells_what_it_was(tmp_path):
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "base")
    text = completed(tmp_path, told(1), str(tmp_path / "base"), "0123abcd").text
    assert "was a local folder, `base` (LlamaForCausalLM, fingerprint `0123abcd`). Fill in where you have it" in text
    (tmp_path / "base" / "config.json").unlink()
    assert "was a local folder, `base`. Fill in" in completed(tmp_path, told(1), str(tmp_path / "base")).text
    assert "had no name (fingerprint `0123abcd`). Fill in" in completed(tmp_path, told(1), None, "0123abcd").text


def test_a_base_model_that_gets_a_name_on_the_hub_is_put_on_the_card(tmp_path):
    card = completed(tmp_path, told(1), str(tmp_path))
    card.text += "\nAsk Anna.\n"
    card.save(tmp_path / "README.md")
    complete_card(tmp_path, "anna/base", told(1))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "anna/base"
    assert 'base_model = "anna/base"\n' in card.text
    assert "local folder" not in card.text
    assert card.text.count("Ask Anna.") == card.text.count("## How to use") == 1


def test_figures_are_what_the_hub_makes_of_a_result(tmp_path):
    completed(tmp_path, told(5))
    write_figures(tmp_path, REPORT | {"measures": {"free_reliability": 0.5}})
    data = ModelCard.load(tmp_path / "README.md").data
    expected = metadata_eval_result(
        model_pretty_name=tmp_path.name,
        task_pretty_name="",
        task_id="text-generation",
        metrics_pretty_name="free_reliability (greedy free generation, N = 3)",
        metrics_id="free_reliability",
        metrics_value=0.5,
        dataset_pretty_name="3 edits, after 5 were made",
        dataset_id="edits",
    )
    (result,) = expected["model-index"][0]["results"]
    del result["task"]["name"], result["metrics"][0]["verified"]
    assert data.to_dict()["model-index"] == expected["model-index"]


def test_figures_of_other_things_stay(tmp_path):
    completed(tmp_path, told(5))
    card = ModelCard.load(tmp_path / "README.md")
    mmlu = EvalResult("text-generation", "cais/mmlu", "MMLU", "accuracy", 0.3)
    card.data.model_name, card.data.eval_results = "ours", [mmlu]
    card.save(tmp_path / "README.md")
    for _ in range(2):
        write_figures(tmp_path, REPORT)
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == "ours"
    assert [result.metric_type for result in data.eval_results] == ["accuracy", "reliability", "locality_exact"]


def test_every_measure_is_told_with_its_protocol(tmp_path):
    completed(tmp_path, told(1))
    measures = dict.fromkeys(("generality", "free_generality_strict", "routed_rephrase", "deferred"), 1.0)
    write_figures(tmp_path, REPORT | {"measures": measures})
    results = ModelCard.load(tmp_path / "README.md").data.eval_results
    protocols = [re.search(r"\((.+), N = 3\)", result.metric_name).group(1) for result in results]
    assert protocols == ["teacher-forced", "greedy free generation", "routing", "routing"]


# ----------------------------------------------------------------------------------------------------- model_cards/


def test_the_template_comes_with_the_package():
    assert (CARDS / "template.md").read_text() == (files("lemoe_hf") / "model_card.md").read_text()


@pytest.mark.parametrize("path", sorted(set(CARDS.glob("*.md")) - {CARDS / "template.md"}), ids=lambda path: path.stem)
def test_cards_of_real_adapters_are_taken_by_the_hub_and_tell_all_that_a_stranger_needs(hub, path):
    card = ModelCard.load(path)
    card.validate()
    assert ModelCard(card.content).data.to_dict() == card.data.to_dict()
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "text-generation")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {"lemoe", "model-editing", f"base_model:adapter:{card.data.base_model}"} <= set(card.data.tags)
    assert card.text.partition("```python\n")[2].startswith("import lemoe_hf")
    assert re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE)[:4] == ["How to use", "Edits", "Figures", "Limits"]
    shown = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|$", card.text, flags=re.MULTILINE))
    assert shown == {result.metric_type: f"{result.metric_value:.4f}" for result in card.data.eval_results}
    protocol = re.compile(r" \((teacher-forced|greedy free generation|routing), N = \d+\)$")
    assert all(protocol.search(result.metric_name) for result in card.data.eval_results)
    assert len(rows_of(card)) <= 50
    assert not re.search(r"(?<![\w.:/])/(?:\w+/)+", card.content)  # a path of some machine


def test_the_card_of_the_benchmark_tells_what_the_benchmark_measured():
    results = json.loads((CARDS.parent / "benchmarks" / "results" / "zsre_711.json").read_text())
    for figure in ModelCard.load(CARDS / "zsre.md").data.eval_results:
        assert figure.metric_value == results["measures"][figure.metric_type]
        assert figure.metric_name.endswith(f"N = {results['measured_on']['edits']})")


def test_the_table_tells_aliases():
    edit = {"prompt": "Who leads the United Kingdom?", "target_new": "x", "aliases": ["UK", "a|b"]}
    text = render(None, [{"id": 0, "expert": 0, "edit": edit}])
    assert "| 0 | Who leads the United Kingdom? (also of: UK, a\\|b) | x |" in text
