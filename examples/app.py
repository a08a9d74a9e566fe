"""A page to try it: the base model and the edited one side by side, and which edit answered. `pip install lemoe_hf[examples]`

python examples/app.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse

import gradio as gr
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, LEMoEConfig, LifelongEditor


PROMPT, TARGET, SUBJECT = "In what year was the Ostrel Observatory completed?", "1894", "Ostrel Observatory"


class Demo:
    """What the buttons of the page do."""

    def __init__(self, editor: LifelongEditor):
        self.editor = editor

    def ask(self, prompt: str) -> tuple[str, str, str]:
        """The base model's answer, the edited model's, and why the latter is what it is."""
        with self.editor.model.disable_adapter():
            base = self.editor.answers([prompt])[0].strip()
        return base, self.editor.answers([prompt])[0].strip(), str(self.editor.explain(prompt))

    def edit(self, prompt: str, target: str, subject: str) -> list[list]:
        self.editor.edit(Edit(prompt, target, subject=subject or None))
        return self.edits()

    def undo(self, edit_id: int) -> list[list]:
        self.editor.undo(int(edit_id))
        return self.edits()

    def edits(self) -> list[list]:
        return [[each["id"], each["edit"]["prompt"], each["edit"]["target_new"]] for each in self.editor.edits()]


def page(demo: Demo) -> gr.Blocks:
    with gr.Blocks(title="lemoe_hf") as blocks:
        prompt = gr.Textbox(PROMPT, label="Prompt")
        ask = gr.Button("Ask", variant="primary")
        with gr.Row():
            answers = [gr.Textbox(label="Base model"), gr.Textbox(label="Edited model")]
        why = gr.Textbox(label="Why")
        with gr.Row():
            target, subject = gr.Textbox(TARGET, label="Answer it should give"), gr.Textbox(SUBJECT, label="Subject")
            edit = gr.Button("Edit")
        with gr.Row():
            edit_id, undo = gr.Number(0, label="Edit to take back", precision=0), gr.Button("Undo")
        edits = gr.Dataframe(headers=["id", "prompt", "answer"], label="Edits")
        ask.click(demo.ask, prompt, [*answers, why], api_name="ask")
        edit.click(demo.edit, [prompt, target, subject], edits, api_name="edit")
        undo.click(demo.undo, edit_id, edits, api_name="undo")
    return blocks


def main(model: str) -> None:
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig())
    editor = LifelongEditor(peft_model, AutoTokenizer.from_pretrained(model))
    editor.prepare()
    page(Demo(editor)).launch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    main(**vars(parser.parse_args()))
