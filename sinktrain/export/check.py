"""The verb `check-export`: an exported folder does elsewhere what the checkpoint does here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sinktrain.base.errors import UserError, at_least
from sinktrain.base.models import load_config, load_tokenizer, quiet
from sinktrain.base.terminal import say
from sinktrain.export.bundle import bundle
from sinktrain.export.record import read_record
from sinktrain.sinks.tokenizer import sink_ids_of

HALF_BOUND = 0.03
"""Root mean square of the difference in logits, by that of the checkpoint's: where weights and sums have 16 bits."""
OUTLET_BOUND = 1e-5
"""The same for float32 weights in another architecture, whose sums are in another order."""

_TEXTS = ["The sink comes first.", "  Then the text, \n\nwhatever it is: naïve 文字 🙂.", "x"]
_CHAT = [
    {"role": "user", "content": "Does a chat begin with the sink?"},
    {"role": "assistant", "content": "It does, once."},
    {"role": "user", "content": "And then?"},
]
_PROMPT, _NEW = 8, 48
_STREAMS = "streams as the checkpoint does"


class Check(NamedTuple):
    """One claim, whether it holds, and what was seen."""

    claim: str
    holds: bool
    seen: str


def check_export(folder: Path, checkpoint: Path | None = None, tokens: int = 1000, seed: int = 0) -> int:
    """Loads an exported folder where sinktrain cannot be imported, and compares what it does with the checkpoint.

    The exit status is 0 when all of it holds, 1 when something does not.

    Args:
        folder: That `sinktrain export` wrote.
        checkpoint: That it was written from; without it logits and streams are not compared.
        tokens: How many tokens to compare the logits of.
        seed: Of the draw of these tokens.

    Returns:
        The exit status.
    """
    at_least("--tokens", tokens, 1)
    at_least("--seed", seed, 0)
    checks = run_checks(folder, checkpoint, tokens, seed)
    for check in checks:
        say(f"{'ok    ' if check.holds else 'FAILED'} {check.claim}: {check.seen}")
    if checkpoint is None:
        say("not compared: logits and streams, without --checkpoint")
    elif not any(check.claim.startswith(_STREAMS) for check in checks):
        say("not compared: streams, whose tokens soon part where logits are not equal bit for bit")
    failed = sum(not check.holds for check in checks)
    say(f"{folder}: {'all checks hold' if not failed else f'{failed} of {len(checks)} checks failed'}")
    return 1 if failed else 0


def run_checks(folder: Path, checkpoint: Path | None, tokens: int = 1000, seed: int = 0) -> list[Check]:
    """The checks of `check_export`.

    Raises:
        UserError: the folder or the checkpoint is none.
    """
    record = read_record(folder)
    questions = _questions(folder, record, tokens, seed)
    with tempfile.TemporaryDirectory() as place:
        answers, problem = _ask(folder, questions, Path(place))
        if answers is None:
            return [Check("loads without sinktrain", False, problem)]
        checks = [Check("loads without sinktrain", True, f"in {answers['dtype']}")]
        code = "as written by this version" if questions["run_code"] else "another, and not run; export again"
        checks.append(Check("custom_generate is sinktrain's own code", questions["run_code"], code))
        checks += _tokenizer_checks(answers, record, sink_ids_of(load_tokenizer(str(folder), "--folder")))
        checks += _generation_checks(answers, record, len(questions["ids"][0][: questions["prompt"]]))
        if checkpoint is not None:
            checks += _compare(answers, Path(place) / "answers", questions, record, checkpoint)
    return checks


