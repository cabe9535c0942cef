"""Bundles of classifiers, language models, captioners and models that answer: each says what its model said, and a mismatch is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from insight.captions import write_captions
from insight.continuations import Writing
from insight.data.language import TextCodec
from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.export.bundle import Parts, load, save
from insight.export.kinds import ClassifierBundle, ImageTextBundle, LanguageBundle
from insight.models.classifier import ImageClassifier
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.gpt2 import model_arguments
from insight.models.language_model import LanguageModel
from insight.nn.settings import BlockSettings

DATA = {"fingerprint": "f" * 64, "splits": {"train": 4}, "description": "tiny"}
TEXTS = ["a red circle", "a blue square left of a red one", "two triangles"]
CLASSES = ("red", "green", "blue")
TOWERS = {
    "vocab_size": 300, "image_size": 16, "patch_size": 8, "context_length": 16, "dim": 16, "image_depth": 1, "text_depth": 1, "heads": 2,
    "embed_dim": 8, "fusion_depth": 1,
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        pixels = torch.randint(256, (20, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(path)
    return paths


@pytest.fixture
def kept(tmp_path) -> Callable:
    def _kept(model: torch.nn.Module, arguments: dict, **parts):
        return load(save(tmp_path / "bundle", model.train(), Parts(arguments, **parts), {"seed": 3}, DATA).folder)

    return _kept


def classifier(kept, **changes):
    arguments = {
        "num_classes": 3,
        "image_size": 16,
        "patch_size": 8,
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "dropout": 0.1,
        "patch_dropout": 0.5,
    }
    arguments |= {"block": BlockSettings(drop_path=0.3), "pool": "mean", **changes}
    torch.manual_seed(0)
    model = ImageClassifier(**arguments)
    return model, kept(model, arguments, labels=CLASSES)


def answering(kept):
    torch.manual_seed(0)
    arguments = {**TOWERS, "num_answers": 3, "decoder_depth": 1}
    model = CrossAttentionMultiModalTransformer(**arguments)
    return model, kept(model, arguments, tokenizer=Tokenizer.train(TEXTS, 300), text=TEXTS[0], labels=CLASSES)


def language(kept, **changes):
    torch.manual_seed(0)
    arguments = {"vocab_size": 300, "context_length": 12, "dim": 16, "depth": 2, "heads": 2, "dropout": 0.1, **changes}
    model = LanguageModel(**arguments)
    return model, kept(model, arguments, tokenizer=TextCodec.train(TEXTS, 300), text=TEXTS[0])


@torch.no_grad()
def test_a_classifier_names_what_its_model_names(kept, pictures):
    model, again = classifier(kept)
    assert isinstance(again, ClassifierBundle) and again.labels == CLASSES and again.tokenizer is None
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in model.state_dict().items())
    logits = model.eval()(torch.stack([again.transform.open(path) for path in pictures])).logits
    assert torch.equal(again.classify(pictures), logits.softmax(dim=-1))
    assert again.name(pictures) == [CLASSES[int(row.argmax())] for row in logits]
    assert again.example_error() == 0.0 and not again.model.training
    signature = json.loads((again.folder / "signature.json").read_text())
    assert signature["outputs"] == {"probabilities": {"dtype": "float32", "shape": ["B", 3]}} and "tokens" not in signature["inputs"]


@pytest.mark.parametrize("changes", [{}, {"tied": False, "block": BlockSettings(position="rotary", rms_norm=True, gated=True)}])
@torch.no_grad()
def test_a_language_model_foresees_and_writes_what_its_model_does(kept, changes):
    model, again = language(kept, **changes)
    assert isinstance(again, LanguageBundle) and again.picture is None
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in model.state_dict().items())
    codec, expected = again.tokenizer, []
    for text in TEXTS[::2]:
        ids = torch.tensor([codec.start, *codec.ids([text])[0], codec.end])
        expected.append(-F.cross_entropy(model.eval()(ids[None, :-1]).logits[0], ids[1:], reduction="sum"))
    torch.testing.assert_close(again.log_probability(TEXTS[::2]), torch.stack(expected), rtol=1e-5, atol=1e-5)
    ids = [codec.start, *codec.ids(["a"])[0]]
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert again.write(Writing("a", max_new_tokens=4, temperature=0)) == [codec.decode(ids)]
    assert again.example_error() == 0.0


def test_a_model_of_a_gpt2_checkpoint_needs_no_checkpoint_any_more(kept):
    config = {"vocab_size": 300, "n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2, "layer_norm_epsilon": 1e-6}
    arguments = model_arguments(config, 0.1)
    again = kept(LanguageModel(**arguments), arguments, tokenizer=TextCodec.train(TEXTS, 300), text=TEXTS[0])
    described = json.loads((again.folder / "model.json").read_text())["arguments"]
    assert described["block"]["activation"] == "gelu_tanh" and described["block"]["norm_eps"] == 1e-6
    assert again.model.norm.eps == 1e-6 and again.example_error() == 0.0


@torch.no_grad()
def test_a_model_that_writes_and_answers_says_what_it_said(kept, pictures):
    model, again = answering(kept)
    assert isinstance(again, ImageTextBundle) and again.labels == CLASSES
    tokens, mask = again.tokenizer.encode(TEXTS, 16)
    output = model.eval()(torch.stack([again.transform.open(path) for path in pictures]), tokens, mask)
    answers = model.answer(output.text.tokens, mask, output.image.tokens).softmax(dim=-1)
    assert torch.equal(again.answer(pictures, TEXTS), answers)
    for beams in (1, 2):
        assert again.write(pictures, beams) == write_captions(model, again.tokenizer, output.image.tokens, beams)
    ids = tokens[0, mask[0]]
    image = model.encode_image(again.pixels([again.picture])).tokens
    logits = model.write(ids[None, :-1], image).logits[0]
    expected = -F.cross_entropy(logits, ids[1:], reduction="sum")
    torch.testing.assert_close(again.example["caption_log_probability"], expected[None], rtol=1e-5, atol=1e-5)
    assert again.example_error() == 0.0 and {"match", "answer"} < set(again.signature["outputs"])


def test_use_is_what_a_latency_is_measured_of(kept, monkeypatch):
    asked = []
    monkeypatch.setattr(ImageTextBundle, "similarity", lambda self, pictures, texts: asked.append((pictures, texts)))
    monkeypatch.setattr(
        ClassifierBundle, "classify", lambda self, pictures, real=ClassifierBundle.classify: asked.append(pictures) or real(self, pictures)
    )
    monkeypatch.setattr(
        LanguageBundle, "log_probability", lambda self, texts, real=LanguageBundle.log_probability: asked.append(texts) or real(self, texts)
    )
    _, words = language(kept)
    _, classes = classifier(kept)
    asked.clear()
    words.use(), classes.use()
    assert asked == [[TEXTS[0]], [classes.picture]]


@pytest.mark.parametrize(
    ("make", "call", "said"),
    [
        (classifier, lambda one: one.classify([]), "no picture was given"),
        (language, lambda one: one.log_probability("a"), "give a list of texts"),
        (language, lambda one: one.log_probability(["a red circle " * 9]), "tokens goes past the model's context_length=12: cut it"),
        (language, lambda one: one.write(Writing("a", num=0)), "num=0: must be at least 1"),
        (answering, lambda one: one.answer([one.picture], TEXTS), "1 pictures and 3 questions"),
    ],
)
def test_a_mistake_in_what_is_asked_is_one_line(kept, make, call, said):
    with pytest.raises(InputError, match=said):
        call(make(kept)[1])


def test_a_model_without_a_decoder_or_an_answer_head_says_so(bundle, pictures):
    plain, fused = bundle("MultiModalTransformer"), bundle()
    with pytest.raises(InputError, match="MultiModalTransformer writes no captions"):
        plain.write(pictures)
    with pytest.raises(InputError, match="MultiModalTransformer answers no questions"):
        plain.answer(pictures, TEXTS)
    with pytest.raises(InputError, match="this model writes no captions: build it with decoder_depth"):
        fused.write(pictures)


# --- broken and mismatched ---
def rewritten(folder: Path, name: str, content: bytes | None) -> None:
    """Change a file, or take it away, and the manifest with it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"][name]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("make", "name", "content", "said"),
    [
        (
            classifier,
            "labels.json",
            None,
            "manifest.json: does not list labels.json; fetch the bundle again, or make it again from its run",
        ),
        (classifier, "labels.json", b'["red", "green"]', "labels.json: must list 3 words, one for each output .*: fetch the bundle again"),
        (classifier, "labels.json", b'{"red": 1}', "labels.json: must list 3 words"),
        (classifier, "preprocessing.json", None, "does not list preprocessing.json"),
        (classifier, "preprocessing.json", b'{"version": 9}', r"preprocessing.json: made for {'version': 9}, .*: use its release"),
        (classifier, "example.png", b"no picture", "example.png: a file cannot be read .*; fetch the bundle again"),
        (language, "tokenizer.json", None, "does not list tokenizer.json"),
        (language, "tokenizer.json", b"\xff", "tokenizer.json: cannot be read .*; fetch the bundle again"),
        (answering, "labels.json", b"[", "labels.json: not JSON"),
    ],
)
def test_a_file_that_is_not_of_the_model_is_named_with_the_remedy(kept, make, name, content, said):
    _, again = make(kept)
    rewritten(again.folder, name, content)
    with pytest.raises(InputError, match=said):
        load(again.folder)


def test_the_tokenizer_of_a_larger_vocabulary_is_named(kept):
    _, again = language(kept)
    larger = TextCodec.train([*TEXTS, "yellow purple orange pink"] * 9, 340)
    assert larger.size > 300
    rewritten(again.folder, "tokenizer.json", larger.to_json().encode())
    with pytest.raises(InputError, match=rf"tokenizer.json is not the model's: it has {larger.size} entries, the model 300 token rows"):
        load(again.folder)


def test_weights_and_examples_of_another_model_are_named(kept, tmp_path):
    model, again = classifier(kept)
    save_file({**model.state_dict(), "head.weight": torch.zeros(4, 16)}, tmp_path / "other")
    rewritten(again.folder, "weights.safetensors", (tmp_path / "other").read_bytes())
    with pytest.raises(
        InputError, match=r"weights.safetensors: weights of another model: head.weight is \(\(4, 16\).*make it again from its run"
    ):
        load(again.folder)
    _, again = classifier(kept)
    save_file({"similarity": torch.zeros(1)}, tmp_path / "example")
    rewritten(again.folder, "example.safetensors", (tmp_path / "example").read_bytes())
    with pytest.raises(InputError, match=r"example.safetensors is not of this model, which says probabilities"):
        load(again.folder)
