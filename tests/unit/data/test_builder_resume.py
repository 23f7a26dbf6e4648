"""What may change before a stopped build goes on, and what is found to have changed, or to be damaged."""

from pathlib import Path

import pytest

from megagpt.data import build_finish
from megagpt.data.indexed import IndexedDataset
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.builds import Builds, lines, other_tokenizer, stop_after, touch


@pytest.fixture
def builds(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> Builds:
    return Builds(tmp_path, toy_tokenizer)


@pytest.mark.parametrize("new", [b'{"text": "repaired"}\n', b"", b"    \n"])
def test_a_repaired_line(builds: Builds, new: bytes) -> None:
    """Its file has another size then, or only another time of change; what was read of it is compared."""
    builds.stop()
    builds.repair(new)
    report = builds.build()
    assert report.kept_shards >= 3
    assert 0 < report.input_bytes_read < builds.a.stat().st_size + builds.b.stat().st_size
    assert any("going on with the build of" in note for note in builds.notes)
    builds.expect_same_as_fresh()


def test_skipping_after_all(builds: Builds) -> None:
    """What --on-error raise has committed is what skip would have."""
    builds.stop()
    report = builds.build(on_error="skip")
    assert report.kept_shards >= 3
    assert report.skipped_lines == [f"1 skipped: not JSON; first: {report.skipped_lines[0].split('first: ')[1]}"]
    assert "b.jsonl:21: the line is not JSON" in report.skipped_lines[0]
    builds.expect_same_as_fresh(on_error="skip")


def test_no_longer_skipping(builds: Builds) -> None:
    builds.a.write_bytes(b'{"text": ""}\n' + lines(12, 1))
    later = builds.b.read_bytes() + b"[]\n"
    builds.b.write_bytes(later)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            builds.build(builds.a, on_error="skip")
    builds.build(builds.a, on_error="raise")  # an empty text is left out either way
    builds.build(builds.a, output="fresh")
    assert (builds.folder / "d.json").read_bytes() == (builds.folder / "fresh.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            builds.build(builds.b, output="e", on_error="skip")
    with pytest.raises(DataError, match=r"--on-error skip and has left documents out \(not JSON\), which --on-error"):
        builds.build(builds.b, output="e", on_error="raise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokenizer": {"fingerprint": "0" * 64}},
            r"another tokenizer \(sentencepiece, sha256 .*, 00000000.*\)",
        ),
        ({"tokenizer": {"kind": "huggingface"}}, r"another tokenizer \(sentencepiece, sha256 .* now huggingface"),
        ({"tokenizer": {"eod_id": 5}}, r"end-of-document id 1; the tokenizer now has 340 and 5"),
        ({"text_key": "body"}, r"--text-key 'text', now it is 'body'"),
    ],
)
def test_another_request(builds: Builds, options: dict, message: str) -> None:
    builds.stop()
    before = {path.name: path.read_bytes() for path in builds.folder.iterdir()}
    if "tokenizer" in options:
        options = {"tokenizer": other_tokenizer(builds, **options["tokenizer"])}
    with pytest.raises(DataError, match=rf"the unfinished build of .*d was begun with .*{message}.*--restart"):
        builds.build(**options)
    assert {path.name: path.read_bytes() for path in builds.folder.iterdir()} == before, "nothing is touched"


def test_other_inputs(builds: Builds) -> None:
    builds.stop()
    c = builds.folder / "c.jsonl"
    c.write_bytes(lines(3, 3))
    for inputs, message in [
        ((builds.a, builds.b, c), r"without .*c.jsonl; use"),
        ((builds.a,), r"with .*b.jsonl; use"),
        ((c, builds.b), r"without .*c.jsonl and with .*a.jsonl; use"),
        ((builds.b, builds.a), r"the same files in another order; use"),
    ]:
        with pytest.raises(DataError, match=rf"was begun with other inputs: {message} the same to go on.*--restart"):
            builds.build(*inputs)


def test_a_changed_input_of_the_same_size(builds: Builds) -> None:
    builds.stop()
    content = builds.a.read_bytes()
    touch(builds.a, content.replace(b"2024", b"2025", 1))
    with pytest.raises(DataError, match=r"a.jsonl has changed where the unfinished build has read it .*restart"):
        builds.build()
    touch(builds.a, content)
    builds.repair()
    builds.build()
    builds.expect_same_as_fresh()


def test_a_changed_input_that_was_read_in_part(builds: Builds) -> None:
    builds.stop()
    content = builds.b.read_bytes()
    touch(builds.b, b" " + content)
    with pytest.raises(DataError, match=r"b.jsonl has changed where the unfinished build has read it already \(from 0"):
        builds.build()
    touch(builds.b, content[:300])
    with pytest.raises(DataError, match=r"b.jsonl has changed where the unfinished build has read it already \(from 0"):
        builds.build()
    builds.build(restart=True, on_error="skip")
    builds.expect_same_as_fresh(on_error="skip")


def test_an_input_that_grew_after_all_of_it_was_read(builds: Builds) -> None:
    builds.stop()
    touch(builds.a, builds.a.read_bytes() + lines(1, 9))
    with pytest.raises(DataError, match=r"a.jsonl has other content at its end than .* all of it; put the old file"):
        builds.build()


def test_the_last_input_may_grow(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_sidecar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            builds.build()
    touch(builds.b, builds.b.read_bytes() + lines(5, 9))
    builds.build()
    assert IndexedDataset(builds.folder / "d").num_documents == 58
    builds.expect_same_as_fresh()


def test_the_only_shard_is_made_anew_where_its_input_has_changed(
    builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input is one line, and so a single shard, which the input's end closed."""
    builds.a.write_bytes(lines(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_sidecar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            builds.build(builds.a)
    touch(builds.a, lines(2, 2))
    assert builds.build(builds.a).kept_shards == 0
    builds.expect_same_as_fresh(builds.a)


@pytest.mark.parametrize("kind", ["bin", "lengths"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_committed_bytes(builds: Builds, kind: str, damage: str) -> None:
    builds.stop()
    path = builds.partial(kind)
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    elif damage == "cut":
        path.write_bytes(content[:20])
    else:
        path.unlink()
    found = (
        "which an unfinished build wrote, is gone" if damage == "remove" else r"is damaged: bytes \d+ to \d+ are not"
    )
    with pytest.raises(DataError, match=rf"d.{kind}.partial.? {found}.*start over with --restart"):
        builds.build()
    builds.repair()
    builds.build(restart=True)
    builds.expect_same_as_fresh()


def test_a_finished_dataset_is_not_taken_for_an_unfinished_one(builds: Builds) -> None:
    builds.build(builds.a)
    with pytest.raises(DataError, match=r"d.bin exists; choose another output, or replace it with --overwrite"):
        builds.build(builds.a)
    builds.stop(overwrite=True)
    with pytest.raises(DataError, match=r"d.bin exists; choose another output, or replace it with --overwrite"):
        builds.build()
    assert (builds.folder / "d.journal").exists()
    assert IndexedDataset(builds.folder / "d").num_documents == 12, "the old one is whole until the new one is"


def test_an_input_that_changes_while_it_is_read(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    builds.repair()
    real = build_finish.write_index_of

    def change(*arguments: object) -> int:
        touch(builds.a, builds.a.read_bytes())
        return real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("megagpt.data.builder.write_index_of", change)
        with pytest.raises(DataError, match=r"a.jsonl has changed while it was read; run the same command again"):
            builds.build()
    assert builds.build().engine is not None
    builds.expect_same_as_fresh()
