"""A bundle says what its model said, bit for bit, on its own; and one that was tampered with is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from safetensors.torch import load_file, save_file

from insight.data.images import normalise
from insight.errors import InputError
from insight.export.building import ARCHITECTURES, plain_arguments
from insight.export.bundle import NEEDED, load
from insight.export.kinds import ImageTextBundle
from insight.nn.settings import BlockSettings
from insight.stages import load as load_class

ROOT = Path(__file__).resolve().parents[3]
ARGUMENTS = {"vocab_size": 300, "image_size": 16, "patch_size": 8, "context_length": 12, "dim": 16, "heads": 2}
TEXTS = ["a red circle", "a blue square left of a red one", "two triangles"]


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    draw = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return paths


def rewritten(folder: Path, name: str, content: bytes) -> None:
    """Change a file and the manifest with it, as somebody would who wants to be believed."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["MultiModalTransformer", "CrossAttentionMultiModalTransformer"])
def test_a_bundle_says_bit_for_bit_what_its_model_said(name, model, bundle, pictures):
    original, kept = model(name).eval(), bundle(name)
    again = load(kept.folder)
    pixels = torch.stack([again.transform.open(path) for path in pictures])
    tokens, mask = kept.tokenizer.encode(TEXTS, 12)
    with torch.no_grad():
        output = original(pixels, tokens, mask)
        assert torch.equal(again.encode_images(pictures), output.image.embedding)
        assert torch.equal(again.encode_texts(TEXTS), output.text.embedding)
        assert torch.equal(again.similarity(pictures, TEXTS), output.image.embedding @ output.text.embedding.T)
        if again.matches:
            odds = original.match(output.text.tokens, mask, output.image.tokens)
            assert torch.equal(again.match(pictures, TEXTS), odds.softmax(dim=-1)[:, 1])
    assert not again.model.training and not any(parameter.requires_grad for parameter in again.model.parameters())
    assert again.example_error() == 0.0


def test_a_picture_may_be_a_file_or_opened_and_is_prepared_as_in_training(bundle, pictures):
    kept = bundle()
    by_hand = Image.open(pictures[0]).resize((20, 20), Image.Resampling.BILINEAR).resize((16, 16), Image.Resampling.BILINEAR)
    expected = normalise(torch.from_numpy(np.array(by_hand)).permute(2, 0, 1))
    torch.testing.assert_close(kept.pixels([pictures[0]])[0], expected, atol=0.03, rtol=0)  # a grey level or two: Pillow rounds otherwise
    assert torch.equal(kept.pixels([Image.open(pictures[0])]), kept.pixels([str(pictures[0])]))
    grey = Image.open(pictures[0]).convert("LA")
    assert kept.encode_images([grey]).shape == (1, 8)


def test_batches_only_divide_the_work(bundle, pictures):
    kept = bundle()
    torch.testing.assert_close(kept.encode_images(pictures, batch_size=2), kept.encode_images(pictures))
    torch.testing.assert_close(kept.encode_texts(TEXTS, batch_size=1), kept.encode_texts(TEXTS))


def test_a_bundle_is_read_without_the_training_framework_the_config_tool_or_the_tracker(bundle):
    folder = bundle().folder
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['lightning', 'pytorch_lightning', 'hydra', 'omegaconf', 'mlflow', 'jsonargparse']))\n"
        "from insight.export.bundle import load\n"
        "print(load(sys.argv[1]).encode_texts(['a red circle']).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), load(folder).encode_texts(["a red circle"]))


def test_the_same_model_makes_the_same_bytes_and_replaces_what_was_there(bundle, model, tmp_path):
    first, second = bundle(), bundle(folder=tmp_path / "second")
    assert first.sha256 == second.sha256 == bundle().sha256
    other = model()
    torch.nn.init.ones_(other.image_projection.weight)
    assert bundle(model=other).sha256 != first.sha256
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "second"}


def test_saving_leaves_the_model_as_it_was(bundle, model):
    mine = model().train()
    mine.image.eval()
    bundle(model=mine)
    assert mine.training and not mine.image.training and mine.logit_scale.requires_grad


