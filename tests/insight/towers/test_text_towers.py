"""Text encoders of transformers as towers, with their own tokenizers, renumbered."""

from __future__ import annotations

import copy

import pytest
import torch

from insight.data.pretrained_text import PretrainedTokenizer, load_tokenizer, read_tokenizer
from insight.data.text import END, MASK, PAD, START, Tokenizer
from insight.digest import state_digest
from insight.errors import InputError
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.towers.transformers import TransformersText

transformers = pytest.importorskip("transformers")

TEXTS = ["A dog runs.", "Two dogs run over the grass!", "a man"]
WORDS = ["a", "dog", "runs", "two", "dogs", "run", "over", "the", "grass", "man", "##s", ".", "!"]
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tiny BERT with its WordPiece tokenizer, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: number for number, word in enumerate(["unused", "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *WORDS])}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary), pad_token_id=4, **SHAPE)).eval().save_pretrained(folder)
    return folder


def test_a_text_tower_equals_its_model_on_its_own_tokens(bert):
    model, own = transformers.AutoModel.from_pretrained(bert).eval(), transformers.AutoTokenizer.from_pretrained(bert)
    tower = TransformersText(str(bert), context_length=8)
    tokens, mask = load_tokenizer(bert).encode(TEXTS, 8)
    given = own(TEXTS, padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    assert torch.equal(tower.library_id[tokens], given["input_ids"]) and torch.equal(mask.long(), given["attention_mask"])
    with torch.no_grad():
        expected, output = model(**given).last_hidden_state, tower(tokens, mask)
    for row in range(len(TEXTS)):
        torch.testing.assert_close(output.tokens[row][mask[row]], expected[row][mask[row]], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.pooled[row], expected[row][mask[row]].mean(dim=0), atol=1e-5, rtol=1e-4)
    for pooling, place in (("first", 0), ("last", -1)):
        with torch.no_grad():
            pooled = TransformersText(str(bert), context_length=8, pooling=pooling)(tokens, mask).pooled
        by_hand = torch.stack([expected[row][mask[row]][place] for row in range(len(TEXTS))])
        torch.testing.assert_close(pooled, by_hand, atol=1e-5, rtol=1e-4)


def test_special_tokens_have_the_ids_that_the_project_knows(bert):
    tokenizer = PretrainedTokenizer.from_pretrained(str(bert))
    assert [tokenizer.library_ids[one] for one in (PAD, START, END, MASK)] == [4, 2, 3, 5]
    assert sorted(tokenizer.library_ids) == list(range(tokenizer.size)) == list(range(19))
    tokens, mask = tokenizer.encode(["a dog", "two dogs run over the grass!"], 5)
    assert tokens[0].tolist()[::3] == [START, END] and tokens[0, 4] == PAD and mask[0].tolist() == [True] * 4 + [False]
    assert tokens[1, 0] == START and tokens[1, -1] == END  # a long caption loses its tail, never the end
    assert tokenizer.decode(tokens[0].tolist()) == "a dog"


def test_words_stand_where_their_tokens_are(bert):
    tokenizer, text = load_tokenizer(bert), "Two dogs run."
    tokens, _ = tokenizer.encode([text], 8)
    words = tokenizer.words(text, 8)
    assert [(word.text, word.start, word.end) for word in words] == [("Two", 0, 3), ("dogs", 4, 8), ("run", 9, 12), (".", 12, 13)]
    for word in words:
        assert tokenizer.decode([int(tokens[0, place]) for place in word.positions]) == word.text.lower()


def test_a_saved_tokenizer_reads_back_the_same(bert, tmp_path):
    tokenizer, own = load_tokenizer(bert), Tokenizer.train(TEXTS, 280)
    for one in (tokenizer, own):
        one.save(tmp_path / "tokenizer.json")
        again = load_tokenizer(tmp_path / "tokenizer.json")
        assert type(again) is type(one) and again.to_json() == one.to_json() and again.library_ids == one.library_ids
        assert torch.equal(again.encode(TEXTS, 8)[0], one.encode(TEXTS, 8)[0])
    with pytest.raises(InputError, match="lacks its special tokens"):
        read_tokenizer('{"format": "library tokenizer, renumbered"}')


def test_a_tokenizer_without_start_and_mask_is_renumbered_too():
    """As T5's: text, then the end; padding is 0."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    backend = tokenizers.Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "dog": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PretrainedTokenizer(backend, [0, None, 1, None])
    tokens, _ = tokenizer.encode(["a dog cat"], 6)
    assert [tokenizer.library_ids[one] for one in tokens[0].tolist()] == [3, 4, 2, 1, 0, 0]
    assert (tokenizer.leading, tokenizer.added) == (0, 1) and tokens[0, 3] == END
    assert [word.positions for word in tokenizer.words("a dog", 6)] == [(0,), (1,)]


def test_a_model_around_a_text_tower_changes_no_bit_of_it_and_trains_by_it(bert):
    tower = TransformersText(str(bert), context_length=8)
    before = state_digest(tower.state_dict())
    shape = {"image_size": 16, "patch_size": 8, "dim": 24, "image_depth": 1, "heads": 2, "embed_dim": 12, "fusion_depth": 1}
    model = CrossAttentionMultiModalTransformer(vocab_size=tower.vocab_size, context_length=8, text=tower, **shape)
    assert state_digest(model.text.state_dict()) == before
    tokens, mask = load_tokenizer(bert).encode(TEXTS, 8)
    output = model(torch.randn(3, 3, 16, 16), tokens, mask)
    assert output.text.tokens.shape == (3, 8, 16) and output.text.embedding.shape == (3, 12)
    model.match(output.text.tokens, mask, output.image.tokens).sum().backward()
    assert model.text_adapter.weight.grad is not None and tower.network.get_input_embeddings().weight.grad is not None
    model.check_tokenizer(load_tokenizer(bert))
    with pytest.raises(InputError, match=r"not the one of the text tower \(19\): data\.init_args\.tokenizer=.*bert"):
        model.check_tokenizer(Tokenizer.train(TEXTS, 280))
    assert torch.equal(copy.deepcopy(model).encode_text(tokens, mask).embedding, output.text.embedding)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: TransformersText("vit", arguments={"image_size": 16, "patch_size": 8}), "ViTModel.* reads no text"),
        (lambda folder: TransformersText(str(folder), context_length=64), "context_length=64: .* has 12 positions"),
        (lambda folder: TransformersText("bert", arguments=SHAPE, context_length=8), "give the text tower's `tokenizer`"),
        (
            lambda folder: TransformersText("bert", arguments={**SHAPE, "vocab_size": 10}, tokenizer=str(folder), context_length=8),
            "is not the one of 'bert': it has 19 entries, the network 10",
        ),
        (lambda folder: TransformersText("hf-hub:nobody/nothing"), "hub cannot be reached"),
        (lambda folder: load_tokenizer("hf-hub:nobody/nothing"), "tokenizer=hf-hub:nobody/nothing: not found"),
        (lambda folder: load_tokenizer(folder / "none.json"), "no such tokenizer file"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(make, message, bert):
    with pytest.raises(InputError, match=message) as caught:
        make(bert)
    assert "\n" not in str(caught.value)
