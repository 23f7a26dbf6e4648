"""The toy tokenizer, trained once."""

import pytest

from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import train_toy


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return train_toy(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")
