"""Every family streams exactly: against token-by-token decoding by transformers, and against one masked forward."""

from __future__ import annotations

import pytest
import torch
from family_models import FAMILIES, NO_4D_MASK, REFUSED, SCALED_WITH_LENGTH, make, masked_nll, some_tokens
from torch import Tensor

from sinktrain.base.errors import UserError
from sinktrain.streaming import CacheSpec, Positions, SinkCache, reference_nll, stream_nll

CACHES = ["0+9", "4+10", "1+15", "2+30"]  # with a window of 12: wider than C, than y alone, narrower than y


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def largest_difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape and a.numel() > 0
    return float((a - b).abs().max())


def test_cache_rule_equals_token_by_token(family: str) -> None:
    model, tokens = make(FAMILIES[family]), some_tokens()
    for cache in CACHES:
        spec = CacheSpec.parse(cache)
        reference = reference_nll(model, tokens, spec)
        for chunk in (1, 7, 1000):
            assert largest_difference(stream_nll(model, tokens, spec, chunk=chunk), reference) < 1e-5, cache
    off_by_one = stream_nll(model, tokens, CacheSpec(4, 9))  # teeth
    assert largest_difference(off_by_one, stream_nll(model, tokens, CacheSpec(4, 10))) > 1e-3


def test_original_rule_equals_one_masked_forward_of_transformers(family: str) -> None:
    if family in NO_4D_MASK:
        pytest.skip("takes no mask of four dimensions")
    model, tokens = make(FAMILIES[family]), some_tokens()
    for cache in (*CACHES, "dense"):
        spec = CacheSpec.parse(cache)
        for chunk in (1, 7, 1000):
            found = stream_nll(model, tokens, spec, rule="original", chunk=chunk)
            assert largest_difference(found, masked_nll(model, tokens, spec)) < 1e-5, cache


@torch.no_grad()
def test_padded_batches_equal_their_rows(family: str) -> None:
    """Left padding, decoding, then a second turn with padding inside the streams, each row as if it were alone."""
    model, lengths, more = make(FAMILIES[family]), (3, 12, 40), (9, 1, 4)
    spec = CacheSpec(2, 10)
    first = [some_tokens(n, seed=n) for n in lengths]
    second = [some_tokens(n, seed=n + 50) for n in more]
    single = some_tokens(3, seed=99)[:, None]  # a decoding step in between
    cache = SinkCache.for_model(model, spec)
    together = [model(**_padded(first), past_key_values=cache).logits[:, -1]]
    together += [model(input_ids=single, past_key_values=cache).logits[:, -1]]
    together += [model(**_padded(second), past_key_values=cache).logits[:, -1]]
    for row in range(3):
        alone = SinkCache.for_model(model, spec)
        for part, found in zip((first[row], single[row], second[row]), together, strict=True):
            expected = model(input_ids=part[None], past_key_values=alone).logits[0, -1]
            assert largest_difference(found[row], expected) < 2e-5 * float(expected.abs().max().clamp(min=1))


def _padded(rows: list[Tensor]) -> dict[str, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((torch.full((width - len(row),), 2), row)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence(name: str) -> None:
    fields, why = REFUSED[name]
    model = make(fields)
    with pytest.raises(UserError, match=why) as caught:
        stream_nll(model, some_tokens(20), CacheSpec(1, 7))
    assert "\n" not in str(caught.value) and type(model).__name__ in str(caught.value)


@pytest.mark.parametrize("family", SCALED_WITH_LENGTH)
def test_scalings_with_length_are_held_at_the_length_that_is_seen(family: str) -> None:
    """Short caches see the frequencies of short texts, whatever the length of the text; long ones those of long."""
    model = make(FAMILIES[family])
    short, long = (Positions.probe(model, longest).rotary[0] for longest in (17, 89))
    assert short is not None and long is not None
    assert not torch.equal(short.frequencies, long.frequencies)
    model(input_ids=some_tokens(89)[None])  # leaves the model at the frequencies of a long text
    cache = SinkCache.for_model(model, CacheSpec(4, 12))
    assert torch.equal(cache.positions.rotary[0].frequencies, short.frequencies)  # type: ignore[union-attr]


def test_layers_without_positions_are_found() -> None:
    model = make(FAMILIES["SmolLM3 (some layers without positions)"])
    rotary = Positions.probe(model).rotary
    assert [layer is not None for layer in rotary] == [True, True, False, True]


def test_two_rotations_are_told_apart() -> None:
    sliding, full, *_ = Positions.probe(make(FAMILIES["Gemma 3 (sliding layers, two rotations)"])).rotary
    assert sliding is not None and full is not None and not torch.equal(sliding.frequencies, full.frequencies)
