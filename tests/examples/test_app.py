"""The page of examples/app.py: its functions, and the page itself, driven over HTTP as a browser does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from gradio_client import Client

from facts import FACTS, editor_for


EXAMPLES = Path(__file__).parents[2] / "examples"
FACT = FACTS[1]
ROW = [0, FACT.prompt, FACT.target_new]


@pytest.fixture(scope="module")
def app() -> dict:
    return runpy.run_path(str(EXAMPLES / "app.py"))


@pytest.fixture
def demo(app, tokenizer):
    return app["Demo"](editor_for(tokenizer))


def test_an_edit_changes_the_edited_models_answer_alone(demo):
    base, edited, why = demo.ask(FACT.prompt)
    assert base == edited
    assert "the base model answers" in why
    assert demo.edit(FACT.prompt, FACT.target_new, FACT.subject) == [ROW]
    assert demo.ask(FACT.prompt)[:2] == (base, FACT.target_new)
    assert "edit 0 answers" in demo.ask(FACT.prompt)[2]
    assert "expert 0, for" in demo.ask(FACT.prompt)[2]
    assert "score 1.00" in demo.ask(FACT.prompt)[2]


def test_undo_gives_the_base_models_answer_back(demo):
    before = demo.ask(FACT.prompt)
    demo.edit(FACT.prompt, FACT.target_new, "")
    assert demo.ask(FACT.prompt) != before
    assert demo.undo(0) == []
    assert demo.ask(FACT.prompt) == before


def test_the_page_answers_over_http(app, demo):
    blocks = app["page"](demo)
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = Client(address, verbose=False)
        base = client.predict(FACT.prompt, api_name="/ask")[0]
        assert client.predict(FACT.prompt, FACT.target_new, FACT.subject, api_name="/edit")["data"] == [ROW]
        answers = client.predict(FACT.prompt, api_name="/ask")
        assert answers[:2] == (base, FACT.target_new)
        assert "edit 0 answers" in answers[2]
        assert client.predict(0, api_name="/undo")["data"] == []
    finally:
        blocks.close()
