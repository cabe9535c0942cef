import copy

import pytest
import torch
import torch.nn.functional as F

from insight.interpret.explain import explain
from insight.interpret.families import Classifier
from insight.interpret.family import Lacks
from insight.interpret.record import attention_layers
from insight.stages import Call

LEGRAD, GRAD_ECLIP, GRAD_CAM = (Call(f"insight.interpret.token_gradients.{name}") for name in ("legrad", "grad_eclip", "grad_cam"))


def leaf(tensor):
    return tensor.detach().requires_grad_()


# --- LeGrad ---
def legrad_of_a_classifier(family, image, output, explicit_attention, layers):
    """The model really cut off after each layer, one picture, autograd through an explicit softmax."""
    total = torch.zeros(family.grid**2)
    for layer in layers:
        vision = copy.deepcopy(family.vision)
        vision.blocks = vision.blocks[: layer + 1]
        x = vision.dropout(vision.embedding(image[None]))
        explicit_attention.clear()
        for block in vision.blocks:
            x = block(x)
        score = family.head(vision.norm(x[0].mean(dim=0)))[output]
        (gradient,) = torch.autograd.grad(score, explicit_attention[layer])
        total += sum(gradient[0, head, query, 1:].clamp(min=0) for head in range(2) for query in range(10)) / 20
    return total.reshape(family.grid, family.grid)


@pytest.mark.parametrize(("start", "layers"), [(0, [0, 1]), (-1, [1])])
def test_legrad_is_the_gradient_of_the_model_cut_off_after_each_layer(classifier, batch, explicit_attention, start, layers):
    explanation = explain(classifier, batch, None, Call(LEGRAD.function, {"start_layer": start}))
    for row in range(2):
        index = int(explanation.target.index[row])
        expected = legrad_of_a_classifier(classifier, batch.image[row], index, explicit_attention, layers)
        torch.testing.assert_close(explanation.image[row], expected, atol=1e-6, rtol=1e-4)


def test_legrad_of_a_dual_encoder_meets_each_layer_with_the_finished_other_side(dual_encoder, batch, explicit_attention):
    explanation = explain(dual_encoder, batch, None, LEGRAD)
    assert (explanation.cost.forwards, explanation.cost.backwards) == (1, 1)
    model, row = dual_encoder.model, 1  # 3 tokens
    tokens, mask = batch.tokens[row : row + 1, :3], batch.token_mask[row : row + 1, :3]
    image, text = model.encode_image(batch.image[:1]).embedding, model.encode_text(tokens, mask).embedding
    for side in ("image", "text"):
        total = torch.zeros(9 if side == "image" else 3)
        for layer in range(2):
            explicit_attention.clear()
            tower = getattr(model, side)
            x = tower.embedding(batch.image[:1] if side == "image" else tokens)
            for block in tower.blocks[: layer + 1]:
                x = block(x)
            pooled = tower.norm(x[0].mean(dim=0)) if side == "image" else tower.norm(x[0]).mean(dim=0)
            embedding = F.normalize(getattr(model, f"{side}_projection")(pooled), dim=0)
            score = model.scale * embedding @ (text if side == "image" else image)[0]
            (gradient,) = torch.autograd.grad(score, explicit_attention[layer])
            total += gradient[0].clamp(min=0).mean(dim=(0, 1))[1 if side == "image" else 0 :]
        found = explanation.image[row].flatten() if side == "image" else explanation.text[row, :3]
        torch.testing.assert_close(found, total.detach(), atol=1e-5, rtol=1e-4)


def test_a_fused_score_has_no_layers_of_its_own(cross_attention, batch):
    with pytest.raises(Lacks, match="no single layer of a cross-attention model has a score of its own"):
        explain(cross_attention, batch, None, LEGRAD)


# --- Grad-ECLIP ---
def eclip_by_loops(gradient, query, key, value, output):
    """One row: (H, T, K) gradient and queries, (H, S, K) keys and values -> (S,)."""
    queries, keys = (output(one.transpose(0, 1).flatten(1)) for one in (query, key))
    total = torch.zeros(len(keys))
    for t in range(len(queries)):
        cosine = torch.stack([F.cosine_similarity(queries[t], keys[s], dim=0) for s in range(len(keys))])
        loosened = (cosine - cosine.min()) / (cosine.max() - cosine.min())
        for s in range(len(keys)):
            total[s] += loosened[s] * (gradient[:, t] * value[:, s]).sum()
    return total.clamp(min=0).detach()


