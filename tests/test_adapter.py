"""A saved adapter without its base model: an engine that is given nothing else answers as the PEFT model does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, PreTrainedModel

from facts import FACTS, UNRELATED, learner, plain, targets
from gated import A, B, C, clear, gated, put_asked
from lemoe_hf import Adapter, Edit, LifelongEditor
from lemoe_hf.routing.layout import Piece
from lemoe_hf.routing.passes import Batch, ExpertPass
from lemoe_hf.routing.text import Text
from tiny import byte_tokenizer, prompts_of, tiny


FORMATS = sorted(Path(__file__).parent.glob("fixtures/format_*/*"))
NEAREST = [folder for folder in FORMATS if folder.name != "kv_anchor"]
GATED = next(folder for folder in FORMATS if folder.name == "relation_gate")
PROMPTS = [fact.prompt for fact in FACTS] + UNRELATED


class Engine:
    """A base model, and beside it what was read from a folder; one text at a time, token by token on a cache."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter):
        self.model, self.adapter, self.router = model, adapter, adapter.router
        self.running: ExpertPass | None = None
        layers = model.model.layers
        for depth in adapter.taps:
            layers[depth].mlp.register_forward_pre_hook(self.look)
        for name in adapter.banks:
            model.get_submodule(name).register_forward_hook(lambda *passed, name=name: self.add(name, *passed))

    def look(self, _module, args) -> None:
        if self.running.waits:
            self.running.tap(args[0])
            if len(self.running.recorded) == len(self.adapter.taps):
                self.running.decide(self.model.get_input_embeddings())

    def add(self, name: str, _module, args, output):
        acting = self.running.acting()
        if acting is None:
            return None
        for columns, experts in zip(acting.columns, acting.experts, strict=True):
            delta = self.adapter.banks[name](args[0][0, columns], experts.expand(len(columns)))
            output[0, columns] += delta
        return output

    @torch.no_grad()
    def answer(self, prompt: list[int], num: int) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens behind a prompt, and the logits of them all."""
        text, cache, new, logits = Text(ends={len(prompt) - 1}, prompt=len(prompt)), DynamicCache(), prompt, []
        for _ in range(num):
            first, ids = len(text), torch.tensor([new])
            text.read(new, range(first, first + len(new)), self.router.vocabulary)
            piece = Piece(0, list(range(len(new))), new)
            self.running = ExpertPass(self.router, Batch([piece], [text], [first], ids, {}), len(self.adapter.ledger))
            logits.append(self.model(input_ids=ids, past_key_values=cache).logits[0, -1])
            new = [int(logits[-1].argmax())]
        return text.ids[len(prompt) :] + new, torch.stack(logits)


def expected(model: PeftModel, prompt: list[int], num: int) -> tuple[list[int], torch.Tensor]:
    model.base_model.model.generation_config.eos_token_id = None
    options = {"max_new_tokens": num, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = model.generate(input_ids=torch.tensor([prompt]), pad_token_id=0, **options)
    return found.sequences[0, len(prompt) :].tolist(), torch.cat(found.logits)


def assert_agree(engine: Engine, model: PeftModel, prompts: list[list[int]], num: int = 6) -> None:
    for prompt in prompts:
        tokens, logits = engine.answer(prompt, num)
        others, other_logits = expected(model, prompt, num)
        assert tokens == others
        torch.testing.assert_close(logits, other_logits, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ the answers


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def loaded(folder: Path, **options) -> PeftModel:
    return PeftModel.from_pretrained(learner().unload(), folder, **options).eval()


@pytest.mark.parametrize("folder", NEAREST, ids=lambda folder: folder.name)
def test_an_engine_answers_as_the_model_does(folder, tokenizer):
    engine = Engine(learner().unload().eval(), Adapter.load(folder))
    assert_agree(engine, loaded(folder), [tokenizer(prompt)["input_ids"] for prompt in PROMPTS])
    answers = [tokenizer.decode(engine.answer(tokenizer(fact.prompt)["input_ids"], 8)[0]) for fact in FACTS]
    assert all(answer.strip().startswith(target) for answer, target in zip(answers, targets(FACTS), strict=True)), (
        answers
    )


def test_so_it_does_with_the_format_of_today(tokenizer, tmp_path):
    editor = LifelongEditor(loaded(GATED, is_trainable=True), tokenizer, plain())
    editor.edit(Edit("The mayor of Aldona is", "Berg", subject="Aldona"))
    editor.save_pretrained(tmp_path)
    adapter = Adapter.load(tmp_path)
    assert adapter.ledger == editor.edits()
    assert len(adapter.targets)
    prompts = [*PROMPTS, "The mayor of Aldona is", "Who leads Aldona?"]
    engine = Engine(learner().unload().eval(), adapter)
    assert_agree(engine, loaded(tmp_path), [tokenizer(prompt)["input_ids"] for prompt in prompts])


def test_what_is_asked_decides_as_it_does_in_the_model(tmp_path):
    model, prompts = gated(), [[*prompt, A] for prompt in prompts_of(4, 6)]
    put_asked(model, prompts, (1, 4))
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(clear(), tmp_path).eval()
    engine = Engine(clear().eval(), Adapter.load(tmp_path))
    asked = [[17, *prompt[1:-1], asker] for prompt in prompts for asker in (A, B, C)]
    assert_agree(engine, reloaded, asked)
    base = Engine(clear().eval(), replace(engine.adapter, banks={}))
    is_base = [torch.equal(engine.answer(prompt, 6)[1], base.answer(prompt, 6)[1]) for prompt in asked]
    assert is_base == [False, True, True] * len(prompts)


def test_it_needs_neither_peft_nor_transformers():
    code = f"""
