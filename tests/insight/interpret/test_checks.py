import copy
import json
import random

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from insight.errors import InputError
from insight.interpret.checks import check_trust, load_checks, newest_checks, save_checks, seeded, sheet_verdicts, used_stages
from insight.interpret.explain import explain
from insight.interpret.faithfulness import shuffled_models
from insight.interpret.families import DualEncoder
from insight.interpret.scorecard import ScoredMethod
from insight.stages import Call

PLANTED = "tests.insight.interpret.planted"
TOWERS = "insight.interpret.families.DualEncoder"


def test_a_map_that_ignores_the_weights_fails_and_its_figures_say_so(dual_encoder, batch):
    found = check_trust(dual_encoder.model, batch, ScoredMethod(f"{PLANTED}.first_patch"))
    assert found.rho == pytest.approx(1) and not found.passed and not found.verdict.passed
    assert list(found.cascade.values()) == pytest.approx([1] * len(found.cascade))
    assert found.max_sensitivity == 0  # it ignores the pixels too
    assert found.scores["randomisation_passed_v1"] == 0 and found.scores["randomisation_rho_v1"] == pytest.approx(1)
    assert set(found.scores) == {f"{name}_v1" for name in ("randomisation_rho", "randomisation_passed", "infidelity", "max_sensitivity")}


def test_the_rank_correlation_is_scipys_of_the_map_of_a_shuffled_model(cross_attention, batch):
    model, method = cross_attention.model, ScoredMethod("insight.interpret.relevance.chefer_relevance", family=TOWERS)
    found = check_trust(model, batch, method, seed=3)
    maps = [explain(DualEncoder(model), batch, None, method.call).image.flatten(1)]
    for _, shuffled in shuffled_models(model, used_stages(model, batch, method), seed=3):
        last = explain(DualEncoder(shuffled), batch, None, method.call).image.flatten(1)
    by_scipy = np.mean([spearmanr(maps[0][row], last[row]).statistic for row in range(4)])
    assert found.rho == pytest.approx(by_scipy, abs=1e-6) and found.family == "dual encoder"


def test_layers_that_the_explained_score_never_passes_are_not_shuffled(cross_attention, batch):
    towers = used_stages(cross_attention.model, batch, ScoredMethod(f"{PLANTED}.first_patch", family=TOWERS))
    assert not [layer for stage in towers for layer in stage if layer.startswith(("fusion", "match_head", "masked_head", "word_head"))]
    assert towers[-1] == ("image.embedding", "text.embedding")
    own = used_stages(cross_attention.model, batch, ScoredMethod(f"{PLANTED}.first_patch"))
    assert own[0] == ("match_head",) and ("fusion.0",) in own and not any("projection" in layer for stage in own for layer in stage)


def test_checking_leaves_the_model_and_all_lots_as_they_were(dual_encoder, batch):
    model = dual_encoder.model.train()
    before, states = copy.deepcopy(model.state_dict()), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    check_trust(model, batch, ScoredMethod("insight.interpret.token_gradients.grad_eclip"))
    assert model.training and all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_method_of_words_alone_has_no_figures_of_patches(dual_encoder, batch):
    found = check_trust(dual_encoder.model, batch, ScoredMethod(f"{PLANTED}.words_alone"))
    assert found.infidelity is None and set(found.scores) == {"randomisation_rho_v1", "randomisation_passed_v1"}
    assert not found.passed  # a constant has no rank: it did not change


def test_a_method_that_draws_lots_gets_others_each_time(dual_encoder, batch):
    assert seeded(Call(f"{PLANTED}.by_lot"), 4).arguments == {"seed": 4}
    assert seeded(Call(f"{PLANTED}.first_patch"), 4).arguments == {}
    assert check_trust(dual_encoder.model, batch, ScoredMethod(f"{PLANTED}.by_lot")).passed


def test_infidelity_is_the_mean_over_masks_with_the_best_factor(dual_encoder, batch):
    """A map that adds up to the score exactly has none: here all patches but one are without effect on a planted game."""
    from insight.interpret.faithfulness import infidelity

    def game(kept_GKM):
        return 5.0 * kept_GKM[..., 0].float()

    right, wrong = torch.tensor([[7.0, 0, 0, 0]]), torch.tensor([[0, 7.0, 0, 0]])
    assert float(infidelity(game, right)) == pytest.approx(0, abs=1e-5)
    assert float(infidelity(game, wrong, samples=256)) > 1


def test_checks_are_read_back_and_other_files_are_refused(dual_encoder, batch, tmp_path):
    found = {"planted": check_trust(dual_encoder.model, batch, ScoredMethod(f"{PLANTED}.first_patch"))}
    path = tmp_path / "00-a" / "score_card" / "checks.json"
    save_checks(path, found, {"stage": "a", "epoch": 1, "step": 2, "pairs": 4})
    assert load_checks(path) == found == newest_checks(tmp_path)
    save_checks(tmp_path / "01-b" / "score_card" / "checks.json", {}, {})
    assert newest_checks(tmp_path) == {} == newest_checks(tmp_path / "nothing") == load_checks(tmp_path / "nothing.json")
    good = json.loads(path.read_text())
    for bad, message in (("{", "not a file of checks"), ("[]", "not a file of checks"), (json.dumps({**good, "version": 9}), "version 9")):
        path.write_text(bad)
        with pytest.raises(InputError, match=message):
            load_checks(path)


def test_the_sheets_of_attention_take_the_verdict_of_the_same_method_whatever_its_name(dual_encoder, batch):
    rollout = check_trust(dual_encoder.model, batch, ScoredMethod("insight.interpret.attention_maps.rollout_map"))
    assert sheet_verdicts({"any name": rollout}) == {"rollout": rollout.verdict}
    assert sheet_verdicts({"any name": check_trust(dual_encoder.model, batch, ScoredMethod(f"{PLANTED}.first_patch"))}) == {}
