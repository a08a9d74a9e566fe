"""Does a wording that is measured with stand among those that the package learns relations from?

    python benchmarks/templates_apart.py --data zsre_1000.jsonl counterfact_3000.jsonl

A template is a prompt or a rephrasing of the data whose subject is replaced; the package's are those of its relation prompts
(`lemoe_hf.data.reference_relations`). Two are the same if they have the same words, whatever the case and the marks. `same`
counts those of the data that are one of the package's as they stand; `same_in_part` those in which it is a sentence, for
some have others before or behind the one that holds the subject. `found` lists the former and the latter. No model is needed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from report import RESULTS, command, write

from lemoe_hf import read_edits
from lemoe_hf.data import reference_relations
from lemoe_hf.evaluation import versions
from routing import words


SENTENCE = re.compile(r"(?<=[.?!])\s+|\n")


def sentences(text: str, subject: str | None) -> list[str]:
    """What a text is made of, with `subject` for its subject; nothing if that is not there."""
    if subject is None:
        return []
    cut, num = re.subn(rf"(?<!\w){re.escape(subject)}(?!\w)", "subject", text, flags=re.IGNORECASE)
    return [sentence for sentence in SENTENCE.split(cut) if words(sentence).strip()] if num else []


def counts(texts: Iterable[tuple[str, str | None]], own: set[str]) -> dict:
    """Of texts with their subjects: how many templates they have, and which of these are among the package's own."""
    of_texts = [sentences(text, subject) for text, subject in texts]
    templates = {words(" ".join(parts)): list(map(words, parts)) for parts in of_texts if parts}
    same = sorted(template for template in templates if template in own)
    in_part = sorted({part for parts in templates.values() if len(parts) > 1 for part in parts if part in own})
    return {
        "texts": len(of_texts),
        "without_their_subject": of_texts.count([]),
        "templates": len(templates),
        "same": len(same),
        "same_in_part": sum(len(parts) > 1 and not own.isdisjoint(parts) for parts in templates.values()),
        "found": [template.strip() for template in same + in_part],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="JSON lines with EasyEdit's keys, and subjects")
    parser.add_argument("--output", default=RESULTS / "templates_apart.json", type=Path)
    args = parser.parse_args()

    own = {words(" ".join(sentences(prompt.text, prompt.subject))) for prompt in reference_relations()}
    rows = []
    for path in args.data:
        edits = read_edits(path)
        prompts = [(edit.prompt, edit.subject) for edit in edits]
        rephrasings = [(prompt, edit.subject) for edit in edits for prompt, _ in edit.probes("rephrase")]
        for kind, texts in (("prompts", prompts), ("rephrasings", rephrasings)):
            rows.append({"data": Path(path).name, "of": kind, **counts(texts, own)})
            print(rows[-1], flush=True)
    write({"command": command(), "templates_of_package": len(own), "rows": rows, "versions": versions()}, args.output)


if __name__ == "__main__":
    main()
