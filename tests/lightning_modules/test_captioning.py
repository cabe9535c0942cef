"""A tiny run of captioning: what it logs and leaves, counted again from its own files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from insight.caption_baselines import FrequentCaption, NearestCaption
from insight.caption_metrics import caption_scores
from insight.captions import write_captions
from insight.data.text import END, START
from insight.errors import InputError
from insight.export.bundle import load
from insight.losses import IGNORED
from insight.losses import captioning as captioning_loss
from lightning_modules.captioning import Written, figures_of
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build


def stage(*losses, **changes):
    return {"epochs": 1, "train": ["*"], "losses": {name: {"function": f"insight.losses.{name}"} for name in losses}, **changes}


@pytest.fixture
def captioning(tiny_config):
    config = copy.deepcopy(tiny_config)
    config["model"]["class_path"] = "lightning_modules.captioning.CaptioningModule"
    config["model"]["init_args"] |= {"decoder_depth": 1, "val_captions": 7}
    config["stages"] = {"captioning": stage("contrastive", "captioning", monitor="val/caption_cider_d")}
    config["deployment"] = {"name": "captioner", "bundle": True, "register": False}
    return config


def test_a_run_writes_captions_and_scores_them_beside_two_baselines(captioning):
    cli = build(captioning)
    assert run_stages(cli) == 0
    run = Path(captioning["run_dir"])
    summary, kept = json.loads((run / "summary.json").read_text()), json.loads((run / "captions.json").read_text())
    written, test, val = kept["captions"], summary["test"], summary["stages"][0]["metrics"]
    assert [one["filename"] for one in written] == json.loads((run / "splits.json").read_text())["test"]
    scores = caption_scores([one["generated"] for one in written], [one["references"] for one in written])
    assert {name: test[f"test/caption_{name}"] for name in scores} == pytest.approx(scores, abs=1e-5)
    assert sum(one["cider_d"] for one in written) / len(written) == pytest.approx(scores["cider_d"], abs=1e-3)
    assert val["val/loss/captioning"] > 0 and 0 <= val["val/caption_cider_d"] <= 10
    assert "test/image_to_text_recall_at_1" in test and "test/reranked_mean_recall" in test
    images, captions = cli.datamodule.pairs("train")
    pictures, references = cli.datamodule.pairs("test")
    for name, baseline in (("nearest_caption", NearestCaption), ("frequent_caption", FrequentCaption)):
        expected = caption_scores(baseline.fit(images, captions).write(pictures), references)
        assert test[f"test/baseline/{name}/caption_rouge_l"] == pytest.approx(expected["rouge_l"], abs=1e-5)
    assert Image.open(run / "captions.png").width > 1000 and Image.open(run / "captions_words.png").width > 700
    bundle = load(run / "bundle")
    best = torch.load(run / "01-captioning" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in bundle.model.state_dict().items())
    (batch,) = [cli.datamodule.examples("test", [written[0]["filename"]])]
    with torch.no_grad():
        tokens = bundle.model.encode_image(batch.image).tokens
    assert write_captions(bundle.model, bundle.tokenizer, tokens) == [written[0]["generated"]]
    card, lowest = (run / "bundle" / "card" / "model_card.md").read_text(), min(written, key=lambda one: one["cider_d"])
    assert f"| test/caption_bleu_4 | {test['test/caption_bleu_4']:.3f} |" in card and "| test/image_to_text_recall_at_1 |" in card
    assert f"| {lowest['cider_d']} | {lowest['filename']} |" in card and "The worst queries, text to image" in card


def test_figures_are_named_and_of_all_captions():
    written = [Written(row, f"{row}.jpg", text, ("a red star", "the star")) for row, text in enumerate(("a red star", "no such thing"))]
    expected = caption_scores(["a red star", "no such thing"], [("a red star", "the star")] * 2)
    assert figures_of(written) == {f"caption_{name}": value for name, value in expected.items()}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_depth", 0, "model.init_args.decoder_depth=0: must be at least 1"),
        ("beams", 0, "model.init_args.beams=0: must be at least 1"),
        ("caption_every", 2, "monitor=val/caption_cider_d is not there after every epoch: set model.init_args.caption_every=1"),
    ],
)
def test_settings_that_cannot_be_are_named(captioning, key, value, message):
    captioning["model"]["init_args"][key] = value
    with pytest.raises(InputError, match=message):
        build(captioning)


def test_a_model_without_a_decoder_refuses_the_loss_of_captioning(tiny_config):
    tiny_config["stages"] = {"only": stage("captioning")}
    with pytest.raises(InputError, match=r"stages.only.losses.captioning: this model has no decoder; set model.init_args.decoder_depth=2"):
        build(tiny_config)


def test_the_targets_of_captioning_are_the_next_tokens_and_end_with_the_end(captioning):
    cli = build(captioning)
    cli.datamodule.prepare_data()
    cli.datamodule.setup()
    batch = next(iter(cli.datamodule.test_dataloader()))
    values = cli.model.eval().quantities_of(batch, torch.Generator())
    with torch.no_grad():
        total, count = 0.0, 0
        for row, tokens in enumerate(batch.tokens):
            real = tokens[batch.token_mask[row]].tolist()
            assert real[0] == START and values.caption_targets[row].tolist()[: len(real) - 1] == real[1:] and real[-1] == END
            assert set(values.caption_targets[row].tolist()[len(real) - 1 :]) <= {IGNORED}
            image = batch.image[batch.caption_row[row]][None]
            logits = cli.model.model.write(torch.tensor([real[:-1]]), cli.model.model.encode_image(image).tokens).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(real[1:]), reduction="sum"))
            count += len(real) - 1
        found = captioning_loss(values.caption_logits, values.caption_targets, values.caption_count)
    assert float(found) == pytest.approx(total / count, rel=1e-4)
