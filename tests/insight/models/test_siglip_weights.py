"""SigLIP checkpoints of transformers and open_clip in the project's own towers, beside the libraries' own embeddings."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
import torch.nn.functional as F

from insight.data.images import MEAN, STD
from insight.data.pretrained_text import load_tokenizer, read_tokenizer
from insight.errors import InputError
from insight.models import siglip_weights
from insight.models.clip_weights import clip_model
from insight.models.siglip_weights import siglip_model, timm_shape

for name in ("transformers", "open_clip", "timm", "sentencepiece"):
    pytest.importorskip(name, reason="the extra `pretrained` is not installed")
tiny_clip = importlib.import_module("tests.insight.models.tiny_clip")
tiny = importlib.import_module("tests.insight.models.tiny_siglip")

CAPTIONS = ["A small, RED circle!", "blue star", "a large   blue square; a red star_ and a small circle, a large square"]


def pictures(size=16):
    """The same pictures with this project's colours, and with SigLIP's."""
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), (pixels - 0.5) / 0.5


@pytest.fixture
def small_timm(monkeypatch):
    """timm knows no SigLIP that is small enough: a base one, with the sizes of the test."""
    timm = importlib.import_module("timm")
    create = timm.create_model

    def create_model(name, **arguments):
        return create("vit_base_patch16_siglip_224", **tiny.TIMM, **arguments) if name == "tiny_siglip" else create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", create_model)


@torch.no_grad()
def test_a_transformers_siglip_gives_its_embeddings_and_its_logits(tmp_path):
    theirs, (own, other) = tiny.hugging_face(tmp_path), pictures()
    ids = torch.randint(0, tiny.SIZE, (3, tiny.CONTEXT), generator=torch.Generator().manual_seed(2))
    expected, model = theirs(input_ids=ids, pixel_values=other), siglip_model(str(tmp_path)).eval()
    output = model(own, ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(output.image.embedding, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.text.embedding, expected.text_embeds, atol=1e-5, rtol=1e-4)
    logits = output.scale * output.image.embedding @ output.text.embedding.T + output.bias
    assert float(output.scale) > 100
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_an_open_clip_siglip_gives_its_embeddings(tmp_path, small_timm):
    theirs, (own, other) = tiny.opened(tmp_path), pictures()
    ids = torch.randint(0, tiny.SIZE, (3, tiny.CONTEXT), generator=torch.Generator().manual_seed(2))
    model = siglip_model(str(tmp_path)).eval()
    output = model(own, ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(output.image.embedding, F.normalize(theirs.visual.trunk(other), dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.text.embedding, F.normalize(theirs.text(ids), dim=-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.scale, theirs.logit_scale.exp())
    torch.testing.assert_close(output.bias, theirs.logit_bias)


def test_the_sizes_of_open_clips_image_tower_are_those_that_timm_gives_the_name():
    patch_size, shape = timm_shape("vit_so400m_patch14_siglip_224", 224)
    assert (patch_size, shape.dim, shape.depth, shape.heads, shape.block.norm_eps) == (14, 1152, 27, 16, 1e-6)
    assert int(shape.dim * shape.block.mlp_ratio) == 4304


@torch.no_grad()
def test_its_own_tokenizer_reads_the_same_captions_padding_and_all(tmp_path):
    theirs, library = tiny.hugging_face(tmp_path), tiny.save_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    given = library(CAPTIONS, padding="max_length", truncation=True, max_length=tiny.CONTEXT, return_tensors="pt")["input_ids"]
    tokens, mask = tokenizer.encode(CAPTIONS, tiny.CONTEXT)
    assert mask.all() and torch.equal(torch.tensor(tokenizer.library_ids)[tokens], given)
    model = siglip_model(str(tmp_path), tokenizer).eval()
    expected = F.normalize(theirs.text_model(input_ids=given).pooler_output, dim=-1)
    torch.testing.assert_close(model.encode_text(tokens, mask).embedding, expected, atol=1e-5, rtol=1e-4)
    again = read_tokenizer(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json() and all(map(torch.equal, again.encode(CAPTIONS, 12), (tokens, mask)))
    assert [word.text for word in tokenizer.words("a RED circle", 12)] == ["a", "RED", "circle"]


def test_another_family_is_one_line_that_names_the_remedy(tmp_path, small_timm):
    clip, siglip, opened = tmp_path / "clip", tmp_path / "siglip", tmp_path / "opened"
    for folder in (clip, siglip, opened):
        folder.mkdir()
    tiny_clip.hugging_face(clip)
    tiny.hugging_face(siglip)
    tiny.opened(opened)
    for model, folder, remedy in (
        (siglip_model, clip, "this is a CLIP: model=clip"),
        (clip_model, siglip, "this is a SigLIP: model=siglip"),
        (clip_model, opened, "this is a SigLIP: model=siglip"),
    ):
        with pytest.raises(InputError, match=remedy) as error:
            model(str(folder))
        assert "\n" not in str(error.value)
    (clip / "config.json").unlink()
    tiny_clip.opened(clip)
    with pytest.raises(InputError, match="this looks like a CLIP: model=clip"):
        siglip_model(str(clip))
    with pytest.raises(InputError, match=r"filled up to 12 tokens: data\.init_args\.context_length=12"):
        siglip_model(str(siglip), context_length=8)
    with pytest.raises(InputError, match=r"this is a SigLIP without tokenizer\.json"):
        load_tokenizer(siglip)


def test_a_tokenizer_of_the_hub_is_that_of_its_folder_and_another_kind_of_end_is_refused(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    tiny.hugging_face(tmp_path)
    tiny.save_tokenizer(tmp_path)

    def download(repository, name):
        if repository != "owner/tiny" or not (tmp_path / name).exists():
            raise hub.errors.LocalEntryNotFoundError(f"no {name}")
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert load_tokenizer("hf-hub:owner/tiny").to_json() == load_tokenizer(tmp_path).to_json()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "pad_token": {"content": "<pad>"}}))
    with pytest.raises(InputError, match=r"ends with '<eos>' and is padded with '<pad>', but only SigLIP's tokenizer is read here"):
        load_tokenizer(tmp_path)


def test_weights_that_are_no_siglip_are_listed(tmp_path):
    tiny.hugging_face(tmp_path)
    found = siglip_weights.read_siglip(str(tmp_path))
    assert found.sizes is not None and siglip_weights.layout_of(found.weights) == "config.json"
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"not the weights of a SigLIP .* its keys: conv\.weight"):
        siglip_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="model_type='gpt2', but only SigLIP"):
        siglip_model(str(tmp_path))
