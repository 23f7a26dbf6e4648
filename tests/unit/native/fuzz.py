"""Random texts for the native encoder, and the comparison with sentencepiece.

    python -m tests.unit.native.fuzz TEXT_FILE RULES_FILE --texts 1000000

compares that many texts over all the kinds of models below, trained on TEXT_FILE. Texts hold every kind of
character that Unicode has, bytes that are not UTF-8, long runs, and what the model's own pieces and symbols are made
of. --record FILE keeps what was compared, on what and when, as JSON.
"""

import argparse
import io
import json
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from machine import commit, machine, versions

from megagpt.native import _encoder

USER_SYMBOLS = ("\n", "<sep>", "<sep", "中文", "ab", "①", "  ", "\u0301")
# source and target of each rule in hexadecimal code points, as sentencepiece's trainer reads them
RULES = "61 62\t78\n41\t61\n4E2D\t\n3042 3099\t3050\n20 20 20\t20\n1F600\t3A 29\n3000\t20\n"


class ModelKind(NamedTuple):
    """What a model is trained with."""

    model_type: str
    normalization: str = "identity"
    add_dummy_prefix: bool = False
    remove_extra_whitespaces: bool = False
    treat_whitespace_as_suffix: bool = False
    byte_fallback: bool = True
    user_symbols: Sequence[str] = ()

    @property
    def name(self) -> str:
        """The choices in a word."""
        flags = {
            "prefix": self.add_dummy_prefix,
            "trim": self.remove_extra_whitespaces,
            "suffix": self.treat_whitespace_as_suffix,
            "bytes": self.byte_fallback,
            "symbols": bool(self.user_symbols),
        }
        return "-".join([self.model_type, self.normalization, *(flag for flag, on in flags.items() if on)])


def model_kinds() -> list[ModelKind]:
    """BPE and unigram with every normalisation, and each other choice beside both plain and full normalisation."""
    kinds: list[ModelKind] = []
    for model_type in ("bpe", "unigram"):
        kinds += [
            ModelKind(model_type),
            ModelKind(model_type, user_symbols=("\n",)),
            ModelKind(model_type, byte_fallback=False),
            ModelKind(model_type, "nmt_nfkc", add_dummy_prefix=True, remove_extra_whitespaces=True),
            ModelKind(model_type, "nmt_nfkc", True, True, byte_fallback=False, user_symbols=USER_SYMBOLS),
            ModelKind(model_type, "nfkc", add_dummy_prefix=True, user_symbols=USER_SYMBOLS[:4]),
            ModelKind(model_type, "nmt_nfkc_cf", remove_extra_whitespaces=True),
            ModelKind(model_type, "rules", True, True, user_symbols=("\n", "ab")),
            ModelKind(model_type, "nmt_nfkc", True, True, treat_whitespace_as_suffix=True),
            ModelKind(model_type, user_symbols=USER_SYMBOLS),
            ModelKind(model_type, add_dummy_prefix=True),
        ]
    return kinds


def train(kind: ModelKind, texts: Sequence[str], rules_file: str, vocab_size: int = 4000) -> bytes:
    """A small model of this kind; `rules_file` holds RULES."""
    model = io.BytesIO()
    rule = {"normalization_rule_tsv": rules_file} if kind.normalization == "rules" else {}
    name = "identity" if kind.normalization == "rules" else kind.normalization
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type=kind.model_type,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=0.99,
        normalization_rule_name=name,
        add_dummy_prefix=kind.add_dummy_prefix,
        remove_extra_whitespaces=kind.remove_extra_whitespaces,
        treat_whitespace_as_suffix=kind.treat_whitespace_as_suffix,
        byte_fallback=kind.byte_fallback,
        user_defined_symbols=list(kind.user_symbols),
        num_threads=1,
        minloglevel=2,
        **rule,
    )
    return model.getvalue()


def random_texts(rng: random.Random, samples: Sequence[str]) -> Iterator[bytes]:
    """Texts without end, in UTF-8 but for those that are meant not to be."""
    alphabets = (
        lambda: chr(rng.randrange(0x20)),
        lambda: chr(rng.randrange(0x20, 0x250)),
        lambda: chr(rng.choice([0x20, 0xA0, 0x3000, 0x2003, 0x200B, 0x200D, 0xFEFF, 0x2581, 0x9, 0xA, 0xD, 0x85])),
        lambda: chr(rng.randrange(0x4E00, 0xA000)),
        lambda: chr(rng.randrange(0x300, 0x370)),
        lambda: chr(rng.randrange(0x1100, 0x1200)),
        lambda: chr(rng.randrange(0x2000, 0x3400)),
        lambda: chr(rng.randrange(0xF900, 0x10000)),
        lambda: chr(rng.randrange(0x1F300, 0x1FAFF)),
        lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])),
        lambda: rng.choice("abcdeABC中文的一是，。①ﬁがが"),
        lambda: rng.choice(USER_SYMBOLS),
        lambda: rng.choice(("<unk>", "<s>", "<0x0A>", "<|endoftext|>")),
    )
    while True:
        chosen = rng.choices(alphabets, k=rng.randint(1, 4))
        shape = rng.random()
        if shape < 0.01:
            text = ""
        elif shape < 0.03:
            text = rng.choice(chosen)() * rng.randrange(1, 3000)
        elif shape < 0.4:
            sample = rng.choice(samples)
            start = rng.randrange(len(sample))
            text = sample[start : start + rng.randrange(1, 60)]
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(chosen)() * rng.randrange(4) + text[place:]
        else:
            text = "".join(rng.choice(chosen)() for _ in range(rng.randrange(1, 40)))
        raw = text.encode("utf-8")
        if rng.random() < 0.1 and raw:  # not UTF-8: a byte changed, or the end cut off
            place = rng.randrange(len(raw))
            raw = raw[:place] + bytes([rng.randrange(256)]) + raw[place + 1 :] if rng.random() < 0.7 else raw[:place]
        yield raw


