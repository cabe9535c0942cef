"""What an image-text run leaves: what each test query found (its rank and best candidates, with names, texts and small pictures: enough
to compare two runs later), and embeddings.

B pictures, C captions, E width of the embedding, Q queries, N candidates, S side of a picture.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from insight.metrics import Seen

RANKS, NAMES, PICTURES = "ranks.safetensors", "ranks.json", "test_pictures.jpg"
RETRIEVAL_FILES = (RANKS, NAMES, PICTURES)
CANDIDATES = 5
LARGEST_CELL = 96  # pixels of a small picture's side
MOST_PICTURES = 4000  # of the sheet


class Prediction(NamedTuple):
    """Embeddings of one batch."""

    filenames: tuple[str, ...]
    image_embedding: Tensor  # (B, E)
    texts: tuple[str, ...]
    text_embedding: Tensor  # (C, E)


def save_retrievals(seen: Seen, data: Any, folder: Path) -> None:
    """Write ``RETRIEVAL_FILES`` to the folder, in the order of the split.

    ``ranks.safetensors`` holds for both directions ``test/<direction>`` (Q,) int64, rank of the best right answer, 1 = first, and
    ``test/<direction>_best`` (Q, 5) int64, rows of the best candidates (fewer where there are fewer). ``ranks.json`` has under
    ``test/<direction>`` the queries' ids (file name; file name#number of the caption), which are the same in every run on the same data,
    the captions' ``texts``, and how to cut ``test_pictures.jpg`` into the pictures.
    """
    image_rows, caption_rows = seen.image_id_B.tolist(), seen.caption_id_C.tolist()
    images, captions = data.pairs("test")
    filenames = data.splits()["test"]
    texts = [text for one in captions for text in one]
    caption_names = [f"{name}#{number}" for name, one in zip(filenames, captions, strict=True) for number in range(len(one))]
    tensors = {
        "test/image_to_text": seen.ranks.image_to_text_B,
        "test/text_to_image": seen.ranks.text_to_image_C,
        "test/image_to_text_best": best_candidates(seen.image_embedding_BE, seen.text_embedding_CE),
        "test/text_to_image_best": best_candidates(seen.text_embedding_CE, seen.image_embedding_BE),
    }
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / RANKS)
    sheet, layout = contact_sheet(images[image_rows[:MOST_PICTURES]])
    sheet.save(folder / PICTURES, quality=85)
    names = {
        "test/image_to_text": [filenames[row] for row in image_rows],
        "test/text_to_image": [caption_names[row] for row in caption_rows],
        "texts": [texts[row] for row in caption_rows],
        "pictures": {"file": PICTURES, **layout},
    }
    (folder / NAMES).write_text(json.dumps(names, ensure_ascii=False))


def best_candidates(query_QE: Tensor, candidate_NE: Tensor, count: int = CANDIDATES, at_once: int = 1024) -> Tensor:
    """Rows of the highest scoring candidates of each query, best first: (Q, min(count, N)) int64."""
    count = min(count, len(candidate_NE))
    return torch.cat([(part @ candidate_NE.T).topk(count, dim=1).indices for part in query_QE.split(at_once)])


def contact_sheet(images_B3SS: Tensor) -> tuple[Image.Image, dict[str, int]]:
    """uint8 pictures side by side in a square, and its layout: ``cell`` pixels a side, ``columns``, ``count``."""
    count, side = len(images_B3SS), images_B3SS.shape[-1]
    cell, columns = min(side, LARGEST_CELL), math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * cell, math.ceil(count / columns) * cell))
    for number, pixels in enumerate(images_B3SS.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8, copy=False)):
        picture = Image.fromarray(pixels)
        if side > cell:
            picture = picture.resize((cell, cell), Image.Resampling.BILINEAR)
        sheet.paste(picture, (number % columns * cell, number // columns * cell))
    return sheet, {"cell": cell, "columns": columns, "count": count}


def save_predictions(rows: list[Prediction], folder: Path) -> None:
    """Embeddings of pictures (N, E) and captions (C, E) as safetensors, file names and texts as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "image_embedding": torch.cat([row.image_embedding for row in rows]).cpu().contiguous(),
        "text_embedding": torch.cat([row.text_embedding for row in rows]).cpu().contiguous(),
    }
    save_file(tensors, folder / "embeddings.safetensors")
    names = {"filenames": [name for row in rows for name in row.filenames], "texts": [text for row in rows for text in row.texts]}
    (folder / "embeddings.json").write_text(json.dumps(names, ensure_ascii=False))
