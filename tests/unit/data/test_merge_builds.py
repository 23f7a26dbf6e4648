"""The tasks of a build, merged, are the build that was not divided; the verbs stay light."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megagpt.data.builder import build_dataset
from megagpt.data.merge import merge_datasets
from megagpt.data.sidecar import read_sidecar
from megagpt.data.sources_types import SIZES
from megagpt.data.verify import verify_dataset
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.hashed import file_bytes
from tests.unit.tokenizer.toy import toy_texts


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Three files: one small, one without a single document, one large with a line that is a third of all."""
    names = []
    long = "".join(toy_texts(60, seed=3))
    for name, texts in (("a", toy_texts(7, seed=1)), ("b", ["", ""]), ("c", [*toy_texts(120, seed=2), long])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
        names.append(str(path))
    return names


@pytest.mark.parametrize("num_tasks", [2, 7, 20])
def test_merged_tasks_are_the_undivided_build(
    tmp_path: Path, corpus: list[str], toy_tokenizer: SentencePieceTokenizer, num_tasks: int
) -> None:
    build_dataset(corpus, tmp_path / "whole", toy_tokenizer)
    for task in range(num_tasks):
        build_dataset(corpus, tmp_path / "part", toy_tokenizer, task=task, num_tasks=num_tasks)
    report = merge_datasets(tmp_path / "merged", [str(tmp_path / f"part.task-*-of-{num_tasks:05}")], verify=True)
    assert report.num_parts == num_tasks
    assert (report.num_empty_parts > 0) == (num_tasks > 2)
    assert file_bytes(tmp_path / "merged") == file_bytes(tmp_path / "whole")
    merged, whole = read_sidecar(tmp_path / "merged.json"), read_sidecar(tmp_path / "whole.json")
    assert merged is not None
    assert whole is not None
    assert replace(merged, shards=()) == replace(whole, shards=())
    assert verify_dataset(str(tmp_path / "merged")).problems == ()


def test_a_task_that_was_stopped_is_named(
    tmp_path: Path, corpus: list[str], toy_tokenizer: SentencePieceTokenizer
) -> None:
    build_dataset(corpus, tmp_path / "whole", toy_tokenizer)
    build_dataset(corpus, tmp_path / "part", toy_tokenizer, task=0, num_tasks=2)
    (tmp_path / "bad.jsonl").write_text((Path(corpus[2])).read_text() + "not JSON\n")
    with pytest.raises(DataError, match=r"bad.jsonl:122"):
        build_dataset(
            [str(tmp_path / "bad.jsonl")],
            tmp_path / "part",
            toy_tokenizer,
            task=1,
            num_tasks=2,
            sizes=SIZES._replace(chunk_bytes=1000),
            shard_bytes=1000,
        )
    first, second = (str(tmp_path / f"part.task-0000{task}-of-00002") for task in range(2))
    with pytest.raises(DataError, match=r"task-00001-of-00002.idx does not exist: its build is not finished; run"):
        merge_datasets(tmp_path / "merged", [first, second])
    with pytest.raises(DataError, match=r"an unfinished build is at .*part.task-00001-of-00002"):
        merge_datasets(second, [str(tmp_path / "whole")])


def test_the_verbs_import_neither_torch_nor_what_they_do_not_need() -> None:
    program = (
        "import sys\n"
        "import megagpt.data.cli_datasets\n"
        "assert 'numpy' not in sys.modules\n"
        "import megagpt.data.merge, megagpt.data.split_documents, megagpt.data.verify\n"
        "assert not {'sentencepiece', 'pyarrow', 'rich'} & set(sys.modules)\n"
        "import megagpt.data.inspect, megagpt.data.report\n"
        "assert not {'torch', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