def test_a_bundle_holds_what_it_was_made_from(bundle, tmp_path):
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "model_card.md").write_text("# A card\n")
    kept = bundle(card=tmp_path / "card")
    assert kept.config["seed_everything"] == 3 and kept.data["fingerprint"] == "f" * 64
    assert (kept.folder / "card" / "model_card.md").read_text() == "# A card\n"
    signature = json.loads((kept.folder / "signature.json").read_text())
    assert signature["inputs"]["image"] == {"dtype": "float32", "shape": ["B", 3, 16, 16]}
    assert signature["outputs"]["image_embedding"] == {"dtype": "float32", "shape": ["B", 8]}
    assert signature["outputs"]["match"] == {"dtype": "float32", "shape": ["P"]}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda kept, path: kept.encode_images([]), "at least one"),
        (lambda kept, path: kept.encode_texts("a red circle"), "a list of captions"),
        (lambda kept, path: kept.encode_texts([" "]), "caption 0 of 1 is empty"),
        (lambda kept, path: kept.match([path], ["a", "b"]), "1 pictures and 2 captions"),
        (lambda kept, path: kept.encode_images([path.with_name("none.png")]), "none.png: no such picture"),
    ],
)
def test_a_mistake_in_what_is_asked_is_one_line(bundle, pictures, call, said):
    with pytest.raises(InputError, match=said):
        call(bundle(), pictures[0])


def test_a_model_without_a_matching_head_says_what_to_use(bundle, pictures):
    with pytest.raises(InputError, match=r"no matching head: use similarity"):
        bundle("MultiModalTransformer").match(pictures, TEXTS)


# --- refusals ---
@pytest.mark.parametrize("name", [*NEEDED, *ImageTextBundle.files, "card/model_card.md"])
def test_a_file_that_was_changed_cut_off_or_lost_is_named(bundle, tmp_path, name):
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "model_card.md").write_text("# A card\n")
    folder = bundle(card=tmp_path / "card").folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=f"{name} was changed"):
        load(folder)
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"{name} has .* bytes instead of .*cut off"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        load(folder)


def test_a_manifest_rewritten_with_the_file_is_refused_by_who_knows_its_digest(bundle):
    kept = bundle()
    weights = load_file(kept.folder / "weights.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, kept.folder / "other")
    rewritten(kept.folder, "weights.safetensors", (kept.folder / "other").read_bytes())
    assert load(kept.folder).sha256 != kept.sha256  # whole in itself
    with pytest.raises(InputError, match="the registry has " + kept.sha256[:12]):
        load(kept.folder, kept.sha256)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a bundle of this project"),
        (b'{"format": "another"}', "not a bundle of this project"),
        (b'{"format": "multimodal-insight-engine bundle", "version": 2}', "bundle version 2, this code reads version 1"),
        (b'{"format": "multimodal-insight-engine bundle", "version": 1}', "lists no files"),
        (b'{"format": "multimodal-insight-engine bundle", "version": 1, "files": {"a": 1}}', "lists no files"),
        (b'{"format": "multimodal-insight-engine bundle", "version": 1, "files": {}}', "does not list model.json, weights"),
    ],
)
def test_a_foreign_manifest_is_refused(bundle, manifest, said):
    folder = bundle().folder
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(InputError, match=said):
        load(folder)


def test_a_folder_without_a_bundle_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no bundle \(there is no manifest.json\)"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "card/../../secret", "..\\secret"])
def test_a_manifest_that_leaves_its_folder_is_refused(bundle, tmp_path, name):
    folder = bundle().folder
    (tmp_path / "secret").write_bytes(b"x")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which is no place in the bundle"):
        load(folder)