def differences(model: bytes, texts: Sequence[bytes]) -> list[tuple[bytes, list[int], list[int]]]:
    """Texts whose native ids are not sentencepiece's, with both."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    worker = _encoder.Worker(_encoder.Model(model, ()), 0, 4)
    for text in texts:
        worker.encode_text(text)
    ids, lengths, _, _ = worker.take()
    flat = np.frombuffer(ids, np.int32)
    ends = np.cumsum(np.frombuffer(lengths, np.int64)).tolist()
    found = []
    start = 0
    for text, end, expected in zip(texts, ends, processor.encode(list(texts)), strict=True):
        got = flat[start : end - 1].tolist()
        start = end
        if got != expected:
            found.append((text, got, expected))
    return found


def differences_in_parts(
    model: bytes, texts: Sequence[bytes], rng: random.Random
) -> list[tuple[bytes, list[int], list[int]]]:
    """The same for UTF-8 texts that are given to the native encoder in parts, cut anywhere."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    worker = _encoder.Worker(_encoder.Model(model, ()), 0, 4)
    found = []
    for text in texts:
        worker.begin()
        at, ids = 0, b""
        while at < len(text):
            end = at + rng.choice((1, 2, 3, 5, 40, 1000))
            assert worker.push(text[at:end])
            if rng.random() < 0.5:
                ids += worker.take_ids()
            at = end
        assert worker.finish()
        rest, lengths, _, _ = worker.take()
        got = np.frombuffer(ids + rest, np.int32).tolist()
        assert np.frombuffer(lengths, np.int64).tolist() == [len(got)]
        expected = processor.encode(text)
        if got[:-1] != expected:
            found.append((text, got[:-1], expected))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare --texts texts over all kinds of models; prints what was compared and every difference."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("corpus", help="a text file that models are trained on")
    parser.add_argument("rules", help="where to write the file of normalisation rules")
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="JSON file for what was found")
    args = parser.parse_args(arguments)
    with open(args.rules, "w", encoding="utf-8") as stream:
        stream.write(RULES)
    with open(args.corpus, encoding="utf-8") as stream:
        samples = [line for line in stream.read(3_000_000).split("\n") if line]
    kinds = model_kinds()
    compared = 0
    wrong: list[tuple[str, int]] = []
    started = time.perf_counter()
    for number, kind in enumerate(kinds):
        rng = random.Random(args.seed * 1000 + number)
        model = train(kind, samples, args.rules)
        source = random_texts(rng, samples)
        left = args.texts // len(kinds) + 1
        differing = 0
        while left > 0:
            texts = [next(source) for _ in range(min(left, 10_000))]
            left -= len(texts)
            whole = [text for text in texts if _is_utf8(text)][:1000]
            found = [*differences(model, texts), *differences_in_parts(model, whole, rng)]
            compared += len(texts) + len(whole)
            differing += len(found)
            for text, got, expected in found[:3]:
                print(f"{kind.name}: {text!r}\n  native         {got}\n  sentencepiece  {expected}")
        wrong.append((kind.name, differing))
        print(f"{kind.name}: {differing} differences", flush=True)
    seconds, total = time.perf_counter() - started, sum(count for _, count in wrong)
    print(f"{compared} texts compared in {seconds:.0f} s, {total} differences")
    if args.record is not None:
        record(args, Compared(compared, wrong, seconds))
    return 1 if total else 0


class Compared(NamedTuple):
    """What a run has done; `differences`: for each kind of model its name (two may share one) and their number."""

    num_texts: int
    differences: Sequence[tuple[str, int]]
    seconds: float


def record(args: argparse.Namespace, compared: Compared) -> None:
    """Write a dated JSON of a run into the file --record; the folders of this machine are left out."""
    options = ["--texts", str(args.texts), "--seed", str(args.seed), "--record", args.record.name]
    command = ["python", "-m", "tests.unit.native.fuzz", Path(args.corpus).name, Path(args.rules).name, *options]
    result = {
        "what": "native encoder compared with sentencepiece on random texts",
        "date": date.today().isoformat(),
        "command": shlex.join(command),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(("numpy", "sentencepiece")),
        "num_texts": compared.num_texts,
        "num_kinds": len(compared.differences),
        "num_differences": sum(count for _, count in compared.differences),
        "kinds": [{"kind": name, "differences": count} for name, count in compared.differences],
        "seconds": round(compared.seconds, 3),
    }
    args.record.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
