"""CLIP checkpoints of transformers and open_clip in the project's own dual encoder, beside the libraries' own embeddings."""

from __future__ import annotations

import importlib
import json

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from insight.data.images import MEAN, STD
from insight.data.pretrained_text import load_tokenizer
from insight.data.text import Tokenizer
from insight.errors import InputError
from insight.models.clip_weights import CLIP_MEAN, CLIP_STD, clip_model, load_clip, read_clip
from insight.models.multimodal import MultiModalTransformer
from insight.models.text_transformer import TextTransformer
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import BlockSettings

transformers = pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")
pytest.importorskip("open_clip", reason="the extra `pretrained` is not installed")
tiny_clip = importlib.import_module("tests.insight.models.tiny_clip")  # needs both
END, OPEN_CFG, SIZE = tiny_clip.END, tiny_clip.OPEN_CFG, tiny_clip.SIZE
hugging_face, opened = tiny_clip.hugging_face, tiny_clip.opened

TEXTS = ["a dog runs", "cat", "some long caption with a tail"]


def pictures(mean, std, size=16):
    """The same pictures with this project's colours, and with others."""
    pixels = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    return [(pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1) for m, s in ((MEAN, STD), (mean, std))]


def captions():
    """Ids of the library with an end and padding behind it, and which of them are real."""
    ids = torch.randint(0, END - 1, (3, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(12) < torch.tensor([12, 7, 3])[:, None]
    ids[torch.arange(3), mask.sum(dim=1) - 1] = END
    return ids.masked_fill(~mask, 0), mask


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_transformers_clip_gives_its_embeddings_and_its_logits(activation, tmp_path):
    theirs, (own, other), (ids, mask) = hugging_face(tmp_path, activation), pictures(CLIP_MEAN, CLIP_STD), captions()
    expected, model = theirs(input_ids=ids, attention_mask=mask.long(), pixel_values=other), clip_model(str(tmp_path)).eval()
    output = model(own, ids, mask)
    torch.testing.assert_close(output.image.embedding, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.text.embedding, expected.text_embeds, atol=1e-5, rtol=1e-4)
    logits = output.scale * output.image.embedding @ output.text.embedding.T
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_its_own_tokenizer_renumbered_reads_the_same_captions(tmp_path):
    theirs, library = hugging_face(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    tokens, mask = tokenizer.encode(TEXTS, 12)
    given = library(TEXTS, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    assert not torch.equal(tokens, given["input_ids"])
    model = clip_model(str(tmp_path), tokenizer).eval()
    expected = F.normalize(theirs.text_projection(theirs.text_model(**given).pooler_output), dim=-1)
    torch.testing.assert_close(model.encode_text(tokens, mask).embedding, expected, atol=1e-5, rtol=1e-4)
    model.check_tokenizer(tokenizer)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "weights"),
    [("CLIP", "open_clip_model.safetensors"), ("CustomTextCLIP", "open_clip_model.safetensors"), ("CLIP", "open_clip_pytorch_model.bin")],
)
def test_an_open_clip_gives_its_embeddings(kind, weights, tmp_path):
    theirs, (own, other), (ids, mask) = opened(tmp_path, kind, weights), pictures((0.5,) * 3, (0.5,) * 3), captions()
    for source in (tmp_path, tmp_path / weights):
        output = clip_model(str(source)).eval()(own, ids, mask)
        torch.testing.assert_close(output.image.embedding, theirs.encode_image(other, normalize=True), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.text.embedding, theirs.encode_text(ids, normalize=True), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.scale, theirs.logit_scale.exp())


@torch.no_grad()
def test_shorter_captions_and_larger_pictures_keep_the_weights(tmp_path):
    theirs, (own, other) = hugging_face(tmp_path), pictures(CLIP_MEAN, CLIP_STD, size=32)
    ids, mask = captions()
    model = clip_model(str(tmp_path), image_size=32, context_length=7).eval()
    expected = theirs(input_ids=ids[1:], attention_mask=mask[1:].long(), pixel_values=other[:, :, :16, :16]).text_embeds
    torch.testing.assert_close(model.encode_text(ids[1:, :7], mask[1:, :7]).embedding, expected, atol=1e-5, rtol=1e-4)
    first = theirs.vision_model.embeddings.position_embedding.weight[:1]
    assert model.image.grid_size == 4 and torch.equal(model.image.embedding.position[0, :1], first)
    assert model.encode_image(own).embedding.shape == (3, 12)


def towers(**text):
    """Built by hand, for a file without a config."""
    quick = BlockSettings(activation="quick_gelu")
    image = VisionTransformer(16, 8, 32, 2, 2, block=quick, input_norm=True, patch_bias=True)
    made = TextTransformer(SIZE, 12, 24, 2, 3, block=quick, **({"causal": True, "pool": "last"} | text))
    return MultiModalTransformer(SIZE, 16, context_length=12, embed_dim=12, image=image, text=made)


def alone(tmp_path):
    """A file of weights whose config is not there."""
    model = opened(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    return model, str(tmp_path / "open_clip_model.safetensors")


@torch.no_grad()
def test_a_file_without_a_config_fits_a_model_that_was_built_for_it(tmp_path):
    (theirs, file), (own, other), model = alone(tmp_path), pictures(CLIP_MEAN, CLIP_STD), towers().eval()
    head = model.word_head.weight.clone()
    load_clip(model, read_clip(file))
    torch.testing.assert_close(model.encode_image(own).embedding, theirs.encode_image(other, normalize=True), atol=1e-5, rtol=1e-4)
    assert torch.equal(model.word_head.weight, head) and float(model.logit_bias) == -10  # what CLIP has not stays
    with pytest.raises(InputError, match=r"no config\.json and no open_clip_config\.json beside the file"):
        clip_model(file)


def test_weights_that_do_not_fit_are_listed_and_change_nothing(tmp_path):
    _, file = alone(tmp_path)
    source, model = read_clip(file), towers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    source.weights["visual.extra"] = source.weights.pop("visual.ln_pre.weight")
    source.weights["visual.proj"] = torch.zeros(32, 5)
    with pytest.raises(InputError) as error:
        load_clip(model, source)
    message = str(error.value)
    assert "missing in the file: image.input_norm.weight" in message and "unknown to the model: visual.extra" in message
    assert "image_projection.weight: (5, 32) in the file, (12, 32) in the model" in message and "\n" not in message
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_no_clip_is_refused_in_one_line(tmp_path):
    (_, file), other = alone(tmp_path), tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match="no CLIP or SigLIP there; give a file"):
        read_clip(str(other))
    safetensors.torch.save_file({"conv.weight": torch.zeros(1)}, other / "model.safetensors")
    with pytest.raises(InputError, match=r"not the weights of a CLIP .* its keys: conv.weight"):
        load_clip(towers(), read_clip(str(other / "model.safetensors")))
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="model_type='gpt2', but only CLIP"):
        read_clip(str(other))
    (other / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_clip(str(other))
    with pytest.raises(InputError, match="text is causal with pool=last"):
        load_clip(towers(causal=False), read_clip(file))
    with pytest.raises(InputError, match="the tokenizer's ids are this project's own"):
        load_clip(towers(), read_clip(file), Tokenizer.train(["a dog"], vocab_size=260))


def test_an_open_clip_with_another_tower_is_refused(tmp_path):
    opened(tmp_path)
    config = {"model_cfg": OPEN_CFG | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 32, "image_size": 16}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"vision_cfg has .*layers.* only CLIP's vision and text transformers"):
        clip_model(str(tmp_path))
    config = {"model_cfg": OPEN_CFG | {"text_cfg": OPEN_CFG["text_cfg"] | {"no_causal_mask": True}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"text_cfg has .*no_causal_mask"):
        clip_model(str(tmp_path))


def test_a_checkpoint_of_the_hub_is_the_one_of_its_folder(tmp_path, monkeypatch):
    theirs, hub = opened(tmp_path), pytest.importorskip("huggingface_hub")

    def download(repository, name):
        if repository != "owner/tiny" or not (tmp_path / name).exists():
            raise hub.errors.LocalEntryNotFoundError(f"no {name}")
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    model = clip_model("hf-hub:owner/tiny")
    assert torch.equal(model.text.embedding.token.weight, theirs.token_embedding.weight)
    with pytest.raises(InputError, match="hf-hub:owner/other: no CLIP or SigLIP there, or the hub cannot be reached"):
        clip_model("hf-hub:owner/other")


def test_an_open_clip_config_without_its_sizes_is_named(tmp_path):
    opened(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(InputError, match=r"open_clip_config\.json: .*embed_dim"):
        clip_model(str(tmp_path))
