"""Every config that ships: composed, type-checked, and trained one step on tiny shapes on the CPU."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from insight.data.pretrained_text import load_tokenizer
from lightning_modules.drive import run_stages
from lightning_modules.engine_cli import build
from lightning_modules.keys import HYDRA_ONLY

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name not in ("experiment", "recipe", "gates", "sweep"))
IMAGE_TEXT = ["flickr_dual_encoder", "flickr_multistage"]
OTHERS = [  # each has a test of its own below
    "captioning",
    "flickr_clip_finetune",
    "flickr_pretrained_towers",
    "flickr_vit_b16",
    "language_model",
    "visual_questions",
    "vit_scenes",
]
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
for name in ("gpt2", "clip", "siglip", "vit_b16"):
    OPTIONS.remove(("model", name))  # reads weights when it is built: has a test of its own

TINY = [
    "model.init_args.dim=16",
    "model.init_args.heads=2",
    "model.init_args.image_depth=1",
    "model.init_args.text_depth=1",
    "model.init_args.embed_dim=16",
    "data.init_args.image_size=32",
    "data.init_args.batch_size=8",
    "data.init_args.eval_batch_size=6",
    "data.init_args.num_workers=0",
    "trainer.accelerator=cpu",
    "+trainer.max_epochs=1",
    "+trainer.limit_train_batches=1",
    "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=1",
    "tracking.enabled=false",
]
FEW_MAPS = ["callbacks.attention_maps.init_args.num_examples=1"]
# the score card takes seconds of a test; once for each kind of model is enough
LOOKS = {
    "scenes": [*FEW_MAPS, "callbacks.score_card.init_args.num_examples=1", "+callbacks.score_card.init_args.search_examples=4"],
    "flickr30k": [*FEW_MAPS, "~callbacks.score_card", "~callbacks.drift"],
}


def composed(*overrides: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        config = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
    for key in ("resume", *HYDRA_ONLY):
        config.pop(key)
    return config


@pytest.fixture(scope="session")
def flickr_root(tmp_path_factory) -> Path:
    """A generated set in Flickr30k's own format, for the configs that read the user's."""
    from datamodules.scenes import ScenesDataModule

    cache = tmp_path_factory.mktemp("flickr_like")
    scenes = ScenesDataModule(cache_dir=str(cache), num_train=24, num_val=8, num_test=8)
    scenes.prepare_data()
    return next(path.parent for path in cache.rglob("dataset_flickr30k.json"))


# what an option needs beside it, where the main job's own will not do
LANGUAGE = ["+experiment=language_model"]
CLASSES = ["+experiment=vit_scenes"]
BESIDE: dict[tuple[str, str], list[str]] = {
    ("model", "multimodal"): ["stages=dual_encoder"],
    ("model", "language_model"): LANGUAGE,
    ("stages", "language_model"): LANGUAGE,
    ("data", "scenes_text"): LANGUAGE,
    ("data", "flickr30k_text"): LANGUAGE,
    ("data", "text_folder"): LANGUAGE,
    ("model", "vit"): CLASSES,
    ("stages", "classification"): CLASSES,
    ("stages", "classification_from_weights"): CLASSES,
    ("data", "scenes_labels"): CLASSES,
    ("data", "image_folder"): CLASSES,
    ("data", "torchvision"): CLASSES,
    ("model", "visual_questions"): ["+experiment=visual_questions"],
    ("data", "visual_questions"): ["+experiment=visual_questions"],
    ("stages", "captioning"): ["model=captioner"],
    ("stages", "visual_questions"): ["+experiment=visual_questions"],
    ("callbacks", "visual_questions"): ["+experiment=visual_questions"],
    ("model", "pretrained_towers"): [
        "stages=pretrained_towers",
        "data.init_args.image_size=64",
        "model.init_args.image.init_args.weights=null",
    ],
    ("callbacks", "towers"): ["+experiment=flickr_pretrained_towers", "model.init_args.image.init_args.weights=null"],
    ("stages", "pretrained_towers"): ["+experiment=flickr_pretrained_towers", "model.init_args.image.init_args.weights=null"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_of_every_group_composes_and_type_checks(group, option):
    build(composed(*BESIDE.get((group, option), []), f"{group}={option}"))


def test_every_experiment_is_trained_by_a_test():
    assert sorted([*IMAGE_TEXT, *OTHERS]) == sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def test_a_debug_run_is_not_registered():
    assert composed("trainer=debug")["deployment"] == {"name": "flickr", "bundle": True, "register": False}


# flickr_multistage on scenes, with every callback, is the README's first command: tests/test_readme.py
@pytest.mark.parametrize(
    ("experiment", "data"), [("flickr_dual_encoder", "scenes"), *itertools.product(IMAGE_TEXT, ["flickr30k"])], ids=lambda value: value
)
def test_every_experiment_trains_one_step_of_every_stage(experiment, data, flickr_root, scenes_cache, tmp_path):
    place = (
        [f"data.init_args.root={flickr_root}"]
        if data == "flickr30k"
        else [f"data.init_args.num_{split}=24" for split in ("train", "val", "test")]
    )
    place = [word if word.startswith("data.init_args.root") else f"+{word}" for word in place]
    small = ["stages.single_modality.data.batch_size=8", *LOOKS[data]]
    config = composed(f"+experiment={experiment}", f"data={data}", *place, *TINY, *small, f"data.init_args.cache_dir={scenes_cache}")
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [1] * len(config["stages"])
    assert list((tmp_path / "run").glob("*/figures/*.png")), "no picture was drawn"
    shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("data", ["scenes", "flickr30k"])
def test_captioning_trains_one_step_and_leaves_captions(data, flickr_root, scenes_cache, tmp_path):
    place = (
        [f"data.init_args.root={flickr_root}"] if data == "flickr30k" else ["+data.init_args.num_train=24", "+data.init_args.num_test=24"]
    )
    looks = [*FEW_MAPS, "~callbacks.score_card", "~callbacks.drift"]
    config = composed("+experiment=captioning", f"data={data}", *place, *TINY, *looks, f"data.init_args.cache_dir={scenes_cache}")
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    found = json.loads((tmp_path / "run" / "captions.json").read_text())["captions"]
    assert len(found) == 6 and all(one["references"] for one in found)
    assert (tmp_path / "run" / "bundle" / "model.json").is_file()
    shutil.rmtree(tmp_path / "run")


def test_visual_questions_trains_one_step_and_leaves_answers(scenes_cache, tmp_path):
    sizes = [f"+data.init_args.num_{split}=24" for split in ("train", "val", "test")]
    tiny = [*(word for word in TINY if "embed_dim" not in word), *FEW_MAPS]
    config = composed("+experiment=visual_questions", *sizes, *tiny, f"data.init_args.cache_dir={scenes_cache}")
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    found = json.loads((tmp_path / "run" / "answers.json").read_text())
    assert len({one["filename"] for one in found}) == 6 and {one["answer"] for one in found} > {"yes", "no"}
    assert list((tmp_path / "run").glob("*/figures/*.png")), "no picture was drawn"
    shutil.rmtree(tmp_path / "run")


def test_pretrained_towers_train_one_step_of_every_stage_and_leave_a_bundle(flickr_root, scenes_cache, tmp_path):
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "tower.pth")
    tower = ["name=test_efficientnet", f"weights={tmp_path / 'tower.pth'}", "arguments={}"]
    words = [f"model.init_args.image.init_args.{word}" for word in tower]
    words += [word for word in TINY if "image_depth" not in word and "image_size" not in word]
    words += ["data.init_args.image_size=64", f"data.init_args.root={flickr_root}", f"data.init_args.cache_dir={scenes_cache}"]
    looks = "callbacks.score_card.init_args"
    words += [f"{looks}.num_examples=2", f"{looks}.search_examples=0", f"{looks}.methods.occlusion.arguments.segments=4"]
    config = composed("+experiment=flickr_pretrained_towers", *words)
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [1, 1, 1]
    assert list((tmp_path / "run").glob("*/score_card/*.png"))
    assert (tmp_path / "run" / "bundle" / "manifest.json").exists() and list(scenes_cache.glob("features-*.npy"))


def one_gpu_recipe(experiment, words, flickr_root, scenes_cache, tmp_path):
    """A recipe for a GPU, one step of every stage on the CPU in its own precision. Returns the summary."""
    words += [word for word in TINY if word.split(".")[0] != "model" and "image_size" not in word]
    words += [f"data.init_args.root={flickr_root}", f"data.init_args.cache_dir={scenes_cache}", "data.init_args.context_length=12"]
    words += ["callbacks.attention_maps.init_args.num_examples=1", *LOOKS["flickr30k"]]
    config = composed(f"+experiment={experiment}", *words)
    assert config["trainer"]["precision"] == "bf16-mixed"
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [1] * len(config["stages"])
    assert list((tmp_path / "run").glob("*/figures/*.png")), "no picture was drawn"
    assert (tmp_path / "run" / "bundle" / "manifest.json").exists()
    return summary


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_recipe_that_fine_tunes_a_checkpoint_trains_one_step_and_leaves_a_bundle(family, flickr_root, scenes_cache, tmp_path):
    for name in ("transformers", "open_clip", "sentencepiece"):
        pytest.importorskip(name)
    tiny = importlib.import_module(f"tests.insight.models.tiny_{family}")
    tiny.hugging_face(tmp_path, depth=5)  # a layer of each rate
    tiny.save_tokenizer(tmp_path)
    words = [f"model={family}", f"model.init_args.weights={tmp_path}", f"data.init_args.vocab_size={load_tokenizer(tmp_path).size}"]
    one_gpu_recipe("flickr_clip_finetune", [*words, "data.init_args.image_size=16"], flickr_root, scenes_cache, tmp_path)


def test_the_recipe_around_an_own_vit_trains_one_step_of_every_stage_and_leaves_a_bundle(flickr_root, scenes_cache, tmp_path):
    transformers = pytest.importorskip("transformers")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)  # of the tiny checkpoints
    sizes = {"patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.save(timm.create_model("vit_base_patch16_224", img_size=64, **sizes).state_dict(), tmp_path / "vit.pth")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle"]
    transformers.BertTokenizer(vocab={word: number for number, word in enumerate(entries)}).save_pretrained(tmp_path)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(entries), **small)).save_pretrained(tmp_path)
    words = [f"model.init_args.{word}" for word in ("dim=16", "heads=2", "image_depth=1", "embed_dim=16")]
    words += [f"model.init_args.image_weights={tmp_path / 'vit.pth'}", f"model.init_args.text.init_args.name={tmp_path}"]
    words += [f"data.init_args.vocab_size={len(entries)}", "data.init_args.image_size=32"]
    one_gpu_recipe("flickr_vit_b16", words, flickr_root, scenes_cache, tmp_path)
    start, ended = torch.load(tmp_path / "vit.pth"), torch.load(tmp_path / "run" / "01-cross_modal" / "final.ckpt", weights_only=True)
    assert torch.equal(ended["state_dict"]["model.image.blocks.0.mlp.expand.weight"], start["blocks.0.mlp.fc1.weight"])  # locked as it came


@pytest.mark.parametrize(("model", "stages"), itertools.product(["multimodal"], ["one_stage"]))
def test_a_dual_encoder_refuses_a_recipe_that_needs_a_matching_head(model, stages):
    with pytest.raises(ValueError, match=r"needs 'match_(logits|targets)', which this model cannot compute"):
        build(composed(f"model={model}", f"stages={stages}"))


@pytest.mark.parametrize("path", sorted((CONFIGS / "recipe").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_changes_stages_that_exist(path):
    data, stages = path.stem.split("_", 1)
    plain, changed = composed(f"stages={stages}", f"data={data}", "~recipe"), composed(f"stages={stages}", f"data={data}")
    assert plain["stages"].keys() == changed["stages"].keys() and plain["stages"] != changed["stages"]


@pytest.mark.parametrize("data", ["scenes_text", "flickr30k_text", "text_folder"])
def test_the_language_model_trains_one_step_on_each_kind_of_text(data, flickr_root, scenes_cache, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.txt").write_text("\n\n".join(f"paragraph {number}" for number in range(30)))
    place = {
        "scenes_text": [
            f"data.init_args.cache_dir={scenes_cache}",
            *(f"+data.init_args.num_{split}=24" for split in ("train", "val", "test")),
        ],
        "flickr30k_text": [f"data.init_args.root={flickr_root}"],
        "text_folder": [f"data.init_args.root={tmp_path / 'texts'}"],
    }[data]
    common = [word for word in TINY if not any(part in word for part in ("image", "embed_dim", "text_depth"))]
    config = composed(
        *LANGUAGE, f"data={data}", *place, *common, "model.init_args.depth=1", "callbacks.text_samples.init_args.num_examples=1"
    )
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [1]
    assert summary["test"]["test/baseline/bigram/perplexity"] < config["model"]["init_args"]["vocab_size"]
    assert list((tmp_path / "run").glob("*/samples/*.txt")), "no text was written"


def test_a_gpt2_checkpoint_is_built_and_a_folder_without_one_is_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = [*LANGUAGE, "model=gpt2", f"model.init_args.weights={tmp_path}"]
    with pytest.raises(ValueError, match=r"config.json: no such file"):
        build(composed(*words))
    sizes = transformers.GPT2Config(vocab_size=300, n_positions=48, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(sizes).save_pretrained(tmp_path)
    assert build(composed(*words)).model.model.context_length == 48


@pytest.mark.parametrize("stages", ["classification", "classification_from_weights"])
def test_the_classifier_trains_one_step_of_every_stage_and_draws_what_it_looks_at(stages, scenes_cache, tmp_path):
    place = [f"data.init_args.cache_dir={scenes_cache}", *(f"+data.init_args.num_{split}=24" for split in ("train", "val", "test"))]
    common = [word for word in TINY if not any(part in word for part in ("image_depth", "embed_dim", "text_depth"))]
    config = composed(*CLASSES, f"stages={stages}", *place, *common, "model.init_args.depth=2", *FEW_MAPS)
    config |= {"run_dir": str(tmp_path / "run"), "run": {**config["run"], "output_dir": str(tmp_path / "outputs")}}
    assert run_stages(build(config)) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [1] * len(config["stages"])
    assert 0 <= summary["test"]["test/accuracy_top_1"] <= summary["test"]["test/accuracy_top_5"] <= 1
    assert len(list((tmp_path / "run").glob("*/figures/*class-image.blocks.1.attention.png"))) == len(config["stages"])
    assert len(json.loads((tmp_path / "run" / "predictions.json").read_text())) == 6
