"""Any folder of ``*.txt`` files as texts."""

from __future__ import annotations

import random
import re
from pathlib import Path

from datamodules.captions import SPLITS
from datamodules.texts import Document, TextDataModule
from insight.errors import InputError

MOST_EVALUATED = 1000  # paragraphs that go to validation, and to test, unless a size is given


class TextFolderDataModule(TextDataModule):
    """UTF-8 text files, in the folder or in folders in it. A text is a paragraph: what stands between empty lines.

    Where ``root`` has folders ``train``, ``val`` and ``test``, they are the splits; else the paragraphs are split by lot, with equal ones
    together.

    Args:
        root: The folder.
        context_length: Most tokens of a window; a longer paragraph becomes several.
        vocab_size: Most entries of the tokenizer that is trained on the training texts.
        tokenizer: A tokenizer file to use instead of training one: RUN/tokenizer.json, or that of a GPT-2 checkpoint.
        batch_size: Windows per step, over all devices.
        eval_batch_size: Windows per step of evaluation, per device.
        num_workers: Processes that prepare batches. The batches are the same for every number.
        val_size: Validation paragraphs, below 1 as a fraction; ``null``: a tenth, at most 1000. Unused where folders are the splits.
        test_size: The same for the test split.
        seed: Of the split by lot, and of the batches outside a stage.
    """

    title = "text files"

    def __init__(
        self,
        root: str | None = None,
        context_length: int = 128,
        vocab_size: int = 4000,
        tokenizer: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        val_size: float | None = None,
        test_size: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(context_length, vocab_size, tokenizer, batch_size, eval_batch_size, num_workers, seed)
        self.root, self.sizes = root, {"val": val_size, "test": test_size}

    def locate(self) -> Path:
        """
        Raises:
            InputError: no folder is given, or it is not there.
        """
        if not self.root:
            raise InputError("data=text_folder: no folder is given: data.init_args.root=PATH, a folder with *.txt files")
        root = Path(self.root).expanduser()
        if not root.is_dir():
            raise InputError(f"data.init_args.root={root}: no such folder; give one with *.txt files")
        return root

    def place(self) -> str:
        return str(self.locate())

    def read(self) -> dict[str, list[Document]]:
        root = self.locate()
        if all((root / split).is_dir() for split in SPLITS):
            return {split: paragraphs_of(root / split) for split in SPLITS}
        return self._by_lot(paragraphs_of(root))

    def _by_lot(self, documents: list[Document]) -> dict[str, list[Document]]:
        groups: dict[str, list[Document]] = {}
        for document in documents:
            groups.setdefault(document.text, []).append(document)
        texts = sorted(groups)
        random.Random(self.seed).shuffle(texts)
        counts = {split: self._count(split, len(texts)) for split in ("val", "test")}
        if counts["val"] + counts["test"] >= len(texts):
            raise InputError(
                f"data.init_args.val_size ({counts['val']} paragraphs) and test_size ({counts['test']}) leave nothing of the {len(texts)} "
                f"different paragraphs in {self.root} for training: choose smaller ones, or more text"
            )
        ends = {"val": counts["val"], "test": counts["val"] + counts["test"], "train": len(texts)}
        found, start = {}, 0
        for split, end in ends.items():
            found[split] = [document for text in texts[start:end] for document in groups[text]]
            start = end
        return found

    def _count(self, split: str, total: int) -> int:
        size = self.sizes[split]
        if size is None:
            return max(1, min(MOST_EVALUATED, total // 10))
        if size <= 0:
            raise InputError(f"data.init_args.{split}_size={size}: must be above 0: a fraction below 1, or a number of paragraphs")
        return max(1, round(size * total)) if size < 1 else int(size)


def paragraphs_of(folder: Path) -> list[Document]:
    """Every paragraph of every ``*.txt``, named ``file#number``.

    Raises:
        InputError: no such file, no text in them, or one that is not UTF-8.
    """
    documents = []
    for path in sorted(folder.rglob("*.txt")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 ({error.reason} at byte {error.start}): convert it, or take it out of the folder"
            ) from error
        pieces = [piece.strip() for piece in re.split(r"\n\s*\n", text)]
        name = path.relative_to(folder).as_posix()
        documents += [Document(f"{name}#{number}", piece) for number, piece in enumerate(filter(None, pieces))]
    if not documents:
        raise InputError(f"{folder}: no text in any *.txt file there; put UTF-8 text files into it")
    return documents
