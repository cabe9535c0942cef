"""The project's vision transformer beside torchvision's and timm's, with their weights."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torchvision

from insight.data.images import MEAN, STD
from insight.errors import InputError
from insight.models.classifier import ImageClassifier
from insight.models.vision_transformer import VisionTransformer
from insight.nn.settings import BlockSettings
from insight.towers.vision_weights import Source, load_vision_transformer, read_source, resample_positions

timm = pytest.importorskip("timm", reason="the extra `pretrained` is not installed")
TRAINED = BlockSettings(norm_eps=1e-6)
TINY = {"dim": 32, "depth": 2, "heads": 4, "block": BlockSettings(norm_eps=1e-6, mlp_ratio=2.0)}
SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 7}


def filled(network):
    """Every weight by lot, so that none stands at a zero or one where a mistake would hide."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.to_empty(device="cpu").parameters():
        wide = parameter.ndim > 1
        parameter.data.uniform_(-0.05 if wide else 0.2, 0.05 if wide else 1.0, generator=generator)
    return network.eval()


def theirs(library, size=32):
    with torch.device("meta"):
        if library == "torchvision":
            return torchvision.models.VisionTransformer(size, 8, 2, 4, 32, 64, num_classes=7)
        return timm.create_model("vit_base_patch16_224", img_size=size, **SMALL)


def on_disk(weights, path):
    safetensors.torch.save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return read_source(str(path))


@torch.no_grad()
@pytest.mark.parametrize(("library", "file"), [("torchvision", "a.pth"), ("timm", "a.safetensors")])
def test_a_tiny_one_gives_the_librarys_logits_with_weights_from_its_file(library, file, tmp_path):
    reference, image = filled(theirs(library)), torch.randn(2, 3, 32, 32)
    ours = ImageClassifier(7, 32, 8, **TINY).eval()
    load_vision_transformer(ours.image, on_disk(reference.state_dict(), tmp_path / file), ours.head)
    torch.testing.assert_close(ours(image).logits, reference(image), atol=1e-5, rtol=1e-5)
    alone = VisionTransformer(32, 8, **TINY).eval()
    load_vision_transformer(alone, read_source(str(tmp_path / file)))  # the classifier is left where it is
    assert torch.equal(alone(image).pooled, ours.image(image).pooled)
    last = dict(reference.named_parameters())["heads.head.weight" if library == "torchvision" else "head.weight"]
    assert torch.equal(ours.head.weight, last)  # as it was loaded: nothing initialises it again


@torch.no_grad()
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_b16_gives_the_librarys_logits(library):
    with torch.device("meta"):
        reference = torchvision.models.vit_b_16() if library == "torchvision" else timm.create_model("vit_base_patch16_224")
        ours = ImageClassifier(1000, 224, 16, dim=768, depth=12, heads=12, block=TRAINED).eval()
    reference, ours, image = filled(reference), ours.to_empty(device="cpu"), torch.randn(1, 3, 224, 224)
    load_vision_transformer(ours.image, Source(library, reference.state_dict()), ours.head)
    expected = reference(image)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(ours(image).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 56])
def test_another_image_size_gets_positions_as_timm_resamples_them(size):
    reference, larger = filled(theirs("timm")), theirs("timm", size)
    positions = timm.layers.resample_abs_pos_embed(reference.pos_embed, [size // 8, size // 8], num_prefix_tokens=1)
    torch.testing.assert_close(resample_positions(reference.pos_embed, size // 8, 1), positions, atol=1e-7, rtol=1e-6)
    larger = larger.to_empty(device="cpu").eval()
    larger.load_state_dict({**reference.state_dict(), "pos_embed": positions})
    ours, image = ImageClassifier(7, size, 8, **TINY).eval(), torch.randn(2, 3, size, size)
    load_vision_transformer(ours.image, Source("tiny", reference.state_dict()), ours.head)
    torch.testing.assert_close(ours(image).logits, larger(image), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_that_were_trained_on_other_colours_read_this_projects_pictures():
    reference, pixels = filled(theirs("timm")), torch.rand(2, 3, 32, 32)
    half = (0.5, 0.5, 0.5)
    ours = ImageClassifier(7, 32, 8, **TINY).eval()
    load_vision_transformer(ours.image, Source("tiny", reference.state_dict(), half, half), ours.head)
    image = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(ours(image).logits, reference((pixels - 0.5) / 0.5), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_tower_without_class_token_that_pools_by_attention_is_timms_siglip():
    with torch.device("meta"):
        reference = timm.create_model("vit_base_patch16_siglip_224", img_size=32, **{**SMALL, "num_classes": 0})
    reference, image = filled(reference), torch.randn(2, 3, 32, 32)
    ours = VisionTransformer(32, 8, **TINY, class_token=False, pool="attention").eval()
    load_vision_transformer(ours, Source("tiny siglip", reference.state_dict()))
    torch.testing.assert_close(ours(image).pooled, reference(image), atol=1e-5, rtol=1e-5)


def test_weights_that_do_not_fit_are_one_error_that_lists_their_keys_and_change_nothing():
    ours = ImageClassifier(7, 32, 8, **{**TINY, "depth": 1})
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    source = Source("tiny", filled(theirs("timm")).state_dict())
    with pytest.raises(InputError, match=r"another vision transformer: unknown to the model: blocks\.1\.attention.* and 10 more"):
        load_vision_transformer(ours.image, source, ours.head)
    wider = ImageClassifier(9, 32, 8, **TINY)
    with pytest.raises(InputError, match=r"other shape: head\.weight: \(7, 32\) in the file, \(9, 32\) in the model"):
        load_vision_transformer(wider.image, source, wider.head)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_a_network_of_another_family_is_one_error_that_says_where_it_serves():
    source = Source("r.pth", {"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"weights=r\.pth: not the weights of a vision transformer .* conv1\.weight.* insight\.towers"):
        load_vision_transformer(VisionTransformer(32, 8, **TINY), source)


def test_a_norm_with_another_eps_is_an_error_that_names_the_setting():
    with pytest.raises(InputError, match=r"set block\.norm_eps=1\.0e-6"):
        load_vision_transformer(VisionTransformer(32, 8, 32, 2, 4), Source("tiny", filled(theirs("timm")).state_dict()))


def test_a_checkpoint_that_is_not_there_is_one_error_for_each_kind_of_name(tmp_path):
    for weights, said in (
        (str(tmp_path / "none.pth"), "there is no such file"),
        ("ViT_B_16_Weights.IMAGENET1K_V9", r"did you mean 'ViT_B_16_Weights\.IMAGENET1K_V1'"),
        ("hf-hub:timm/not-here", r"the hub cannot be reached .* local file"),
    ):
        with pytest.raises(InputError, match=said):
            read_source(weights)


def test_the_projects_own_weights_load_whatever_their_eps():
    first, second = ImageClassifier(3, 32, 8, 32, 1, 4), ImageClassifier(3, 32, 8, 32, 1, 4)
    for place in ("", "model."):  # a model's own, and as a run's checkpoint holds them, beside other parts
        given = {f"{place}{name}": value + 1 for name, value in first.state_dict().items()} | {f"{place}text.norm.weight": torch.zeros(1)}
        load_vision_transformer(second.image, Source("own", given), second.head)
        assert all(torch.equal(second.state_dict()[name], value + 1) for name, value in first.state_dict().items())
        second = ImageClassifier(3, 32, 8, 32, 1, 4)
