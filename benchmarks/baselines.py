"""What else makes edits, in the protocol and the table of `lifelong.py`: one command, one row.

    python benchmarks/baselines.py --model FOLDER --data zsre_1000.jsonl --tune counterfact_3000.jsonl \\
        --baseline lora --step 100 --work FOLDER

- `unedited`: the base model.
- `lora`: LoRA of rank 8 on all linear layers, one for the whole stream.
- `ffn`: fine-tuning of one FFN, that of the layer which `LEMoEConfig` bypasses.
- `retrieval`: nothing is trained. The edits of a subject that the prompt holds, the nearest last, or else the edit with the
  nearest mean token embedding if it is near enough, stand before the prompt as questions and answers.

Edits come in steps, in their order, and are measured on the final model. Fine-tuning passes several times over a step's
prompts and targets, in minibatches of eight with AdamW, and never sees earlier steps again. The number of passes is such
that the CPU seconds of a step, divided by those of one forward pass of the base model over its prompts and targets (F, timed
beside it), come to what an edit of `LifelongEditor` costs by the same measure: 9.8 F (`speed_edit.json`).

Learning rate or threshold is the one of a few that does best on the first 200 records of other data (`--tune`), by the
harmonic mean of reliability, generality and locality; the result tells what each of them did there. That is no claim that a
baseline is tuned to its best. All is written to `--work` as it comes, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lifelong import AT_ONCE, FIRST, drawn, first_hundred, measured_on, without_edited_neighbours
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from report import RESULTS, command, write
from same_subject import other_questions
from speed_edit import seconds_of_forward
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from lemoe_hf import Edit, EditEvaluator, LEMoEConfig, read_edits
from lemoe_hf.editing.tokens import continuation
from lemoe_hf.evaluation import Evaluator, SameSubject, versions
from lemoe_hf.evaluation.metrics import agreement, kl_divergence, token_accuracy
from lemoe_hf.evaluation.same_subject import FIRST_TOKENS
from lemoe_hf.generation import answers
from lemoe_hf.structure import find_targets
from routing import words


TUNED_ON, MINIBATCH = 200, 8
PASSES = {"lora": 4, "ffn": 7}
# Learning rates, or thresholds; of those that do equally well the first is taken.
SETTINGS: dict[str, list[float]] = {
    "unedited": [],
    "lora": [1e-4, 3e-4, 1e-3, 3e-3],
    "ffn": [3e-5, 1e-4, 3e-4, 1e-3],
    "retrieval": [0.95, 0.9, 0.8, 0.7, 0.6],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--tune", default=None, help="other data, to choose the learning rate or threshold on")
    parser.add_argument("--baseline", required=True, choices=SETTINGS)
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--num-edits", type=int, default=None, help="by default all")
    parser.add_argument("--step", type=int, default=100, help="edits that come together")
    parser.add_argument("--passes", type=int, default=None, help="over each step; by default what 9.8 F pay for")
    parser.add_argument("--sample", type=int, default=None, help="measure on so many of the edits, drawn at random")
    parser.add_argument("--extras", type=int, default=100, help="edits that are measured in other contexts")
    parser.add_argument("--questions", type=int, default=200, help="other questions about edited subjects")
    parser.add_argument(
        "--templates", nargs="*", default=[], help="further data whose wordings ask the other questions"
    )
    args = parser.parse_args()
    args.passes = args.passes or PASSES.get(args.baseline)
    if SETTINGS[args.baseline] and args.tune is None:
        parser.error(f"the baseline {args.baseline!r} needs `--tune` with the path of other data")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lemoe_hf").setLevel(logging.INFO)  # tells how far the evaluation is

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    setting, tuning = tune(args, tokenizer) if SETTINGS[args.baseline] else (None, {})
    edits = read_edits(args.data)[: args.num_edits]
    lenders = [*edits, *(edit for path in args.templates for edit in read_edits(path))]
    sample = without_edited_neighbours(drawn(edits, args.sample or len(edits), seed=0), edits)
    extras = drawn(edits, args.extras, seed=1)
    questions = drawn([question for _, question in other_questions(edits, lenders)], args.questions, seed=2)
    made = make(args, tokenizer, edits, setting, "run")
    measures = made.measures(sample) | made.extras(extras, questions) | made.retention()
    report = {
        "command": command(),
        "baseline": args.baseline,
        "num_edits": len(edits),
        "measured_on": measured_on(sample, extras, questions),
        "measures": measures,
        "first_hundred": made.first_hundred,
        "cpu_seconds_per_edit": made.cost.pop("cpu_seconds_per_edit"),
        "cost": made.cost,
        "tuning": tuning,
        "versions": versions(),
    }
    print(json.dumps(measures, indent=1))
    write(report, RESULTS / f"baseline_{args.baseline}_{Path(args.data).stem}.json")


def tune(args: argparse.Namespace, tokenizer) -> tuple[float, dict]:
    """The setting that does best on other data, and what every setting does there."""
    edits, tried = read_edits(args.tune)[:TUNED_ON], []
    for setting in SETTINGS[args.baseline]:
        made = make(args, tokenizer, edits, setting, f"tune_{setting}")
        measures = made.measures(without_edited_neighbours(edits, edits))
        score = statistics.harmonic_mean(measures[name] for name in ("reliability", "generality", "locality"))
        tried.append({"setting": setting, "harmonic_mean": score, "measures": measures})
        print(f"{setting}: {score:.3f}", flush=True)
    chosen = max(tried, key=lambda row: row["harmonic_mean"])["setting"]
    return chosen, {"data": Path(args.tune).name, "num_edits": len(edits), "chosen": chosen, "tried": tried}


def make(args: argparse.Namespace, tokenizer, edits: list[Edit], setting: float | None, run: str) -> Edited:
    """Make the edits, or those that are left. Runs share the folder of what is measured, which tells models apart."""
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if args.baseline in PASSES:
        return fine_tuned(args, base, tokenizer, edits, setting, args.work / run)
    # A copy of one FFN that nothing trains: the base model itself.
    model = get_peft_model(base, peft_config("ffn", base)).eval()
    if args.baseline == "retrieval":
        return Retrieved(model, tokenizer, args.work, edits, setting)
    return Edited(model, tokenizer, args.work, {"cpu_seconds_per_edit": 0.0})


class Edited:
    """
    A model with all edits in its weights.

    Args:
        cost (`dict`): Of the edits.
        first_hundred (`dict[str, float]`, *optional*): Reliability of the first hundred, after so many edits.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer,
        work: Path,
        cost: dict,
        first_hundred: dict[str, float] | None = None,
    ):
        self.model, self.tokenizer, self.work = model, tokenizer, work
        self.cost, self.first_hundred = cost, first_hundred

    def measures(self, edits: Sequence[Edit]) -> dict[str, float]:
        return self.taken(EditEvaluator(edits, AT_ONCE, work=self.work))

    def extras(self, edits: Sequence[Edit], questions: Sequence[str]) -> dict[str, float]:
        contexts = self.taken(EditEvaluator(edits, AT_ONCE, measures=["contexts"], work=self.work))
        return contexts | self.taken(SameSubject(questions, AT_ONCE, work=self.work))

    def retention(self) -> dict[str, float]:
        if not self.first_hundred:
            return {}
        then = next(share for num, share in self.first_hundred.items() if int(num) >= FIRST)
        return {"retention": list(self.first_hundred.values())[-1] - then}

    def taken(self, evaluator: Evaluator) -> dict[str, float]:
        measures = evaluator(self.model, self.tokenizer)
        del measures[evaluator.counts]
        return measures