import sys
from lemoe_hf.adapter import Adapter
adapter = Adapter.load({str(GATED)!r})
assert len(adapter.ledger) == {len(FACTS)} and adapter.router.relations is adapter.relations
print(*{{"peft", "transformers"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


# --------------------------------------------------------------------------------------------------------- what is refused


def test_learned_keys_need_the_model():
    adapter = Adapter.load(next(folder for folder in FORMATS if folder.name == "kv_anchor"))
    assert [entry["edit"]["target_new"] for entry in adapter.ledger] == targets(FACTS)
    with pytest.raises(ValueError, match="routing='kv_anchor'.*PeftModel"):
        adapter.router  # noqa: B018


def test_a_folder_that_is_missing_or_empty(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere.*save_pretrained"):
        Adapter.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no adapter: there is no adapter_config.json"):
        Adapter.load(tmp_path)


def test_an_adapter_of_another_method(tmp_path):
    get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type LORA, not LEMOE"):
        Adapter.load(tmp_path)


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(GATED, tmp_path / "adapter"))


def change_config(folder: Path, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder: Path, ending: str, change) -> None:
    """Put something else in the place of a tensor; nothing if that is `None`."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    (key,) = (key for key in tensors if key.endswith(ending))
    changed = change(tensors.pop(key))
    save_file(tensors if changed is None else tensors | {key: changed.contiguous()}, path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_is_cut_off(copied, name):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{name} is damaged .*Restore it from a copy"):
        Adapter.load(copied)


def test_an_adapter_without_weights(copied):
    (copied / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="the adapter is not complete"):
        Adapter.load(copied)


def test_weights_of_another_method(copied):
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, copied / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="not the file of a LEMoE adapter"):
        Adapter.load(copied)


def test_whole_modules_beside_the_experts(copied):
    change_config(copied, modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match=r"replaces \['lm_head'\]"):
        Adapter.load(copied)


@pytest.mark.parametrize(
    ("ending", "change", "error"),
    [
        ("anchors.lengths", lambda tensor: None, "lemoe_anchors.lengths holds 0"),
        ("anchors.lengths", lambda tensor: tensor + 1, "anchors.*(unequal lengths|its lengths tell)"),
        ("anchors.edit", lambda tensor: tensor[:-1], "anchors.*(unequal lengths|its lengths tell)"),
        ("anchors.tokens", lambda tensor: tensor[:, None], "has the shape"),
        ("anchors.start", lambda tensor: None, "'start' is missing"),
        ("anchors.expert", lambda tensor: tensor + 7, "lead to experts 7 to 12, and there are 7"),
        ("anchors.expert", lambda tensor: tensor - 1, "lead to experts -1 to 4"),
        ("bank.in_proj", lambda tensor: tensor[:-1], "num_experts=6`, and lemoe_bank.in_proj holds 5"),
        ("bank.out_proj", lambda tensor: tensor[:-1], "do not go together"),
        ("bank.out_proj", lambda tensor: tensor[:, :2], "do not go together"),
        ("relations.keys", lambda tensor: tensor[:, :2], "has the shape"),
        ("relations.keys", lambda tensor: tensor[:-1], "num_relation_keys=6"),
        ("ledger.bytes", lambda tensor: tensor[:-9], "num_ledger_bytes=766"),
        ("ledger.bytes", lambda tensor: tensor * 0 + 255, "can't decode"),
    ],
)
def test_tensors_that_do_not_go_together(copied, ending, change, error):
    change_tensors(copied, ending, change)
    with pytest.raises(ValueError, match=error) as raised:
        Adapter.load(copied)
    assert "from a copy" in str(raised.value)


def test_experts_in_training_that_hold_edits_act_too(copied):
    """As in the model, whose open expert answers what was put into it before it was committed."""
    change_tensors(copied, "anchors.expert", lambda tensor: tensor + 1)
    assert [len(bank) for bank in Adapter.load(copied).banks.values()] == [7]