@pytest.mark.parametrize(
    ("model_json", "said"),
    [
        ({"architecture": "os.system", "arguments": {}}, "no architecture of this project is called 'os.system'"),
        ({"architecture": "MultiModalTransformr", "arguments": {}}, "did you mean 'MultiModalTransformer'"),
        ({"architecture": ["MultiModalTransformer"], "arguments": {}}, "no architecture"),
        ({"architecture": "MultiModalTransformer"}, "arguments must be a JSON object"),
        ({"architecture": "MultiModalTransformer", "arguments": {}}, "needs vocab_size"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "colour": 1}}, "colour: MultiModalTransformer takes no such"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "dim": "16"}}, "dim='16' must be int"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "dim": True}}, "dim=True must be int"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "dim": {"$ref": 1}}}, "must be int"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "heads": 3}}, "dim=16 is not a multiple of heads=3"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "dim": 4_000_000}}, "weights of another model"),
        ([], "must be a JSON object"),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "block": 3}}, "block=3 must be a JSON object"),
        (
            {"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "block": {"position": "os.system"}}},
            "block.position='os.system' must be one of learned",
        ),
        ({"architecture": "MultiModalTransformer", "arguments": {**ARGUMENTS, "block": {"norm": 1}}}, "takes no such argument"),
    ],
)
def test_a_foreign_class_or_foreign_arguments_are_refused_before_anything_is_built(bundle, model_json, said):
    folder = bundle("MultiModalTransformer").folder
    rewritten(folder, "model.json", json.dumps(model_json).encode())
    with pytest.raises(InputError, match=said):
        load(folder)


def test_settings_of_the_blocks_leave_and_come_back_as_plain_values(bundle, model):
    settings = BlockSettings(kv_heads=1, rms_norm=True, activation="silu", gated=True, position="rotary", bias=False)
    arguments = bundle().config["model"]["init_args"]
    kept = bundle(model=model(block=settings), arguments={**arguments, "block": dataclasses.asdict(settings)})
    assert load(kept.folder).example_error() < 1e-6
    assert json.loads((kept.folder / "model.json").read_text())["arguments"]["block"]["position"] == "rotary"
    assert kept.model.fusion[0].attention.kv_heads == 1


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_in_place_of_the_weights_is_not_run(bundle, tmp_path):
    folder, mark = bundle().folder, tmp_path / "executed"
    rewritten(folder, "weights.safetensors", pickle.dumps(Bomb(mark)))
    with pytest.raises(InputError, match="a file cannot be read"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer.json", b"{}", "no tokenizer JSON"),
        ("config.json", b"[1", "config.json: not JSON"),
        ("data.json", b"\xff\xfe", "data.json: not JSON"),
        ("signature.json", b"{}", "signature.json or example.safetensors is not of this model"),
        ("example.png", b"no picture", "a file cannot be read"),
        ("preprocessing.json", b'{"version": 9}', "preprocessing.json: made for {'version': 9}"),
    ],
)
def test_a_whole_file_that_holds_something_else_is_named(bundle, name, content, said):
    folder = bundle().folder
    rewritten(folder, name, content)
    with pytest.raises(InputError, match=said):
        load(folder)


def test_weights_that_do_not_fit_are_named(bundle):
    folder = bundle().folder
    weights = load_file(folder / "weights.safetensors")
    weights["logit_scale"] = weights["logit_scale"].double()
    save_file(weights, folder / "other")
    rewritten(folder, "weights.safetensors", (folder / "other").read_bytes())
    with pytest.raises(InputError, match=r"logit_scale is \(\(\), torch.float64\)"):
        load(folder)


def test_loading_draws_no_random_number(bundle):
    folder = bundle().folder
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load(folder)
    assert torch.equal(torch.rand(3), expected)


def test_what_cannot_be_bundled_leaves_the_old_bundle_in_place(bundle, model, tmp_path):
    kept = bundle()

    class Mine(type(model())):
        pass

    with pytest.raises(InputError, match="Mine cannot be bundled: it is not in ARCHITECTURES"):
        bundle(model=Mine(**ARGUMENTS))
    with pytest.raises(InputError, match="does not say what this model says"):
        bundle(arguments={**kept.config["model"]["init_args"], "heads": 4})  # shapes are the same, numbers are not
    assert load(kept.folder).sha256 == kept.sha256 and {path.name for path in tmp_path.iterdir()} == {"bundle"}


@pytest.mark.parametrize("option", ["cross_attention", "multimodal"])  # of other tasks: test_bundle_kinds.py, and their runs' tests
def test_every_image_text_model_that_ships_can_be_bundled(option):
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs")):
        config = compose("train", overrides=[f"model={option}"]).model
    built = load_class(config.class_path, "model.class_path")(**config.init_args)
    kind = type(built.model)
    assert ARCHITECTURES[kind.__name__] is kind
    again = kind(**plain_arguments(kind, dict(config.init_args)))
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in built.model.state_dict().items()}
