"""Runs that begin with a checkpoint of CLIP or SigLIP: one stage, its bundle, resume, and the test when the checkpoint has gone."""

from __future__ import annotations

import copy
import importlib
import json
import shutil

import pytest
import torch

from insight.data.pretrained_text import load_tokenizer
from insight.errors import InputError
from insight.export.bundle import load
from insight.interpret.explain import explain
from insight.interpret.methods import METHODS
from insight.stages import Call
from lightning_modules.cli import main
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build

pytest.importorskip("transformers", reason="the extra `pretrained` is not installed")
pytest.importorskip("open_clip", reason="the extra `pretrained` is not installed")
pytest.importorskip("sentencepiece", reason="makes the tokenizer of a tiny SigLIP")
tiny_clip, tiny_siglip = (importlib.import_module(f"tests.insight.models.tiny_{family}") for family in ("clip", "siglip"))

MAKERS = {  # a checkpoint of each kind in a folder, and its tokenizer
    "clip of transformers": (tiny_clip.hugging_face, tiny_clip.save_tokenizer),
    "clip of open_clip": (tiny_clip.opened, tiny_clip.save_tokenizer),
    "siglip of transformers": (tiny_siglip.hugging_face, tiny_siglip.save_tokenizer),
}


def begun(tiny_config, folder, siglip=False):
    """A run of one stage from the checkpoint in ``folder``."""
    # padding, end and mask are one entry in CLIP, and three here
    sizes = {"image_size": 16, "context_length": 12, "vocab_size": load_tokenizer(folder).size if siglip else tiny_clip.SIZE + 2}
    tiny_config["model"] = {
        "class_path": f"lightning_modules.pretrained_dual.{'Siglip' if siglip else 'Clip'}Module",
        "init_args": {**sizes, "weights": str(folder)},
    }
    tiny_config["data"]["init_args"] |= {**sizes, "tokenizer": str(folder), "num_train": 16, "num_val": 6, "num_test": 6}
    losses = {"pairs": {"function": f"insight.losses.{'sigmoid_pairwise' if siglip else 'contrastive'}"}}
    train = ["*", "!model.word_head.*", "!model.text.blocks.0.*", *([] if siglip else ["!model.logit_bias"])]
    tiny_config["stages"] = {"fine_tune": {"epochs": 2, "train": train, "losses": losses, "learning_rate": 1.0e-3}}
    tiny_config["deployment"]["bundle"] = True
    return tiny_config


