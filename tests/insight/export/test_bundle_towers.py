"""A model around encoders of other libraries leaves as a bundle, and comes back without their files and without a hub."""

from __future__ import annotations

import json
import os

import pytest
import torch

from insight.data.pretrained_text import load_tokenizer
from insight.errors import InputError
from insight.export.building import described_tower
from insight.export.bundle import load
from insight.export.manifest import write_manifest
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.towers.timm import TimmImage
from insight.towers.torchvision import TorchvisionImage
from insight.towers.transformers import TransformersImage, TransformersText

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = "a red circle"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()]
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **SMALL)).save_pretrained(folder)
    return folder


def vit(tmp_path):
    transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **SMALL), add_pooling_layer=False).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    return TransformersImage(str(tmp_path), arguments={"add_pooling_layer": False})


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: TimmImage("test_vit", arguments={"img_size": 32}),
        lambda folder: TorchvisionImage("resnet18", image_size=32),
        vit,
    ],
)
def test_a_bundle_with_towers_says_what_its_model_said_when_their_files_are_gone(make, bert, bundle, tmp_path):
    torch.manual_seed(0)
    image, text = make(tmp_path), TransformersText(str(bert), context_length=8)
    arguments = {"vocab_size": 8, "image_size": image.image_size, "context_length": 8, "dim": 16, "heads": 2, "embed_dim": 8}
    model = CrossAttentionMultiModalTransformer(**arguments, fusion_depth=1, image=image, text=text)
    config = {"image": {"class_path": "somewhere", "init_args": {"weights": "/private/place.pth"}}, "text": {"class_path": "there"}}
    kept = bundle(model=model, arguments={**arguments, "fusion_depth": 1, **config}, tokenizer=load_tokenizer(bert), text=TEXT)
    assert "/private" not in (kept.folder / "model.json").read_text()
    moved = tmp_path / "moved"
    os.rename(kept.folder, moved)
    again = load(moved)
    state, own = again.model.state_dict(), model.state_dict()
    assert state.keys() == own.keys() and all(torch.equal(state[name], own[name]) for name in own)
    pixels = again.pixels([again.picture])
    with torch.no_grad():
        assert torch.equal(again.model.encode_image(pixels).tokens, model.eval().encode_image(pixels).tokens)
    assert again.tokenizer.library_ids == load_tokenizer(bert).library_ids and again.example_error() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tower": "os.system"}, "not one of the towers"),
        ({"arguments": {"name": "hf-hub:nobody/nothing"}}, "would read something that is not in the bundle"),
        ({"arguments": {"name": "test_vit", "weights": "/etc/passwd"}}, "weights would read something"),
        ({"arguments": {"name": "test_vit", "arguments": {"checkpoint_path": "/etc/passwd"}}}, "checkpoint_path would read something"),
        ({"arguments": {"name": "test_vit", "size": 3}}, "takes no such argument"),
    ],
)
def test_a_bundle_whose_tower_reaches_outside_is_refused(change, message, bundle):
    tower = TimmImage("test_vit", arguments={"img_size": 32})
    arguments = {"vocab_size": 300, "image_size": 32, "context_length": 12, "dim": 16, "heads": 2, "embed_dim": 8, "text_depth": 1}
    kept = bundle(model=MultiModalTransformer(**arguments, image=tower), arguments={**arguments, "image": {}})
    described = json.loads((kept.folder / "model.json").read_text())
    described["arguments"]["image"] |= change
    (kept.folder / "model.json").write_text(json.dumps(described))
    (kept.folder / "manifest.json").unlink()
    write_manifest(kept.folder)
    with pytest.raises(InputError, match=message):
        load(kept.folder)


def test_a_tower_that_is_not_known_to_bundles_is_named():
    class Own(TimmImage):
        pass

    with pytest.raises(InputError, match="Own cannot be bundled"):
        described_tower(Own("test_vit", arguments={"img_size": 32}))
