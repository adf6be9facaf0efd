"""The verb `evaluate`: models, texts and caches, all with all."""

from __future__ import annotations

import json
from pathlib import Path

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.folders import Draft, draft_of, kept_folder
from sinktrain.base.terminal import say
from sinktrain.evaluation.contestants import contestants, once
from sinktrain.evaluation.grid import caches_of, parse_caches, rows_asked
from sinktrain.evaluation.outcome import show, write_cells
from sinktrain.evaluation.pieces import Settings, pieces, shared_out, too_few
from sinktrain.evaluation.ranks import Ranks, ranks
from sinktrain.evaluation.rules import first_with_sinks
from sinktrain.evaluation.subject import ModelOptions
from sinktrain.evaluation.tasks import evaluate_tasks
from sinktrain.evaluation.work import Workshop
from sinktrain.streaming import CacheSpec, PositionRule

DEFAULT_CACHES, DEFAULT_SINKS = "0+256 1+255 4+252", "0 1 2 4"
_PLAN = "plan.json"


def evaluate(
    model: ModelOptions,
    out: Path,
    text: str | list[str] | None = None,
    beside: str | list[str] | None = None,
    caches: str | None = None,
    budget: str | None = None,
    sinks: str | None = None,
    tokens: int = 8192,
    skip: int = 0,
    recompute: int = 256,
    rule: PositionRule = "cache",
    both_rules: bool = False,
    chunk: int = 512,
    batch: int = 8,
    attention: bool = True,
    tasks: str | None = None,
    task_folder: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Streams texts through models under a grid of caches and writes the NLL of every token.

    One that was stopped goes on when the same command comes again; a cache over a text that it had not finished begins
    anew. Under a launcher such as torchrun its ranks share the work.

    Args:
        model: The model to evaluate, or a folder of models (exports, or runs) to evaluate side by side.
        out: The result folder to write: of one model and one text their results, of several a folder for each.
        text: Folders made by `sinktrain prepare` (their validation part is taken), or sources of text as `sinktrain
            prepare --source` takes them.
        beside: Further models, or folders of models.
        caches: The caches to compare, x+y each (x sinks and the y most recent tokens), or `dense` for no eviction; by
            default 0+256, 1+255 and 4+252.
        budget: Instead of --caches, cache sizes C, such as 256,512,1024: each with every number of --sinks kept.
        sinks: How many first positions the caches of --budget keep; by default 0, 1, 2 and 4.
        tokens: How many tokens of each text to stream.
        skip: How many tokens of a text to leave out first.
        recompute: At how many positions to recompute a window of C tokens afresh, the quality reference, for each C;
            0 for none.
        rule: The distance that a sink is seen at, counted inside the `cache` (as the paper does) or in the text
            (`original`).
        both_rules: Also stream every cache that has sinks under the other rule, and say of the first of them what
            `original` costs.
        chunk: How many tokens to run at once; the result is the same for all.
        batch: How many recomputed windows to run at once.
        attention: Also measure the attention on the first position, by layer and head.
        tasks: Instead of a text, tasks of EleutherAI's evaluation harness, separated by commas, with the sinks in front
            of every window (`pip install sinktrain[eval]`); what follows from a text is not for them.
        task_folder: With the YAML files of tasks of your own.
        limit: How many examples of each task to take; all without it.
        seed: Of the choice of recomputed positions.
        overwrite: Replace an existing result folder, or what a stopped run with other settings has left of one.

    Returns:
        The result folder.
    """
    if (text is None) == (tasks is None):
        raise UserError("--text: is missing; name a text, or tasks by --tasks, and not both.")
    if tasks is not None:
        return evaluate_tasks(model, tasks, task_folder, limit, batch, out, overwrite)
    for option, value, least in (
        ("--tokens", tokens, 1), ("--chunk", chunk, 1), ("--batch", batch, 1), ("--skip", skip, 0),
        ("--recompute", recompute, 0), ("--seed", seed, 0),
    ):  # fmt: skip
        at_least(option, value, least)
    specs = _specs(caches, budget, sinks)
    second = first_with_sinks(specs) if both_rules else None
    settings = Settings(
        contestants(model, _listed(beside)), _listed(text), rows_asked(specs, rule, both_rules, recompute),
        tokens, skip, recompute, chunk, batch, attention, seed,
    )  # fmt: skip
    once("--text", settings.texts, "text")
    if tokens < 2 * settings.size:
        raise too_few(tokens, settings.size)
    with ranks() as place:
        if place.is_first:
            read = [*(each.options.name for each in settings.models), *settings.texts]
            with kept_folder(out, "--out", overwrite=overwrite, reads=read) as draft:
                workshop = Workshop(settings, draft.notes)
                _begin(workshop, draft, out, overwrite)
                try:
                    _work(workshop, place)
                finally:
                    draft.keep = any(map(workshop.is_done, pieces(settings)))
                records = write_cells(workshop, draft.result, second)
            show(records)
            say(f"results: {out}")
        else:
            _work(Workshop(settings, draft_of(out) / "notes"), place)
    return out


def _specs(caches: str | None, budget: str | None, sinks: str | None) -> list[CacheSpec]:
    if caches is not None and budget is not None:
        raise UserError(f"--budget {budget}: gives the caches, and so does --caches; leave one of them out.")
    if sinks is not None and budget is None:
        raise UserError(f"--sinks {sinks}: goes with --budget; give that, or leave it out.")
    specs = parse_caches(caches or DEFAULT_CACHES) if budget is None else caches_of(budget, sinks or DEFAULT_SINKS)
    if all(spec.size is None for spec in specs):
        raise UserError(f"--caches {caches!r}: holds no cache that evicts; add one such as 1+255.")
    return specs


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _begin(workshop: Workshop, draft: Draft, out: Path, overwrite: bool) -> None:
    """Takes up what a stopped run has left, if it was of the same plan; reads the texts.

    Raises:
        UserError: something is left of a run of another plan, and may not be overwritten.
    """
    plan, path = json.loads(json.dumps(workshop.settings.plan)), draft.notes / _PLAN
    before = json.loads(path.read_text()) if path.is_file() else {}
    if before == plan:
        work = pieces(workshop.settings)
        say(f"goes on where it stopped: {sum(map(workshop.is_done, work))} of {len(work)} pieces are done")
        return
    draft.keep = any(draft.notes.glob("m*-t*-r*"))  # hours of work, which no mistake in an option is to cost
    if draft.keep and not overwrite:
        other = ", ".join(name for name in plan if before.get(name) != plan[name])
        raise UserError(
            f"--out {out}: a stopped run with other {other} has left there what it measured; give its command again, "
            "choose another folder, or pass --overwrite true to begin anew."
        )
    workshop.begin(draft.clear)
    path.write_text(json.dumps(plan))


def _work(workshop: Workshop, place: Ranks) -> None:
    """This rank's share of what is left."""
    place.wait()  # until the texts are read
    left = [piece for piece in pieces(workshop.settings) if not workshop.is_done(piece)]
    place.wait()  # until all have looked what is left
    workshop.run(shared_out(left, place.count)[place.rank])
    place.wait()