@pytest.mark.parametrize("kind", MAKERS)
def test_a_checkpoint_is_fine_tuned_leaves_a_bundle_and_its_run_is_tested_when_it_has_gone(kind, tiny_config, tmp_path, capsys):
    folder, run_dir, siglip = tmp_path / "given", tmp_path / "run", kind.startswith("siglip")
    folder.mkdir()
    for make in MAKERS[kind]:
        make(folder)
    config = begun(tiny_config, folder, siglip)
    before = build(copy.deepcopy(config)).model
    assert run_stages(build(copy.deepcopy(config))) == 0
    shutil.move(folder, tmp_path / "elsewhere")

    after = torch.load(run_dir / "01-fine_tune" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in before.state_dict().items():
        locked = name.startswith(("model.word_head", "model.text.blocks.0.", *([] if siglip else ["model.logit_bias"])))
        unused = name == "model.text.embedding.position"  # some of its rows are
        assert torch.equal(after[name], value) == locked or unused, name

    kept = load(run_dir / "bundle")
    assert type(kept.model).__name__ == ("SiglipTransformer" if siglip else "ClipTransformer") and kept.example_error() == 0
    for name, value in kept.model.state_dict().items():
        assert torch.equal(after[f"model.{name}"], value), name
    figures = json.loads((run_dir / "summary.json").read_text())["test"]

    words = ["test", "--config", str(run_dir / "config.yaml"), "--model.init_args.weights=null", "--output", str(tmp_path)]
    assert main(words) == 0
    again = json.loads((tmp_path / "test.json").read_text())
    assert again.keys() == figures.keys() and again == pytest.approx(figures)
    capsys.readouterr()
    assert main(words[:3]) == 2  # with the weights, which are not there
    message = capsys.readouterr().err.strip()
    assert "no CLIP or SigLIP there" in message and "\n" not in message
    assert "a finished run is tested without: --model.init_args.weights=null" in message


def test_a_clip_whose_run_was_stopped_goes_on_to_the_same_weights(tiny_config, tmp_path):
    tiny_clip.hugging_face(tmp_path)
    config = begun(tiny_config, tmp_path)
    config["deployment"]["bundle"] = False
    assert run_stages(build(copy.deepcopy(config))) == 0
    whole = torch.load(tmp_path / "run" / "01-fine_tune" / "final.ckpt", weights_only=True)["state_dict"]

    cli = build({**copy.deepcopy(config), "run_dir": str(tmp_path / "stopped")})
    training_step, steps = cli.model.training_step, iter(range(100))

    def stops(batch, batch_idx):
        if next(steps) == 3:
            raise RuntimeError("the machine is gone")
        return training_step(batch, batch_idx)

    cli.model.training_step = stops
    with pytest.raises(RuntimeError, match="the machine is gone"):
        run_stages(cli)
    assert run_stages(build({**copy.deepcopy(config), "run_dir": str(tmp_path / "stopped")})) == 0
    resumed = torch.load(tmp_path / "stopped" / "01-fine_tune" / "final.ckpt", weights_only=True)["state_dict"]
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text())["stages"][0]["resumed"]
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_adapters_of_a_clip_alone_move_are_in_the_checkpoint_and_leave_a_bundle_without_them(tiny_config, tmp_path):
    pytest.importorskip("peft")
    tiny_clip.hugging_face(tmp_path)
    config = begun(tiny_config, tmp_path)
    without = build(copy.deepcopy(config)).model
    config["model"]["init_args"]["lora"] = {"targets": ["attention.query", "attention.output"], "rank": 2}
    config["stages"]["fine_tune"] |= {"train": ["*lora_*"], "learning_rate": 0.1}
    start = build(copy.deepcopy(config)).model
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(start.model.encode_image(pixels).embedding, without.model.encode_image(pixels).embedding)
    assert run_stages(build(copy.deepcopy(config))) == 0

    after = torch.load(tmp_path / "run" / "01-fine_tune" / "best.ckpt", weights_only=True)["state_dict"]
    assert after.keys() == start.state_dict().keys()
    for name, value in start.state_dict().items():
        assert torch.equal(after[name], value) != ("lora_" in name), name

    kept, again = load(tmp_path / "run" / "bundle"), build(copy.deepcopy(config)).model
    again.load_state_dict(after)
    assert not any("lora_" in name for name in kept.model.state_dict())
    with torch.no_grad():
        adapted = again.model.eval().encode_image(pixels).embedding
        torch.testing.assert_close(kept.model.encode_image(pixels).embedding, adapted, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(without.model.encode_image(pixels).embedding, adapted, atol=1e-3)
    cli = build(copy.deepcopy(config))
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    batch = cli.datamodule.probe("val", 2)
    by_heads = [explain(model, batch, None, METHODS["direct_effect"]).image for model in (again.model, kept.model)]  # off the weights
    torch.testing.assert_close(*by_heads, atol=1e-4, rtol=1e-3)

    figures = json.loads((tmp_path / "run" / "summary.json").read_text())["test"]
    words = ["test", "--config", str(tmp_path / "run" / "config.yaml"), "--model.init_args.weights=null", "--output", str(tmp_path)]
    assert main(words) == 0 and json.loads((tmp_path / "test.json").read_text()) == pytest.approx(figures)


def test_the_frozen_config_knows_the_shape_and_builds_the_same_model(tiny_config, tmp_path):
    tiny_clip.hugging_face(tmp_path)
    first = build(begun(tiny_config, tmp_path))
    shape = first.frozen["model"]["init_args"]["shape"]
    assert shape["image"]["dim"] == 32 and shape["text"]["heads"] == 3 and shape["text"]["block"]["activation"] == "quick_gelu"
    again = build({**first.frozen, "run_dir": None})
    assert again.frozen == first.frozen
    assert all(torch.equal(again.model.state_dict()[name], value) for name, value in first.model.state_dict().items())


def test_what_it_looks_at_is_explained_through_its_own_blocks(tiny_config, tmp_path):
    tiny_clip.hugging_face(tmp_path)
    cli = build(begun(tiny_config, tmp_path))
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    batch = cli.datamodule.probe("val", 2)
    with torch.no_grad():
        output = cli.model.model.eval()(batch.image, batch.tokens, batch.token_mask)
    expected = output.scale * (output.image.embedding[batch.caption_row] * output.text.embedding).sum(dim=-1)
    for name in ("relevance.chefer_relevance", "token_gradients.legrad", "token_gradients.grad_eclip"):
        found = explain(cli.model.model, batch, None, Call(f"insight.interpret.{name}"))
        assert found.image.shape == (2, 2, 2) and found.image.abs().sum() + found.text.abs().sum() > 0, name
        torch.testing.assert_close(found.score, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"weights": None}}, r"model\.init_args\.weights: give a checkpoint"),
        ({"both": {"vocab_size": 99}}, r"tokenizer has 56 entries: data\.init_args\.vocab_size=56"),
        ({"both": {"context_length": 13}}, r"the checkpoint has 12 positions, so data\.init_args\.context_length=12 or less"),
        ({"both": {"image_size": 20}}, r"image_size=20 is not a multiple of patch_size=8: choose for example image_size=16"),
        ({"model": {"tokenizer": "/nowhere"}}, r"no such tokenizer file.*give model\.init_args\.tokenizer"),
        ({"model": {"shape": {"patch_size": 8, "embed_dim": 9, "image": {"dim": 32, "depth": 2, "heads": 2}}}}, r"shape.*text\.dim"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(change, message, tiny_config, tmp_path):
    tiny_clip.hugging_face(tmp_path)
    config = begun(tiny_config, tmp_path)
    config["model"]["init_args"] |= change.get("model", {}) | change.get("both", {})
    config["data"]["init_args"] |= change.get("both", {})
    with pytest.raises(InputError, match=message) as error:
        build(config)
    assert "\n" not in str(error.value)


def test_another_checkpoint_than_the_runs_own_and_another_tokenizer_are_refused(tiny_config, tmp_path):
    tiny_clip.hugging_face(tmp_path)
    config = begun(tiny_config, tmp_path)
    frozen = build(copy.deepcopy(config)).frozen
    frozen["model"]["init_args"]["shape"]["image"]["heads"] = 4
    with pytest.raises(InputError, match=r"its config says .*heads=2.* but model\.init_args\.shape=.*heads=4"):
        build({**frozen, "run_dir": None})
    (tmp_path / "other").mkdir()
    tiny_clip.save_tokenizer(tmp_path / "other", tiny_clip.LETTERS[::-1])
    config["data"]["init_args"]["tokenizer"] = str(tmp_path / "other")
    cli = build(config)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    with pytest.raises(InputError, match=f"is not that of the checkpoint: data.init_args.tokenizer={tmp_path}"):
        cli.model.check_data(cli.datamodule)
