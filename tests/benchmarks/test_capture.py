import json
import sys

from benchmarks import capture


def test_the_benchmark_writes_every_way_with_its_costs_and_all_but_the_rival_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(capture, "SHAPES", {65: (64, 8, 1)})
    monkeypatch.setattr(sys, "argv", ["capture", "--tokens", "65", "--repeats", "2", "--output", str(tmp_path / "result.json")])
    capture.main()
    (shape,) = json.loads((tmp_path / "result.json").read_text())["shapes"]
    assert shape["tokens"] == 65 and shape["forward_cpu_ms"] > 0
    ours = {"class_row", "class_row_and_head_statistics", "full_maps"}
    assert set(shape["overhead"]) == {*ours, "rival_explicit_full_maps"} and set(shape["inside_listeners"]) == ours
    assert all(shape["outputs_bit_identical"][name] for name in ours)
    assert all(share > 0 for share in shape["inside_listeners"].values())
