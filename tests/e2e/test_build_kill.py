"""A build that is killed (SIGKILL) at any moment, and started again, ends with the bytes of one that was not."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from megagpt.data.indexed import IndexedDataset
from megagpt.data.indexed_writer import IndexedWriter
from tests.e2e.build_driver import Outcome, Request
from tests.unit.tokenizer.toy import toy_texts, train_toy

DRIVER = Path(__file__).with_name("build_driver.py")
SUFFIXES = (".bin", ".idx", ".json")


class Corpus:
    """Inputs of several kinds, a tokenizer, and what a build of them must give; builds in processes of a driver."""

    def __init__(self, folder: Path) -> None:
        self.driver = subprocess.Popen(
            [sys.executable, DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tokenizer = train_toy(folder / "tokenizer.model").path
        texts = toy_texts(150, seed=11)
        lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
        long_line = json.dumps({"text": "".join(texts[:60])}).encode() + b"\n"
        (folder / "a.jsonl").write_bytes(lines + long_line + lines)
        (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
        (folder / "c.txt").write_text("\n".join(texts))
        self.inputs = [str(folder / name) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
        self.operations = self.build(folder / "whole").operations
        self.expected = [Path(f"{folder}/whole{suffix}").read_bytes() for suffix in SUFFIXES]

    def build(self, output: Path, operation: int = -1, overwrite: bool = False) -> Outcome:
        """A build that is killed at an operation; else it must end, or find that it had ended."""
        request = Request(str(output), self.tokenizer, self.inputs, operation, overwrite)
        assert self.driver.stdin is not None
        assert self.driver.stdout is not None
        self.driver.stdin.write(json.dumps(request) + "\n")
        self.driver.stdin.flush()
        outcome = Outcome(*json.loads(self.driver.stdout.readline()))
        ended = outcome.status == 0 or (outcome.status == 2 and "exists; choose another output" in outcome.said)
        assert ended or (operation >= 0 and outcome.status == -signal.SIGKILL), (operation, outcome)
        return outcome

    def expect_whole(self, output: Path) -> None:
        """The dataset is whole, and nothing else of the build is left."""
        assert sorted(path.name for path in output.parent.iterdir()) == [output.name + suffix for suffix in SUFFIXES]
        for suffix, expected in zip(SUFFIXES, self.expected, strict=True):
            assert Path(f"{output}{suffix}").read_bytes() == expected, suffix


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    corpus = Corpus(tmp_path_factory.mktemp("corpus"))
    yield corpus
    assert corpus.driver.stdin is not None
    corpus.driver.stdin.close()
    assert corpus.driver.wait() == 0


def folder_of(tmp_path: Path, name: object) -> Path:
    """The prefix of a dataset in a folder of its own."""
    folder = tmp_path / str(name)
    folder.mkdir()
    return folder / "d"


def moments(total: int, at_random: int, last: int) -> list[int]:
    """Operations to die at: some all over, and each of the last."""
    chance = random.Random(5)
    return sorted({*chance.sample(range(total - last), at_random), *range(total - last, total)})


def test_killed_at_any_file_operation(corpus: Corpus, tmp_path: Path) -> None:
    """Opening, writing (torn in half), flushing, recording, and each step of giving the files their names."""
    killed = kept = 0
    for operation in moments(corpus.operations, at_random=24, last=36):
        output = folder_of(tmp_path, operation)
        killed += corpus.build(output, operation).status == -signal.SIGKILL
        if Path(f"{output}.idx").exists():
            IndexedDataset(output)  # whole, or not there
        kept += "going on with the build of" in corpus.build(output).said
        corpus.expect_whole(output)
    assert killed > 30, "there are a few operations more or less, as threads take turns"
    assert kept > 20, "most of the runs found something to go on with"


def test_killed_while_replacing_a_dataset(corpus: Corpus, tmp_path: Path) -> None:
    """No mixture of the old and the new one is ever taken for a dataset."""
    old = tmp_path / "old"
    with IndexedWriter(old, np.dtype(np.uint16)) as writer:
        writer.add_documents(np.arange(7), [3, 4])
        writer.finish()
    for operation in range(corpus.operations - 24, corpus.operations + 2):
        output = folder_of(tmp_path, operation)
        for suffix in (".bin", ".idx"):
            shutil.copy(f"{old}{suffix}", f"{output}{suffix}")
        corpus.build(output, operation, overwrite=True)
        if Path(f"{output}.idx").exists():
            assert IndexedDataset(output).num_documents in (2, 452)
        corpus.build(output, overwrite=True)
        corpus.expect_whole(output)


def test_killed_again_and_again(corpus: Corpus, tmp_path: Path) -> None:
    """A build that never gets far in one go still ends."""
    output = folder_of(tmp_path, "again")
    chance = random.Random(6)
    runs = 1
    while corpus.build(output, chance.randrange(40, 100) + 5 * runs).status == -signal.SIGKILL:
        runs += 1
    assert runs > 3
    corpus.expect_whole(output)


def test_killed_from_outside(corpus: Corpus, tmp_path: Path) -> None:
    """At random moments of the clock, several times each."""
    chance = random.Random(7)
    for attempt in range(8):
        output = folder_of(tmp_path, attempt)
        for _ in range(3):
            request = json.dumps(Request(str(output), corpus.tokenizer, corpus.inputs, -1, False))
            with subprocess.Popen([sys.executable, DRIVER], stdin=subprocess.PIPE, start_new_session=True) as driver:
                assert driver.stdin is not None
                driver.stdin.write(request.encode() + b"\n")
                driver.stdin.flush()
                time.sleep(chance.uniform(0.1, 0.5))
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
        corpus.build(output)
        corpus.expect_whole(output)


def test_the_command_itself(corpus: Corpus, tmp_path: Path) -> None:
    """`megagpt data build`, killed and started again, with shards of their usual size."""
    command = [sys.executable, "-m", "megagpt", "data", "build", *corpus.inputs, "--tokenizer", corpus.tokenizer]
    command += ["--output"]
    begun = time.perf_counter()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    for attempt in range(5):
        output = str(tmp_path / f"d{attempt}")
        with subprocess.Popen([*command, output], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            time.sleep(seconds * (0.6 + 0.1 * attempt))
            process.kill()
            process.communicate()
        done = subprocess.run([*command, output], capture_output=True, text=True)
        assert done.returncode == 0 or "exists; choose another output" in done.stderr, done.stderr
        for suffix in SUFFIXES:
            assert Path(output + suffix).read_bytes() == Path(f"{tmp_path}/whole{suffix}").read_bytes()


def test_interrupting_the_command(corpus: Corpus, tmp_path: Path) -> None:
    """Ctrl-C ends it with a sentence, not a traceback."""
    corpus_path = tmp_path / "large.jsonl"
    corpus_path.write_bytes(Path(corpus.inputs[0]).read_bytes() * 400)
    command = [sys.executable, "-m", "megagpt", "data", "build", str(corpus_path), "--tokenizer", corpus.tokenizer]
    command += ["--output", str(tmp_path / "d"), "--no-native"]
    # Whoever starts the tests in the background (nohup ... &) has SIGINT ignored, and children inherit that.
    heard = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(heard, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not os.path.exists(tmp_path / "d.journal"):
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "interrupted; nothing was kept" in errors
    assert "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["large.jsonl"]


def test_an_error_while_standard_input_stays_open(corpus: Corpus, tmp_path: Path) -> None:
    """A thread is waiting for more of it then, which must hold up neither the message nor the end of the process."""
    program = "import sys, megagpt.data.commit\nmegagpt.data.commit._PATIENCE_SECONDS = 0.2\n"
    program += "from megagpt.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "data", "build", "-", "--tokenizer", corpus.tokenizer, "--workers", "2"]
    command += ["--output", str(tmp_path / "d")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        with suppress(BrokenPipeError):  # beyond the chunk of the bad line
            process.stdin.write(b'{"text": "good"}\n' * 200_000 + b"oops\n" + b'{"text": "good"}\n' * 60_000)
        assert process.wait(timeout=30) == 2
        assert b"standard input:200001: the line is not JSON" in process.stderr.read()
