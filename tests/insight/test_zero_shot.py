"""Zero-shot classification beside a loop over pictures, classes and prompts."""

import pytest
import torch

from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer
from insight.zero_shot import class_embeddings, zero_shot_logits

NAMES = ["dog", "cat", "a very long boat"]
TEMPLATES = ["a photo of a {}.", "{}", "a drawing of the {}, old"]


def made():
    torch.manual_seed(0)
    model = MultiModalTransformer(260, image_size=16, context_length=40, dim=16, image_depth=1, text_depth=1, heads=2, embed_dim=8).eval()
    return model, Tokenizer.train(NAMES, vocab_size=260)


@torch.no_grad()
def test_logits_are_the_scaled_cosine_with_the_mean_of_each_classs_captions():
    (model, tokenizer), images = made(), torch.randn(4, 3, 16, 16)
    embedding = model.encode_image(images).embedding
    logits = zero_shot_logits(embedding, class_embeddings(model, tokenizer, NAMES, TEMPLATES), model.scale)
    for row in range(4):
        for column, name in enumerate(NAMES):
            total = torch.zeros(8)
            for template in TEMPLATES:
                total += model.encode_text(*tokenizer.encode([template.format(name)], 40)).embedding[0]
            cosine = sum(a * b for a, b in zip(embedding[row].tolist(), total.tolist(), strict=True)) / float(total.norm())
            assert float(logits[row, column]) == pytest.approx(float(model.scale) * cosine, abs=1e-4)


def test_prompts_that_name_no_class_are_refused():
    model, tokenizer = made()
    with pytest.raises(InputError, match=r"template 'a photo' has no \{\}"):
        class_embeddings(model, tokenizer, NAMES, ["a photo"])
    with pytest.raises(InputError, match="0 class names and 1 templates"):
        class_embeddings(model, tokenizer, [], ["{}"])
