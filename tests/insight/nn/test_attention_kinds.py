"""Causal, grouped, rotary and linearly biased attention, each beside its definition written as loops; and the cache."""

import math

import pytest
import torch

from insight.errors import InputError
from insight.interpret.record import record, record_attention
from insight.nn.attention import Attention
from insight.nn.block import BlockCache, FusionBlock, blocks
from insight.nn.cache import KeyValueCache
from insight.nn.position import alibi_slopes, grid_places, rotation, score_bias, sinusoids, text_places
from insight.nn.settings import BlockSettings

KINDS = {
    "causal": {"causal": True},
    "grouped": {"kv_heads": 2},
    "one head of keys": {"kv_heads": 1},
    "alibi": {"alibi": True},
    "causal alibi": {"alibi": True, "causal": True},
    "everything": {"alibi": True, "causal": True, "kv_heads": 2, "bias": False},
}
SLOPES = [1 / 4, 1 / 16, 1 / 64, 1 / 256]  # of four heads, by hand


def layer_of(**arguments):
    torch.manual_seed(0)
    layer = Attention(16, 4, **arguments)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def turned(vector, place):
    """Rotary positions: each pair (i, i + 2) of four channels as a complex number, times exp(i place 10000^(-2i/4))."""
    half = len(vector) // 2
    angles = [place * 1e4 ** (-i / half) for i in range(half)]
    numbers = [complex(vector[i], vector[i + half]) * complex(math.cos(a), math.sin(a)) for i, a in enumerate(angles)]
    return torch.tensor([number.real for number in numbers] + [number.imag for number in numbers])


def by_loops(layer, x, mask, alibi=False, causal=False, kv_heads=4, bias=True, rotary=False):
    """Weights (B, H, T, S) and output (B, T, D): one query, one head, one key at a time."""
    batch, length, _ = x.shape
    weights, attended = torch.zeros(batch, 4, length, length), torch.zeros(batch, length, 16)
    query, key_value = layer.query(x), layer.key_value(x)
    key, value = key_value[..., : 4 * kv_heads], key_value[..., 4 * kv_heads :]
    for b in range(batch):
        for h in range(4):
            at = h // (4 // kv_heads) * 4
            for t in range(length):
                scores = torch.full((length,), -math.inf)
                for s in range(length):
                    if (not causal or s <= t) and mask[b, s]:
                        q, k = query[b, t, 4 * h : 4 * h + 4], key[b, s, at : at + 4]
                        q, k = (turned(q, t), turned(k, s)) if rotary else (q, k)
                        scores[s] = q @ k / 2 - (SLOPES[h] * abs(t - s) if alibi else 0)
                if not scores.isneginf().all():
                    weights[b, h, t] = scores.softmax(0)
                    attended[b, t, 4 * h : 4 * h + 4] = weights[b, h, t] @ value[b, :, at : at + 4]
    return weights, layer.output(attended)


