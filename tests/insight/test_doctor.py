"""A healthy device passes; a device with one broken operator is caught, and it is that operator that is named."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from insight import doctor, doctor_plain
from insight.doctor import CheckResult, as_json, choose_device, failures, fix, main, native_bf16, relative_error, report, run_checks
from insight.errors import InputError
from insight.models.multimodal import MultiModalTransformer

SIZE = {"vocab_size": 30, "image_size": 16, "context_length": 5, "dim": 16, "image_depth": 1, "text_depth": 1, "heads": 2, "embed_dim": 8}


def failed(results: list[CheckResult]) -> dict[str, str]:
    return {result.name: result.operator for result in results if not result.passed}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_cpu_agrees_with_the_plain_formulas(dtype):
    results = run_checks("cpu", dtype)
    assert failed(results) == {}
    errors = [result.max_error for result in results if result.operator != "torch"]
    assert all(math.isfinite(error) for error in errors) and max(errors) > 0  # two ways of computing, not one thing compared with itself


def test_the_plain_formulas_agree_with_numpy():
    import numpy as np

    x = torch.randn(4, 6, dtype=torch.float64)
    array = x.numpy()
    normed = (array - array.mean(-1, keepdims=True)) / np.sqrt(array.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(doctor_plain.layer_norm(x, (6,)).numpy(), normed)
    power = np.exp(array)
    np.testing.assert_allclose(doctor_plain.softmax(x).numpy(), power / power.sum(-1, keepdims=True))
    target = torch.tensor([5, 0, 2, 2])
    chosen = np.log(power / power.sum(-1, keepdims=True))[range(4), target]
    np.testing.assert_allclose(doctor_plain.cross_entropy(x, target).numpy(), -chosen.mean())


def test_what_encoders_of_other_libraries_ask_of_the_operators_has_its_plain_formula_too():
    query, key, value = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    causal = [F.scaled_dot_product_attention(query, key, value, is_causal=True)]
    with doctor_plain.PlainOperators():
        causal.append(F.scaled_dot_product_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=True))
    torch.testing.assert_close(*causal)
    torch.testing.assert_close(doctor_plain.gelu(query, "tanh"), F.gelu(query, approximate="tanh"))
    gradients = []
    for context in (contextlib.nullcontext(), doctor_plain.PlainOperators()):
        torch.manual_seed(0)
        table = nn.Embedding(4, 3, padding_idx=1)
        with context:
            table(torch.tensor([0, 1, 1, 3])).square().sum().backward()
        gradients.append(table.weight.grad)
    torch.testing.assert_close(*gradients)
    assert not gradients[0][1].any()  # a padding row does not learn


def scaled(function, factor=1.1):
    def wrong(*args, **kwargs):
        return function(*args, **kwargs) * factor

    return wrong


@pytest.mark.parametrize(
    ("place", "attribute", "operator"),
    [
        (F, "layer_norm", "layer_norm"),
        (F, "scaled_dot_product_attention", "scaled_dot_product_attention"),
        (F, "conv2d", "conv2d"),
        (F, "cross_entropy", "cross_entropy"),
        (F, "embedding", "embedding"),
        (F, "linear", "linear"),
        (F, "gelu", "gelu"),
        (F, "normalize", "normalize"),
        (F, "interpolate", "interpolate"),
        (torch, "baddbmm", "baddbmm"),
        (torch.Tensor, "softmax", "softmax"),
    ],
)
def test_an_operator_that_is_a_tenth_wrong_is_the_only_one_named(monkeypatch, place, attribute, operator):
    monkeypatch.setattr(place, attribute, scaled(getattr(place, attribute)))
    results = [result for result in run_checks("cpu") if result.operator != "training step"]  # which may go wrong with its operators
    assert {result.operator for result in results if not result.passed} == {operator}
    assert not any(result.passed for result in results if result.operator == operator)  # whatever the layout, mask or precision


def test_a_layer_norm_that_is_wrong_only_behind_a_frozen_encoder_is_caught(monkeypatch):
    layer_norm = F.layer_norm

    def wrong(x, shape, weight=None, bias=None, eps=1e-5):
        frozen = torch.is_grad_enabled() and not x.requires_grad and weight is not None and weight.requires_grad
        return layer_norm(x, shape, weight + (weight - weight.detach()) if frozen else weight, bias, eps)  # same output, gradient doubled

    monkeypatch.setattr(F, "layer_norm", wrong)
    results = run_checks("cpu")
    assert failed(results) == {"LayerNorm behind a frozen encoder": "layer_norm"}
    assert next(result for result in results if not result.passed).detail == "gradient of weight"


def test_attention_that_reads_one_mask_for_all_is_caught_where_masks_are_partly_broadcast(monkeypatch):
    attention = F.scaled_dot_product_attention

    def wrong(query, key, value, attn_mask=None, **options):
        if attn_mask is not None and attn_mask.ndim == 4 and attn_mask.shape[1] == 1 and attn_mask.shape[2] > 1:
            attn_mask = attn_mask[:1]
        return attention(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    assert failed(run_checks("cpu")) == {"attention, partly broadcast mask (B, 1, T, S)": "scaled_dot_product_attention"}


def test_a_convolution_that_takes_every_input_for_contiguous_is_caught(monkeypatch):
    conv2d = F.conv2d

    def wrong(x, weight, bias=None, stride=1):
        storage = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
        return conv2d(storage, weight, bias, stride=stride)

    monkeypatch.setattr(F, "conv2d", wrong)
    assert failed(run_checks("cpu")) == {"convolution, transposed input": "conv2d", "convolution, channels-last slice": "conv2d"}


def test_an_optimizer_without_weight_decay_is_caught_also_in_the_training_step(monkeypatch):
    init = torch.optim.AdamW.__init__

    def wrong(self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        init(self, parameters, lr, betas, eps, 0.0)

    monkeypatch.setattr(torch.optim.AdamW, "__init__", wrong)
    assert set(failed(run_checks("cpu")).values()) == {"AdamW", "training step"}


def test_an_operator_that_the_device_lacks_is_a_failure_with_its_reason(monkeypatch):
    def missing(*args, **kwargs):
        raise NotImplementedError("The operator 'aten::baddbmm' is not currently implemented for the MPS device.\nmore")

    monkeypatch.setattr(torch, "baddbmm", missing)
    wrong = [result for result in run_checks("cpu") if not result.passed]
    assert [result.operator for result in wrong] == ["baddbmm"]
    assert wrong[0].max_error == math.inf and "not currently implemented" in wrong[0].detail


def test_the_given_model_takes_the_step_and_nothing_of_the_program_changes():
    torch.manual_seed(1)
    model = MultiModalTransformer(**SIZE, dropout=0.5).train()
    model.text.requires_grad_(False)
    before, random_state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    results = run_checks("cpu", model_factory=lambda: model)
    assert results[-1].name == "training step of MultiModalTransformer" and results[-1].passed
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training and not model.text.norm.weight.requires_grad
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in model.state_dict(keep_vars=True).items())


def test_a_layer_of_the_model_that_goes_wrong_fails_the_training_step():
    class Broken(MultiModalTransformer):
        def encode_image(self, image):
            features = super().encode_image(image)
            wrong = torch.overrides._get_current_function_mode() is None  # only outside of the plain formulas
            return features._replace(embedding=features.embedding + (0.1 * features.embedding.detach().flip(0) if wrong else 0))

    torch.manual_seed(2)
    assert failed(run_checks("cpu", model_factory=lambda: Broken(**SIZE))) == {"training step of Broken": "training step"}


def test_a_model_without_a_known_step_and_an_unknown_precision_are_refused():
    with pytest.raises(InputError, match="not of Linear"):
        run_checks("cpu", model_factory=lambda: nn.Linear(2, 2))
    with pytest.raises(InputError, match="float64"):
        run_checks("cpu", torch.float64)


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [([1.0, 2.0], [1.0, 4.0], 0.5), ([math.nan, 1.0], [1.0, 1.0], math.inf), ([1.0], [1.0, 1.0], math.inf), ([0.0], [0.0], 0.0)],
)
def test_the_error_is_a_share_of_the_largest_value_and_infinite_for_no_number(got, wanted, error):
    assert relative_error(torch.tensor(got), torch.tensor(wanted)) == error


def test_old_torch_on_a_mac_is_a_failure_with_a_remedy(monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "darwin")
    monkeypatch.setattr(doctor.torch, "__version__", "2.13.1")
    result = doctor.check_version(torch.device("cpu"))
    assert not result.passed
    assert "torch>=2.14" in fix(result)
    monkeypatch.setattr(doctor.torch, "__version__", "2.14.0")
    assert doctor.check_version(torch.device("mps")).passed


def test_a_known_bug_is_cited_with_the_release_that_mends_it(monkeypatch):
    known = CheckResult(
        "attention", "scaled_dot_product_attention", 0.3, 1e-4, False, "output", "https://github.com/x/issues/184180", "2.13"
    )
    monkeypatch.setattr(doctor.torch, "__version__", "2.12.0")
    assert "184180" in fix(known) and "torch>=2.13" in fix(known)
    monkeypatch.setattr(doctor.torch, "__version__", "2.14.1")
    assert "still here in 2.14.1" in fix(known) and "trainer=cpu" in fix(known)


def test_bugs_of_mps_are_cited_on_mps_alone():
    check = next(check for check in doctor.operator_checks() if check.name == "LayerNorm behind a frozen encoder")
    broken = check._replace(compare=lambda device, dtype: {"output": (torch.tensor(1.0), torch.tensor(2.0))})
    on_mps = doctor._run(broken, torch.device("mps"), torch.float32)
    assert on_mps.issue == "https://github.com/pytorch/pytorch/issues/183825" and on_mps.fixed_in == "2.13"
    assert doctor._run(broken, torch.device("cpu"), torch.float32).issue is None


def test_the_table_and_the_json_say_what_failed():
    good = CheckResult("GELU", "gelu", 1e-7, 1e-4, True, "output")
    bad = CheckResult("LayerNorm", "layer_norm", math.inf, 1e-4, False, "gradient of weight")
    assert "1 of 2 checks passed" in report([good, bad])
    assert "layer_norm (LayerNorm)" in report([good, bad]) and "gradient of weight" in failures([good, bad])[0]
    record = json.loads(json.dumps(as_json([good, bad], "cpu"), allow_nan=False))
    assert record["passed"] is False and record["checks"][1]["max_error"] is None and record["torch"] == torch.__version__


def test_devices_are_chosen_by_what_there_is(monkeypatch):
    monkeypatch.setattr(doctor, "available_devices", lambda: ["mps", "cpu"])
    assert choose_device("auto") == "mps" and choose_device("cpu") == "cpu"
    with pytest.raises(InputError, match="'cuda' is not available here; available: mps, cpu"):
        choose_device("cuda")
    with pytest.raises(InputError, match="'gpu' is unknown"):
        choose_device("gpu")


def test_bfloat16_is_not_chosen_unasked_on_mps():
    assert native_bf16("mps") is False
    assert native_bf16("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_the_command_ends_with_0_1_or_2(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "available_devices", lambda: ["cpu"])
    assert main(["--device", "cuda"]) == 2
    assert "available: cpu" in capsys.readouterr().err
    assert main(["--device", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "cpu"
    monkeypatch.setattr(F, "gelu", scaled(F.gelu))
    assert main(["--device", "cpu"]) == 1
    assert "FAIL GELU" in capsys.readouterr().out
