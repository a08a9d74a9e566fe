"""A tokenizer made on the spot; tiny models are in `tiny.py`. No test needs a download."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tiny import VOCAB


SENTENCES = [
    "Which country is Anna Berg from?",
    "Who wrote the Silver Lake?",
    "What is the capital of Norland?",
    "The mayor of Port Ellen is",
    "Where was Tom Ashford born?",
    "In which year did the bridge open?",
    "Anna Berg plays the violin in the city of Aldona, and Tom Ashford writes about it.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a few sentences, in which every text has tokens."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    constants.HF_HOME = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Threads that wait for each other cost tiny models a hundred times what they compute.
    torch.set_num_threads(1)
