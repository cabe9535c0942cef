"""Encoders of other libraries as image towers: their own numbers, on the regions and for the whole picture."""

from __future__ import annotations

import pytest
import torch

from insight.data.images import MEAN, STD, normalise
from insight.digest import state_digest
from insight.errors import InputError
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from insight.models.tower import ImageTower
from insight.towers.timm import TimmImage
from insight.towers.torchvision import TorchvisionImage
from insight.towers.transformers import TransformersImage

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
torchvision = pytest.importorskip("torchvision")

CNN, VIT = "test_efficientnet", "test_vit"
TINY_VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8}


def pictures(size: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return normalise(torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8))


@pytest.fixture(scope="module")
def cnn_file(tmp_path_factory):
    """A file of tiny weights, with batch norm statistics that are not those of the start."""
    torch.manual_seed(1)
    network = timm.create_model(CNN)
    with torch.no_grad():
        network.train()(pictures(64, 4))
    path = tmp_path_factory.mktemp("weights") / "cnn.pth"
    torch.save(network.state_dict(), path)
    return path


def test_a_timm_tower_gives_the_libraries_own_map_and_vector(cnn_file):
    tower = TimmImage(CNN, str(cnn_file), image_size=64)
    network = timm.create_model(CNN).eval()
    network.load_state_dict(torch.load(cnn_file, weights_only=True))
    image = pictures(64)
    raw = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    config = timm.data.resolve_model_data_config(network)
    own = (raw - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.no_grad():
        output, features = tower(image), network.forward_features(own)
    side = features.shape[-1]
    assert (tower.grid_size, tower.dim, tower.mean_pooled) == (side, features.shape[1], True)
    assert output.tokens.shape == (2, 1 + side * side, tower.dim) and torch.equal(output.tokens[:, 0], output.pooled)
    for row in range(side):
        for column in range(side):
            torch.testing.assert_close(output.tokens[:, 1 + row * side + column], features[:, :, row, column], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.pooled, network.forward_head(features, pre_logits=True), atol=1e-4, rtol=1e-4)


def test_a_timm_transformer_gives_its_patches_and_its_own_vector():
    torch.manual_seed(0)
    tower = TimmImage(VIT, arguments={"img_size": 64})
    network, image = tower.network, tower.normalised(pictures(64))
    with torch.no_grad():
        features = network.forward_features(image)
        output = tower(pictures(64))
    assert tower.image_size == 64 and tower.grid_size == 4 and not tower.mean_pooled
    torch.testing.assert_close(output.tokens[:, 1:], features[:, -16:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.pooled, network(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_torchvision_tower_reads_what_the_last_layer_would_read(name):
    torch.manual_seed(0)
    tower = TorchvisionImage(name, image_size=64)
    last = torch.nn.Linear(tower.dim, 5)
    image = pictures(64)
    full = torchvision.models.get_model(name)
    full.load_state_dict({**full.state_dict(), **tower.network.state_dict()})
    full.eval()
    attribute = "fc" if name == "resnet18" else "classifier"
    setattr(full, attribute, last)
    with torch.no_grad():
        output = tower(image)
        torch.testing.assert_close(last(output.pooled), full(image))
        torch.testing.assert_close(output.tokens[:, 1:].mean(dim=1), output.pooled, atol=1e-5, rtol=1e-4)
    assert output.tokens.shape[1] == 1 + tower.grid_size**2 == 5


def test_a_transformers_tower_equals_its_model_and_keeps_its_weights(tmp_path):
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**TINY_VIT)).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    tower = TransformersImage(str(tmp_path))
    image = pictures(16)
    raw = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    with torch.no_grad():
        expected, output = model(pixel_values=raw * 2 - 1), tower(image)
    torch.testing.assert_close(output.tokens[:, 1:], expected.last_hidden_state[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.pooled, expected.pooler_output, atol=1e-5, rtol=1e-4)
    assert (tower.image_size, tower.grid_size, tower.dim) == (16, 2, 16)
    assert state_digest(tower.network.state_dict()) == state_digest(model.state_dict())
    with torch.no_grad():
        assert TransformersImage(str(tmp_path), image_size=32)(pictures(32)).tokens.shape == (2, 17, 16)  # interpolated positions


def test_a_transformers_tower_of_convolutions_has_regions_too():
    small = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    tower = TransformersImage("resnet", arguments=small, image_size=32)
    with torch.no_grad():
        output = tower(pictures(32))
    assert output.tokens.shape == (2, 1 + tower.grid_size**2, 12) and tower.mean_pooled
    torch.testing.assert_close(output.tokens[:, 1:].mean(dim=1), output.pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [MultiModalTransformer, CrossAttentionMultiModalTransformer])
def test_a_model_around_a_tower_changes_no_bit_of_it(kind, cnn_file):
    tower = TimmImage(CNN, str(cnn_file), image_size=64)
    before = state_digest(tower.state_dict())
    model = kind(vocab_size=20, image_size=64, context_length=8, dim=16, text_depth=1, heads=2, embed_dim=12, image=tower)
    assert state_digest(model.image.state_dict()) == before and model.image is tower
    tokens, mask = torch.randint(4, 20, (3, 8)), torch.ones(3, 8, dtype=torch.bool)
    output = model(pictures(64), tokens, mask)
    assert output.image.embedding.shape == (2, 12) and output.image.tokens.shape[-1] == tower.dim != 16
    torch.testing.assert_close(output.image.embedding.norm(dim=-1), torch.ones(2))
    if kind is CrossAttentionMultiModalTransformer:
        scores = model.match(output.text.tokens, mask, output.image.tokens, image_row_C=torch.tensor([0, 0, 1]))
        adapted = model.image_adapter(output.image.tokens)
        model.image_adapter = torch.nn.Identity()
        assert torch.equal(model.match(output.text.tokens, mask, adapted, image_row_C=torch.tensor([0, 0, 1])), scores)


def test_batch_norm_of_a_tower_keeps_its_statistics_while_it_trains(cnn_file):
    tower = TimmImage(CNN, str(cnn_file), image_size=64)
    before = {name: value.clone() for name, value in tower.named_buffers()}
    tower.train()
    assert tower.training and tower.network.training
    tower(pictures(64, 4)).pooled.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in tower.named_buffers())
    assert all(parameter.grad is not None for parameter in tower.parameters())


def test_features_pass_as_they_are_and_give_the_same_output(cnn_file):
    tower = TimmImage(CNN, str(cnn_file), image_size=64)
    image = pictures(64)
    with torch.no_grad():
        features = tower.embed(image)
        assert torch.equal(tower(features).tokens, tower(image).tokens)
        assert torch.equal(tower(features[:, :1]).pooled, tower(image).pooled)


def test_a_region_that_is_left_out_counts_for_nothing(cnn_file):
    tower = TimmImage(CNN, str(cnn_file), image_size=96)
    with torch.no_grad():
        features = tower.embed(pictures(96))
    assert features.shape[1] == 10
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[:, 4:] = False
    by_hand = features[:, 1:4].mean(dim=1)
    torch.testing.assert_close(tower.read(features, mask).pooled, by_hand)
    torch.testing.assert_close(tower.read(features[:, :4]).pooled, by_hand)


def wrong_file(tmp_path, cnn_file):
    weights = torch.load(cnn_file, weights_only=True)
    weights["classifier.weight"] = weights["classifier.weight"][:5]
    weights["stranger"] = weights.pop("conv_stem.weight")
    torch.save({"state_dict": weights}, tmp_path / "wrong.pth")
    return tmp_path / "wrong.pth"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, file: TimmImage(CNN, str(folder / "none.pth")), r"weights=.*none\.pth: there is no such file"),
        (lambda folder, file: TimmImage(CNN, str(wrong_file(folder, file))), r"classifier\.weight: \(5, .*missing.*conv_stem.*stranger"),
        (lambda folder, file: TimmImage(VIT, str(file)), r"not those of timm's test_vit: missing in the file: "),
        (lambda folder, file: TimmImage("test_efficientnett"), "timm has no model 'test_efficientnett'; did you mean 'test_efficientnet'"),
        (lambda folder, file: TimmImage(CNN, arguments={"pad_typ": "same"}), "unexpected keyword argument 'pad_typ'"),
        (lambda folder, file: TimmImage("hf-hub:nobody/nothing"), r"hub cannot be reached.*Give a local file or folder"),
        (lambda folder, file: TimmImage(VIT, image_size=50), "does not read pictures of 50 pixels"),
        (lambda folder, file: TorchvisionImage("resnet19"), "torchvision has no classifier 'resnet19'; did you mean 'resnet1"),
        (lambda folder, file: TorchvisionImage("resnet18", "IMAGENET1K_V7"), "no such weights for resnet18; did you mean 'IMAGENET1K_V1'"),
        (lambda folder, file: TorchvisionImage("resnet18", str(file)), "not those of torchvision's resnet18"),
        (lambda folder, file: TorchvisionImage("resnet18", grid="layer5"), r"grid=layer5: resnet18 has no such module.*layer4"),
        (lambda folder, file: TorchvisionImage("mobilenet_v3_small", image_size=32), "own vector has 1024 channels.*576.*pooling: mean"),
        (lambda folder, file: TransformersImage("hf-hub:nobody/nothing"), "hub cannot be reached"),
        (lambda folder, file: TransformersImage("nobody/nothing"), r"no such folder; for the hub write hf-hub:nobody/nothing"),
        (lambda folder, file: TransformersImage("bert", arguments=TINY_BERT), "BertModel.* reads no pictures"),
        (lambda folder, file: TransformersImage(str(headless(folder))), r"lacks weights of ViTModel: pooler.*add_pooling_layer: false"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(make, message, tmp_path, cnn_file):
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path, cnn_file)
    assert "\n" not in str(caught.value)


TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 60}


