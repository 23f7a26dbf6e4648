"""From a tokenizer file to a Tokenizer, by the file's name; the tokenizer libraries are imported only when needed."""

from pathlib import Path

from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in `path`: `*.model` is SentencePiece, `*.json` Hugging Face's `tokenizer.json`.

    A folder stands for the `tokenizer.model` or `tokenizer.json` in it. Raises DataError.
    """
    file = Path(path)
    if file.is_dir():
        file = _file_in_folder(file)
    if not file.is_file():
        raise DataError(
            f"tokenizer file {file} does not exist; train one with `python data_tools/train_tokenizer.py` or correct "
            "tokenizer.path"
        )
    if file.suffix == ".model":
        from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(file)
    if file.suffix == ".json":
        from megagpt.tokenizer.hf import HuggingFaceTokenizer

        return HuggingFaceTokenizer(file)
    raise DataError(
        f"cannot tell what kind of tokenizer {file} is; name a SentencePiece model `*.model` and a Hugging Face "
        "tokenizer `tokenizer.json`"
    )


def _file_in_folder(folder: Path) -> Path:
    found = [folder / name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"folder {folder} has neither tokenizer.model nor tokenizer.json; name the tokenizer file")
    raise DataError(f"folder {folder} has both tokenizer.model and tokenizer.json; name the one that is meant")
