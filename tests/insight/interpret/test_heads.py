import pytest
import torch
import torch.nn.functional as F
from torch import nn

from insight.errors import InputError
from insight.interpret.explain import explain, looking_at
from insight.interpret.families import Classifier, DualEncoder
from insight.interpret.family import Lacks
from insight.interpret.heads import decompose, describe_head, head_effects
from insight.interpret.record import attention_layers
from insight.stages import Call

DIRECT = Call("insight.interpret.heads.direct_effect")


def subject_of(family, batch):
    with looking_at(family, batch, None) as subject:
        return subject


def towers(family):
    return ("image",) if isinstance(family, Classifier) else ("image", "text")


def embedding_of(family, inputs, side):
    """Before it is scaled to length one."""
    if isinstance(family, Classifier):
        return family.vision.read(inputs.image_RND).pooled
    if side == "image":
        return family.model.image_projection(family.model.image.read(inputs.image_RND).pooled)
    return family.model.text_projection(family.model.text.read(inputs.text_RTD, inputs.text_mask_RT).pooled)


@torch.no_grad()
def test_the_parts_sum_to_the_embedding(family, batch):
    for parameter in family.model.parameters():  # biases and LayerNorms too
        parameter.add_(torch.randn_like(parameter) * 0.1)
    subject = subject_of(family, batch)
    for side in towers(family):
        parts = decompose(subject, side)
        assert parts.heads_RLHNE.shape[1:4] == (2, 2, 10 if side == "image" else 6)
        torch.testing.assert_close(parts.embedding_RE, embedding_of(family, subject.inputs, side), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_heads_part_is_what_the_embedding_loses_with_it_while_the_layer_norm_keeps_its_deviation(dual_encoder, batch):
    """In the last layer nothing reads the head but the readout: take its output away and renormalise by the old deviation."""
    subject, model = subject_of(dual_encoder, batch), dual_encoder.model
    parts = decompose(subject, "image")
    blocks, x = model.image.blocks, subject.inputs.image_RND
    before = blocks[0](x)
    block, head = blocks[1], 1
    normed = block.attention_norm(before)
    seen = {}
    handle = block.attention.output.register_forward_pre_hook(lambda _m, args: seen.update(attended=args[0]))
    whole = block.attention(normed, normed)
    handle.remove()
    without = seen["attended"].clone()
    without[..., 8 * head : 8 * head + 8] = 0
    lost = whole[:, 0] - block.attention.output(without)[:, 0]
    final = blocks[1](before)[:, 0]
    deviation = (final.var(dim=-1, unbiased=False, keepdim=True) + model.image.norm.eps).sqrt()
    through = model.image_projection(model.image.norm.weight * (lost - lost.mean(dim=-1, keepdim=True)) / deviation)
    torch.testing.assert_close(parts.heads_RLHNE[:, 1, head].sum(dim=1), through, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_planted_head_that_reads_one_patch_is_found_there(classifier, batch):
    """Only one patch has anything to read; only one head of one layer writes anything."""
    subject = subject_of(classifier, batch)
    subject.inputs.image_RND[:, :] = subject.inputs.image_RND[:, :1]
    subject.inputs.image_RND[:, 5] += torch.randn(16)
    layers = attention_layers(classifier.model)
    for name in classifier.flow.image:
        layers[name].output.weight.zero_()
        layers[name].key_value.bias.zero_()
    layers["image.blocks.0.attention"].output.weight[:, 8:] = torch.randn(16, 8)
    size = decompose(subject).heads_RLHNE.norm(dim=-1)
    assert size[:, 0, 1].sum() > 0 and not size[:, 1].any() and not size[:, 0, 0].any()
    assert (
        classifier.vision.blocks[0]
        .attention_norm(subject.inputs.image_RND)[:, 1]
        .allclose(classifier.vision.blocks[0].attention_norm(subject.inputs.image_RND)[:, 2])
    )
    others = size[:, 0, 1][:, [1, 2, 3, 4, 6, 7, 8, 9]]
    torch.testing.assert_close(others, others[:, :1].expand_as(others))  # they hold the same, and are read the same


@torch.no_grad()
def test_effects_in_a_direction_are_the_parts_times_the_direction(family, batch):
    subject = subject_of(family, batch)
    for side in towers(family):
        parts = decompose(subject, side)
        direction = torch.randn(parts.mlps_RLE[:, 0].shape)
        effects = head_effects(subject, side, direction)
        torch.testing.assert_close(
            effects.heads_RLHNE[..., 0], torch.einsum("rlhne,re->rlhn", parts.heads_RLHNE, direction), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(effects.embedding_RE[:, 0], (parts.embedding_RE * direction).sum(dim=-1), atol=1e-4, rtol=1e-4)


def test_direct_effects_are_the_agreement_of_what_the_heads_read_with_the_other_side(dual_encoder, batch):
    explanation = explain(dual_encoder, batch, None, DIRECT)
    with torch.no_grad():
        subject = subject_of(dual_encoder, batch)
        parts = {side: decompose(subject, side) for side in ("image", "text")}
        image, text = parts["image"].embedding_RE, parts["text"].embedding_RE
        towards = dual_encoder.model.scale * F.normalize(text, dim=-1) / image.norm(dim=-1, keepdim=True)
        expected = torch.einsum("rlhne,re->rn", parts["image"].heads_RLHNE, towards)[:, 1:]
        torch.testing.assert_close(explanation.image.flatten(1), expected, atol=1e-4, rtol=1e-4)
        towards = dual_encoder.model.scale * F.normalize(image, dim=-1) / text.norm(dim=-1, keepdim=True)
        expected = torch.einsum("rlhne,re->rn", parts["text"].heads_RLHNE, towards)
        torch.testing.assert_close(explanation.text, expected, atol=1e-4, rtol=1e-4)
        assert not explanation.text[~batch.token_mask].any()
    for side, values in (("image", explanation.image.flatten(1)), ("text", explanation.text)):
        torch.testing.assert_close(values.sum(dim=1) + explanation.diagnostics[f"{side}_elsewhere"], explanation.score)


def test_a_score_that_is_no_product_is_an_error_that_says_why(cross_attention, classifier, batch):
    with pytest.raises(Lacks, match="the score of a cross-attention model is no product of an embedding and a direction"):
        explain(cross_attention, batch, None, DIRECT)
    bent = Classifier(classifier.vision, nn.Sequential(nn.Linear(16, 3), nn.GELU()))
    with pytest.raises(Lacks, match="is a Sequential, not one linear layer"):
        explain(bent, batch, None, DIRECT)
    with pytest.raises(Lacks, match="a classifier model has no text tower"):
        decompose(subject_of(classifier, batch), "text")
    assert explain(DualEncoder(cross_attention.model), batch, None, DIRECT).image.any()  # the towers alone have one


# --- texts that describe a head ---
def test_texts_are_found_in_the_order_of_how_much_they_explain():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12)).Q
    outputs = torch.randn(200, 3) * torch.tensor([1.0, 3.0, 2.0]) @ basis[:3] + 5 * basis[7]  # a constant explains nothing
    texts = torch.stack([basis[7], basis[0], basis[9], basis[2], basis[1]])
    chosen, shares = describe_head(outputs, texts, 3)
    assert chosen == [4, 3, 1]
    varying = outputs - outputs.mean(dim=0)
    for count in (1, 2, 3):
        known = texts[chosen[:count]].T
        left = varying - varying @ known @ torch.linalg.pinv(known.T @ known) @ known.T  # least squares on those texts
        assert shares[count - 1] == pytest.approx(float(1 - left.square().sum() / varying.square().sum()), abs=1e-5)
    assert shares[-1] == pytest.approx(1, abs=1e-5)


def test_a_text_like_one_already_taken_adds_nothing_and_is_passed_over():
    torch.manual_seed(0)
    outputs = torch.randn(100, 3) * torch.tensor([3.0, 1.0, 1.0]) @ torch.eye(3, 6)
    texts = torch.eye(6)[[0, 0, 1]] * torch.tensor([[1.0], [0.9], [0.5]])
    chosen, shares = describe_head(outputs, texts, 3)
    assert chosen == [0, 2, 1]
    assert shares[1] < 0.99 and shares[2] == pytest.approx(shares[1], abs=1e-6)  # rounding is no direction


def test_texts_are_projected_onto_what_the_head_can_write():
    outputs = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    texts = torch.tensor([[0.5, 100.0, 0.0], [0.6, 0.0, 0.0]])
    assert describe_head(outputs, texts, 1)[0] == [1]  # the long one is mostly where the head never writes


def test_too_many_texts_or_outputs_that_are_all_the_same_are_errors():
    with pytest.raises(InputError, match="count=3: there are 2 texts"):
        describe_head(torch.randn(5, 4), torch.randn(2, 4), 3)
    with pytest.raises(InputError, match="got 1 outputs that do not vary"):
        describe_head(torch.randn(1, 4), torch.randn(2, 4), 1)
    with pytest.raises(InputError, match="got 3 outputs that do not vary"):
        describe_head(torch.ones(3, 4), torch.randn(2, 4), 1)
