"""Joined datasets are the bytes of the whole; parts that do not fit, are missing or damaged are refused by name."""

import errno
import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import copying, dataset_output, idx_file
from megagpt.data.copying import CopyWay, append_file, copy_ways
from megagpt.data.indexed import IndexedDataset
from megagpt.data.merge import merge_datasets
from megagpt.data.sidecar import Source, read_sidecar
from megagpt.data.verify import verify_dataset
from megagpt.errors import DataError
from tests.unit.data.hashed import (
    EOD,
    file_bytes,
    random_documents,
    sidecar_of,
    write_dataset,
    write_files,
    write_sidecar,
)


def write_tasks(folder: Path, documents: list[list[int]], cuts: list[int], name: str = "part") -> list[str]:
    """The documents as tasks of one build, cut at `cuts`; an empty share has a .json only."""
    edges = [0, *sorted(cuts), len(documents)]
    prefixes = []
    for task, (start, stop) in enumerate(pairwise(edges)):
        prefix = folder / f"{name}.task-{task:05}-of-{len(edges) - 1:05}"
        if start < stop:
            write_dataset(prefix, documents[start:stop])
        else:
            write_sidecar(prefix, sidecar_of([], [], []))
        prefixes.append(str(prefix))
    return prefixes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_merged_parts_are_the_bytes_of_the_whole(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("merge")
    documents = random_documents(data.draw(st.integers(0, 1000)), data.draw(st.integers(1, 40)))
    cuts = data.draw(st.lists(st.integers(0, len(documents)), max_size=5))
    dtype = data.draw(st.sampled_from(["<u2", "<i4", "<i8"]))
    split_at = data.draw(st.sampled_from([0, 3]))
    write_files(folder / "whole", documents, dtype, split_at)
    edges = [0, *sorted(cuts), len(documents)]
    names = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        if start < stop:
            names.append(str(folder / f"part{number}"))
            write_dataset(Path(names[-1]), documents[start:stop], dtype=dtype, split_at=split_at)
    report = merge_datasets(folder / "merged", names, verify=True)
    assert file_bytes(folder / "merged") == file_bytes(folder / "whole")
    assert (report.num_documents, report.num_parts) == (len(documents), len(names))
    merged = IndexedDataset(folder / "merged")
    assert [merged.document(number).tolist() for number in range(len(merged))] == documents
    assert verify_dataset(str(folder / "merged")).problems == ()


def test_blocks_of_the_index_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(1, 100)
    write_files(tmp_path / "whole", documents, split_at=4)
    for number in range(4):
        write_dataset(tmp_path / f"part{number}", documents[25 * number : 25 * number + 25], split_at=4)
    monkeypatch.setattr(idx_file, "BLOCK_ENTRIES", 7)
    monkeypatch.setattr("megagpt.data.merge.BLOCK_ENTRIES", 7)
    merge_datasets(tmp_path / "merged", [str(tmp_path / f"part{number}") for number in range(4)])
    assert file_bytes(tmp_path / "merged") == file_bytes(tmp_path / "whole")


def test_tasks_by_a_glob_in_their_order_with_empty_shares(tmp_path: Path) -> None:
    documents = random_documents(2, 30)
    write_files(tmp_path / "whole", documents)
    cuts = [0, 3, 3, 5, 8, 9, 12, 20, 22, 25, 30]  # 12 tasks; the first, third and last are empty
    write_tasks(tmp_path, documents, cuts)
    (tmp_path / "part.tokenizer.json").write_text("{}")  # no dataset, whatever matches it
    report = merge_datasets(tmp_path / "merged", [str(tmp_path / "part.t*")])
    assert file_bytes(tmp_path / "merged") == file_bytes(tmp_path / "whole")
    assert (report.num_parts, report.num_empty_parts) == (12, 3)
    assert "12 datasets, 3 of them without documents" in "\n".join(report.lines())
    sidecar = read_sidecar(tmp_path / "merged.json")
    assert sidecar is not None
    assert [(source.path, source.num_documents) for source in sidecar.sources] == [("corpus.jsonl", 30)]
    assert len(sidecar.shards) == 9
    assert sum(shard.num_documents for shard in sidecar.shards) == 30
    # names of files, as a shell expands them, are their datasets once each
    names = sorted(str(path) for path in tmp_path.glob("part.task*"))
    merge_datasets(tmp_path / "again", names)
    assert file_bytes(tmp_path / "again") == file_bytes(tmp_path / "whole")


def test_missing_doubled_and_mixed_tasks_are_refused(tmp_path: Path) -> None:
    documents = random_documents(3, 30)
    prefixes = write_tasks(tmp_path, documents, [5, 10, 15])
    pattern = str(tmp_path / "part.task-*-of-00004")
    with pytest.raises(DataError, match=r"not each named once, in their order; name them with the glob"):
        merge_datasets(tmp_path / "merged", [prefixes[1], prefixes[0], *prefixes[2:]])
    with pytest.raises(DataError, match=r"not each named once"):
        merge_datasets(tmp_path / "merged", [*prefixes, prefixes[3]])
    write_tasks(tmp_path, documents, [9])
    with pytest.raises(DataError, match=r"was built in \d tasks and in \d: name those of one build"):
        merge_datasets(tmp_path / "merged", [str(tmp_path / "part.task-*")])
    for suffix in (".bin", ".idx", ".json"):
        os.unlink(prefixes[2] + suffix)
    with pytest.raises(DataError, match=r"1 of the 4 tasks of .*part are missing: 2; run them"):
        merge_datasets(tmp_path / "merged", [pattern])
    Path(f"{prefixes[2]}.journal").touch()
    with pytest.raises(DataError, match=r"00002-of-00004.idx does not exist: its build is not finished; run the com"):
        merge_datasets(tmp_path / "merged", prefixes)
    with pytest.raises(DataError, match=r"no dataset matches .*nothing"):
        merge_datasets(tmp_path / "merged", [str(tmp_path / "nothing*")])
    with pytest.raises(DataError, match=r"none.idx does not exist; name a dataset's PREFIX"):
        merge_datasets(tmp_path / "merged", [str(tmp_path / "none")])
    assert not list(tmp_path.glob("merged*"))


def test_shares_without_any_document_are_refused(tmp_path: Path) -> None:
    write_tasks(tmp_path, [], [0])
    with pytest.raises(DataError, match=r"nothing to join: .* have no documents"):
        merge_datasets(tmp_path / "merged", [str(tmp_path / "part.task-*")])


def test_sources_shards_and_what_was_left_out_are_joined(tmp_path: Path) -> None:
    documents = random_documents(4, 12)
    a = sidecar_of(documents[:5], [2, 3], [("x", 2), ("y", 3)], skipped={"not JSON": 1, "no key": 2})
    b = sidecar_of(documents[5:9], [4], [("x", 0), ("y", 1), ("z", 3)], skipped={"empty": 5, "no key": 1})
    c = sidecar_of(documents[9:], [3], [("x", 3)])
    for name, sidecar, chosen in (("a", a, documents[:5]), ("b", b, documents[5:9]), ("c", c, documents[9:])):
        write_files(tmp_path / name, chosen)
        write_sidecar(tmp_path / name, sidecar)
    merge_datasets(tmp_path / "m", [str(tmp_path / name) for name in "abc"], verify=True)
    merged = read_sidecar(tmp_path / "m.json")
    assert merged is not None
    # y goes on in b and is one source; x of c comes after documents of y and z: it is a source of its own
    assert [(source.path, source.num_documents) for source in merged.sources] == [
        ("x", 2),
        ("y", 4),
        ("z", 3),
        ("x", 3),
    ]
    assert merged.sources[1].num_tokens == a.sources[1].num_tokens + b.sources[1].num_tokens
    assert [(shard.first_source, shard.last_source) for shard in merged.shards] == [(0, 0), (1, 1), (1, 2), (3, 3)]
    assert [shard.hash for shard in merged.shards] == [shard.hash for part in (a, b, c) for shard in part.shards]
    assert merged.skipped == {"not JSON": 1, "no key": 3, "empty": 5}
    assert (merged.num_documents, merged.text_bytes, merged.num_characters) == (12, 120, 48)
    assert merged.max_token_id == max(map(max, documents))


def test_unknown_counts_stay_unknown(tmp_path: Path) -> None:
    documents = random_documents(5, 10)
    write_dataset(tmp_path / "a", documents[:5])
    old = replace(
        sidecar_of(documents[5:], [], [("old", 5)]), num_characters=0, sources=(Source("old", 9, 0, 0, 0, 0),)
    )
    write_files(tmp_path / "b", documents[5:])
    write_sidecar(tmp_path / "b", old)
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    report = merge_datasets(tmp_path / "m", names)
    merged = read_sidecar(tmp_path / "m.json")
    assert merged is not None
    assert (merged.num_characters, merged.text_bytes, merged.shards) == (0, 100, ())
    assert f"no hashes: {names[1]} has none (an older format)" in report.lines()[-1]
    with pytest.raises(DataError, match=r"--verify has no hashes to compare with .no hashes: .*b has none"):
        merge_datasets(tmp_path / "n", names, verify=True)
    # a dataset of Megatron's has no sidecar: then the whole has none, and says so
    os.unlink(names[0] + ".json")
    report = merge_datasets(tmp_path / "o", names)
    assert f"no .json: {names[0]} has none" in report.lines()[-1]
    assert IndexedDataset(tmp_path / "o").sidecar is None
    assert not (tmp_path / "o.json").exists()


def test_parts_that_do_not_fit_are_refused_with_both_names(tmp_path: Path) -> None:
    documents = random_documents(6, 5)
    write_dataset(tmp_path / "a", documents)
    write_dataset(tmp_path / "wide", documents, dtype="<i4")
    with pytest.raises(DataError, match=r"/a has ids of uint16 and .*/wide of int32"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a"), str(tmp_path / "wide")])
    for name, change in (("other", {"fingerprint": "e" * 64}), ("ends", {"eod_id": 5})):
        write_files(tmp_path / name, documents)
        write_sidecar(tmp_path / name, sidecar_of(documents, [5], [("x", 5)], **change))
    with pytest.raises(DataError, match=r"/a was built with one tokenizer .*f{64}.* and .*/other with another .*e{64}"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a"), str(tmp_path / "other")])
    with pytest.raises(DataError, match=r"end with id 1 in .*/a and with id 5 in .*/ends"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a"), str(tmp_path / "ends")])
    write_sidecar(tmp_path / "wide", sidecar_of(documents[1:], [4], [("x", 4)]))
    with pytest.raises(DataError, match=r"wide.json belongs to another dataset: it describes 4 documents"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "wide")])
    assert not list(tmp_path.glob("m*"))


def test_damaged_parts_are_named_and_nothing_is_kept(tmp_path: Path) -> None:
    documents = random_documents(7, 40)
    names = []
    for number in range(2):
        write_dataset(tmp_path / f"p{number}", documents[20 * number : 20 * number + 20], [4, 16])
        names.append(str(tmp_path / f"p{number}"))
    bin_path, idx_path = Path(names[1] + ".bin"), Path(names[1] + ".idx")
    whole, index = bin_path.read_bytes(), idx_path.read_bytes()
    bin_path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    merge_datasets(tmp_path / "unseen", names)  # without --verify nobody looks
    with pytest.raises(
        DataError, match=r"p1.bin bytes \d+ to \d+ .its shard 1. do not have their hash: .*p1 is damaged"
    ):
        merge_datasets(tmp_path / "m", names, verify=True)
    bin_path.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"p1.bin is truncated: p1.idx describes"):
        merge_datasets(tmp_path / "m", names)
    bin_path.write_bytes(whole + b"xx")
    with pytest.raises(DataError, match=r"p1.bin is longer than its index says"):
        merge_datasets(tmp_path / "m", names)
    bin_path.write_bytes(whole)
    idx_path.write_bytes(index[:40] + b"\x07" + index[41:])
    with pytest.raises(DataError, match=r"p1.idx is damaged: sequence \d+ does not begin where"):
        merge_datasets(tmp_path / "m", names)
    idx_path.write_bytes(index[:-16] + index[-8:] + index[-16:-8])
    with pytest.raises(DataError, match=r"p1.idx is damaged: its documents .* are not in order"):
        merge_datasets(tmp_path / "m", names)
    assert not list(tmp_path.glob("m*"))


def test_a_wrong_copy_is_told_from_a_damaged_part(tmp_path: Path) -> None:
    write_dataset(tmp_path / "p", random_documents(8, 40), [4, 36])

    def careless(source: int, target: int, source_at: int, target_at: int, num_bytes: int) -> int:
        data = bytearray(os.pread(source, num_bytes, source_at))
        data[-1] ^= 1
        return os.pwrite(target, data, target_at)

    with pytest.raises(DataError, match=r"shard 1. were copied wrongly: the disk of the output is failing"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "p")], verify=True, ways=[CopyWay("careless", careless)])
    assert not list(tmp_path.glob("m*"))


