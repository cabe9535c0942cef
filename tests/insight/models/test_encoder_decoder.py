from __future__ import annotations

import pytest
import torch
from torch import nn

from insight.errors import InputError
from insight.models.encoder_decoder import Decoder, Transformer
from insight.nn.settings import BlockSettings

DIM, HEADS, VOCAB = 16, 2, 11
SMALL_EPS = BlockSettings(norm_eps=1e-9)  # the context is normed twice, which changes nothing but for eps


def copy_attention(ours, theirs: nn.MultiheadAttention) -> None:
    query, key, value = theirs.in_proj_weight.chunk(3)
    query_bias, key_bias, value_bias = theirs.in_proj_bias.chunk(3)
    ours.query.load_state_dict({"weight": query, "bias": query_bias})
    ours.key_value.load_state_dict({"weight": torch.cat([key, value]), "bias": torch.cat([key_bias, value_bias])})
    ours.output.load_state_dict(theirs.out_proj.state_dict())


def copied(theirs: nn.Transformer) -> Transformer:
    """Ours with the weights of torch's own."""
    ours = Transformer(VOCAB, VOCAB, 8, 8, DIM, 2, 2, HEADS, block=SMALL_EPS).eval()
    for block, layer in zip(ours.encoder.blocks, theirs.encoder.layers, strict=True):
        copy_attention(block.attention, layer.self_attn)
        block.attention_norm.load_state_dict(layer.norm1.state_dict())
        block.mlp_norm.load_state_dict(layer.norm2.state_dict())
        block.mlp.expand.load_state_dict(layer.linear1.state_dict())
        block.mlp.contract.load_state_dict(layer.linear2.state_dict())
    for block, layer in zip(ours.decoder.blocks, theirs.decoder.layers, strict=True):
        copy_attention(block.attention, layer.self_attn)
        copy_attention(block.cross_attention, layer.multihead_attn)
        block.attention_norm.load_state_dict(layer.norm1.state_dict())
        block.cross_norm.load_state_dict(layer.norm2.state_dict())
        block.mlp_norm.load_state_dict(layer.norm3.state_dict())
        block.mlp.expand.load_state_dict(layer.linear1.state_dict())
        block.mlp.contract.load_state_dict(layer.linear2.state_dict())
    ours.decoder.norm.load_state_dict(theirs.decoder.norm.state_dict())
    return ours


def test_with_copied_weights_it_is_torchs_own_transformer():
    torch.manual_seed(0)
    theirs = nn.Transformer(DIM, HEADS, 2, 2, 4 * DIM, 0.0, "gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-9).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
        elif "norm" in name and not name.startswith("encoder.norm"):  # ours norms the context in every block: that of the encoder is plain
            nn.init.uniform_(parameter, 0.5, 1.5)
    ours = copied(theirs)
    source, target = torch.randint(VOCAB, (3, 7)), torch.randint(VOCAB, (3, 5))
    source_mask, target_mask = torch.arange(7) < torch.tensor([[7], [4], [5]]), torch.arange(5) < torch.tensor([[5], [5], [2]])
    with torch.no_grad():
        found = ours(source, source_mask, target, target_mask).tokens
        expected = theirs(
            ours.encoder.embedding(source),
            ours.decoder.embedding(target),
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(5).isneginf(),
            src_key_padding_mask=~source_mask,
            tgt_key_padding_mask=~target_mask,
            memory_key_padding_mask=~source_mask,
        )
    torch.testing.assert_close(found[target_mask], expected[target_mask], atol=1e-5, rtol=1e-5)


def test_it_learns_to_write_a_text_backwards():
    torch.manual_seed(0)
    model = Transformer(8, 8, 5, 5, 16, 1, 1, 2)
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    every = torch.ones(32, 3, dtype=torch.bool)

    def batch():
        source = torch.randint(2, 8, (32, 3), generator=generator)
        return source, torch.cat([torch.ones(32, 1, dtype=torch.int64), source.flip(1)], dim=1)  # 1 = start

    for _ in range(150):
        source, target = batch()
        logits = model(source, every, target[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source, target = batch()
    written = target[:, :1]
    with torch.no_grad():
        for _ in range(3):  # each token from those that it wrote itself
            written = torch.cat([written, model(source, every, written).logits[:, -1:].argmax(dim=-1)], dim=1)
    assert (written == target).float().mean() > 0.95


@pytest.mark.parametrize("position", ["learned", "rotary", "alibi", "sinusoidal"])
def test_token_by_token_with_a_cache_is_the_same_as_all_at_once(position):
    torch.manual_seed(0)
    decoder = Decoder(VOCAB, 6, DIM, 2, HEADS, block=BlockSettings(position=position)).eval()
    tokens, context = torch.randint(VOCAB, (3, 6)), torch.randn(3, 4, DIM)
    context_mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    with torch.no_grad():
        whole = decoder(tokens, context, context_mask_BS=context_mask).logits
        cache = decoder.new_cache()
        parts = [decoder(tokens[:, one : one + 1], context, context_mask_BS=context_mask, cache=cache).logits for one in range(6)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
        with pytest.raises(InputError, match="7 tokens are longer than the model's context_length=6"):
            decoder(tokens[:, :1], context, context_mask_BS=context_mask, cache=cache)


def test_a_token_knows_nothing_of_those_after_it_and_all_of_the_context():
    torch.manual_seed(0)
    decoder, context = Decoder(VOCAB, 6, DIM, 2, HEADS).eval(), torch.randn(2, 4, DIM)
    tokens = torch.randint(VOCAB, (2, 6))
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    with torch.no_grad():
        first, second = decoder(tokens, context).logits, decoder(changed, context).logits
        other = decoder(tokens, torch.cat([context[:, :3], torch.randn(2, 1, DIM)], dim=1)).logits
    assert torch.equal(first[:, :3], second[:, :3]) and not torch.allclose(first[:, 3:], second[:, 3:])
    assert not torch.isclose(first, other).all(dim=-1).any()


def test_texts_of_one_picture_read_it_once_by_its_row():
    torch.manual_seed(0)
    decoder, context, tokens = Decoder(VOCAB, 6, DIM, 2, HEADS).eval(), torch.randn(2, 4, DIM), torch.randint(VOCAB, (3, 6))
    row = torch.tensor([0, 0, 1])
    with torch.no_grad():
        torch.testing.assert_close(decoder(tokens, context, context_row_C=row).logits, decoder(tokens, context[row]).logits)
