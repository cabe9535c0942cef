from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from insight.captions import write_captions
from insight.data.text import END, START, Tokenizer
from insight.errors import InputError
from insight.models.cross_attention import CrossAttentionMultiModalTransformer

LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["a red star", "a blue box"], 270)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(1)
    sizes = {"image_size": 16, "patch_size": 8, "context_length": LENGTH, "dim": 16, "heads": 2, "embed_dim": 8}
    built = CrossAttentionMultiModalTransformer(tokenizer.size, **sizes, image_depth=1, text_depth=1, fusion_depth=1, decoder_depth=2)
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return built.eval()


def log_probabilities(model, image_tokens, tokens):
    """Of what comes next, for one text, without a cache."""
    return F.log_softmax(model.write(torch.tensor([tokens]), image_tokens).logits[0, -1], dim=-1)


@torch.no_grad()
def test_greedy_captions_are_the_likeliest_next_tokens_one_by_one(model, tokenizer):
    image_tokens = model.encode_image(torch.randn(3, 3, 16, 16)).tokens
    expected = []
    for row in range(3):
        tokens = [START]
        while len(tokens) < LENGTH and tokens[-1] != END:
            tokens.append(int(log_probabilities(model, image_tokens[row : row + 1], tokens).argmax()))
        expected.append(tokenizer.decode(tokens))
    assert write_captions(model, tokenizer, image_tokens) == expected
    assert len(set(expected)) > 1  # the pictures matter


@torch.no_grad()
def test_beams_of_several_pictures_are_those_of_each_alone_and_find_what_a_full_search_finds(model, tokenizer):
    image_tokens = model.encode_image(torch.randn(2, 3, 16, 16)).tokens
    together = write_captions(model, tokenizer, image_tokens, beams=3, max_new_tokens=4)
    assert together == [write_captions(model, tokenizer, image_tokens[row : row + 1], beams=3, max_new_tokens=4)[0] for row in range(2)]
    for row in range(2):  # two places: all pairs of tokens, scored one by one
        first = log_probabilities(model, image_tokens[row : row + 1], [START])
        best, text = float(first[END]), [END]
        for token in range(tokenizer.size):
            if token != END:
                then = log_probabilities(model, image_tokens[row : row + 1], [START, token])
                value = float(first[token] + then.max()) / 2
                if value > best:
                    best, text = value, [token, int(then.argmax())]
        wide = write_captions(model, tokenizer, image_tokens[row : row + 1], beams=tokenizer.size, max_new_tokens=2)
        assert wide == [tokenizer.decode(text)]


def test_what_cannot_be_written_is_named_with_its_remedy(model, tokenizer):
    image_tokens = torch.zeros(1, 5, 16)
    with pytest.raises(InputError, match="context_length=8: max_new_tokens=7 is the most"):
        write_captions(model, tokenizer, image_tokens, max_new_tokens=8)
    with pytest.raises(InputError, match="beams=0: must be at least 1"):
        write_captions(model, tokenizer, image_tokens, beams=0)
    plain = CrossAttentionMultiModalTransformer(tokenizer.size, 16, 8, LENGTH, 16, 1, 1, 2, 8)
    with pytest.raises(InputError, match="writes no captions: build it with decoder_depth"):
        write_captions(plain, tokenizer, image_tokens)
    with pytest.raises(InputError, match="answers no questions: build it with num_answers"):
        plain.answer(torch.zeros(1, 2, 16), torch.ones(1, 2, dtype=torch.bool), image_tokens)
