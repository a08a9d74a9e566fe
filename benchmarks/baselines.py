"""What else makes edits, in the protocol and the table of `lifelong.py`: one command, one row.

    python benchmarks/baselines.py --model FOLDER --data zsre_1000.jsonl --tune counterfact_3000.jsonl \\
        --baseline lora --step 100 --work FOLDER

- `unedited`: the base model.
- `lora`: LoRA of rank 8 on all linear layers, one for the whole stream.
- `ffn`: fine-tuning of one FFN, that of the layer which `LEMoEConfig` bypasses.
- `retrieval`: nothing is trained. The edits of a subject that the prompt holds, the nearest last, or else the edit with the
  nearest mean token embedding if it is near enough, stand before the prompt as questions and answers. The prompt then is a
  question itself, and so it is where it is put to the base model to compare, without any edit: another form of the prompt
  alone does not count as another answer, neither in locality nor in other questions kept.

Edits come in steps, in their order, and are measured on the final model. Fine-tuning passes several times over a step's
prompts and targets, in minibatches of eight with AdamW, and never sees earlier steps again. The number of passes is such
that the CPU seconds of a step, divided by those of one forward pass of the base model over its prompts and targets (F, timed
beside it), come to what an edit of `LifelongEditor` costs by the same measure: about ten F (`speed_edit.json`). For as much,
`LifelongEditor` trains on an edit's prompt, on that in the chat template and on two texts that hold the subject alone, while
fine-tuning trains on the bare prompt only. With `--contexts` it trains on all four, in one or two passes: as many as come
nearest to the same cost.

Retention is the reliability of the first hundred edits at the end, less what it was right after the step of each of them. All
hundred count, whatever `--sample`.

Learning rate or threshold is the one of a few that does best on the first 200 records of other data (`--tune`), by the
harmonic mean of reliability, generality and locality; the result tells what each of them did there. That is no claim that a
baseline is tuned to its best. All is written to `--work` as it comes, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from lifelong import AT_ONCE, FIRST, drawn, first_hundred, measured_on, without_edited_neighbours
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from report import RESULTS, command, log_progress, write
from same_subject import other_questions
from speed_edit import seconds_of_forward
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from lemoe_hf import Edit, EditEvaluator, LEMoEConfig, read_edits
from lemoe_hf.editing.arguments import CONTEXTS
from lemoe_hf.editing.tokens import continuation, in_contexts
from lemoe_hf.evaluation import Evaluator, SameSubject, teacher_forced, versions
from lemoe_hf.evaluation.metrics import kl_divergence, token_accuracy
from lemoe_hf.evaluation.same_subject import FIRST_TOKENS, agreement_of
from lemoe_hf.generation import answers
from lemoe_hf.structure import find_targets
from routing import words


TUNED_ON, MINIBATCH = 200, 8
PASSES, PASSES_IN_CONTEXTS = {"lora": 4, "ffn": 7}, {"lora": 1, "ffn": 2}
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
    parser.add_argument("--passes", type=int, default=None, help="over each step; by default what ten F pay for")
    parser.add_argument("--contexts", action="store_true", help="fine-tune on the texts that LEMoE trains on as well")
    parser.add_argument("--sample", type=int, default=None, help="measure on so many of the edits, drawn at random")
    parser.add_argument("--extras", type=int, default=100, help="edits that are measured in other contexts")
    parser.add_argument("--questions", type=int, default=200, help="other questions about edited subjects")
    parser.add_argument(
        "--templates", nargs="*", default=[], help="further data whose wordings ask the other questions"
    )
    args = parser.parse_args()
    args.passes = args.passes or (PASSES_IN_CONTEXTS if args.contexts else PASSES).get(args.baseline)
    if args.contexts and args.baseline not in PASSES:
        parser.error(f"the baseline {args.baseline!r} is not trained: leave `--contexts` out")
    if SETTINGS[args.baseline] and args.tune is None:
        parser.error(f"the baseline {args.baseline!r} needs `--tune` with the path of other data")
    log_progress()

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
        "measured_on": measured_on(sample, extras, questions, edits[:FIRST] if made.first_hundred else []),
        "measures": measures,
        "first_hundred": made.first_hundred,
        "cpu_seconds_per_edit": made.cost.pop("cpu_seconds_per_edit"),
        "cost": made.cost,
        "tuning": tuning,
        "versions": versions(),
    }
    print(json.dumps(measures, indent=1))
    name = args.baseline + ("_contexts" if args.contexts else "")
    write(report, RESULTS / f"baseline_{name}_{Path(args.data).stem}.json")


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
        right_after (`Sequence[float]`, *optional*): Reliability of each of the first, right after its step.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer,
        work: Path,
        cost: dict,
        first_hundred: dict[str, float] | None = None,
        right_after: Sequence[float] = (),
    ):
        self.model, self.tokenizer, self.work = model, tokenizer, work
        self.cost, self.first_hundred, self.right_after = cost, first_hundred, right_after

    def measures(self, edits: Sequence[Edit]) -> dict[str, float]:
        return self.taken(EditEvaluator(edits, AT_ONCE, work=self.work))

    def extras(self, edits: Sequence[Edit], questions: Sequence[str]) -> dict[str, float]:
        contexts = self.taken(EditEvaluator(edits, AT_ONCE, measures=["contexts"], work=self.work))
        return contexts | self.taken(SameSubject(questions, AT_ONCE, work=self.work))

    def retention(self) -> dict[str, float]:
        if not self.first_hundred:
            return {}
        return {"retention": list(self.first_hundred.values())[-1] - statistics.mean(self.right_after[:FIRST])}

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
        made = {"num": 0, "seconds": 0.0, "forward": 0.0, "first_hundred": {}, "right_after": []}
        torch.manual_seed(0)
        model = get_peft_model(base, peft_config(args.baseline, base))
    contexts = CONTEXTS if args.contexts else ()
    for first in range(made["num"], len(edits), args.step):
        new = edits[first : first + args.step]
        with model.disable_adapter():
            made["forward"] += seconds_of_forward(model, tokenizer, new, batch_size=64)
        began = time.process_time()
        train(model, tokenizer, new, contexts, args.passes, learning_rate, seed=first)
        made["seconds"] += time.process_time() - began
        made["num"] = first + len(new)
        if first < FIRST:
            prompts, targets = [edit.prompt for edit in new], [edit.target_new for edit in new]
            made["right_after"] += teacher_forced(model, tokenizer, prompts, targets)
        made["first_hundred"][str(made["num"])] = first_hundred(model, tokenizer, edits[: made["num"]])
        print(f"{made['num']} edits, {made['seconds'] / made['num']:.3f} s an edit", flush=True)
        model.save_pretrained(run / f"adapter_{made['num']}")
        log.write_text(json.dumps(made))
    cost = {
        "cpu_seconds_per_edit": made["seconds"] / len(edits),
        "cpu_seconds_of_forward_per_edit": made["forward"] / len(edits),
        "forwards_per_edit": made["seconds"] / made["forward"],
        "contexts": contexts,
        "passes": args.passes,
        "minibatch": MINIBATCH,
        "learning_rate": learning_rate,
        "trained_parameters": model.get_nb_trainable_parameters()[0],
    }
    return Edited(model.eval(), tokenizer, args.work, cost, made["first_hundred"], made["right_after"])


def train(
    model,
    tokenizer,
    edits: Sequence[Edit],
    contexts: Sequence[str],
    passes: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Cross-entropy of targets, and the end of the text, behind their prompts, and in other contexts as `LifelongEditor`."""
    examples = []
    for edit in edits:
        for prompt, target, is_whole in in_contexts(tokenizer, edit, ["{prompt}", *contexts]):
            target = target + [tokenizer.eos_token_id] if is_whole else target
            examples.append({"input_ids": prompt + target, "labels": [-100] * len(prompt) + target})
    size = MINIBATCH
    if contexts:  # their lengths differ widely: like ones together spare padding
        examples.sort(key=lambda example: len(example["input_ids"]))
        examples, size = [examples[i : i + MINIBATCH] for i in range(0, len(examples), MINIBATCH)], None
    batches = torch.utils.data.DataLoader(
        examples,
        size,
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

    What is compared with the base model's answer to a prompt is its answer behind what is retrieved for it, and the prompt
    has the same form both times.
    """

    def __init__(self, model: PeftModel, tokenizer, work: Path, edits: Sequence[Edit], threshold: float):
        super().__init__(model, tokenizer, work, {})
        self.threshold, began = threshold, time.process_time()
        self.edits: list[Edit] = []
        self.keys = model.get_input_embeddings().weight.new_zeros(0, model.get_input_embeddings().embedding_dim)
        self.add(edits)
        self.cost["cpu_seconds_per_edit"] = (time.process_time() - began) / max(len(edits), 1)
        self.cost["threshold"] = threshold
        asked = [prompt for edit in edits for prompt, _ in edit.probes("rephrase")]
        if asked:
            given = [self.put(prompt) for prompt in asked]
            self.cost["tokens_of_rephrasing"] = statistics.mean(map(len, tokenizer(asked)["input_ids"]))
            self.cost["tokens_of_rephrasing_with_edits"] = statistics.mean(map(len, tokenizer(given)["input_ids"]))

    def add(self, edits: Sequence[Edit]) -> None:
        """Keep the latest edit of each prompt."""
        new = list({edit.prompt: edit for edit in edits}.values())
        kept = [i for i, old in enumerate(self.edits) if all(edit.prompt != old.prompt for edit in new)]
        self.edits = [*(self.edits[i] for i in kept), *new]
        self.subjects = [words(edit.subject) if edit.subject else None for edit in self.edits]
        self.keys = torch.cat([self.keys[kept], *(self.embedding(edit.prompt)[None] for edit in new)])

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
        return self.both(prompt)[1]

    def both(self, prompt: str) -> tuple[str, str]:
        """A prompt as the base model gets it, and behind the edits that are found for it."""
        lines = [f"Question: {edit.prompt}\nAnswer: {edit.target_new}\n\n" for edit in self.find(prompt)]
        asked = f"Question: {prompt.rstrip()}\nAnswer:" if lines else prompt.rstrip()
        return asked, "".join([*lines, asked])

    def given(self, edit: Edit) -> Edit:
        """The edit, with its prompts as the model gets them."""
        rephrasings = tuple(self.put(prompt) for prompt, _ in edit.probes("rephrase"))
        return replace(edit, prompt=self.put(edit.prompt), rephrase_prompt=rephrasings or None)

    def measures(self, edits: Sequence[Edit]) -> dict[str, float]:
        given = [self.given(edit) for edit in edits]
        of_edits = EditEvaluator(given, AT_ONCE, measures=["reliability", "generality"], work=self.work)
        probes = [probe for edit in edits for probe in edit.probes("locality")]
        unrelated = [(*self.both(prompt), answer or "the") for prompt, answer in probes]
        return self.taken(of_edits) | self.taken(Evaluator(unrelated, [BesideBase()], work=self.work))

    def extras(self, edits: Sequence[Edit], questions: Sequence[str]) -> dict[str, float]:
        contexts = EditEvaluator(list(map(self.given, edits)), AT_ONCE, measures=["contexts"], work=self.work)
        pairs = [self.both(question) for question in questions]
        return self.taken(contexts) | self.taken(Evaluator(pairs, [AnswersBesideBase()], work=self.work))


class BesideBase:
    """Locality, as `EditEvaluator` has it, of prompts, each with what is given in its place, and an answer."""

    name = "locality_of_prompts"

    def scores(self, model, tokenizer, rows: Sequence[tuple[str, str, str]]) -> list[dict[str, float]]:
        scores = []
        for prompt, given, answer in rows:
            logits = logits_behind(model, tokenizer, (prompt, given), answer)
            expected, predicted = (row.argmax(-1).tolist() for row in logits)
            locality, same = token_accuracy(predicted, expected), float(given == prompt)
            scores.append({"locality": locality, "locality_exact": same, "locality_kl": kl_divergence(*logits)})
        return scores


class AnswersBesideBase:
    """As `SameSubject`, of questions, each with what is given in its place."""

    name = "same_subject_of_prompts"

    def scores(self, model, tokenizer, rows: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        prompts = list(dict.fromkeys(chain(*rows)))
        texts = dict(zip(prompts, answers(model, tokenizer, prompts, FIRST_TOKENS, AT_ONCE), strict=True))
        scores = []
        for pair in rows:
            before, after = (logits[:1] for logits in logits_behind(model, tokenizer, pair, "the"))
            kept = agreement_of(tokenizer, *(texts[prompt] for prompt in pair))
            scores.append(kept | {"same_subject_kl": kl_divergence(before, after)})
        return scores


@torch.no_grad()
def logits_behind(model, tokenizer, prompts: Sequence[str], answer: str) -> list[torch.Tensor]:
    """Of each prompt, logits of shape `(t, v)` that predict the tokens of an answer behind it."""
    target, found = continuation(tokenizer, prompts[0], answer.strip()), {}
    for prompt in dict.fromkeys(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + target], device=model.device)
        found[prompt] = model(input_ids=ids).logits[0, -len(target) - 1 : -1]
    return [found[prompt] for prompt in prompts]


if __name__ == "__main__":
    main()