def headless(folder):
    transformers.ViTModel(transformers.ViTConfig(**TINY_VIT), add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_pooling_may_be_the_mean_where_widths_differ(tmp_path):
    tower = TorchvisionImage("mobilenet_v3_small", image_size=32, pooling="mean")
    assert isinstance(tower, ImageTower) and (tower.dim, tower.mean_pooled) == (576, True)
    own = TransformersImage(str(headless(tmp_path)), arguments={"add_pooling_layer": False})
    with torch.no_grad():
        assert torch.equal(own(pictures(16)).pooled, own.network(pixel_values=own.normalised(pictures(16))).last_hidden_state[:, 0])


def test_a_model_refuses_data_of_another_size(cnn_file):
    tower = TimmImage(CNN, str(cnn_file), image_size=64)
    with pytest.raises(InputError, match=r"image_size=32, but the image tower reads pictures of 64 pixels: data\.init_args\.image_size=64"):
        MultiModalTransformer(vocab_size=20, image_size=32, image=tower)
    with pytest.raises(InputError, match=r"reads pictures of shape \(B, 3, 64, 64\)"):
        tower(torch.zeros(1, 3, 32, 32))


def test_what_the_classifier_says_stands_beside_the_features_of_every_region(cnn_file):
    plain, beside = TimmImage(CNN, str(cnn_file), image_size=64), TimmImage(CNN, str(cnn_file), image_size=64, classes=True)
    network = timm.create_model(CNN).eval()
    network.load_state_dict(torch.load(cnn_file, weights_only=True))
    image = pictures(64)
    with torch.no_grad():
        features, both, logits = plain(image), beside(image), network(plain.normalised(image))
    assert beside.dim == plain.dim + network.num_classes and beside.mean_pooled
    torch.testing.assert_close(both.tokens[..., : plain.dim], features.tokens)
    torch.testing.assert_close(both.pooled[:, plain.dim :], logits, atol=1e-4, rtol=1e-4)
    again = TimmImage(**beside.rebuilding())
    again.load_state_dict(beside.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(image).tokens, both.tokens)


def test_a_network_without_a_classifier_of_its_vector_cannot_give_classes():
    with pytest.raises(InputError, match=r"classes"):
        TimmImage(CNN, image_size=64, classes=True, arguments={"num_classes": 0})