def test_every_way_to_copy_gives_the_same_and_is_tried_in_turn(tmp_path: Path) -> None:
    documents = random_documents(9, 200)
    write_files(tmp_path / "whole", documents)
    write_dataset(tmp_path / "a", documents[:90])
    write_dataset(tmp_path / "b", documents[90:])
    names = [str(tmp_path / "a"), str(tmp_path / "b")]

    def unsupported(*_: int) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def silent(*_: int) -> int:
        return 0

    ways = copy_ways()
    assert [way.name for way in ways] == ["copy_file_range", "sendfile", "read and write"]
    for number, way in enumerate(ways):
        report = merge_datasets(tmp_path / f"m{number}", names, ways=[way])
        assert report.ways == (way.name,)
        assert file_bytes(tmp_path / f"m{number}") == file_bytes(tmp_path / "whole")
    tried = [CopyWay("unsupported", unsupported), CopyWay("silent", silent), *ways[2:]]
    assert merge_datasets(tmp_path / "n", names, ways=tried).ways == ("read and write",)
    assert file_bytes(tmp_path / "n") == file_bytes(tmp_path / "whole")
    size = os.path.getsize(names[0] + ".bin") + 1
    with open(tmp_path / "target", "w+b") as target, pytest.raises(DataError, match=r"a.bin became shorter while"):
        append_file(Path(names[0] + ".bin"), size, target.fileno(), 0, ways, lambda _: None)


