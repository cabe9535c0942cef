"""Every model trains, validates and is recorded under the MPS guard, and on a device of its own where nothing may stay on the CPU."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from insight import losses
from insight.data.batch import ImageTextBatch
from insight.interpret import drift, scorecard
from insight.interpret.capture import capture
from insight.interpret.families import family_of
from insight.interpret.probe import make_probe
from insight.interpret.scorecard import ScoredMethod
from insight.masking import hide_words
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.mps_guard import mps_guard, run_on_fake_device
from lightning_modules.overrides import CONFIGS
from lightning_modules.quantities import CrossAttentionQuantities
from tests.callbacks.tiny_fit import CONTEXT, TOKENIZER, pairs_batch

MODELS = [MultiModalTransformer, CrossAttentionMultiModalTransformer]
LOSSES = [
    losses.contrastive,
    losses.hard_negative_contrastive,
    losses.sigmoid_pairwise,
    losses.image_text_matching,
    losses.image_views,
    losses.caption_pairs,
    losses.decorrelation,
    losses.feature_consistency,
    losses.word_classification,
    losses.masked_language_modelling,
]


def build(kind: type[MultiModalTransformer], dropout: float = 0.1) -> MultiModalTransformer:
    torch.manual_seed(0)
    size = {"image_size": 16, "context_length": 6, "dim": 16, "image_depth": 2, "text_depth": 1, "heads": 2, "embed_dim": 12}
    return kind(vocab_size=20, dropout=dropout, **size)


def inputs(device: torch.device | str) -> dict[str, Tensor]:
    """Three pictures, two captions each of every length, made on the CPU as a loader makes them."""
    mask = torch.arange(6) < torch.arange(1, 7)[:, None]
    batch = {"image": torch.randn(3, 3, 16, 16), "tokens": torch.randint(0, 20, (6, 6)), "token_mask": mask}
    return {name: value.to(device) for name, value in batch.items()}


def quantities(model: MultiModalTransformer, device: torch.device | str) -> dict[str, Tensor]:
    batch = inputs(device)
    output = model(**batch)
    image_id = torch.arange(3, device=device)
    caption_row = torch.arange(6, device=device) // 2
    values = {
        "image_embedding": output.image.embedding,
        "text_embedding": output.text.embedding,
        "view_embedding": model.encode_image(batch["image"].flip(-1)).embedding,
        "previous_image_embedding": output.image.embedding.detach(),
        "previous_text_embedding": output.text.embedding.detach(),
        "positives": image_id[:, None] == image_id[caption_row],
        "image_id": image_id,
        "caption_image_id": image_id[caption_row],
        "scale": output.scale,
        "bias": output.bias,
        "word_logits": model.classify_words(output.image),
        "word_counts": (batch["image"].flatten(1)[:, :20] > 0).float(),
    }
    if isinstance(model, CrossAttentionMultiModalTransformer):
        pictures = torch.cat([caption_row, (caption_row + 1) % 3])
        text_tokens, mask = output.text.tokens.repeat(2, 1, 1), batch["token_mask"].repeat(2, 1)
        values["match_logits"] = model.match(text_tokens, mask, output.image.tokens[pictures])
        values["match_targets"] = (pictures == caption_row.repeat(2)).long()
        hidden = hide_words(batch["tokens"], torch.rand(batch["tokens"].shape, device=device))
        fused = model.fuse(model.encode_text(hidden.tokens, mask[:6]).tokens, mask[:6], output.image.tokens, image_row_C=caption_row)
        values["masked_logits"], values["masked_targets"] = model.name_words(fused, hidden.position), hidden.target
        values["masked_count"] = (hidden.target != losses.IGNORED).sum()
    return values


def loss_of(loss, values: dict[str, Tensor]) -> Tensor:
    needed = [name for name, parameter in inspect.signature(loss).parameters.items() if parameter.default is inspect.Parameter.empty]
    return loss(**{name: values[name] for name in needed})


def train(model: nn.Module, device: torch.device | str, chosen=LOSSES) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    values = quantities(model, device)
    fused = (losses.image_text_matching, losses.masked_language_modelling)
    chosen = [loss for loss in chosen if loss not in fused or "match_logits" in values]
    total = sum(loss_of(loss, values) for loss in chosen)
    total.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def validate(model: nn.Module, device: torch.device | str) -> Tensor:
    model.eval()
    with torch.no_grad():
        values = quantities(model, device)
        similarity = values["image_embedding"] @ values["text_embedding"].T
        best = similarity.masked_fill(~values["positives"], -torch.inf).amax(dim=1, keepdim=True)
        rank = ((similarity >= best) & ~values["positives"]).sum(dim=1)
        return (rank < 1).float().mean()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_step_asks_mps_for_nothing_that_it_lacks(kind, precision):
    model = build(kind)
    before = [parameter.clone() for parameter in model.parameters()]
    with mps_guard(), torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        train(model, "cpu")
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))  # the guard let it really train


@pytest.mark.parametrize("kind", MODELS)
def test_a_validation_asks_mps_for_nothing_that_it_lacks(kind):
    with mps_guard():
        recall = validate(build(kind), "cpu")
    assert 0 <= recall <= 1


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("image_size", "patch_size"), [(16, 8), (200, 100)])  # pictures above 144 pixels are made smaller for drawing
def test_recording_attention_asks_mps_for_nothing_that_it_lacks(kind, image_size, patch_size):
    torch.manual_seed(0)
    model = kind(vocab_size=20, image_size=image_size, patch_size=patch_size, context_length=6, dim=16, heads=2)
    tokens, mask = torch.randint(0, 20, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    with mps_guard():
        arrays = capture(model, torch.randn(2, 3, image_size, image_size), tokens, mask)
    assert arrays["rollout"].sum(axis=-1) == pytest.approx(1, abs=1e-2)
    assert arrays["picture"].shape[1] == min(image_size, 144)


@pytest.mark.parametrize("kind", MODELS)
def test_scoring_explanations_and_looking_for_drift_ask_mps_for_nothing_that_it_lacks(kind):
    probe = make_probe(pairs_batch(range(2)), TOKENIZER, CONTEXT)
    small = {"vocab_size": TOKENIZER.size, "image_size": 16, "patch_size": 8, "context_length": CONTEXT, "dim": 16, "heads": 2}
    model = kind(**small)
    configured = yaml.safe_load((Path(CONFIGS) / "callbacks" / "default.yaml").read_text())
    methods = {name: ScoredMethod(**one) for name, one in configured["score_card"]["init_args"]["methods"].items()}
    with mps_guard():
        for one in methods.values():
            looked = scorecard.look(scorecard.family_for(model, one), probe, one.call)
            scorecard.curves(scorecard.family_for(model, one), probe.batch, looked.explanation, steps=2)
        chefer = (scorecard.family_for(model, methods["chefer"]), methods["chefer"].call)
        found = drift.look(family_of(model), probe.batch, {"chefer": chefer}, 1, 1, 0.5)
    assert found.maps["chefer"].shape == (2, 2, 2) and "image.blocks.0.attention" in found.heads


def test_hard_negatives_are_drawn_and_matched_with_nothing_that_mps_lacks():
    batch = inputs("cpu")
    filenames, texts = tuple(f"{row}.jpg" for row in range(3)), tuple("caption" for _ in range(6))
    rows, image_id, caption_id = torch.arange(6) // 2, torch.arange(3), torch.arange(6)
    served = ImageTextBatch(batch["image"], None, batch["tokens"], batch["token_mask"], rows, image_id, caption_id, texts, filenames, ())
    with mps_guard():
        values = CrossAttentionQuantities(build(CrossAttentionMultiModalTransformer), served, torch.Generator().manual_seed(0))
        matching = losses.image_text_matching(values.match_logits, values.match_targets)
        naming = losses.masked_language_modelling(values.masked_logits, values.masked_targets, values.masked_count)
        (matching + naming + losses.word_classification(values.word_logits, values.word_counts)).backward()
    assert values.match_targets.tolist() == [1] * 3 + [0] * 6  # each picture's first caption, then pairs that do not match


@pytest.mark.parametrize("kind", MODELS)
def test_training_leaves_no_tensor_on_the_cpu_and_waits_for_no_value(kind):
    # caption_pairs looks into the batch, once, to refuse one without pairs; all others must not make a device wait
    chosen = [loss for loss in LOSSES if loss is not losses.caption_pairs]
    run_on_fake_device(build(kind), lambda model, device: train(model, device, chosen))


@pytest.mark.parametrize("kind", MODELS)
def test_validation_leaves_no_tensor_on_the_cpu_and_waits_for_no_value(kind):
    run_on_fake_device(build(kind), validate)
