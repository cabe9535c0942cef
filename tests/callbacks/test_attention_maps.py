import copy
import pickle

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import attention_maps
from callbacks.attention_maps import AttentionMaps, thin_out
from insight.errors import InputError
from insight.interpret.maps import load_maps
from insight.interpret.record import attention_layers
from insight.models.cross_attention import CrossAttentionMultiModalTransformer
from insight.models.multimodal import MultiModalTransformer
from tests.callbacks.tiny_fit import Keeper, Module, Pairs, fit


@pytest.fixture
def undrawn(monkeypatch):
    """Write the maps as ever, draw nothing: for tests about anything else, a process per validation is too slow."""

    def write_only(folder, arrays, facts, keep):
        return list(attention_maps.save_maps(folder / "maps" / f"epoch{facts.epoch:04d}-step{facts.step:07d}.safetensors", arrays, facts))

    monkeypatch.setattr(attention_maps, "write_and_draw", write_only)


def test_every_validation_leaves_maps_and_pictures_in_the_stage_folder_and_at_the_logger(tmp_path):
    module, logger = Module(CrossAttentionMultiModalTransformer, tmp_path), Keeper()
    callback = AttentionMaps(num_examples=2, layers=["image.blocks.0"], seed=5)
    trainer = fit([callback], module, logger=logger, num_sanity_val_steps=1)
    names = [f"epoch{epoch:04d}-step{step:07d}" for epoch, step in ((1, 2), (2, 4))]
    pictures = [f"{name}-{what}.png" for name in names for what in ("class-image.blocks.0.attention", "words")]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == pictures
    maps = [f"{name}.{ending}" for name in names for ending in ("json", "safetensors")]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == maps
    assert sorted(logger.files) == [*(("figures", name) for name in pictures), *(("maps", name) for name in maps)]
    for name in pictures:
        with Image.open(tmp_path / "figures" / name) as image:
            image.load()
    arrays, facts = load_maps(tmp_path / "maps" / f"{names[1]}.safetensors")
    assert (facts.stage, facts.epoch, facts.step, facts.grid) == ("joint", 2, 4, 2)
    assert [(one.filename, one.caption) for one in facts.examples] == [("0.jpg", "a dog 0"), ("1.jpg", "a dog 1")]
    assert facts.examples[0].phrases[0].boxes == ((0.1, 0.1, 0.5, 0.5),)
    assert arrays["words/fusion.1.cross_attention"].shape == (2, 6, 5)
    np.testing.assert_allclose(arrays["rollout"].sum(-1), 1, atol=2e-3)
    assert trainer.datamodule.asked == [("val", 2, 5)]
    assert "insight/capture_fraction" in logger.metrics and len(callback.capture_seconds) == 2


