import pytest
import torch

from insight.errors import InputError
from insight.interpret.attention_gradients import WeightsAndGradient, attention_gradients
from insight.interpret.explain import explain, looking_at
from insight.interpret.relevance import cross_attention, encoder_decoder, mean_positive, normalised, self_attention
from insight.stages import Call

CHEFER = "insight.interpret.relevance.chefer_relevance"


def one(rows):
    return torch.tensor([rows])


# --- the rules, by hand ---
def test_the_positive_part_is_taken_in_each_head_before_the_mean():
    weights = torch.tensor([[[[0.5, 0.5]], [[0.2, 0.8]]]])
    gradient = torch.tensor([[[[2.0, -4.0]], [[-5.0, 1.0]]]])
    torch.testing.assert_close(mean_positive(WeightsAndGradient(weights, gradient)), one([[0.5, 0.4]]))  # [1, -2] and [-1, .8], cut


def test_self_attention_adds_what_the_tokens_that_are_read_had_gathered():
    relevance, bar = one([[1.0, 0.0], [0.5, 1.0]]), one([[0.0, 2.0], [1.0, 0.0]])
    # A_bar R = [[1, 2], [1, 0]]
    torch.testing.assert_close(self_attention(relevance, bar), one([[2.0, 2.0], [1.5, 1.0]]))


def test_normalising_divides_each_rows_gain_by_its_sum_and_keeps_the_token_itself():
    relevance = one([[2.0, 3.0], [0.0, 1.0]])
    # row 0 gained [1, 3]: [.25, .75] + [1, 0]; row 1 gained nothing
    torch.testing.assert_close(normalised(relevance), one([[1.25, 0.75], [0.0, 1.0]]))


def test_cross_attention_weighs_the_map_by_what_both_sides_had_gathered():
    own, context = one([[1.0, 1.0], [0.0, 1.0]]), one([[1.0, 0.0], [3.0, 1.0]])
    # normalised: own [[1, 1], [0, 1]], context [[1, 0], [1, 1]]; own^T bar context = [[1, 0], [1, 1]] [[1, 2], [0, 4]] [[1, 0], [1, 1]]
    pairs, bar = one([[10.0, 0.0], [0.0, 0.0]]), one([[1.0, 2.0], [0.0, 4.0]])
    torch.testing.assert_close(cross_attention(own, context, pairs, bar), one([[13.0, 2.0], [7.0, 6.0]]))


def test_the_encoder_decoder_rule_is_both_rules_in_the_order_of_the_layers():
    torch.manual_seed(0)
    text, image = torch.eye(3) + torch.rand(1, 3, 3), torch.eye(4) + torch.rand(1, 4, 4)
    layers = [(torch.rand(1, 3, 3), torch.rand(1, 3, 4)) for _ in range(2)]
    found_text, found_pairs = encoder_decoder(text, image, layers)
    own, pairs = text[0].clone(), torch.zeros(3, 4)
    for bar_own, bar_cross in layers:
        pairs = pairs + bar_own[0] @ pairs
        own = own + bar_own[0] @ own
        rows = [
            (side - torch.eye(len(side))) / (side - torch.eye(len(side))).sum(1, keepdim=True) + torch.eye(len(side))
            for side in (own, image[0])
        ]
        for t in range(3):
            for n in range(4):
                pairs[t, n] += sum(rows[0][q, t] * bar_cross[0, q, s] * rows[1][s, n] for q in range(3) for s in range(4))
    torch.testing.assert_close(found_text[0], own)
    torch.testing.assert_close(found_pairs[0], pairs)


# --- the method ---
@pytest.mark.parametrize("start", [0, 1, -1])
def test_a_tower_is_the_rule_of_self_attention_row_by_row_from_the_start_layer_on(dual_encoder, batch, start):
    explanation = explain(dual_encoder, batch, None, Call(CHEFER, {"start_layer": start}))
    with looking_at(dual_encoder, batch, None) as subject:
        _, layers = attention_gradients(subject, [*dual_encoder.flow.image, *dual_encoder.flow.text])
    for row in range(4):
        relevance = {"image": torch.eye(10), "text": torch.eye(6)}
        for side, names in (("image", dual_encoder.flow.image), ("text", dual_encoder.flow.text)):
            for name in names[start:]:
                bar = (
                    sum((layers[name].weights_RHTS[row, head] * layers[name].gradient_RHTS[row, head]).clamp(min=0) for head in range(2))
                    / 2
                )
                relevance[side] = relevance[side] + bar @ relevance[side]
        torch.testing.assert_close(explanation.image[row].flatten(), relevance["image"][0, 1:])
        real = int(batch.token_mask[row].sum())
        torch.testing.assert_close(explanation.text[row, :real], relevance["text"][:real, :real].mean(dim=0))
        assert not explanation.text[row, real:].any()


def test_words_that_read_the_image_have_maps_of_their_own_whose_mean_is_the_pictures(cross_attention, batch):
    explanation = explain(cross_attention, batch, None, Call(CHEFER))
    assert explanation.pairs.shape == (4, 6, 3, 3) and (explanation.pairs >= 0).all() and explanation.pairs.any()
    for row in range(4):
        real = batch.token_mask[row]
        torch.testing.assert_close(explanation.pairs[row][real].mean(dim=0), explanation.image[row])
        assert not explanation.pairs[row][~real].any()


def test_a_start_layer_that_is_not_there_is_an_error(family, batch):
    for start in (2, -3):
        with pytest.raises(InputError, match=f"start_layer={start}: the tower has 2 layers, give -2 to 1"):
            explain(family, batch, None, Call(CHEFER, {"start_layer": start}))