def _questions(folder: Path, record: dict[str, Any], tokens: int, seed: int) -> dict[str, Any]:
    """Random tokens behind the sinks, in rows that the model is long enough for."""
    config, sinks = load_config(str(folder), "--folder"), record["sink"]["ids"]
    special = set(load_tokenizer(str(folder), "--folder").all_special_ids)
    choice = torch.tensor([index for index in range(config.get_text_config().vocab_size) if index not in special])
    length = min(tokens, (record["trained_length"] or tokens) - len(sinks))
    generator = torch.Generator().manual_seed(seed)
    rows = -(-tokens // length)
    drawn = choice[torch.randint(len(choice), (rows, length), generator=generator)].tolist()
    cache = f"{max(1, len(sinks))}+{_PROMPT}"  # full, and evicting, soon
    return {
        "ids": [[*sinks, *row] for row in drawn], "texts": _TEXTS, "chat": _CHAT, "cache": cache,
        "prompt": len(sinks) + _PROMPT, "new_tokens": _NEW, "threads": torch.get_num_threads(),
        "run_code": _is_ours(folder, record),
    }  # fmt: skip


def _is_ours(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the code in a folder, which may come from anywhere, is what `export` writes, and so may be run."""
    try:
        return (folder / "custom_generate" / "generate.py").read_text() == bundle(record["cache"])
    except OSError:
        return False


def _ask(folder: Path, questions: dict[str, Any], place: Path) -> tuple[dict[str, Any] | None, str]:
    """What `probe.py` answers, in a process of its own; or None, and the last line that it said."""
    (place / "questions.json").write_text(json.dumps(questions))
    program = Path(__file__).with_name("probe.py")
    command = [sys.executable, "-I", str(program), str(folder.resolve()), "questions.json", "answers"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return None, lines[-1] if lines else f"exit status {done.returncode}"
    return json.loads((place / "answers" / "answers.json").read_text()), ""


def _tokenizer_checks(answers: dict[str, Any], record: dict[str, Any], held: list[int]) -> Iterator[Check]:
    """`held`: the sinks that the tokenizer knows, of which a record without any says nothing."""
    sinks = record["sink"]["ids"]
    yield Check("the tokenizer's sinks are those of sinktrain.json", held == sinks, f"{held}")
    what = f"begins with the {f'{len(sinks)} sinks' if len(sinks) > 1 else 'sink'}, exactly once"
    for way, rows in answers["tokenized"].items():
        wrong = [ids for ids in rows if _without_padding(ids, sinks)[: len(sinks)] != sinks
                 or sum(index in sinks for index in ids) != len(sinks)]  # fmt: skip
        seen = f"{wrong[0][:6]}" if wrong else f"{len(rows)} of {len(rows)}"
        yield Check(f"{way} {what if sinks else 'has no sink'}", not wrong, seen)


def _without_padding(ids: list[int], sinks: list[int]) -> list[int]:
    """Ids from the first sink on, if what is before it is one and the same token: padding on the left."""
    start = ids.index(sinks[0]) if sinks and sinks[0] in ids else 0
    return ids[start:] if len(set(ids[:start])) <= 1 else ids


def _generation_checks(answers: dict[str, Any], record: dict[str, Any], prompt: int) -> Iterator[Check]:
    sinks = record["sink"]["ids"]
    if sinks:
        suppressed = [index for index in sinks if index in answers["suppressed"]]
        yield Check("the generation config suppresses the sink", suppressed == sinks, f"{suppressed} of {sinks}")
    for way, ids in answers["generated"].items():
        new = ids[prompt:]
        found = sum(index in sinks for index in new)
        enough = len(new) == _NEW if way == "custom_generate" else bool(new)
        yield Check(f"{way} gives tokens and no sink", enough and not found, f"{len(new)} tokens, {found} sinks")


@torch.no_grad()
def _compare(
    answers: dict[str, Any], place: Path, questions: dict[str, Any], record: dict[str, Any], checkpoint: Path
) -> Iterator[Check]:
    """Logits and a stream of the folder beside those of the checkpoint, in float32."""
    from safetensors.torch import load_file

    from sinktrain.streaming import SinkCache
    from sinktrain.training.checkpoints import load_checkpoint

    trained = load_checkpoint(checkpoint, option="--checkpoint", merge=record["adapters"] != "kept")
    model: Any = trained.model
    ids = torch.tensor(questions["ids"])
    if trained.step != record["step"] or ids.max() >= model.get_input_embeddings().num_embeddings:
        raise UserError(
            f"--checkpoint {checkpoint}: is of step {trained.step}, the export of step {record['step']}; name the one "
            "that it was written from."
        )
    expected = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in ids])
    found = load_file(place / "logits.safetensors")["logits"]
    yield _logits(found, expected, answers["dtype"], trained.sink.has_outlet)
    if answers["dtype"] == "float32" and questions["run_code"]:
        cache = SinkCache.for_model(model, questions["cache"])
        prompt = ids[:1, : questions["prompt"]]
        with quiet():
            stream = model.generate(
                prompt, past_key_values=cache, max_new_tokens=_NEW, do_sample=False, eos_token_id=-1,
                attention_mask=torch.ones_like(prompt),
            )  # fmt: skip
        same = stream[0].tolist() == answers["generated"]["custom_generate"]
        yield Check(f"{_STREAMS}, cache {questions['cache']}", same, f"{_NEW} tokens, greedily")


def _logits(found: Tensor, expected: Tensor, dtype: str, outlet: bool) -> Check:
    """Equal in float32; within a bound where the weights were rounded, or are in another architecture."""
    if found.shape != expected.shape:
        return Check("logits", False, f"of shape {list(found.shape)}, the checkpoint's of {list(expected.shape)}")
    apart = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    bound = HALF_BOUND if dtype != "float32" else OUTLET_BOUND if outlet else 0.0
    tokens = found.shape[0] * found.shape[1]
    claim = f"logits of {tokens:,} tokens are {'near ' if bound else ''}the checkpoint's"
    return Check(claim, apart <= bound, f"root mean square {apart:.2g} of theirs apart, {bound:g} allowed")
