"""A run of the random comparison can be kept: what was compared, on what, and what differed."""

import json
from datetime import date
from pathlib import Path

import pytest

pytest.importorskip("megagpt.native._encoder", reason="the native core is not built: no C++ compiler")

from tests.unit.native import fuzz
from tests.unit.tokenizer.toy import toy_texts


@pytest.mark.parametrize("differing", [0, 3])
def test_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differing: int) -> None:
    kinds = [kind for kind in fuzz.model_kinds() if kind.model_type == "bpe" and kind.normalization == "identity"][:2]
    monkeypatch.setattr(fuzz, "model_kinds", lambda: kinds)
    if differing:
        monkeypatch.setattr(fuzz, "differences", lambda *_: [(b"a", [1], [2])] * differing)
    corpus, rules, record = (tmp_path / name for name in ("texts.txt", "rules.tsv", "run.json"))
    corpus.write_text("\n".join(toy_texts(300)), encoding="utf-8")
    status = fuzz.main([str(corpus), str(rules), "--texts", "40", "--seed", "5", "--record", str(record)])
    found = json.loads(record.read_text(encoding="utf-8"))
    assert status == (1 if differing else 0)
    assert found["date"] == date.today().isoformat()
    assert found["command"] == (
        "python -m tests.unit.native.fuzz texts.txt rules.tsv --texts 40 --seed 5 --record run.json"
    )
    assert found["kinds"] == [{"kind": kind.name, "differences": differing} for kind in kinds]
    assert (found["num_kinds"], found["num_differences"]) == (2, 2 * differing)
    assert 42 <= found["num_texts"] <= 84, "21 a kind, and those that are UTF-8 once more in parts"
    assert {"cpu", "cores", "python"} <= set(found["machine"])
    assert found["versions"]["sentencepiece"]
    assert found["seconds"] > 0
    assert str(tmp_path) not in record.read_text(encoding="utf-8")
