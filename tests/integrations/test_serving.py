"""
`transformers serve`, to which `transformers chat` talks, loads a whole model by its folder, and an adapter that lies in the
same folder with it. A folder of an adapter alone is no model to it. `test_autoload.py` has the server itself.
"""

from __future__ import annotations

import shutil

import pytest
from transformers.cli.serving.model_manager import ModelManager

from facts import FACTS, UNRELATED, learner, targets
from lemoe_hf.generation import answers


@pytest.fixture
def served(base_folder, adapter_folder, tmp_path):
    """The model and the tokenizer that the server would answer with."""
    for folder in (base_folder, adapter_folder):
        shutil.copytree(folder, tmp_path / "whole", dirs_exist_ok=True)
    manager = ModelManager(device="cpu")
    yield manager.load_model_and_processor(manager.process_model_name(str(tmp_path / "whole")))
    for each in list(manager.loaded_models.values()):
        each.delete_model()  # which ends its timer


def test_a_served_model_gives_the_edited_answers(served):
    model, tokenizer = served
    prompts = [fact.prompt for fact in FACTS[:2]]
    assert [text.strip() for text in answers(model, tokenizer, prompts, 8)] == targets(FACTS[:2])
    assert answers(model, tokenizer, UNRELATED, 8) == answers(learner().unload(), tokenizer, UNRELATED, 8)


def test_a_folder_of_an_adapter_alone_is_not_served(adapter_folder):
    manager = ModelManager(device="cpu")
    with pytest.raises(ValueError, match="Unrecognized model"):
        manager.load_model_and_processor(manager.process_model_name(str(adapter_folder)))
