"""A model that takes no tokens has no prompts to route: its open expert acts on everything, as any adapter does."""

from __future__ import annotations

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lemoe_hf import LEMoEConfig


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(6, 10)
        self.out = nn.Linear(10, 2)

    def forward(self, x):
        return self.out(torch.relu(self.lin(x)))


def classifier() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier().eval()


def test_it_trains_saves_and_is_switched_off(tmp_path):
    base, model = classifier(), get_peft_model(classifier(), LEMoEConfig(target_modules=["lin"]))
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 0, 1])
    assert torch.equal(model(x), base(x))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    before = nn.functional.cross_entropy(model(x), y)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert nn.functional.cross_entropy(model(x), y) < before - 0.1
    with model.disable_adapter():
        assert torch.equal(model(x), base(x))
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(classifier(), tmp_path)(x), model(x))
    assert torch.equal(model.unload()(x), base(x))


def test_sequences_of_vectors_and_keywords_are_taken():
    base, model = classifier(), get_peft_model(classifier(), LEMoEConfig(target_modules=["lin"], init_weights=False))
    sequences = torch.randn(2, 3, 6)
    assert model(x=sequences).shape == (2, 3, 2)
    torch.testing.assert_close(model(x=sequences), model(sequences.flatten(0, 1)).view(2, 3, 2))
    assert not torch.allclose(model(x=sequences), base(sequences))


def test_a_model_of_texts_that_is_given_none_is_left_to_itself():
    class OfTexts(Classifier):
        def get_input_embeddings(self):
            return nn.Embedding(3, 6)

    base = OfTexts().eval()
    x = torch.randn(4, 6)
    expected = base(x=x)
    model = get_peft_model(base, LEMoEConfig(target_modules=["lin"], init_weights=False))
    assert torch.equal(model(x=x), expected)
