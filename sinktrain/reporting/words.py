"""Sentences that say what was found, whichever way it came out."""

from __future__ import annotations

import math

from sinktrain.reporting.numbers import change, count, nats, plain, ppl
from sinktrain.reporting.records import PositionRules, Results, Row, RulePair
from sinktrain.reporting.verdict import Verdict

DEFAULT_MARGIN = math.log(1.01)


def describe(row: Row) -> str:
    """What a row keeps of the history."""
    if row.method == "dense":
        return "the whole history"
    if row.method == "recompute":
        size = row.name.partition(" ")[2]
        return f"a fresh forward{f' over {size} tokens' if size else ''} for each sampled token"
    first, _, recent = row.name.split()[0].partition("+")
    kept = f"the {recent} most recent" if row.method == "window" else f"the first {first} and the {recent} most recent"
    return f"{kept}, distances in the text" if row.name.endswith(" original") else kept


def claim(verdict: Verdict) -> str:
    """What the verdict is about."""
    against = " and as ".join(dict.fromkeys(item.b for item in verdict.comparisons))
    if not against:
        return "One sink is as good as several, and as recompute"
    return f"{verdict.comparisons[0].a} is as good as {against}"


def lost_sink(results: Results) -> str | None:
    """Why the window row of a model with sink tokens can be so bad; None where there is nothing to explain."""
    row = next((row for row in results.main_rows if row.method == "window"), None)
    if row is None or not results.sinks:
        return None
    sink, has = ("sink token", "that token") if results.sinks == 1 else ("sink tokens", "those tokens")
    return (
        f"The cache {row.name} keeps no first positions: once it is full, it has lost the {sink}. This model was "
        f"trained with {has} in front of every sample and never without, so its NLL can explode there. The other "
        "caches keep position 0. The row shows what the sink does; it is not a way to use this model."
    )


def rule_costs(models: list[tuple[str, Results]]) -> list[str]:
    """What the position rule `original` costs past the training length, a sentence or two for each model measured.

    Args:
        models: the word for each model (`fine-tuned`, `base`) and its results.
    """
    said = [_rule_cost(name, model.position_rules) for name, model in models if model.position_rules is not None]
    return said or [
        "What “original” costs past the training length was not measured; sinktrain evaluate --both_rules true does."
    ]


def _rule_cost(name: str, rules: PositionRules) -> str:
    length, past, full = rules.trained_length, rules.past_trained_length, rules.full_cache
    here = f"In the {name} model, cache {rules.cache},"
    if past is not None and past.enough:
        return f"{here} past the training length of {count(length or 0)} tokens, {_rule_difference(past)}."
    if past is not None:
        why = f"only {count(past.tokens)} tokens stand past the training length of {count(length or 0)}"
    elif length is None:
        why = "the training length is not known"
    else:
        why = f"the text was not longer than the training length of {count(length)} tokens"
    nothing = f"{here} {why}, so nothing can be said of what “original” costs past it."
    return f"{nothing} On all its tokens with a full cache, {_rule_difference(full)}." if full.enough else nothing


def _rule_difference(pair: RulePair) -> str:
    """Says `costs` or `saves` where the whole interval lies on one side of zero, and neither where it does not."""
    (low, high), difference = pair.interval, pair.difference
    if low > 0:
        verb, numbers = "costs", [difference, low, high]
    elif high < 0:
        verb, numbers = "saves", [-difference, -high, -low]
    else:
        verb, numbers = "", [difference, low, high]
    mean, begin, end = (nats(number).removeprefix("+" if verb else "") for number in numbers)
    found = f"“original” {verb}" if verb else "the two rules cannot be told apart, and “original” minus “cache” is"
    return (
        f"{found} {mean} nats a token (95% interval {begin} to {end}; {change(difference)}): PPL "
        f"{ppl(pair.ppl_original)} against {ppl(pair.ppl_cache)} with “cache”, on {count(pair.tokens)} tokens"
    )


def findings(results: Results, base: Results | None, margin: float | None, word: str = "fine-tuned") -> list[str]:
    """What one kept position, and none, does in each model, and what the dedicated sink has changed.

    Args:
        results: the fine-tuned model.
        base: the model it came from.
        margin: the difference in NLL that counts as none, in nats; the verdict's, or ln(1.01).
        word: for the first model.
    """
    limit = DEFAULT_MARGIN if margin is None else margin
    models = [(word, results)] if base is None else [(word, results), ("base", base)]
    said = [text for name, model in models if (text := f"{_one_and_more(name, model)} {_none(name, model)}".strip())]
    if base is not None:
        said += [sentence for sentence in (_what_changed(results, base, limit), _attention(results, base)) if sentence]
        said.append(
            "Fine-tuning moves every PPL by itself, sink or not: compare the caches inside one model, "
            "and not one model's PPL with the other's."
        )
    return said


def _fewest_and_most(results: Results) -> tuple[Row, Row] | None:
    """The streaming rows of the largest size with the fewest and the most first positions, when there are two."""
    rows = [row for row in results.main_rows if row.method == "streaming"]
    if len(rows) < 2:
        return None
    rows.sort(key=lambda row: int(row.name.partition("+")[0]))
    return rows[0], rows[-1]


def _difference(a: Row, b: Row) -> float:
    return a.nll_full_cache - b.nll_full_cache


def _one_and_more(name: str, results: Results) -> str:
    pair = _fewest_and_most(results)
    if pair is None:
        return ""
    few, many = pair
    gap = _difference(few, many)
    return (
        f"In the {name} model {few.name} has PPL {ppl(few.ppl_full_cache)} with a full cache and {many.name} has "
        f"{ppl(many.ppl_full_cache)}: {nats(gap)} nats ({change(gap)})."
    )


def _none(name: str, results: Results) -> str:
    window = next((row for row in results.main_rows if row.method == "window"), None)
    kept = next((row for row in results.main_rows if row.method == "streaming"), None)
    if window is None or kept is None:
        return ""
    gap = _difference(window, kept)
    return (
        f"Without any first position, {window.name}, the {name} model has PPL {ppl(window.ppl_full_cache)}: "
        f"{nats(gap)} nats against {kept.name} ({change(gap)})."
    )


def _what_changed(results: Results, base: Results, limit: float) -> str | None:
    before, after = _fewest_and_most(base), _fewest_and_most(results)
    if before is None or after is None or not results.sinks:
        return None
    gaps = _difference(*before), _difference(*after)
    if not all(math.isfinite(gap) for gap in gaps):
        return None
    few, many = (row.name for row in after)
    base_does, tuned_does = (gap <= limit for gap in gaps)
    if base_does and tuned_does:
        changed = f"{few} is enough with the sink token, as it was in the base model with the text's first token alone"
    elif tuned_does:
        changed = f"{few} was not enough for the base model, and is enough with the sink token"
    elif base_does:
        changed = f"{few} was enough for the base model, and is not with the sink token: fine-tuning has made it worse"
    else:
        changed = f"{few} is not enough for either model"
    return (
        f"So, against {many}, {changed}. (Up to {plain(limit)} nats count as no difference; these are plain "
        "differences, and the verdict has the intervals.)"
    )


def _attention(results: Results, base: Results) -> str | None:
    if results.attention is None or base.attention is None:
        return None
    return (
        f"Heads that give position 0 more than 0.3 of their attention: {base.attention['sink_metric']:.0%} in the base "
        f"model, {results.attention['sink_metric']:.0%} in the fine-tuned model."
    )
