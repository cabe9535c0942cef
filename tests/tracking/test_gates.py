"""Each gate beside the same question answered by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from insight.bootstrap import mean_interval
from insight.errors import InputError
from insight.export.card import SECTIONS
from insight.query_ranks import QueryRanks
from insight.stages import Call
from tracking import gates
from tracking.gates import Subject, bind_gates, run_gates

METRIC = "test/text_to_image_recall_at_1"


def ranks(*values: int, name: str = "{}.jpg") -> QueryRanks:
    names = tuple(name.format(number) for number in range(len(values)))
    rank, best = torch.tensor(values), torch.zeros(len(values), 1, dtype=torch.int64)
    captions = tuple(f"{one}#0" for one in names)
    both = ("image_to_text", "text_to_image")
    return QueryRanks(names, captions, captions, {one: rank for one in both}, {one: best for one in both})


@pytest.fixture
def subject(tmp_path) -> Subject:
    """A perfect version whose bundle says what the test gives it."""
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "model_card.md").write_text("\n\n".join(f"## {title}\n\nsomething" for title in SECTIONS))
    (tmp_path / "weights.safetensors").write_bytes(b"x" * 2_500_000)
    bundle = SimpleNamespace(
        folder=tmp_path,
        data={"fingerprint": "a" * 64},
        example_error=lambda: 2e-6,
        use=lambda: None,
    )
    return Subject("models:/flickr/2", bundle, ranks(*[1] * 50), {"insight/rollout/deletion": 0.25}, "a" * 64)  # type: ignore[arg-type]


def changed(subject: Subject, **changes: object) -> Subject:
    return dataclasses.replace(subject, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wins", "losses", "state"),
    [(0, 0, "holds"), (30, 0, "holds"), (5, 9, "holds"), (0, 30, "fails"), (10, 40, "fails")],
)
def test_a_recall_below_the_holder_fails_only_beyond_the_paired_interval(subject, wins, losses, state):
    own, theirs = [1] * 100, [1] * 100
    theirs[:wins] = [2] * wins
    own[wins : wins + losses] = [2] * losses
    difference = torch.tensor([float(a == 1) - float(b == 1) for a, b in zip(own, theirs, strict=True)])
    by_hand = mean_interval(difference)
    verdict = gates.recall_not_below_holder(changed(subject, ranks=ranks(*own)), changed(subject, ranks=ranks(*theirs)), METRIC)
    assert verdict.state == state == ("fails" if by_hand.high < 0 else "holds")
    assert f"difference {(wins - losses) / 100:+.3f} ({by_hand.low:+.3f} to {by_hand.high:+.3f})" in verdict.figure
    assert verdict.holder == f"{1 - wins / 100:.3f}"


def test_pairing_tells_apart_what_two_single_intervals_would_not(subject):
    """Ten queries in 200 lost and none won is a real difference, though both recalls are about one half."""
    theirs = [1, 2] * 100
    own = [2 if number < 20 else rank for number, rank in enumerate(theirs)]
    verdict = gates.recall_not_below_holder(changed(subject, ranks=ranks(*own)), changed(subject, ranks=ranks(*theirs)), METRIC)
    alone = [mean_interval((torch.tensor(one) == 1).float()) for one in (own, theirs)]
    assert verdict.state == "fails" and alone[0].high > alone[1].low


def test_a_margin_allows_a_known_loss(subject):
    own, theirs = changed(subject, ranks=ranks(*[1] * 90, *[2] * 10)), changed(subject, ranks=ranks(*[1] * 100))
    assert gates.recall_not_below_holder(own, theirs, METRIC).state == "fails"
    assert gates.recall_not_below_holder(own, theirs, METRIC, margin=0.2).state == "holds"


def test_without_a_holder_there_is_nothing_to_be_below(subject):
    verdict = gates.recall_not_below_holder(subject, None, METRIC)
    assert (verdict.state, verdict.holder) == ("holds", "-") and "there is no holder yet" in verdict.note


@pytest.mark.parametrize(("hits", "state"), [(50, "holds"), (10, "holds"), (2, "fails"), (0, "fails")])
def test_a_recall_must_be_above_chance_with_its_whole_interval(subject, hits, state):
    verdict = gates.recall_above_chance(changed(subject, ranks=ranks(*[1] * hits, *[9] * (50 - hits))), subject, METRIC)
    by_hand = mean_interval(torch.tensor([1.0] * hits + [0.0] * (50 - hits)))
    assert verdict.state == state == ("holds" if by_hand.low > 1 / 50 else "fails")
    assert verdict.threshold == "above chance, 0.020" and verdict.holder == "1.000"


@pytest.mark.parametrize(
    ("arguments", "state"),
    [
        ({"at_least": 0.2}, "holds"),
        ({"at_least": 0.25}, "holds"),
        ({"at_least": 0.3}, "fails"),
        ({"at_most": 0.2}, "fails"),
        ({"at_least": 0.2, "at_most": 0.3}, "holds"),
    ],
)
def test_a_figure_must_be_within_its_bounds(subject, arguments, state):
    verdict = gates.figure_within(subject, subject, "insight/rollout/deletion", **arguments)
    assert (verdict.state, verdict.figure, verdict.holder) == (state, "0.250", "0.250")


def test_a_figure_that_was_not_measured_is_absent_never_green_and_fails_where_it_is_required(subject):
    verdict = gates.figure_within(subject, subject, "insight/robustness/blur", at_least=0.5)
    assert verdict.state == "absent" and "was not measured" in verdict.note
    assert gates.figure_within(subject, None, "insight/robustness/blur", at_least=0.5, required=True).state == "fails"
    nothing = changed(subject, metrics={"insight/robustness/blur": float("nan")})
    assert gates.figure_within(nothing, None, "insight/robustness/blur", at_most=0.5).state == "fails"


def test_latency_is_the_median_of_both_in_turns_on_the_loaded_bundle(subject, monkeypatch):
    asked, clock = [], [0.0]

    def of(name: str, seconds: list[float]):
        def use():
            asked.append(name)
            clock[0] += seconds[min(asked.count(name), len(seconds)) - 1]

        return changed(subject, bundle=SimpleNamespace(**{**vars(subject.bundle), "use": use}))

    monkeypatch.setattr(gates.time, "perf_counter", lambda: clock[0])
    slow_at_first = [9.0, 9.0, 0.010, 0.030, 0.020]
    candidate, holder = of("candidate", slow_at_first), of("holder", [0.005])
    verdict = gates.latency(candidate, holder, at_most_ms=20.001, repeats=3)
    assert (verdict.state, verdict.figure, verdict.holder) == ("holds", "20.00 ms", "5.00 ms")
    assert asked == ["candidate", "holder"] * 5
    asked.clear()
    assert gates.latency(candidate, None, at_most_ms=19.0, repeats=3).state == "fails"


@pytest.mark.parametrize(("at_most", "state"), [(2.5, "holds"), (2.4, "fails")])
def test_size_is_that_of_the_weights_file(subject, at_most, state):
    verdict = gates.size(subject, subject, at_most)
    assert (verdict.state, verdict.figure, verdict.holder) == (state, "2.50 MB", "2.50 MB")


@pytest.mark.parametrize(
    ("change", "known", "state", "note"),
    [
        ({}, None, "holds", ""),
        ({}, ["b" * 64, "a" * 64], "holds", ""),
        ({}, ["b" * 64], "fails", "not among them: " + "a" * 64),
        ({"fingerprint": "b" * 64}, None, "fails", "the run recorded bbbbbbbbbbbb"),
        ({"fingerprint": None}, None, "fails", "the run recorded none"),
    ],
)
def test_the_data_are_known_when_bundle_and_run_name_the_same(subject, change, known, state, note):
    verdict = gates.data_fingerprint_known(changed(subject, **change), subject, known)
    assert (verdict.state, verdict.note) == (state, note)


def test_other_data_than_the_holders_are_said(subject):
    other = changed(subject, bundle=SimpleNamespace(**{**vars(subject.bundle), "data": {"fingerprint": "c" * 64}}))
    assert gates.data_fingerprint_known(subject, other).note == "other data than the holder's"


def test_a_card_must_have_its_sections(subject, tmp_path):
    assert gates.card_complete(subject, subject)[:4] == ("holds", "9 sections", "all 9", "9 sections")
    card = tmp_path / "card" / "model_card.md"
    card.write_text(card.read_text().replace("## Results\n\nsomething", "## Results\n\nNot measured: no test."))
    verdict = gates.card_complete(subject, None)
    assert (verdict.state, verdict.figure, verdict.note) == ("fails", "8 sections", "Results (not measured)")
    assert gates.card_complete(subject, None, ["Data"]).state == "holds"
    with pytest.raises(InputError, match="no section 'Date'"):
        gates.card_complete(subject, None, ["Date"])


@pytest.mark.parametrize(("at_most", "state"), [(1e-5, "holds"), (1e-6, "fails")])
def test_the_example_must_come_out_as_it_did(subject, at_most, state):
    verdict = gates.example_reproduced(subject, subject, at_most)
    assert (verdict.state, verdict.figure, verdict.holder) == (state, "2.0e-06", "2.0e-06")


def test_what_cannot_be_answered_fails_and_says_why(subject):
    bound = bind_gates({"recall": Call("tracking.gates.recall_not_below_holder", {"metric": METRIC})})
    untested = changed(subject, ranks=None)
    elsewhere = changed(subject, ranks=ranks(*[1] * 50, name="other-{}.jpg"))
    for candidate, holder, said in (
        (untested, subject, "models:/flickr/2 keeps no ranks"),
        (subject, untested, "keeps no ranks"),
        (subject, elsewhere, "different queries"),
    ):
        verdict = run_gates(bound, candidate, holder)["recall"]
        assert verdict.state == "fails" and said in verdict.note


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            Call("tracking.gates.latancy", {}),
            "gates.mine.function: 'tracking.gates' has no function or class 'latancy'; did you mean 'latency'",
        ),
        (Call("tracking.nowhere.latency", {}), "cannot import 'tracking.nowhere.latency'"),
        (
            Call("tracking.gates.latency", {"at_most": 3}),
            "gates.mine.arguments.at_most: latency takes no such argument; did you mean 'at_most_ms'",
        ),
        (Call("tracking.gates.latency", {"candidate": 3}), "gates.mine.arguments.candidate: latency takes no such argument"),
        (Call("tracking.gates.size", {}), "gates.mine.arguments: tracking.gates.size needs at_most_mb"),
        (Call("insight.losses.contrastive", {}), "is no gate: it takes no candidate and holder"),
    ],
)
def test_a_mistake_in_a_gates_entry_names_its_key(call, said):
    with pytest.raises(InputError, match=said):
        bind_gates({"mine": call})
