"""Is a model as able as before its edits? Tasks of EleutherAI's lm-eval, with the edits and without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..generation import evaluating


def general_ability(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str | dict[str, Any]],
    limit: float | None = None,
    batch_size: int = 16,
    **options: Any,
) -> dict[str, float]:
    """
    Score a model on tasks of [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness), edited and unedited.

    | key | what |
    |---|---|
    | `{task}/{metric}` | of the edited model: `arc_easy/acc_norm`, or with a filter `gsm8k/exact_match,strict-match` |
    | `{task}/{metric}_base` | the same of the base model, which is the model with its adapter disabled |
    | `{task}/unchanged` | share of documents to which every response is the base model's, log-likelihoods to the last bit |

    Requests for text are calls of `generate`. A log-likelihood comes from one forward pass over question and answer, which
    does not tell where the answer begins: an edit acts there as in any text, and in the examples of few-shot prompts too.
    lm-eval gives its results to the first process of a launch only, so this is for a single process.

    The `lm_eval` command loads an adapter by its folder:

        lm_eval run --model hf --model_args pretrained=BASE,peft=ADAPTER --tasks arc_easy

    Args:
        model ([`~peft.PeftModel`]): The edited model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        tasks (`Sequence` of `str` or `dict`):
            Names of lm-eval's tasks or groups, whose data most often come from the Hub; paths of YAML files of tasks; or
            what such files hold, as dictionaries.
        limit (`float`, *optional*): Documents of each task, or below 1 the share of them; by default all.
        batch_size (`int`, *optional*, defaults to 16): Requests at once.
        options:
            Of `lm_eval.simple_evaluate`: `num_fewshot`, `apply_chat_template`, `task_manager` and others. The seeds that
            it sets, `random_seed` for example, are the same for both models.

    Raises:
        ImportError: If lm-eval is not installed.

    Example:

        >>> general_ability(model, tokenizer, ["arc_easy"], limit=100)["arc_easy/unchanged"]
    """
    try:  # it is an extra
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            "general_ability runs tasks of lm-eval, which cannot be imported. Install it: `pip install lemoe_hf[eval]`."
        ) from error

    if "task_manager" not in options:
        # To find tasks by their names all of lm-eval's files are read, which takes seconds.
        options["task_manager"] = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))
    with evaluating(model):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        arguments = {"tasks": list(tasks), "limit": limit, "bootstrap_iters": 0} | options
        edited = simple_evaluate(lm, **arguments)
        with model.disable_adapter():
            base = simple_evaluate(lm, **arguments)

    measures: dict[str, float] = {}
    for task, scores in edited["results"].items():
        for key, score in scores.items():
            metric, comma, name_of_filter = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                name = f"{task}/{key if name_of_filter != 'none' else metric}"
                measures |= {name: float(score), f"{name}_base": float(base["results"][task][key])}
        if task in edited["samples"]:  # a group of tasks has none of its own
            pairs = zip(edited["samples"][task], base["samples"][task], strict=True)
            same = [after["resps"] == before["resps"] for after, before in pairs]
            measures[f"{task}/unchanged"] = sum(same) / len(same)
    return measures