def inputs(masked):
    x, mask = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)), torch.ones(3, 5, dtype=torch.bool)
    if masked:
        mask[0, 3:] = False
        mask[1, :2] = False  # the first tokens of a causal row may read nothing
        mask[2] = False
    return x, mask


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_attention_is_its_definition_and_its_record_shows_the_true_weights(kind, masked):
    layer, (x, mask) = layer_of(**KINDS[kind]), inputs(masked)
    weights, output = by_loops(layer, x, mask, **KINDS[kind])
    given = mask if masked else None
    with record_attention(layer) as maps, record(layer, {"": lambda call: call}) as calls:
        torch.testing.assert_close(layer(x, x, given), output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[""], weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(maps[""] @ calls[""].value_BHSK, calls[""].attended_BHTK, atol=1e-5, rtol=1e-5)
    bfloat = layer.to(torch.bfloat16)(x.bfloat16(), x.bfloat16(), given).float()  # the explicit formula of this precision
    torch.testing.assert_close(bfloat, output, atol=0.15, rtol=0.1)


@torch.no_grad()
def test_rotary_attention_turns_queries_and_keys_as_complex_numbers_and_its_record_shows_the_true_weights():
    layer, (x, mask) = layer_of(causal=True), inputs(True)
    weights, output = by_loops(layer, x, mask, causal=True, rotary=True)
    turn = rotation(text_places(0, 5, x.device), 4)
    with record_attention(layer) as maps:
        torch.testing.assert_close(layer(x, x, mask, rotation=turn), output, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps[""], weights, atol=1e-6, rtol=1e-5)


def test_a_rotated_score_depends_on_the_distance_alone_along_each_axis():
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(place, other):
        here, there = (rotation(torch.tensor([at]), 8) for at in (place, other))
        return float((here(query) * there(key)).sum())

    assert score((2, 3), (5, 1)) == pytest.approx(score((0, 2), (3, 0)), abs=1e-5)
    assert score((2, 3), (5, 1)) != pytest.approx(score((2, 3), (5, 2)), abs=1e-3)
    assert score((0, 0), (0, 0)) == pytest.approx(float((query * key).sum()), abs=1e-6)
    with pytest.raises(InputError, match="4 divides, not 6"):
        rotation(grid_places(2, query.device), 6)


def test_sinusoids_are_sines_and_cosines_of_falling_rates():
    table = sinusoids(text_places(3, 2, torch.device("cpu")), 4)
    for row, place in enumerate((3, 4)):
        expected = [math.sin(place), math.sin(place / 100), math.cos(place), math.cos(place / 100)]
        torch.testing.assert_close(table[row], torch.tensor(expected))


def test_slopes_of_alibi_are_the_papers():
    cpu = torch.device("cpu")
    assert alibi_slopes(8, cpu).tolist() == [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(4, cpu).tolist() == SLOPES
    assert alibi_slopes(3, cpu).tolist() == [2**-4, 2**-8, 2**-2]  # two heads' slopes, then the first of four heads'


def test_a_bias_looks_from_the_newest_tokens():
    whole = score_bias(5, 5, True, torch.tensor([0.5]), torch.device("cpu"))
    assert torch.equal(score_bias(2, 5, True, torch.tensor([0.5]), torch.device("cpu")), whole[:, 3:])
    assert score_bias(1, 5, True, None, torch.device("cpu")) is None  # the newest token reads all


@torch.no_grad()
@pytest.mark.parametrize(
    "settings", [BlockSettings(), BlockSettings(kv_heads=2, position="rotary"), BlockSettings(position="alibi")], ids=str
)
def test_a_cache_gives_what_the_whole_text_gives_in_pieces_of_any_size(settings):
    torch.manual_seed(0)
    stack = blocks(2, 16, 4, settings=settings, causal=True)
    x, mask = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 0] = False  # filled up at the left

    def run(x, mask, start, caches):
        turn = rotation(text_places(start, x.shape[1], x.device), 4) if settings.position == "rotary" else None
        for block, cache in zip(stack, caches, strict=True):
            x = block(x, mask, turn, cache)
        return x

    whole, caches = run(x, mask, 0, [None, None]), [BlockCache(), BlockCache()]
    for start, end in ((0, 3), (3, 4), (4, 6)):
        piece = run(x[:, start:end], mask[:, :end], start, caches)
        torch.testing.assert_close(piece, whole[:, start:end], atol=1e-5, rtol=1e-5)
    assert [len(cache) for cache in caches] == [6, 6]
    assert caches[0].own.key_BHSK.shape[1] == (settings.kv_heads or 4)  # groups share what is kept


@torch.no_grad()
def test_a_decoders_block_reads_its_context_once_and_its_own_past_from_the_cache():
    torch.manual_seed(0)
    block, x, context = FusionBlock(16, 4, causal=True), torch.randn(3, 4, 16), torch.randn(2, 7, 16)
    row, context_mask = torch.tensor([1, 0, 1]), torch.rand(2, 7) > 0.3
    whole = block(x, None, context, context_mask, row)
    changed = x.clone()
    changed[:, 2:] = 9.0
    torch.testing.assert_close(block(changed, None, context, context_mask, row)[:, :2], whole[:, :2])  # nobody reads what comes later
    cache = BlockCache()
    for place in range(4):
        given = context if place == 0 else torch.full_like(context, 9.0)  # not looked at again
        step = block(x[:, place : place + 1], None, given, context_mask, row, cache=cache)
        torch.testing.assert_close(step, whole[:, place : place + 1], atol=1e-5, rtol=1e-5)


def test_a_cache_keeps_the_rows_it_is_told_to():
    cache, key = KeyValueCache(), torch.randn(3, 2, 4, 5)
    cache.append(key, -key)
    cache.keep_rows(torch.tensor([2, 2, 0]))
    kept, value = cache.append(key[:, :, :1], key[:, :, :1])
    assert torch.equal(kept[:, :, :4], key[[2, 2, 0]]) and torch.equal(value[:, :, :4], -key[[2, 2, 0]]) and len(cache) == 5


def test_heads_that_groups_do_not_divide_are_an_error_that_names_both():
    with pytest.raises(InputError, match=r"heads=4 .* kv_heads=3"):
        Attention(16, 4, kv_heads=3)
    with pytest.raises(InputError, match=r"block\.kv_heads=0"):
        BlockSettings(kv_heads=0)
