"""The formats of public editing benchmarks: one function each, from a record to its edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .edit import Edit, wrong_alias


Record = Mapping[str, Any]


def easyedit(record: Record) -> list[Edit]:
    """
    EasyEdit and WISE: the fields of an [`Edit`].

    Probes may also be grouped, as `locality` or `portability`: `{name: {"prompt": ..., "ground_truth": ...}}`, of texts
    or lists of them. WISE's temporal records rephrase in `ood_rephrase`.
    """
    rephrase = record.get("rephrase") or record.get("ood_rephrase")
    fields = rephrased(*(rephrase if isinstance(rephrase, list) else [rephrase]))
    for kind in ("locality", "portability"):
        fields |= probed(kind, grouped(record.get(kind)))
    fields |= {name: record[name] for name in Edit.__dataclass_fields__ if record.get(name) not in (None, [])}
    fields["ground_truth"] = first(record.get("ground_truth"))
    return [Edit(**{**fields, "prompt": record["prompt"], "target_new": record["target_new"]})]


def knowedit(record: Record) -> list[Edit]:
    """KnowEdit ([Zhang et al., 2024](https://hf.co/papers/2401.01286)): EasyEdit's keys, grouped; other ones in WikiBio."""
    if "text" in record:
        names = {"prompt": "text", "target_new": "labels", "subject": "concept"}
        record = {**record, **{name: record[key] for name, key in names.items()}}
    subject = part_of(record["prompt"], record.get("subject"))
    return easyedit({**record, "subject": subject, "aliases": None, **aliased(record, subject)})


def zsre(record: Record) -> list[Edit]:
    """
    ZsRE of MEND ([Mitchell et al., 2022](https://hf.co/papers/2110.11309)), with EasyEdit's `portability` or without.

    The target is `alt`, as in MEND, EasyEdit and WISE; without that key the first of `answers`, as in ROME. Locality
    prompts keep their prefix "nq question: ", with which published figures were measured.
    """
    answer = first(record.get("answers"))
    target = record["alt"] if "alt" in record or answer is None else answer
    return [
        Edit(
            record["src"],
            target,
            subject=part_of(record["src"], record.get("subject")),
            ground_truth=answer if "alt" in record else None,
            **aliased(record, part_of(record["src"], record.get("subject"))),
            **rephrased(record.get("rephrase")),
            **probed("locality", [(record.get("loc"), record.get("loc_ans"))]),
            **probed("portability", grouped(record.get("portability"))),
        )
    ]


def counterfact(record: Record) -> list[Edit]:
    """CounterFact ([Meng et al., 2022](https://hf.co/papers/2202.05262)): the true answer also holds for the neighbours."""
    rewrite = record["requested_rewrite"]
    neighbours = [(prompt, target(rewrite, "target_true")) for prompt in record.get("neighborhood_prompts") or ()]
    paraphrases = record.get("paraphrase_prompts") or ()
    return [rewritten(rewrite, **rephrased(*paraphrases), **probed("locality", neighbours))]


def mquake(record: Record) -> list[Edit]:
    """
    MQuAKE ([Zhong et al., 2023](https://hf.co/papers/2305.14795)) and MQuAKE-Remastered: an edit for each rewrite.

    The multi-hop questions need all the edits of a record. The last one has them, so that each is asked once.
    """
    *others, last = [
        rewritten(rewrite, **rephrased(rewrite.get("question"))) for rewrite in record["requested_rewrite"]
    ]
    questions = [(question, record["new_answer"]) for question in record["questions"]]
    return [*others, replace(last, **probed("portability", questions))]


def wikibigedit(record: Record) -> list[Edit]:
    """WikiBigEdit ([Thede et al., 2025](https://hf.co/papers/2503.05683)); `personas` is the question in another voice."""
    return [
        Edit(
            record["update"],
            record["ans"],
            subject=part_of(record["update"], record.get("subject")),
            **aliased(record, part_of(record["update"], record.get("subject"))),
            **rephrased(record.get("rephrase"), record.get("personas")),
            **probed("locality", [(record.get("loc"), record.get("loc_ans"))]),
            **probed("portability", [(record.get("mhop"), record.get("mhop_ans"))]),
        )
    ]


def ultraeditbench(record: Record) -> list[Edit]:
    """UltraEditBench ([Gu et al., 2025](https://hf.co/papers/2505.14679))."""
    return [
        Edit(
            record["prompt"],
            record["ans"],
            subject=part_of(record["prompt"], record.get("subject")),
            **aliased(record, part_of(record["prompt"], record.get("subject"))),
            **rephrased(record.get("rephrase_prompt")),
            **probed("locality", [(record.get("loc"), record.get("loc_ans"))]),
        )
    ]


# From the name of a format to its function and the keys that tell it; the first whose keys a record has is taken.
FORMATS: dict[str, tuple[Callable[[Record], list[Edit]], set[str]]] = {
    "mquake": (mquake, {"requested_rewrite", "questions"}),
    "counterfact": (counterfact, {"requested_rewrite"}),
    "knowedit": (knowedit, {"locality"}),
    "easyedit": (easyedit, {"prompt", "target_new"}),
    "zsre": (zsre, {"src"}),
    "wikibigedit": (wikibigedit, {"update", "ans"}),
    "ultraeditbench": (ultraeditbench, {"prompt", "ans"}),
}


def rewritten(rewrite: Record, **fields: Any) -> Edit:
    """The edit of a `requested_rewrite`, whose prompt has `{}` for the subject."""
    prompt = rewrite["prompt"].replace("{}", rewrite["subject"])
    subject = part_of(prompt, rewrite["subject"])
    old = target(rewrite, "target_true")
    fields |= aliased(rewrite, subject)
    return Edit(prompt, target(rewrite, "target_new"), subject=subject, ground_truth=old, **fields)


def target(rewrite: Record, key: str) -> Any:
    """`{"str": ...}`; MQuAKE-Remastered has it flat."""
    return rewrite[f"{key}_str"] if f"{key}_str" in rewrite else rewrite[key]["str"]


def aliased(record: Record, subject: str | None) -> dict[str, Any]:
    """Other names of the subject, as Wikidata has them; those that are no names by which it could be found are left out."""
    texts = record.get("aliases") or record.get("subject_aliases") or record.get("subject_alias") or ()
    texts = [texts] if isinstance(texts, str) else texts
    kept = [text for text in texts if is_text(text) and not wrong_alias(text)] if subject else []
    return {"aliases": tuple(kept)} if kept else {}


def rephrased(*prompts: Any) -> dict[str, Any]:
    texts = [prompt for prompt in prompts if is_text(prompt)]
    return {"rephrase_prompt": one_or_several(texts)} if texts else {}


def probed(kind: str, pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Prompts and answers as fields of an [`Edit`]."""
    pairs = [(prompt, first(answer)) for prompt, answer in pairs]
    pairs = [pair for pair in pairs if all(map(is_text, pair))]
    if not pairs:
        return {}
    prompts, answers = zip(*pairs, strict=True)
    return {f"{kind}_prompt": one_or_several(prompts), f"{kind}_ground_truth": one_or_several(answers)}


def grouped(groups: Any) -> Iterator[tuple[Any, Any]]:
    """Prompts and answers of all groups; a group is one probe (EasyEdit) or a list of them (KnowEdit)."""
    if isinstance(groups, Mapping) and "New Question" in groups:
        yield groups["New Question"], groups["New Answer"]
        return
    for group in groups.values() if isinstance(groups, Mapping) else groups or ():
        for probe in group if isinstance(group, list) else [group or {}]:
            prompt = probe.get("prompt")
            answer: Any = probe.get("ground_truth", probe.get("answer"))
            yield from zip(prompt, answer, strict=True) if isinstance(prompt, list) else [(prompt, answer)]


def one_or_several(texts: Sequence[str]) -> str | tuple[str, ...]:
    return texts[0] if len(texts) == 1 else tuple(texts)


def first(answers: Any) -> Any:
    """The first text of lists in lists."""
    while isinstance(answers, list):
        answers = answers[0] if answers else None
    return answers


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def part_of(prompt: str, subject: str | None) -> str | None:
    """The subject, where the prompt holds it letter by letter."""
    return subject if subject and subject in prompt else None
