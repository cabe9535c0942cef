"""The language model beside Hugging Face's GPT-2 and beside itself without a cache."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from insight.errors import InputError
from insight.generation import Sampling, beam_search, generate
from insight.models.gpt2 import load_gpt2
from insight.models.language_model import LanguageModel, LanguageReader
from insight.nn.settings import BlockSettings

transformers = pytest.importorskip("transformers", reason="Hugging Face's transformers is the second answer here")

KINDS = {
    "gpt2": BlockSettings(activation="gelu_tanh"),
    "rotary": BlockSettings(position="rotary", rms_norm=True, gated=True, activation="silu", bias=False),
    "alibi": BlockSettings(position="alibi"),
    "shared keys": BlockSettings(kv_heads=1, position="sinusoidal"),
}


@pytest.fixture(scope="module")
def rival():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=90, n_positions=20, n_embd=24, n_layer=2, n_head=3, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def checkpoint(rival, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    rival.save_pretrained(folder)
    return folder


def model_of(settings, **changes):
    torch.manual_seed(1)
    model = LanguageModel(
        **{"vocab_size": 11, "context_length": 16, "dim": 16, "depth": 2, "heads": 2, "block": settings, **changes}
    ).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def texts(count=3, length=9):
    return torch.randint(0, 90, (count, length), generator=torch.Generator().manual_seed(2))


def test_logits_are_those_of_hugging_face_with_its_weights(rival, checkpoint):
    model, tokens = load_gpt2(str(checkpoint)).eval(), texts()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, rival(tokens).logits, atol=1e-4, rtol=1e-4)


def test_every_loaded_weight_is_the_files_own_and_none_is_initialised_again(rival, checkpoint):
    model = load_gpt2(str(checkpoint))
    theirs = rival.state_dict()
    expected = sum(value.numel() for name, value in theirs.items() if name != "lm_head.weight")
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    ours = model.state_dict()
    assert torch.equal(ours["blocks.1.mlp.contract.weight"], theirs["transformer.h.1.mlp.c_proj.weight"].T)
    assert torch.equal(ours["blocks.0.attention.key_value.bias"], theirs["transformer.h.0.attn.c_attn.bias"][24:])
    sums = sorted(
        round(float(value.double().sum()), 6) for name, value in theirs.items() if "c_attn" not in name and name != "lm_head.weight"
    )
    assert (
        sorted(round(float(value.double().sum()), 6) for name, value in ours.items() if "query" not in name and "key_value" not in name)
        == sums
    )


def test_old_files_with_masks_and_without_a_prefix_are_read_too(rival, checkpoint, tmp_path):
    weights = {name.removeprefix("transformer."): value for name, value in rival.state_dict().items() if name != "lm_head.weight"}
    weights |= {"h.0.attn.bias": torch.ones(1, 1, 20, 20), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    tokens = texts()
    with torch.no_grad():
        torch.testing.assert_close(load_gpt2(str(tmp_path))(tokens).logits, load_gpt2(str(checkpoint))(tokens).logits)


def test_greedy_and_beams_write_what_hugging_face_writes(rival, checkpoint):
    model, prompts = load_gpt2(str(checkpoint)).eval(), texts(2, 4).tolist()
    for beams in (1, 3):
        options = {"num_beams": beams, "max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        theirs = rival.generate(torch.tensor(prompts), **options)[:, 4:].tolist()
        with torch.no_grad():
            assert beam_search(LanguageReader(model), prompts, 6, end=-1, beams=beams).tokens == theirs
    with torch.no_grad():
        assert (
            generate(LanguageReader(model), prompts, 6, end=-1).tokens
            == rival.generate(torch.tensor(prompts), **options | {"num_beams": 1})[:, 4:].tolist()
        )


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_with_and_without_a_cache_the_same_tokens_are_written(settings):
    model, prompts = model_of(settings), [[1], [2, 3, 4, 5], [6, 7]]
    with torch.no_grad():
        for sampling in (Sampling(0.0), Sampling(1.0, top_k=5)):
            cached, plain = (generate(LanguageReader(model, kept), prompts, 10, 0, sampling) for kept in (True, False))
            assert cached.tokens == plain.tokens
            assert cached.log_probability == pytest.approx(plain.log_probability, abs=1e-4)
        cached, plain = (beam_search(LanguageReader(model, kept), prompts, 10, 0, beams=3) for kept in (True, False))
    assert cached.tokens == plain.tokens and max(map(len, cached.tokens)) > 1


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_token_reads_nothing_that_comes_later(settings):
    model, tokens = model_of(settings), torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(3))
    changed = tokens.clone()
    changed[:, 5:] = (tokens[:, 5:] + 1) % 11
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5], before[:, 5])


def test_an_untied_head_has_rows_of_its_own():
    model = model_of(KINDS["gpt2"], tied=False)
    assert model.classes is model.head.weight and model.head.weight is not model.embedding.token.weight
    with torch.no_grad():
        output = model(torch.tensor([[1, 2]]))
    torch.testing.assert_close(output.logits, output.tokens @ model.head.weight.T)


def change_config(folder, target, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def rewrite(rival, folder, target, edit):
    change_config(folder, target)
    weights = {name: value.clone() for name, value in rival.state_dict().items() if name != "lm_head.weight"}
    edit(weights)
    save_file(weights, target / "model.safetensors")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda rival, folder, target: change_config(folder, target, model_type="bert"), "model_type='bert', but only GPT-2"),
        (lambda rival, folder, target: change_config(folder, target, activation_function="relu"), "activation_function='relu'"),
        (lambda rival, folder, target: change_config(folder, target), "neither model.safetensors nor pytorch_model.bin"),
        (lambda rival, folder, target: None, "config.json: no such file"),
        (
            lambda rival, folder, target: rewrite(rival, folder, target, lambda weights: weights.pop("transformer.ln_f.bias")),
            "missing: norm.bias",
        ),
        (
            lambda rival, folder, target: rewrite(rival, folder, target, lambda weights: weights.update(extra=torch.ones(1))),
            "unknown: extra",
        ),
        (
            lambda rival, folder, target: rewrite(
                rival, folder, target, lambda weights: weights.update({"transformer.wpe.weight": torch.ones(7, 24)})
            ),
            r"embedding.position: \(1, 7, 24\) in the file, \(1, 20, 24\) in the model",
        ),
        (
            lambda rival, folder, target: (change_config(folder, target), (target / "model.safetensors").write_bytes(b"junk")),
            "not a readable checkpoint",
        ),
    ],
)
def test_a_wrong_checkpoint_is_named_with_what_differs(rival, checkpoint, tmp_path, prepare, message):
    prepare(rival, checkpoint, tmp_path)
    with pytest.raises(InputError, match=message):
        load_gpt2(str(tmp_path))


def test_a_missing_folder_and_a_hub_out_of_reach_name_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"no such folder; give one with config.json .* hf-hub:OWNER/MODEL"):
        load_gpt2(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"the hub cannot be reached, or has no such model .* download it elsewhere and give its folder"):
        load_gpt2("hf-hub:nobody/no-such-model")


def test_a_text_longer_than_the_positions_is_refused():
    with pytest.raises(InputError, match="captions of 17 tokens are longer than the model's context_length=16: cut them in the data"):
        model_of(KINDS["gpt2"])(torch.zeros(1, 17, dtype=torch.int64))