def call_and_gradient(family, inputs, name):
    """(query, key, value) of the layer and the gradient at its output, by hooks on its linear maps."""
    layer, seen = attention_layers(family.model)[name], {}
    handles = [
        layer.query.register_forward_hook(lambda _m, _i, out: seen.update(query=out)),
        layer.key_value.register_forward_hook(lambda _m, _i, out: seen.update(key_value=out)),
        layer.output.register_forward_pre_hook(lambda _m, args: seen.update(attended=args[0])),
    ]
    score = family.score(inputs)
    for handle in handles:
        handle.remove()
    (gradient,) = torch.autograd.grad(score.sum(), seen["attended"])
    key, value = seen["key_value"].chunk(2, dim=-1)
    return [one.unflatten(-1, (2, -1)).transpose(1, 2) for one in (gradient, seen["query"], key, value)], layer.output


def test_grad_eclip_is_its_formula_written_as_loops(family, batch):
    explanation = explain(family, batch, None, GRAD_ECLIP)
    inputs, flow = family.embed(family.rows(batch, None)[0]), family.flow
    last_text, last_image = flow.fusion[-1] if flow.fusion else ((flow.text or (None,))[-1], flow.image[-1])
    (gradient, query, key, value), output = call_and_gradient(family, inputs, last_image)
    for row in range(len(explanation.score)):
        expected = eclip_by_loops(gradient[row], query[row], key[row, :, 1:], value[row, :, 1:], output)
        torch.testing.assert_close(explanation.image[row].flatten(), expected, atol=1e-5, rtol=1e-4)
    if last_text is None:
        return
    (gradient, query, key, value), output = call_and_gradient(family, inputs, last_text)
    for row in range(4):
        real = int(batch.token_mask[row].sum())
        expected = eclip_by_loops(*(one[row, :, :real] for one in (gradient, query, key, value)), output)
        torch.testing.assert_close(explanation.text[row, :real], expected, atol=1e-5, rtol=1e-4)
        assert not explanation.text[row, real:].any()


def test_a_caption_of_one_token_is_preferred_to_nothing_and_still_gets_a_value(dual_encoder, batch):
    mask = torch.zeros_like(batch.token_mask)
    mask[:, 0] = True
    text = explain(dual_encoder, batch._replace(token_mask=mask), None, GRAD_ECLIP).text
    assert torch.isfinite(text).all() and text[:, 0].any() and not text[:, 1:].any()


# --- Grad-CAM ---
def test_grad_cam_is_channel_weights_times_tokens(classifier, batch):
    explanation = explain(classifier, batch, None, GRAD_CAM)
    for row in range(2):
        vision, x = classifier.vision, classifier.vision.embedding(batch.image[row : row + 1])
        x = vision.blocks[0](x)
        normed = leaf(vision.blocks[1].attention_norm(x))
        last = x + vision.blocks[1].attention(normed, normed)
        last = last + vision.blocks[1].mlp(vision.blocks[1].mlp_norm(last))
        score = classifier.head(vision.norm(last)[:, 0])[0, int(explanation.target.index[row])]
        (gradient,) = torch.autograd.grad(score, normed)
        channels = gradient[0, 1:].mean(dim=0)
        expected = torch.stack([(channels * normed[0, 1 + patch]).sum().clamp(min=0) for patch in range(9)])
        torch.testing.assert_close(explanation.image[row].flatten(), expected.detach(), atol=1e-6, rtol=1e-4)


def test_grad_cam_of_words_leaves_padding_out_of_the_channels_mean(dual_encoder, batch):
    together = explain(dual_encoder, batch, None, GRAD_CAM).text
    short = batch._replace(tokens=batch.tokens[:, :3], token_mask=batch.token_mask[:, :3])
    torch.testing.assert_close(explain(dual_encoder, short, None, GRAD_CAM).text[1], together[1, :3], atol=1e-6, rtol=1e-5)
    assert not together[1, 3:].any()


def test_grad_cam_of_a_fused_score_reads_what_the_last_layer_reads_of_the_image(cross_attention, batch):
    explanation = explain(cross_attention, batch, None, GRAD_CAM)
    model, mask = cross_attention.model, batch.token_mask
    text, image = model.encode_text(batch.tokens, mask).tokens, model.encode_image(batch.image).tokens[batch.caption_row]
    x = model.fusion[0](text, mask, image)
    block = model.fusion[1]
    normed = block.attention_norm(x)
    x = x + block.attention(normed, normed, mask)
    context = leaf(block.context_norm(image))
    x = x + block.cross_attention(block.cross_norm(x), context)
    x = model.fusion_norm(x + block.mlp(block.mlp_norm(x)))
    pooled = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    logits = model.match_head(pooled)
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), context)
    expected = (gradient[:, 1:].mean(dim=1, keepdim=True) * context[:, 1:]).sum(dim=-1).clamp(min=0)
    torch.testing.assert_close(explanation.image.flatten(1), expected.detach(), atol=1e-6, rtol=1e-4)


def test_a_head_that_is_no_linear_layer_can_be_explained_too(classifier, batch):
    family = Classifier(classifier.vision, torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.GELU(), torch.nn.Linear(4, 3)))
    assert explain(family, batch, None, LEGRAD).image.any()