def peft_config(baseline: str, base) -> LoraConfig:
    if baseline == "lora":
        return LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    return LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=DUMMY_TARGET_MODULES,
        modules_to_save=find_targets(base, LEMoEConfig().depth),
    )


def fine_tuned(
    args: argparse.Namespace, base, tokenizer, edits: list[Edit], learning_rate: float, run: Path
) -> Edited:
    run.mkdir(parents=True, exist_ok=True)
    log = run / "made.json"
    if log.exists():
        made = json.loads(log.read_text())
        model = PeftModel.from_pretrained(base, str(run / f"adapter_{made['num']}"), is_trainable=True)
    else:
        made = {"num": 0, "seconds": 0.0, "forward": 0.0, "first_hundred": {}}
        torch.manual_seed(0)
        model = get_peft_model(base, peft_config(args.baseline, base))
    for first in range(made["num"], len(edits), args.step):
        new = edits[first : first + args.step]
        with model.disable_adapter():
            made["forward"] += seconds_of_forward(model, tokenizer, new, batch_size=64)
        began = time.process_time()
        train(model, tokenizer, new, args.passes, learning_rate, seed=first)
        made["seconds"] += time.process_time() - began
        made["num"] = first + len(new)
        made["first_hundred"][str(made["num"])] = first_hundred(model, tokenizer, edits[: made["num"]])
        print(f"{made['num']} edits, {made['seconds'] / made['num']:.3f} s an edit", flush=True)
        model.save_pretrained(run / f"adapter_{made['num']}")
        log.write_text(json.dumps(made))
    cost = {
        "cpu_seconds_per_edit": made["seconds"] / len(edits),
        "cpu_seconds_of_forward_per_edit": made["forward"] / len(edits),
        "forwards_per_edit": made["seconds"] / made["forward"],
        "passes": args.passes,
        "minibatch": MINIBATCH,
        "learning_rate": learning_rate,
        "trained_parameters": model.get_nb_trainable_parameters()[0],
    }
    return Edited(model.eval(), tokenizer, args.work, cost, made["first_hundred"])


