"""One config for two adapters, and every task PEFT knows."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel, TaskType, get_peft_model
from transformers import LlamaForSequenceClassification

from lemoe_hf import LEMoEConfig
from tiny import CONFIGS, edited, logits, prompts_of, put_edits, tiny


def test_a_config_that_two_adapters_share_grows_for_each_by_itself(tmp_path):
    config = LEMoEConfig(relation_gate=False)
    model = get_peft_model(tiny(), config).eval()
    model.add_adapter("other", config)
    put_edits(model, prompts_of(2))
    assert model.peft_config["default"] is config
    assert [model.peft_config[name].num_experts for name in ("default", "other")] == [2, 0]
    model.save_pretrained(tmp_path)
    native = tiny()
    native.load_adapter(tmp_path / "other")  # makes room by the config alone
    assert torch.equal(logits(native, prompts_of(2)), logits(tiny(), prompts_of(2)))


def test_in_inference_mode_nothing_trains():
    model = get_peft_model(tiny(), LEMoEConfig(relation_gate=False, inference_mode=True))
    assert model.get_nb_trainable_parameters()[0] == 0
    assert get_peft_model(tiny(), LEMoEConfig(relation_gate=False)).get_nb_trainable_parameters()[0] > 0


@pytest.mark.parametrize("task_type", [None, *TaskType])
def test_every_task_has_the_model_class_of_peft(task_type):
    model = get_peft_model(tiny(), LEMoEConfig(task_type=task_type, target_modules=["mlp"], relation_gate=False))
    name = {
        None: "PeftModel",
        TaskType.CAUSAL_LM: "PeftModelForCausalLM",
        TaskType.SEQ_CLS: "PeftModelForSequenceClassification",
        TaskType.SEQ_2_SEQ_LM: "PeftModelForSeq2SeqLM",
        TaskType.TOKEN_CLS: "PeftModelForTokenClassification",
        TaskType.QUESTION_ANS: "PeftModelForQuestionAnswering",
        TaskType.FEATURE_EXTRACTION: "PeftModelForFeatureExtraction",
    }[task_type]
    assert type(model).__name__ == name


def test_without_a_task_forward_and_generate_are_routed_all_the_same():
    """A second subject in the answer would change the route if `generate` had not pinned it."""
    prompts = prompts_of(3)
    models = [edited(target_modules=["layers.3.mlp"], task_type=task_type) for task_type in (None, "CAUSAL_LM")]
    for model in models:
        put_edits(model, prompts)
    plain, causal = models
    assert type(plain) is PeftModel
    ids = torch.tensor(prompts)
    assert torch.equal(logits(plain, ids), logits(causal, ids))
    options = {"max_new_tokens": 5, "do_sample": False, "use_cache": False}
    assert torch.equal(plain.generate(input_ids=ids, **options), causal.generate(input_ids=ids, **options))


def test_a_classifier_trains_its_head_and_the_open_expert(tmp_path):
    """One label a row tells nothing about tokens: the whole text is the prompt."""
    config = copy.deepcopy(CONFIGS["llama"])
    config.num_labels = 3
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(config)
    state = copy.deepcopy(base.state_dict())
    model = get_peft_model(base, LEMoEConfig(task_type="SEQ_CLS", relation_gate=False)).train()
    ids, labels = torch.tensor(prompts_of(2)), torch.tensor([0, 2])
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(model(input_ids=ids, labels=labels).loss)
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert {name.rsplit(".", 1)[0] for name, weight in model.named_parameters() if weight.requires_grad} == {
        "base_model.model.score.modules_to_save.default",
        "base_model.model.model.layers.3.mlp.lemoe_open.default",
    }
    model.commit()
    model.eval().save_pretrained(tmp_path)
    fresh = LlamaForSequenceClassification(config)
    fresh.load_state_dict(state)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert model.ledger()[0]["prompt_ids"] == ids[0].tolist()
