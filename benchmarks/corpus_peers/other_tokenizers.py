"""A WordPiece vocabulary and a Jieba-BPE tokenizer of the usual kinds and sizes, to measure the rate of.

In: JSONL and a folder. Out: FOLDER/wordpiece/vocab.txt (characters, common words, word parts, as Chinese BERTs have)
and FOLDER/jieba-bpe/tokenizer.json with ModelScope's configuration.json (BPE inside jieba's words). Both from the text.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

CHARACTERS, WORDS = 21_128, 5_000  # size of bert-base-chinese; common words in letters and digits
JIEBA_VOCABULARY = 50_000
JIEBA_TEXT_CHARACTERS = 1_000_000


def wordpiece(texts: list[str], folder: Path) -> None:
    """Write vocab.txt."""
    characters = Counter("".join(texts).lower())
    words = Counter(word for text in texts for word in re.findall("[a-z0-9]{2,}", text.lower()))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [character for character, _ in characters.most_common(CHARACTERS) if not character.isspace()]
    pieces += [word for word, _ in words.most_common(WORDS)]
    pieces += [f"##{character}" for character in characters if character.isascii() and character.isalnum()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in dict.fromkeys(pieces)), encoding="utf-8")


def jieba_bpe(texts: list[str], folder: Path) -> None:
    """Write tokenizer.json and configuration.json."""
    import jieba
    from tokenizers import Tokenizer, models, trainers

    words = (word for text in texts for word in jieba.lcut(text) if not word.isspace())
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    symbols = ["<unk>", "<|endoftext|>", "<sep>", "\n", " "]
    trainer = trainers.BpeTrainer(vocab_size=JIEBA_VOCABULARY, special_tokens=symbols, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {"preprocessor": {"type": "text-gen-jieba-tokenizer"}}
    (folder / "configuration.json").write_text(json.dumps(configuration), encoding="utf-8")


def main(corpus: str, folder: Path) -> None:
    """Both, from the whole text and from a part of it."""
    with open(corpus, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    wordpiece(texts, folder / "wordpiece")
    mean_characters = max(1, sum(map(len, texts)) // len(texts))
    step = max(1, len(texts) * mean_characters // JIEBA_TEXT_CHARACTERS)
    jieba_bpe(texts[::step], folder / "jieba-bpe")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