def train(model, tokenizer, edits: Sequence[Edit], passes: int, learning_rate: float, seed: int) -> None:
    """Cross-entropy of targets, and the end of the text, behind their prompts."""
    examples = []
    for edit in edits:
        prompt = tokenizer(edit.prompt.rstrip())["input_ids"]
        target = continuation(tokenizer, edit.prompt.rstrip(), edit.target_new.strip()) + [tokenizer.eos_token_id]
        examples.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    batches = torch.utils.data.DataLoader(
        examples,
        MINIBATCH,
        shuffle=True,
        collate_fn=DataCollatorForSeq2Seq(tokenizer),
        generator=torch.Generator().manual_seed(seed),
    )
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    model.train()
    for _ in range(passes):
        for batch in batches:
            model(**batch.to(model.device)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


class Retrieved(Edited):
    """
    The base model, and edits as text, put before the prompts that are about them.

    What is compared with the base model's answer to a prompt is its answer behind what is retrieved for it.
    """

    def __init__(self, model: PeftModel, tokenizer, work: Path, edits: Sequence[Edit], threshold: float):
        super().__init__(model, tokenizer, work, {})
        self.threshold, began = threshold, time.process_time()
        self.edits = list({edit.prompt: edit for edit in edits}.values())  # the latest of a prompt
        self.subjects = [words(edit.subject) if edit.subject else None for edit in self.edits]
        self.keys = torch.stack([self.embedding(edit.prompt) for edit in self.edits])
        self.cost["cpu_seconds_per_edit"] = (time.process_time() - began) / len(edits)
        asked = [prompt for edit in edits for prompt, _ in edit.probes("rephrase")]
        self.cost["threshold"] = threshold
        self.cost["tokens_of_rephrasing"] = statistics.mean(map(len, tokenizer(asked)["input_ids"]))
        given = [self.put(prompt) for prompt in asked]
        self.cost["tokens_of_rephrasing_with_edits"] = statistics.mean(map(len, tokenizer(given)["input_ids"]))

    @torch.no_grad()
    def embedding(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(self.model.device)
        return torch.nn.functional.normalize(self.model.get_input_embeddings()(ids)[0].mean(0), dim=0)

    def find(self, prompt: str) -> list[Edit]:
        """The edits of subjects that the prompt holds, the nearest last; or else the nearest of all, if near enough."""
        similarity = (self.keys @ self.embedding(prompt)).tolist()
        rows = sorted(range(len(self.edits)), key=similarity.__getitem__)
        asked = words(prompt)
        of_subject = [i for i in rows if self.subjects[i] and self.subjects[i] in asked]
        near = [rows[-1]] if similarity[rows[-1]] >= self.threshold else []
        return [self.edits[i] for i in of_subject or near]

    def put(self, prompt: str) -> str:
        found = self.find(prompt)
        lines = [f"Question: {edit.prompt}\nAnswer: {edit.target_new}\n\n" for edit in found]
        return "".join(lines) + f"Question: {prompt.rstrip()}\nAnswer:" if found else prompt.rstrip()

    def given(self, edit: Edit) -> Edit:
        """The edit, with its prompts as the model gets them."""
        rephrasings = tuple(self.put(prompt) for prompt, _ in edit.probes("rephrase"))
        return replace(edit, prompt=self.put(edit.prompt), rephrase_prompt=rephrasings or None)

    def measures(self, edits: Sequence[Edit]) -> dict[str, float]:
        given = [self.given(edit) for edit in edits]
        of_edits = EditEvaluator(given, AT_ONCE, measures=["reliability", "generality"], work=self.work)
        probes = [probe for edit in edits for probe in edit.probes("locality")]
        unrelated = [(prompt.rstrip(), self.put(prompt), answer or "the") for prompt, answer in probes]
        return self.taken(of_edits) | self.taken(Evaluator(unrelated, [BesideBase()], work=self.work))

    def extras(self, edits: Sequence[Edit], questions: Sequence[str]) -> dict[str, float]:
        contexts = EditEvaluator(list(map(self.given, edits)), AT_ONCE, measures=["contexts"], work=self.work)
        pairs = [(question, self.put(question)) for question in questions]
        return self.taken(contexts) | self.taken(Evaluator(pairs, [AnswersBesideBase()], work=self.work))


class BesideBase:
    """Locality, as `EditEvaluator` has it, of prompts, each with what is given in its place, and an answer."""

    name = "locality_of_prompts"

    @torch.no_grad()
    def scores(self, model, tokenizer, rows: Sequence[tuple[str, str, str]]) -> list[dict[str, float]]:
        scores = []
        for prompt, given, answer in rows:
            if given == prompt:
                scores.append({"locality": 1.0, "locality_exact": 1.0, "locality_kl": 0.0})
                continue
            target, logits = continuation(tokenizer, prompt, answer.strip()), []
            for text in (prompt, given):
                ids = torch.tensor([tokenizer(text)["input_ids"] + target], device=model.device)
                logits.append(model(input_ids=ids).logits[0, -len(target) - 1 : -1])
            expected, predicted = (row.argmax(-1).tolist() for row in logits)
            locality = token_accuracy(predicted, expected)
            scores.append({"locality": locality, "locality_exact": 0.0, "locality_kl": kl_divergence(*logits)})
        return scores


class AnswersBesideBase:
    """As `SameSubject`, of questions, each with what is given in its place."""

    name = "same_subject_of_prompts"

    def scores(self, model, tokenizer, rows: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        texts = [answers(model, tokenizer, prompts, FIRST_TOKENS, AT_ONCE) for prompts in zip(*rows, strict=True)]
        scores = []
        for before, after in zip(*texts, strict=True):
            old, new = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
            scores.append({"same_subject_kept": agreement(old, new), "same_subject_exact": float(before == after)})
        return scores


if __name__ == "__main__":
    main()