@pytest.mark.parametrize("kind", [MultiModalTransformer, CrossAttentionMultiModalTransformer])
def test_training_with_the_callback_is_bitwise_training_without_it(tmp_path, undrawn, kind):
    plain, seen = Module(kind), Module(kind, tmp_path)
    fit([], plain)
    state = torch.get_rng_state()
    fit([AttentionMaps(num_examples=2)], seen)
    assert (tmp_path / "maps").exists()
    assert all(torch.equal(one, two) for one, two in zip(plain.parameters(), seen.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(layer.tap.listeners for layer in attention_layers(seen).values())


def test_maps_are_drawn_in_every_nth_validation_also_after_a_resume(tmp_path, undrawn):
    callback = AttentionMaps(num_examples=1, every_n_validations=3)
    callback.load_state_dict({"validations": 2})
    fit([callback], Module(MultiModalTransformer, tmp_path), epochs=5)
    assert [path.name[:9] for path in sorted((tmp_path / "maps").glob("*.json"))] == ["epoch0002", "epoch0005"]
    assert callback.state_dict() == {"validations": 7}


def test_the_oldest_but_the_first_are_thinned_out(tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "figures").mkdir()
    for epoch in range(1, 7):
        for name in (f"maps/epoch000{epoch}.json", f"maps/epoch000{epoch}.safetensors", f"figures/epoch000{epoch}-words.png"):
            (tmp_path / name).touch()
    (tmp_path / "figures" / "mine.png").touch()
    thin_out(tmp_path, keep=3)
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        f"epoch000{epoch}.{ending}" for epoch in (1, 5, 6) for ending in ("json", "safetensors")
    ]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [*(f"epoch000{n}-words.png" for n in (1, 5, 6)), "mine.png"]
    thin_out(tmp_path, keep=1)
    assert [path.name for path in (tmp_path / "maps").glob("*.json")] == ["epoch0006.json"]


def test_the_number_of_pictures_becomes_the_number_of_validations_that_are_kept(tmp_path, monkeypatch):
    keeps = []
    monkeypatch.setattr(attention_maps, "write_and_draw", lambda folder, arrays, facts, keep: keeps.append(keep) or [])
    for kind in (MultiModalTransformer, CrossAttentionMultiModalTransformer):  # one picture and two pictures a validation
        fit([AttentionMaps(num_examples=1, max_pictures=7)], Module(kind, tmp_path), epochs=1)
    assert keeps == [7, 3]


class Order(L.Callback):
    """Stands for the checkpoint callback: runs after ours."""

    def __init__(self):
        self.saved = []

    def on_validation_end(self, trainer, pl_module):
        self.saved.append(trainer.global_step)


@pytest.mark.parametrize("where", ["write_and_draw", "capture"])
def test_a_failure_is_raised_only_after_the_checkpoint_of_that_validation(tmp_path, monkeypatch, where):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attention_maps, where, broken)
    order, callback = Order(), AttentionMaps(num_examples=1)
    with pytest.raises(OSError, match="No space"):
        fit([callback, order], Module(MultiModalTransformer, tmp_path), epochs=3)
    assert order.saved[0] == 2
    assert callback._background is None
    with pytest.raises(OSError, match="No space"):  # in the last validation: raised at the end
        fit([AttentionMaps(num_examples=1), order], Module(MultiModalTransformer, tmp_path), epochs=1)


def test_a_drawing_that_fails_says_why_and_keeps_the_maps(tmp_path):
    (tmp_path / "figures").write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match=r"drawing them failed: .*figures"):
        fit([AttentionMaps(num_examples=1)], Module(MultiModalTransformer, tmp_path), epochs=1)
    assert len(list((tmp_path / "maps").iterdir())) == 2


def test_pictures_under_way_are_finished_when_the_training_breaks_off(tmp_path, undrawn):
    class Interrupted(Module):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                raise RuntimeError("broke off")

    logger, callback = Keeper(), AttentionMaps(num_examples=1)
    with pytest.raises(RuntimeError, match="broke off"):
        fit([callback], Interrupted(MultiModalTransformer, tmp_path), epochs=3, logger=logger)
    assert [name[:9] for _, name in logger.files] == ["epoch0001"] * 2
    assert callback._background is None


def test_an_idle_callback_can_be_copied_and_pickled_also_after_a_fit(tmp_path, undrawn):
    callback = AttentionMaps(num_examples=1)
    fit([callback], Module(MultiModalTransformer, tmp_path), epochs=1)
    for copied in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        fit([copied], Module(MultiModalTransformer, tmp_path / "again"), epochs=1)
    assert len(list((tmp_path / "again" / "maps").iterdir())) == 2


def test_half_precision_and_validation_alone_work(tmp_path, undrawn):
    module = Module(CrossAttentionMultiModalTransformer, tmp_path)
    trainer = fit([AttentionMaps(num_examples=1)], module, epochs=1, precision="bf16-mixed")
    assert len(list((tmp_path / "maps").iterdir())) == 2
    trainer.validate(module, datamodule=Pairs(), verbose=False)
    assert len(list((tmp_path / "maps").iterdir())) == 2  # maps belong to a fit


@pytest.mark.parametrize("arguments", [{"num_examples": 0}, {"every_n_validations": 0}, {"max_pictures": -1}])
def test_impossible_numbers_are_errors_that_name_the_key(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        AttentionMaps(**arguments)


def test_an_unknown_layer_and_a_missing_folder_are_errors_before_the_first_step(tmp_path):
    with pytest.raises(InputError, match=r"'image\.blocks\.9' is no attention layer .*image\.blocks\.1\.attention"):
        fit([AttentionMaps(layers=["image.blocks.9"])], Module(MultiModalTransformer, tmp_path))
    with pytest.raises(InputError, match="directory"):
        fit([AttentionMaps()], Module(MultiModalTransformer))
    assert not list(tmp_path.iterdir())
