import torch

from insight.interpret.attention_maps import fused_rollout
from insight.interpret.explain import explain
from insight.interpret.family import Target
from insight.interpret.record import record_attention
from insight.stages import Call

RAW, ROLLOUT = (Call(f"insight.interpret.attention_maps.{name}") for name in ("raw_attention", "rollout_map"))


def maps_of(family, batch):
    inputs = family.embed(family.rows(batch, None)[0])
    with torch.no_grad(), record_attention(family.model) as maps:
        family.score(inputs)
    return maps


def test_raw_attention_is_the_last_layers_as_what_is_read_out_sees_it(family, batch):
    explanation, maps = explain(family, batch, None, RAW), maps_of(family, batch)
    for row in range(len(explanation.score)):
        if family.flow.fusion:
            real = batch.token_mask[row]
            crossing = maps["fusion.1.cross_attention"][row].mean(dim=0)
            torch.testing.assert_close(explanation.pairs[row].flatten(1), crossing[:, 1:] * real[:, None])
            torch.testing.assert_close(explanation.image[row].flatten(), crossing[real, 1:].mean(dim=0))
            torch.testing.assert_close(explanation.text[row], maps["fusion.1.attention"][row].mean(dim=0)[real].mean(dim=0))
            continue
        torch.testing.assert_close(explanation.image[row].flatten(), maps["image.blocks.1.attention"][row].mean(dim=0)[0, 1:])
        if family.flow.text:
            words = maps["text.blocks.1.attention"][row].mean(dim=0)
            torch.testing.assert_close(explanation.text[row], words[batch.token_mask[row]].mean(dim=0))


def test_rollout_through_fusion_sums_over_every_way_by_hand():
    text, image = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]), torch.tensor([[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    own, crossing = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]]])
    words, pairs = fused_rollout(text, image, {"own": own, "crossing": crossing}, (("own", "crossing"),))
    # own attention swaps the words: (text + swapped) / 2 = [.375, .625] twice; half of it stays, half is what is read of the image
    torch.testing.assert_close(words, torch.tensor([[[0.1875, 0.3125], [0.1875, 0.3125]]]))
    torch.testing.assert_close(pairs, torch.tensor([[[0.25, 0.125, 0.125], [0.0, 0.25, 0.25]]]))


def test_rollout_shares_out_exactly_one_over_both_sides(cross_attention, batch):
    maps = maps_of(cross_attention, batch)
    explanation = explain(cross_attention, batch, None, ROLLOUT)
    half = [
        (maps[name].mean(dim=1) + torch.eye(maps[name].shape[-1])) / 2 for name in (*cross_attention.flow.image, *cross_attention.flow.text)
    ]
    words, pairs = fused_rollout(half[3] @ half[2], half[1] @ half[0], maps, cross_attention.flow.fusion)
    torch.testing.assert_close(words.sum(dim=-1) + pairs.sum(dim=-1), torch.ones(4, 6))
    torch.testing.assert_close(explanation.pairs.flatten(2), pairs[..., 1:] * batch.token_mask[..., None])


def test_they_do_not_know_what_a_picture_is_compared_with(dual_encoder, batch):
    for call in (RAW, ROLLOUT):
        explanation = explain(dual_encoder, batch, Target([0, 0], [0, 3]), call)
        assert torch.equal(explanation.image[0], explanation.image[1])
