import copy
import math
import pickle

import pytest
import torch

from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.vision_transformer import VisionOutput

SHAPE = {"vocab_size": 20, "image_size": 16, "patch_size": 8, "context_length": 8, "dim": 16, "image_depth": 1, "text_depth": 1}
SHAPE |= {"heads": 2, "embed_dim": 12}


def inputs():
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(6, 8, dtype=torch.bool)
    mask[::2, 5:] = False
    return torch.randn(3, 3, 16, 16, generator=generator), torch.randint(3, 20, (6, 8), generator=generator), mask


def build(kind):
    torch.manual_seed(0)
    return kind(**SHAPE)


@pytest.mark.parametrize("kind", [MultiModalTransformer, CrossAttentionMultiModalTransformer])
def test_embeddings_have_length_one_and_know_nothing_of_the_other_side(kind):
    model, (image, tokens, mask) = build(kind), inputs()
    output = model(image, tokens, mask)
    torch.testing.assert_close(output.image.embedding.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(output.text.embedding.norm(dim=-1), torch.ones(6))
    other = model(image[:1].flip(3), tokens[:2], mask[:2])
    torch.testing.assert_close(other.text.embedding, output.text.embedding[:2])
    assert torch.equal(model.encode_image(image).embedding, output.image.embedding)


def test_the_scale_starts_at_the_papers_value_and_never_passes_one_hundred():
    model = build(MultiModalTransformer)
    assert float(model.scale.detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(5000))
    assert float(model.scale.detach()) == pytest.approx(100, rel=1e-5)


def test_parameters_have_the_names_that_stages_train_by():
    names = {name.split(".")[0] for name, _ in build(CrossAttentionMultiModalTransformer).named_parameters()}
    towers = {"image", "text", "image_projection", "text_projection", "word_head", "logit_scale", "logit_bias"}
    assert names == towers | {"fusion", "fusion_norm", "match_head", "masked_head"}
    assert {name.split(".")[0] for name, _ in build(MultiModalTransformer).named_parameters()} == towers


def test_the_cross_attention_model_leaves_the_towers_as_the_dual_encoder_made_them():
    dual, cross = build(MultiModalTransformer).state_dict(), build(CrossAttentionMultiModalTransformer).state_dict()
    assert all(torch.equal(cross[name], value) for name, value in dual.items())


def test_matching_reads_neither_padding_of_the_text_nor_hidden_parts_of_the_image():
    model, (image, tokens, mask) = build(CrossAttentionMultiModalTransformer), inputs()
    text, pictures = model.encode_text(tokens, mask).tokens, model.encode_image(image).tokens.repeat_interleave(2, dim=0)
    image_mask = torch.ones(6, 5, dtype=torch.bool)
    image_mask[:, 3] = False
    before = model.match(text, mask, pictures, image_mask)
    assert before.shape == (6, 2)
    junk_text, junk_pictures = text.masked_fill(~mask[..., None], 50.0), pictures.masked_fill(~image_mask[..., None], -50.0)
    assert torch.equal(model.match(junk_text, mask, junk_pictures, image_mask), before)
    shorter = model.match(text[:, :5], mask[:, :5], pictures[:, [0, 1, 2, 4]])
    torch.testing.assert_close(shorter[::2], before[::2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model.match(text, mask, pictures.roll(2, dims=0), image_mask), before)


def test_match_is_the_head_over_the_mean_of_the_fused_real_tokens():
    model, (image, tokens, mask) = build(CrossAttentionMultiModalTransformer), inputs()
    text, pictures = model.encode_text(tokens, mask).tokens, model.encode_image(image).tokens.repeat_interleave(2, dim=0)
    fused = model.fuse(text, mask, pictures)
    expected = torch.stack([model.match_head(fused[row][mask[row]].mean(dim=0)) for row in range(6)])
    torch.testing.assert_close(model.match(text, mask, pictures), expected, atol=1e-6, rtol=1e-5)


def test_pair_scores_are_the_heads_log_odds_and_the_towers_logit_together():
    model, (image, tokens, mask) = build(CrossAttentionMultiModalTransformer), inputs()
    output, rows = model(image, tokens, mask), torch.tensor([0, 0, 1, 1, 2, 2])
    pictures = type(output.image)(*(tensor[rows] for tensor in output.image))
    right = model.match(output.text.tokens, mask, pictures.tokens).softmax(dim=1)[:, 1]
    for pair, score in enumerate(model.pair_scores(output.text, mask, pictures).tolist()):
        cosine = torch.nn.functional.cosine_similarity(output.image.embedding[rows[pair]], output.text.embedding[pair], dim=0)
        odds = right[pair] / (1 - right[pair]) * (model.scale * cosine).exp()
        assert score == pytest.approx(odds.log().item(), rel=1e-4, abs=1e-4)


def test_a_picture_that_several_captions_read_is_the_same_as_copies_of_it():
    model, (image, tokens, mask) = build(CrossAttentionMultiModalTransformer), inputs()
    text, pictures, rows = model.encode_text(tokens, mask).tokens, model.encode_image(image).tokens, torch.tensor([2, 2, 0, 1, 0, 2])
    image_mask = torch.ones(3, 5, dtype=torch.bool)
    image_mask[0, 2:] = False
    copied = model.match(text, mask, pictures[rows], image_mask[rows])
    torch.testing.assert_close(model.match(text, mask, pictures, image_mask, rows), copied, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [MultiModalTransformer, CrossAttentionMultiModalTransformer])
def test_every_parameter_gets_a_gradient(kind):
    model, (image, tokens, mask) = build(kind), inputs()
    output = model(image, tokens, mask)
    loss = (output.scale * output.text.embedding @ output.image.embedding.T + output.bias).square().mean()
    loss = loss + model.classify_words(output.image).square().mean()
    if kind is CrossAttentionMultiModalTransformer:
        pictures = torch.arange(6) // 2
        loss = loss + model.match(output.text.tokens, mask, output.image.tokens, image_row_C=pictures).square().mean()
        fused = model.fuse(output.text.tokens, mask, output.image.tokens, image_row_C=pictures)
        loss = loss + model.name_words(fused, torch.tensor([[1, 3]] * 6)).square().mean()
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_embeddings_are_float32_within_autocast():
    model, (image, tokens, mask) = build(MultiModalTransformer), inputs()
    exact = model(image, tokens, mask)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(image, tokens, mask)
    assert output.image.embedding.dtype == output.text.embedding.dtype == torch.float32
    torch.testing.assert_close(output.text.embedding, exact.text.embedding, atol=0.05, rtol=0)


def test_a_model_survives_copying_and_pickling():
    model, arguments = build(CrossAttentionMultiModalTransformer), inputs()
    expected = model(*arguments).text.embedding
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(*arguments).text.embedding, expected)


def test_batch_norm_of_the_pooled_vector_is_standardisation_by_the_statistics_it_has_seen():
    torch.manual_seed(0)
    model, (image, _, _) = MultiModalTransformer(**SHAPE, image_batch_norm=True), inputs()
    with torch.no_grad():
        for _ in range(3):
            model.train().encode_image(image)
        embedding = model.eval().encode_image(image).embedding
        seen = (model.image(image).pooled - model.image_norm.running_mean) / (model.image_norm.running_var + 1e-5).sqrt()
        expected = torch.nn.functional.normalize(seen @ model.image_projection.weight.T, dim=-1)
    assert model.image_norm.running_mean.abs().max() > 0.01
    torch.testing.assert_close(embedding, expected)


def test_dropout_of_the_pooled_vectors_is_of_training_alone_and_off_by_default():
    plain, (image, tokens, mask) = build(MultiModalTransformer), inputs()
    torch.manual_seed(0)
    dropped = MultiModalTransformer(**SHAPE, pooled_dropout=0.5)
    assert list(plain.state_dict()) == list(dropped.state_dict())
    assert torch.equal(dropped.eval()(image, tokens, mask).text.embedding, plain(image, tokens, mask).text.embedding)
    dropped.train()
    assert not torch.equal(dropped(image, tokens, mask).text.embedding, plain(image, tokens, mask).text.embedding)
    before = torch.get_rng_state()
    plain.train()(image, tokens, mask)
    assert torch.equal(before, torch.get_rng_state())


def test_a_region_is_embedded_as_a_picture_whose_pooled_vector_it_were():
    model, (image, _, _) = MultiModalTransformer(**SHAPE, image_batch_norm=True), inputs()
    model.encode_image(image)  # statistics that are not the first ones
    trained = model.image_norm.running_mean.clone()
    features = model.encode_image(image)
    moved = model.image_norm.running_mean.clone()
    regions_BNE = model.embed_regions(features)
    assert torch.equal(model.image_norm.running_mean, moved) and not torch.equal(trained, moved)  # regions only use them
    model.eval()
    tokens_BND = features.tokens[:, 1:]
    for patch in range(tokens_BND.shape[1]):
        whole = model.project_image(VisionOutput(features.tokens, tokens_BND[:, patch])).embedding
        assert torch.allclose(regions_BNE[:, patch], whole, atol=1e-6)


def test_a_part_of_a_caption_that_is_all_of_it_is_embedded_as_the_caption():
    model, (_, tokens, mask) = MultiModalTransformer(**SHAPE).eval(), inputs()
    text = model.encode_text(tokens, mask)
    rows = torch.tensor([1, 0])
    assert torch.allclose(model.embed_phrases(text, rows, mask[rows]), text.embedding[rows], atol=1e-6)