def test_progress_counts_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "a", random_documents(10, 50))
    monkeypatch.setattr(copying, "_CALL_BYTES", 100)
    seen: list[tuple[int, int]] = []
    merge_datasets(tmp_path / "m", [str(tmp_path / "a")] * 2, on_bytes=lambda done, total: seen.append((done, total)))
    size = os.path.getsize(tmp_path / "m.bin")
    assert seen[-1] == (size, size)
    assert len(seen) == 2 * -(-size // 200)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_output_that_exists_is_kept_unless_told(tmp_path: Path) -> None:
    documents = random_documents(11, 10)
    write_dataset(tmp_path / "a", documents)
    write_dataset(tmp_path / "m", documents[:3])
    before = file_bytes(tmp_path / "m")
    with pytest.raises(DataError, match=r"m.bin exists; choose another output, or replace it with --overwrite"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a")])
    with pytest.raises(DataError, match=r"the output .* is also an input"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a"), str(tmp_path / "m.bin")], overwrite=True)
    assert file_bytes(tmp_path / "m") == before
    merge_datasets(tmp_path / "m", [str(tmp_path / "a")], overwrite=True)
    assert file_bytes(tmp_path / "m") == file_bytes(tmp_path / "a")
    (tmp_path / "corpus.jsonl").touch()
    with pytest.raises(DataError, match=r"cannot write .*/corpus.jsonl/m.bin.partial"):
        merge_datasets(tmp_path / "corpus.jsonl" / "m", [str(tmp_path / "a")])


def test_two_mergers_and_an_unfinished_build_exclude_each_other(tmp_path: Path) -> None:
    documents = random_documents(12, 10)
    write_dataset(tmp_path / "a", documents)
    partial = tmp_path / "m.bin.partial"
    with open(partial, "wb") as other:
        other.write(b"precious")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is writing .*m.bin now"):
            merge_datasets(tmp_path / "m", [str(tmp_path / "a")])
        assert partial.read_bytes() == b"precious"
    (tmp_path / "m.journal").touch()
    with pytest.raises(DataError, match=r"an unfinished build is at .*m .m.journal.; finish it"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a")])
    assert partial.read_bytes() == b"precious"
    os.unlink(tmp_path / "m.journal")
    merge_datasets(tmp_path / "m", [str(tmp_path / "a")])  # what a killed merger left is no obstacle
    assert file_bytes(tmp_path / "m") == file_bytes(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.glob("m.*")) == ["m.bin", "m.idx", "m.json"]


def test_a_lock_on_a_file_that_was_renamed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened as .partial, renamed to .bin by its writer, then locked here: emptying it would destroy that dataset."""
    write_dataset(tmp_path / "a", random_documents(13, 10))
    partial = tmp_path / "m.bin.partial"
    partial.write_bytes(b"the other's tokens")
    real = fcntl.flock

    def rename_then_lock(stream: object, how: int) -> None:
        os.rename(partial, tmp_path / "finished")
        real(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset_output.fcntl, "flock", rename_then_lock)
    with pytest.raises(DataError, match=r"another process is writing"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a")])
    assert (tmp_path / "finished").read_bytes() == b"the other's tokens"


def test_a_full_disk_says_what_is_needed_and_keeps_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", random_documents(14, 50))

    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DataError, match=r"no space is left on the disk of .*m: about 0.0 MB are needed in all"):
        merge_datasets(tmp_path / "m", [str(tmp_path / "a")], ways=[CopyWay("full", full)])
    assert not list(tmp_path.glob("m*"))


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path: Path) -> None:
    """10 million documents of one token: their lengths, offsets and bounds alone are 200 MB."""
    num_documents, itemsize = 2_500_000, 2
    np.full(num_documents, EOD, dtype="<u2").tofile(tmp_path / "a.bin")
    write_one_token_index(tmp_path / "a.idx", num_documents, itemsize)
    program = (
        "import re, sys\n"
        "from megagpt.data.merge import merge_datasets\n"
        "from megagpt.data.verify import verify_dataset\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "merge_datasets(sys.argv[1], [sys.argv[2]] * 4)\n"
        "assert verify_dataset(sys.argv[1]).problems == ()\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "m"), str(tmp_path / "a")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert os.path.getsize(tmp_path / "m.idx") == 34 + 4 * num_documents * 20 + 8
    assert int(done.stdout) / 1024 < 60, "MiB more than before"  # measured: 14


def write_one_token_index(path: Path, num_documents: int, itemsize: int) -> None:
    numbers = np.arange(num_documents + 1, dtype="<i8")
    with open(path, "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([8]))
        stream.write(np.array([num_documents, num_documents + 1], "<u8").tobytes())
        np.ones(num_documents, dtype="<i4").tofile(stream)
        (numbers[:-1] * itemsize).tofile(stream)
        numbers.tofile(stream)
