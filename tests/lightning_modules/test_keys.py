"""A typo at either door names the nearest right word, in one line; every key that can be given has help."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest
import yaml
from docstring_parser import parse

from insight.errors import InputError
from insight.stages import Call, LossTerm, Stage, StageData
from lightning_modules.engine_cli import build
from lightning_modules.groups import NOT_CHOSEN, describe_groups, first_comment, top_keys
from lightning_modules.overrides import CONFIGS, compose_plain, explain
from lightning_modules.settings import Deployment, Dimension, RunSettings, Sweep, Tracking

ROOT = Path(CONFIGS).parent


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stages.end_to_end.epocs=3"], "stages.end_to_end.epocs: no such key; did you mean 'epochs'?"),
        (["trianer=cpu"], "trianer: no such key or group; did you mean 'trainer'?"),
        (["trainer=cup"], "trainer=cup: no such option; did you mean 'cpu'?"),
        (["evn=prod"], "evn: no such key or group; did you mean 'env'?"),
        (["+experiment=flickr_multistge"], "experiment=flickr_multistge: no such option; did you mean 'flickr_multistage'?"),
        (["experiment=flickr_multistage"], "experiment: is added with a plus: +experiment=..."),
        (["model.init_args.dmi=3", "data=flickr30k"], "model.init_args.dmi: no such key; did you mean 'dim'?"),
        (["trainer.max_epochs=3"], "trainer.max_epochs: is not in the config yet; add it with a plus: +trainer.max_epochs=..."),
        (["~callbacks.canry"], "callbacks.canry: no such key; did you mean 'canary'?"),
        (["callbacks.canry.init_args.strict=false"], "callbacks.canry: lacks class_path; did you mean 'canary'?"),
        (["stages.end_to_ed.epochs=3"], "stages.end_to_ed: lacks train, losses; did you mean 'end_to_end'?"),
        (["stages.end_to_end.losses.matchng.weight=2"], "stages.end_to_end.losses.matchng: lacks function; did you mean 'matching'?"),
        (["paths.otputs=x"], "paths.otputs: no such key; did you mean 'outputs'?"),
        (["+sweep=rate"], "sweep=rate: no such option; did you mean 'rates'?"),
        (["sweep=rates"], "sweep: is added with a plus: +sweep=..."),
        (["hydra/launcher=jobli"], "hydra/launcher=jobli: no such option; did you mean 'joblib'?"),
        (["a b"], "'a b': not understood; a word is key=value, group=option, +key=value to add or ~key to delete"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_typo_at_hydras_door_names_the_nearest_right_word(words, said):
    with pytest.raises(Exception) as refused:
        compose_plain(CONFIGS, words)
    assert str(explain(refused.value, CONFIGS, ["--multirun", *words])) == said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--stages.end_to_end.epocs=3", "stages.end_to_end.epocs: no such key; did you mean 'epochs'?"),
        ("--trianer.max_epochs=3", "trianer: no such key at the top of the config; did you mean 'trainer'?"),
        ("--trainer.max_epoch=3", "trainer.max_epoch: no such key; did you mean 'max_epochs'?"),
        ("--model.init_args.dmi=3", "model.init_args.dmi: no such key; did you mean 'dim'?"),
        ("--data.init_args.num_trian=3", "data.init_args.num_trian: no such key; did you mean 'num_train'?"),
        ("--stages.end_to_ed.epochs=3", "stages.end_to_ed: lacks train, losses; did you mean 'end_to_end'?"),
        ("--stages.end_to_end.optimizer.argments=3", "stages.end_to_end.optimizer.argments: no such key; did you mean 'arguments'?"),
        ("--stages.end_to_end.data.batchsize=3", "stages.end_to_end.data.batchsize: no such key; did you mean 'batch_size'?"),
        ("--tracking.tokenenv=x", "tracking.tokenenv: no such key; did you mean 'token_env'?"),
        ("--run.nme=x", "run.nme: no such key; did you mean 'name'?"),
        ("--conifg=x", "conifg: no such key at the top of the config; did you mean 'config'?"),
        ("--model.init_args.dim=wide", "model.init_args.dim: .* Got value: wide$"),
        ("--config=nowhere.yaml", "--config nowhere.yaml: there is no such file; give the config.yaml of a run"),
    ],
)
def test_a_typo_at_the_command_line_names_the_nearest_right_word(tiny_config, tmp_path, word, said):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    with pytest.raises(InputError, match=said if ".*" in said else re.escape(said)) as refused:
        build(["--config", str(tmp_path / "config.yaml"), word])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [1,\n"])
def test_a_config_file_that_holds_no_config_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"--config {re.escape(str(tmp_path))}/config\.yaml: (holds no mapping|not YAML)"):
        build(["--config", str(tmp_path / "config.yaml")])


def test_a_word_changes_the_config_file_and_help_words_are_no_keys(tiny_config, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config))
    cli = build(["--config", str(tmp_path / "config.yaml"), "--model.init_args.embed_dim", "8", "--stages.end_to_end.epochs=7"])
    assert cli.model.model.image_projection.weight.shape[0] == 8 and cli.plan.stages["end_to_end"].epochs == 7


def test_help_lists_every_group_option_and_key_with_a_line_of_its_own():
    shown = describe_groups()
    for path in (ROOT / "configs").glob("*/*.yaml"):
        assert first_comment(path), f"{path}: begin the file with a comment that says what it is for"
        if path.parent.name not in NOT_CHOSEN:
            assert re.search(rf"^  \+?{path.parent.name}=$", shown, re.MULTILINE)
            assert re.search(rf"^    {path.stem} +\w", shown, re.MULTILINE), path.stem
    top = set(compose_plain(CONFIGS, [])) - {"run", "tracking", "data", "model", "stages", "trainer", "callbacks", "deployment"}
    assert set(top_keys(ROOT / "configs" / "train.yaml")) >= top
    sections = {"run": RunSettings, "tracking": Tracking, "deployment": Deployment, "sweep": Sweep, "sweep.space.NAME": Dimension}
    for prefix, kind in sections.items():
        for field in dataclasses.fields(kind):
            assert re.search(rf"^    {prefix}\.{field.name} +\w", shown, re.MULTILINE), field.name


def shipped_classes() -> list[type]:
    found = set()
    for path in (ROOT / "configs").glob("*/*.yaml"):
        found |= set(re.findall(r"class_path: ([\w.]+)", path.read_text()))
    return [getattr(importlib.import_module(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in sorted(found)]


@pytest.mark.parametrize(
    "kind",
    [RunSettings, Tracking, Deployment, Sweep, Dimension, Stage, StageData, LossTerm, Call, *shipped_classes()],
    ids=lambda kind: kind.__name__,
)
def test_every_key_that_can_be_given_has_help(kind):
    described = {one.arg_name: one.description for one in parse(f"{kind.__doc__ or ''}\n{kind.__init__.__doc__ or ''}").params}
    given = [name for name in inspect.signature(kind).parameters if name != "self"]
    assert [name for name in given if not described.get(name)] == []
    assert [name for name in described if name not in given] == []
