"""Ask the original implementations for their numbers, once: writes numbers.json beside this file. README.md says what it needs.

    python tests/insight/interpret/golden/perturbation/make.py --fixlip PATH_OF_A_CLONE --mm-shap PATH_OF_A_CLONE

``pair`` and ``maps_and_boxes`` are what the tests ask ours about. Weights come from a formula, so no random generator has to stay the same.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import torch

from insight.data.batch import ImageTextBatch
from insight.interpret.families import DualEncoder
from insight.models.multimodal import MultiModalTransformer

SEGMENTS, WORDS = 9, 3  # a patch each, a token each
SHAPE = {"vocab_size": 12, "image_size": 24, "patch_size": 8, "context_length": 5, "dim": 8, "image_depth": 2, "text_depth": 1, "heads": 2}


def pair() -> tuple[DualEncoder, ImageTextBatch]:
    """A tiny dual encoder, and one picture with one caption of [START], three words and [END]."""
    model = MultiModalTransformer(**SHAPE, embed_dim=6).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim > 1:
                place = torch.arange(parameter.numel(), dtype=torch.float64)
                parameter.copy_((0.5 * torch.sin(place * place * 0.37 + place + 2 * number)).view_as(parameter))
        model.logit_scale.zero_()
    picture = torch.sin(torch.arange(3 * 24 * 24, dtype=torch.float64) ** 2 * 0.011).view(1, 3, 24, 24).float()
    row, tokens = torch.zeros(1, dtype=torch.int64), torch.tensor([[1, 7, 4, 9, 2]])
    batch = ImageTextBatch(picture, None, tokens, torch.ones(1, 5, dtype=torch.bool), row, row, row, ("a b c",), ("x.jpg",), ())
    return DualEncoder(model), batch


def maps_and_boxes() -> tuple[np.ndarray, list[list[tuple[float, float, float, float]]]]:
    """Twelve maps of 6 x 6 cells, all positive, none of whose values is there twice, and boxes that end where cells end."""
    place = np.arange(12 * 36, dtype=np.float64)
    maps = 1.5 + np.sin(place**2 * 0.21 + place).reshape(12, 6, 6)
    boxes = [[((row % 3) / 6, (row % 4) / 6, (row % 3 + 2 + row % 2) / 6, (row % 4 + 2) / 6)] for row in range(12)]
    return maps, boxes


def score(family: DualEncoder, batch: ImageTextBatch, kept: np.ndarray) -> np.ndarray:
    """The score under joint masks (K, 12): patches and words are hidden from every layer, nothing is left out of a batch."""
    rows, _ = family.rows(batch, None)
    whole = family.embed(rows)
    kept = torch.as_tensor(np.asarray(kept) > 0.5)
    ends = torch.ones(len(kept), 1, dtype=torch.bool)
    inputs = whole._replace(
        image_RND=whole.image_RND.expand(len(kept), -1, -1),
        text_RTD=whole.text_RTD.expand(len(kept), -1, -1),
        image_mask_RN=torch.cat([ends, kept[:, :SEGMENTS]], dim=1),
        text_mask_RT=torch.cat([ends, kept[:, SEGMENTS:], ends], dim=1),
    )
    with torch.no_grad():
        return family.score(inputs).double().numpy()


def shap_numbers() -> dict[str, list[float]]:
    import shap

    family, batch = pair()
    nothing, everything = np.zeros((1, SEGMENTS + WORDS)), np.ones((1, SEGMENTS + WORDS))

    def masked(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (mask * x).reshape(1, -1)

    def of_picture(kept: np.ndarray) -> np.ndarray:
        return score(family, batch, np.concatenate([kept, np.ones((len(kept), WORDS))], axis=1))

    joint = shap.explainers.Exact(lambda kept: score(family, batch, kept), masked)(everything).values[0]
    kernel = shap.KernelExplainer(of_picture, nothing[:, :SEGMENTS])
    image = kernel.shap_values(everything[:, :SEGMENTS], nsamples=2**SEGMENTS, silent=True, l1_reg=False)[0]
    return {"exact_joint": joint.tolist(), "kernel_image": np.asarray(image).tolist()}


def mm_shap_number(clone: Path, joint: list[float]) -> float:
    """Its own function, taken out of the script that loads CLIP when it is imported. Its players are the words, then the regions."""
    script = ast.parse((clone / "mm-shap_clip_dataset.py").read_text())
    function = next(one for one in script.body if isinstance(one, ast.FunctionDef) and one.name == "compute_mm_score")
    names: dict[str, object] = {"np": np}
    exec(compile(ast.Module([function], []), "mm-shap", "exec"), names)
    words_first = np.array([*joint[SEGMENTS:], *joint[:SEGMENTS]])[None, None]
    return float(names["compute_mm_score"](WORDS, argparse.Namespace(values=words_first)))


def fixlip_numbers(clone: Path) -> dict[str, list[list[float]]]:
    package = types.ModuleType("src")  # its own __init__ imports plots and data sets, too
    package.__path__ = [str(clone / "src")]
    sys.modules["src"] = package
    from src.fixlip import FIxLIP

    family, batch = pair()

    class Game:
        normalization_value = 0.0

        def value_function_crossmodal(self, coalitions_image: np.ndarray, coalitions_text: np.ndarray) -> np.ndarray:
            return np.stack(
                [score(family, batch, np.hstack([np.tile(one, (len(coalitions_text), 1)), coalitions_text])) for one in coalitions_image]
            )

    found = {}
    for keep in (0.5, 0.7):
        method = FIxLIP(n_players_image=SEGMENTS, n_players_text=WORDS, mode="banzhaf", p=keep, max_order=2, random_state=0)
        values = method.approximate_crossmodal(Game(), budget_image=2**SEGMENTS, budget_text=2**WORDS)
        found[str(keep)] = [[float(values[(i, SEGMENTS + j)]) for j in range(WORDS)] for i in range(SEGMENTS)]
    return found


def quantus_numbers() -> dict[str, list[float]]:
    import quantus

    from insight.interpret.localisation import centres_inside

    maps, boxes = maps_and_boxes()
    inside = np.stack([centres_inside(one, 6) for one in boxes])[:, None].astype(int)
    asked = {
        "a_batch": maps[:, None],
        "model": None,
        "x_batch": np.zeros((12, 1, 6, 6)),
        "y_batch": np.zeros(12, dtype=int),
        "s_batch": inside,
    }
    pointing = quantus.PointingGame(normalise=False, disable_warnings=True)(**asked)
    energy = quantus.AttributionLocalisation(normalise=False, disable_warnings=True)(**asked)
    return {"pointing_game": [float(one) for one in pointing], "attribution_localisation": [float(one) for one in energy]}


def commit(clone: Path) -> str:
    return subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fixlip", type=Path, required=True, help="clone of github.com/hbaniecki/fixlip")
    parser.add_argument("--mm-shap", type=Path, required=True, help="clone of github.com/Heidelberg-NLP/MM-SHAP")
    arguments = parser.parse_args()
    shap_values = shap_numbers()
    numbers = {
        "made_by": {
            **{name: importlib.metadata.version(name) for name in ("shap", "quantus", "shapiq", "torch", "numpy")},
            "fixlip": commit(arguments.fixlip),
            "mm-shap": commit(arguments.mm_shap),
        },
        "shap": shap_values,
        "mm_shap_text_share": mm_shap_number(arguments.mm_shap, shap_values["exact_joint"]),
        "fixlip_pairs": fixlip_numbers(arguments.fixlip),
        "quantus": quantus_numbers(),
    }
    (Path(__file__).parent / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
