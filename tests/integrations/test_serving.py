from __future__ import annotations
import shutil
from transformers.cli.serving.model_manager import ModelManager
from facts import FACTS, UNRELATED, targets

def test_serve_loads(base_folder, adapter_folder, tokenizer, editor, tmp_path):
    shutil.copytree(adapter_folder, tmp_path / "a")
    shutil.copytree(base_folder, tmp_path / "a", dirs_exist_ok=True)
    manager = ModelManager(device="cpu")
    model, processor = manager.load_model_and_processor(manager.process_model_name(str(tmp_path/"a")))
    print("XX", type(model), type(processor))
    print("XX", model.active_adapters(), tokenizer.decode(model.generate(**tokenizer(FACTS[0].prompt, return_tensors="pt"), max_new_tokens=5, do_sample=False)[0]))
