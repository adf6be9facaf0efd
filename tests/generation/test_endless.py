"""The loop: the tokens that `model.generate` gives, no sink among them, and a memory that stays as it is."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType

import pytest
import torch
from small_subjects import small_subject

from sinktrain.base.errors import UserError
from sinktrain.evaluation.subject import Subject
from sinktrain.generation import endless
from sinktrain.generation.endless import Stream, cautions, choose_cache, open_stream
from sinktrain.generation.sampling import Sampler, Sampling
from sinktrain.streaming import CacheSpec, SinkCache

GREEDY = Sampling(temperature=0)


def stream_of(subject: Subject, cache: str, sampling: Sampling = GREEDY) -> Stream:
    return open_stream(subject, CacheSpec.parse(cache), "cache", Sampler(subject, sampling))


def drawn(stream: Stream, ids: list[int], count: int) -> list[int]:
    found = []
    for _ in range(count):
        token = stream.next(ids)
        assert token is not None
        found.append(token)
        ids = [token]
    return found


@pytest.mark.parametrize("sinks", [0, 1, 2])
@pytest.mark.parametrize("length", [1, 9, 75])
def test_greedy_tokens_are_those_of_generate(
    sinks: int, length: int, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endless, "CHUNK", 16)  # the longest prompt takes several chunks and overflows the cache
    subject = small_subject(tokenizer_folder, sinks)
    ids = [*subject.sink_ids, *torch.randint(0, 290, (length,), generator=torch.Generator().manual_seed(2)).tolist()]
    found = drawn(stream_of(subject, "2+30"), ids, 100)
    expected = subject.model.generate(
        input_ids=torch.tensor([ids]), past_key_values=SinkCache.for_model(subject.model, "2+30"), do_sample=False,
        max_new_tokens=100, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert found == expected[0, len(ids) :].tolist()
    assert len(set(found)) > 2  # more than one token over and over


def test_what_is_kept_does_not_grow(tokenizer_folder: Path) -> None:
    stream = stream_of(small_subject(tokenizer_folder), "1+15", Sampling(temperature=1))
    token = drawn(stream, [*stream.subject.sink_ids, 5], 60)[-1]
    memory, size = stream.cache_bytes(), reachable_bytes(stream)
    drawn(stream, [token], 300)
    assert stream.seen == 361 and stream.evicted() == 345
    assert stream.cache_bytes() == memory == 3 * (17 + 17 + 2) * 2 * 8 * 4  # keys, values, sinks once more; in float32
    assert abs(reachable_bytes(stream) - size) < 400  # 300 tokens would be 2400 bytes


def reachable_bytes(root: object) -> int:
    """The size of all Python objects that `root` holds on to, without modules, classes and functions."""
    seen, waiting, total = set(), [root], 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        waiting += gc.get_referents(thing)
    return total


def test_sinks_and_rows_without_a_token_are_never_drawn(tokenizer_folder: Path) -> None:
    subject = small_subject(tokenizer_folder, 2)
    rows, tokens = subject.model.config.vocab_size, len(subject.tokenizer)
    assert tokens < rows
    subject.model.generation_config.suppress_tokens = None
    for temperature in (0.0, 1.0):
        sampler = Sampler(subject, Sampling(temperature, top_p=1))
        logits = torch.zeros(rows)
        logits[subject.sink_ids], logits[tokens:] = 50.0, 50.0
        found = {sampler(logits) for _ in range(200)}
        assert max(found) < tokens and not found & set(subject.sink_ids)
    assert len(found) > 50


def test_sampling_keeps_to_top_k_and_top_p_and_to_its_seed(tokenizer_folder: Path) -> None:
    subject = small_subject(tokenizer_folder)
    logits = torch.full((subject.model.config.vocab_size,), -10.0)
    logits[[3, 4, 5]] = torch.tensor([0.6, 0.3, 0.1]).log()

    def found(**options: float) -> set[int]:
        sampler = Sampler(subject, Sampling(**{"temperature": 1.0, "top_p": 1.0, **options}))  # type: ignore[arg-type]
        return {sampler(logits) for _ in range(200)}

    assert found() >= {3, 4, 5}
    assert found(top_k=2) == {3, 4}
    assert found(top_p=0.5) == {3}
    assert found(temperature=0.05) == {3}
    sequences = []
    for seed in (1, 1, 2):
        sampler = Sampler(subject, Sampling(seed=seed))
        sequences.append([sampler(logits) for _ in range(50)])
    assert sequences[0] == sequences[1] != sequences[2]


def test_a_long_prompt_can_be_stopped_between_chunks(tokenizer_folder: Path) -> None:
    stream = stream_of(small_subject(tokenizer_folder), "1+15")
    assert stream.next([5] * (3 * endless.CHUNK), stopped=lambda: True) is None
    assert stream.seen == endless.CHUNK and stream.drawn == 0


def test_reset_begins_anew(tokenizer_folder: Path) -> None:
    stream = stream_of(small_subject(tokenizer_folder), "1+15")
    first = drawn(stream, [*stream.subject.sink_ids, 7, 8], 40)
    assert drawn(stream, [*stream.subject.sink_ids, 7, 8], 40) != first
    stream.reset()
    assert stream.seen == 0 and drawn(stream, [*stream.subject.sink_ids, 7, 8], 40) == first


@pytest.mark.parametrize(("sinks", "trained", "cache"), [
    (1, 4096, "1+1023"), (2, 4096, "2+1022"), (0, 4096, "4+1020"), (1, 512, "1+511"), (0, 512, "4+508"),
])  # fmt: skip
def test_default_cache(sinks: int, trained: int, cache: str, tokenizer_folder: Path) -> None:
    subject = small_subject(tokenizer_folder, sinks)
    subject.model.config.max_position_embeddings = trained
    spec = choose_cache(subject, None)
    assert str(spec) == cache and cautions(subject, spec) == []


@pytest.mark.parametrize(("cache", "words"), [
    ("2+600", ["602", "512"]), ("1+15", ["1 of the 2 sinks", "worse than no sink"]), ("0+16", ["0 of the 2 sinks"]),
    ("dense", ["memory grows", "512"]), ("1+600", ["601", "1 of the 2"]), ("2+510", []), ("4+12", []),
])  # fmt: skip
def test_warnings_name_both_numbers(cache: str, words: list[str], tokenizer_folder: Path) -> None:
    subject = small_subject(tokenizer_folder, 2)
    found = cautions(subject, choose_cache(subject, cache))
    assert all(any(word in sentence for sentence in found) for word in words)
    assert bool(found) == bool(words) and all(sentence.endswith(".") for sentence in found)


def test_no_cache(tokenizer_folder: Path) -> None:
    with pytest.raises(UserError, match="--cache 'many': is not a cache"):
        choose_cache(small_subject(tokenizer_folder), "many")
