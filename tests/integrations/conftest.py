from __future__ import annotations

from pathlib import Path

import pytest

from facts import FACTS, editor_for, learner


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """A base model on disk, with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    learner().unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def editor(tokenizer, base_folder):
    """An editor that has made two edits."""
    editor = editor_for(tokenizer)
    editor.config.base_model_name_or_path = str(base_folder)
    editor.edit(FACTS[:2])
    return editor


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, editor, tokenizer) -> Path:
    """Its adapter on disk, with the tokenizer beside it, as `transformers` looks for one."""
    folder = tmp_path_factory.mktemp("adapter")
    editor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
