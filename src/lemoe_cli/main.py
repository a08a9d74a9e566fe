"""Commands and their options; what they do is in `commands.py`, imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from .quiet import be_quiet


app = typer.Typer(
    name="lemoe",
    help="Correct a causal language model, again and again, and keep the corrections as a PEFT adapter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    Optional[str], typer.Option("--model", help="Base model: a folder or a Hub id. By default the adapter's own.")
]
Adapter = Annotated[Path, typer.Option("--adapter", help="Folder of the adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def tell_version(is_asked_for: bool) -> None:
    if is_asked_for:
        from lemoe_hf import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def before(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    be_quiet()


@app.command()
def edit(
    model: Annotated[str, typer.Option("--model", help="Base model: a folder or a Hub id.")],
    edits: Annotated[
        Path,
        typer.Option("--edits", help="JSON lines with `prompt`, `target_new` and, better, `subject` and `aliases`."),
    ],
    adapter: Adapter,
    step: Annotated[int, typer.Option(min=1, help="Edits trained side by side and saved together.")] = 64,
    order: Annotated[
        Literal["none", "kmeans", "hierarchical", "superposition", "random"],
        typer.Option(help="Which edits to make together: as the file has them, or planned over the whole file."),
    ] = "none",
    method: Annotated[
        Optional[Literal["lemoe", "memoe", "elder", "wilke", "rome"]],
        typer.Option(
            help="Method of a new adapter, by default lemoe; one that is there has its own. Rank-one edits come out as a LoRA "
            "adapter: wilke, each at the layer where it is the smallest change, or rome, at `--layer`."
        ),
    ] = None,
    layer: Annotated[Optional[int], typer.Option("--layer", min=0, help="With `--method rome`: the layer.")] = None,
    json: Json = False,
) -> None:
    """Make edits and save them to an adapter; an adapter that is there already grows. Run again after a crash to resume."""
    if method in ("wilke", "rome"):
        from .rank_one import edit as run_rank_one

        run_rank_one(model, edits, adapter, step, order, method, layer, json)
        return
    from .commands import edit as run

    run(model, edits, adapter, step, order, method, json)


@app.command()
def superposition(
    model: Annotated[str, typer.Argument(help="Dense base model: a folder or a Hub id.")],
    edits: Annotated[
        Path, typer.Option("--edits", help="Edits with their subjects, in any format of the benchmarks.")
    ],
    layer: Annotated[
        Optional[int], typer.Option("--layer", min=0, help="Layer to look at; by default at a quarter of the depth.")
    ] = None,
    protect: Annotated[
        Optional[Path],
        typer.Option("--protect", help="Facts that are to stay: tell by how much each edit would move them."),
    ] = None,
    data: Annotated[
        Optional[Path],
        typer.Option("--data", help="Text to take statistics of, a text a line. By default the model's own samples."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Look at every layer as well.")] = False,
    plot: Annotated[
        Optional[Path], typer.Option("--plot", help="Draw it to this file, say report.svg. Needs Matplotlib.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell which facts a rank-one edit cannot change one without the other, before any is edited."""
    from .rank_one import superposition as run

    run(model, edits, layer, protect, data, profile, plot, json)


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Argument(help="One or more prompts.")],
    adapter: Adapter,
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 24,
    json: Json = False,
) -> None:
    """Answer prompts with the edited model, beside the base model's answers."""
    from .commands import generate as run

    run(prompt, adapter, model, max_new_tokens, json)


@app.command()
def evaluate(
    adapter: Adapter,
    model: Model = None,
    edits: Annotated[
        Optional[Path],
        typer.Option(
            "--edits", help="Edits to measure, in any format of the public benchmarks; by default the adapter's."
        ),
    ] = None,
    measures: Annotated[
        str,
        typer.Option(
            "--measures",
            help="Some of these and of `contexts`, `conversation` and `routing`, with commas between them.",
        ),
    ] = "reliability,generality,locality,portability",
    work: Annotated[
        Optional[Path],
        typer.Option(
            "--work", help="Folder for what is under way: the same command goes on where it was interrupted."
        ),
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write the figures to the adapter's model card.")] = False,
    json: Json = False,
) -> None:
    """Measure reliability, generality, locality and more after all edits, teacher-forced and by free generation."""
    from .commands import evaluate as run

    run(adapter, model, edits, measures.split(","), work, card, json)


@app.command()
def inspect(
    adapter: Adapter,
    prompt: Annotated[Optional[list[str]], typer.Option("--prompt", help="Tell which edit would answer this.")] = None,
    model: Model = None,
    json: Json = False,
) -> None:
    """List the edits of an adapter, or tell which of them would answer a prompt and why."""
    from .commands import inspect as run

    run(adapter, prompt or [], model, json)


@app.command()
def undo(
    edit_id: Annotated[list[int], typer.Argument(help="Identifiers of edits, as `lemoe inspect` lists them.")],
    adapter: Adapter,
    model: Model = None,
    json: Json = False,
) -> None:
    """Take edits back, exactly, and save the adapter."""
    from .commands import undo as run

    run(edit_id, adapter, model, json)


@app.command()
def push(
    adapter: Adapter,
    repo: Annotated[str, typer.Option("--repo", help="Repository of the Hub, NAME or OWNER/NAME; made if need be.")],
    no_edits: Annotated[
        bool,
        typer.Option(
            "--no-edits",
            help="Keep the texts of the edits back. Their prompts can still be read from the weights, as tokens.",
        ),
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        Optional[str], typer.Option("--revision", help="Branch to push to, made if need be. By default main.")
    ] = None,
    json: Json = False,
) -> None:
    """Push an adapter to the Hugging Face Hub, with its card and its list of edits."""
    from .commands import push as run

    run(adapter, repo, not no_edits, private, revision, json)
