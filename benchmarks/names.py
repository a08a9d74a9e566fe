"""
How surely an edit is found by its name: in other writing, with a letter wrong, by an alias; and what is no name of it.

    python benchmarks/names.py --edits examples/edits.jsonl --unrelated questions.txt

Each edit's prompt is asked again with its subject written in another way, answered by greedy generation; and with the subject
made into another name, where the base model's own answer is expected. Unrelated prompts are the lines of a file, and the
locality prompts of further edits (`--neighbours`), whose names are then known beside the edits'. Of these it is told, without
a model, how often none of the names counts, so that what stands there keeps the base model's bits. Last, what it costs to look
for names where 100,000 are known.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.editing.explanation import acting, looked_at
from lemoe_hf.editing.relations import learn_vocabulary
from lemoe_hf.editing.spelling import Naming, learn_spelling
from lemoe_hf.routing.anchors import Anchor, Anchors
from lemoe_hf.routing.name_index import Name
from lemoe_hf.routing.names import Names
from lemoe_hf.routing.router import Asking, Router
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.text import Text
from lemoe_hf.routing.vocabulary import Vocabulary


FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
FIRST, SECOND = "ABCDEFGHIJKLMNOPRSTUVWZ", ("a", "e", "i", "o", "u", "ar", "en", "il", "or", "un")
BATCH = 32


def writings(edit: Edit) -> dict[str, str]:
    """The prompt of an edit, with its subject written in other ways."""
    start, end = edit.subject_span()
    before, name, behind = edit.prompt[:start], edit.prompt[start:end], edit.prompt[end:]
    several, accent = " " in name, next((i for i, char in enumerate(name) if char in "aeiou"), None)
    changed = {
        "as it is": name,
        "upper case name": name.upper(),
        "lower case name": name.lower(),
        "full width": name.translate(FULL_WIDTH),
        "zero width": name[:2] + "\u200b" + name[2:],
        "curly quotes": f"“{name}”",
        "straight quotes": f'"{name}"',
        "bold": f"**{name}**",
        "possessive": f"{name}'s",
        "plural": f"{name}s",
    }
    if several:
        changed |= {
            "newline within": name.replace(" ", "\n", 1),
            "double space": name.replace(" ", "  "),
            "non-breaking space": name.replace(" ", "\u00a0"),
            "hyphen": name.replace(" ", "-"),
        }
    if accent is not None:
        accented = name[: accent + 1] + "\u0301" + name[accent + 1 :]
        changed |= {"an accent": unicodedata.normalize("NFC", accented), "decomposed accent": accented}
    found = {kind: before + text + behind for kind, text in changed.items()}
    return found | {"upper case": edit.prompt.upper(), "lower case": edit.prompt.lower()}


def typos(edit: Edit, generator: random.Random) -> list[str]:
    """The prompt of an edit with a letter of its subject missing, doubled, wrong, and swapped with the next."""
    start, end = edit.subject_span()
    name = edit.prompt[start:end]
    if sum(map(str.isalpha, name)) < 5:
        return []
    letters = [i for i, char in enumerate(name) if char.isalpha()]
    pairs = [i for i in letters[1:] if i + 1 in letters and name[i].lower() != name[i + 1].lower()]
    one, two, three, four = (generator.choice(each) for each in (letters, letters, letters, pairs))
    wrong = generator.choice([char for char in "abcdefghiklmnoprstuvwz" if char != name[three].lower()])
    made = [
        name[:one] + name[one + 1 :],
        name[: two + 1] + name[two:],
        name[:three] + wrong + name[three + 1 :],
        name[:four] + name[four + 1] + name[four] + name[four + 2 :],
    ]
    return [edit.prompt[:start] + text + edit.prompt[end:] for text in made]


def others(edit: Edit) -> list[str]:
    """The prompt of an edit, asked of something else with a longer name."""
    start, end = edit.subject_span()
    name = edit.prompt[start:end]
    made = [f"{name} Corporation", f"North {name}", f"Old {name}", f"{name}-Dubois", f"{name}ovich", f"Pierre {name}"]
    return [edit.prompt[:start] + text + edit.prompt[end:] for text in made]


def aliased(edit: Edit) -> list[str]:
    start, end = edit.subject_span()
    return [edit.prompt[:start] + alias + edit.prompt[end:] for alias in edit.aliases or ()]


@torch.no_grad()
def answered(editor: LifelongEditor, prompts: Sequence[str], targets: Sequence[str]) -> list[bool]:
    tokens = [8] * len(prompts)
    texts = [text.strip().strip("\"'“”").lower() for text in editor.answers(prompts, tokens)]
    return [
        bool(text) and (text.startswith(target) or target.startswith(text))
        for text, target in zip(texts, [each.strip().strip("\"'“”").lower() for each in targets], strict=True)
    ]


def deferred(editor: LifelongEditor, prompts: Sequence[str]) -> list[bool]:
    ids, found = [editor.tokenizer(prompt)["input_ids"] for prompt in prompts], []
    for first in range(0, len(ids), BATCH):
        found += [not acting(text) for text, _ in looked_at(editor, ids[first : first + BATCH])]
    return found


def asked(editor: LifelongEditor, edits: Sequence[Edit]) -> dict[str, dict[str, float]]:
    """By kind of prompt the share that is answered, or left to the base model, and of how many."""
    generator, prompts, scores = random.Random(0), {}, {}
    for edit in edits:
        for kind, text in writings(edit).items():
            prompts.setdefault(f"writing: {kind}", []).append((text, edit.target_new))
        prompts.setdefault("one letter wrong", []).extend((text, edit.target_new) for text in typos(edit, generator))
        prompts.setdefault("alias", []).extend((text, edit.target_new) for text in aliased(edit))
        prompts.setdefault("another name", []).extend((text, "") for text in others(edit))
    for kind, pairs in prompts.items():
        if not pairs:
            continue
        texts, targets = zip(*pairs, strict=True)
        routed = [not each for each in deferred(editor, texts)]
        if kind == "another name":
            right = [not each for each in routed]
            scores[kind] = {"n": len(texts), "as the base model": sum(right) / len(texts)}
        else:
            right = answered(editor, texts, targets)
            scores[kind] = {"n": len(texts), "answered": sum(right) / len(texts), "routed": sum(routed) / len(texts)}
        scores[kind]["missed"] = [text for text, each in zip(texts, right, strict=True) if not each][:10]
        print(json.dumps({kind: scores[kind]}, ensure_ascii=False), flush=True)
    return scores


def router_of(tokenizer, names: Sequence[Name], prompts: Sequence[tuple[int, tuple[int, ...]]]) -> Router:
    """A router without a model: whatever is asked about a name counts."""
    vocabulary, anchors, store = Vocabulary(), Anchors(), Names()
    learn_vocabulary(vocabulary, tokenizer)
    learn_spelling(vocabulary, tokenizer)
    anchors.add([Anchor(ids, edit, edit, len(ids) - 1, is_prompt=True) for edit, ids in prompts])
    store.add(names)
    return Router(anchors, Targets(), vocabulary, names=store)


def read_prompt(router: Router, ids: list[int]) -> tuple[Text, Asking]:
    text = Text(ends={len(ids) - 1}, prompt=len(ids))
    text.read(ids, range(len(ids)), router.vocabulary)
    asking = Asking(text, 0)
    router.questions([asking])
    return text, asking


def unrelated(tokenizer, edits: Sequence[Edit], prompts: Sequence[str]) -> dict[str, object]:
    """Of prompts that are about none of the edits how many no name counts in."""
    naming = Naming()
    names = [name for i, edit in enumerate(edits) for name in naming.names(edit, i)]
    tokens = tokenizer([edit.prompt for edit in edits], add_special_tokens=False)["input_ids"]
    router = router_of(tokenizer, names, [(i, tuple(ids)) for i, ids in enumerate(tokens)])
    exact, near = [], []
    for prompt in prompts:
        _, asking = read_prompt(router, tokenizer(prompt)["input_ids"])
        options = [option.name for question in asking.questions for option in question.options]
        is_own = any(question.own for question in asking.questions)
        if options and not is_own:
            (near if all(option.score < 1 for option in options) else exact).append((prompt, options[0].name))
        elif is_own:
            exact.append((prompt, "its own prompt"))
    num = len(prompts)
    found = {
        "n": num,
        "names": len(names),
        "no name": 1 - (len(exact) + len(near)) / num,
        "near alone": len(near) / num,
    }
    return found | {"near": near[:20], "exact": exact[:20]}


def cost(tokenizer, num: int, prompt: str) -> dict[str, float]:
    """Milliseconds for a prompt, and for each token behind it where nobody tells that the prompt is over."""
    generator = random.Random(0)

    def word() -> str:
        return generator.choice(FIRST) + "".join(
            generator.choice(SECOND) + generator.choice("bdfgklmnprst") for _ in range(3)
        )

    texts = {f"{word()} {word()}": None for _ in range(num)}
    names = [Name(i, text, is_near=True) for i, text in enumerate(texts)]
    names += [Name(i, f"Who leads the house of {text}", is_prompt=True) for i, text in enumerate(texts)]
    # Prompts of five tokens: what looking for these costs is not measured here, and does not grow with names alike.
    prompts = [tuple(generator.randrange(len(tokenizer)) for _ in range(5)) for _ in texts]
    router = router_of(tokenizer, names, list(enumerate(prompts)))
    ids = tokenizer(prompt.format(list(texts)[num // 2]))["input_ids"]
    began = time.perf_counter()
    read_prompt(router, ids)
    built = time.perf_counter() - began
    whole = []
    for _ in range(200):
        began = time.perf_counter()
        read_prompt(router, ids)
        whole.append(1000 * (time.perf_counter() - began))
    letters = []
    for _ in range(200):
        text = Text(ends={len(ids) - 1}, prompt=len(ids))
        text.read(ids, range(len(ids)), router.vocabulary)
        began = time.perf_counter()
        router._find_names(text)
        letters.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    router.names.add([Name(num, "Quite Another", is_near=True)])
    added = 1000 * (time.perf_counter() - began)
    return {
        "names": num,
        "tokens": len(ids),
        "ms, names": statistics.median(letters),
        "ms, smallest": min(letters),
        "ms, all of routing": statistics.median(whole),
        "s, the index": built,
        "ms, a name more": added,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--edits", type=Path, help="JSON lines of edits with a subject, and aliases.")
    parser.add_argument("--adapter", type=Path, help="Where these edits are kept, or have been.")
    parser.add_argument("--unrelated", type=Path, help="Prompts, one a line.")
    parser.add_argument("--neighbours", type=Path, help="Edits whose locality prompts are unrelated.")
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    args, report = parse(), {}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    edits = [edit for edit in read_edits(args.edits) if edit.subject_span()] if args.edits else []
    if args.names:
        prompt = (
            "Please tell me in one short sentence, without any further explanation at all, who leads the house of {}?"
        )
        report["cost"] = cost(tokenizer, args.names, prompt)
        print(json.dumps(report["cost"]), flush=True)
    if args.unrelated and edits:
        texts = [line for line in args.unrelated.read_text("utf-8").splitlines() if line.strip()]
        report["unrelated"] = unrelated(tokenizer, edits, texts)
        print(json.dumps(report["unrelated"], ensure_ascii=False), flush=True)
    if args.neighbours:
        further = read_edits(args.neighbours)
        subjects = {each.prompt[slice(*each.subject_span())] for each in further if each.subject_span()}
        near = [text for each in further for text, _ in each.probes("locality")]
        near = [text for text in near if not any(subject in text for subject in subjects)]
        report["neighbours"] = unrelated(tokenizer, [*edits, *further], near)
        print(json.dumps(report["neighbours"], ensure_ascii=False), flush=True)
    if edits:
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        if args.adapter and args.adapter.is_dir():
            editor = LifelongEditor(PeftModel.from_pretrained(base, args.adapter), tokenizer)
            for entry, edit in zip(editor.edits(), edits, strict=False):
                for alias in set(edit.aliases or ()) - set(entry["edit"].get("aliases", ())):
                    editor.add_alias(entry["id"], alias)
        else:
            editor = LifelongEditor(get_peft_model(base, LEMoEConfig()), tokenizer)
            editor.edit(edits)
            if args.adapter:
                editor.save_pretrained(args.adapter)
        editor.model.eval()
        if args.unrelated:
            named = [prompt for prompt, _ in (*report["unrelated"]["near"], *report["unrelated"]["exact"])]
            kept = sum(deferred(editor, named)) if named else 0
            report["unrelated"]["bit-identical"] = 1 - (len(named) - kept) / report["unrelated"]["n"]
            print(report["unrelated"]["bit-identical"], flush=True)
        report["asked"] = asked(editor, edits)
    if args.out:
        args.out.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
