"""Are two datasets the same bytes, and if not, how do they differ?

In: our .bin and .idx, and a peer's files (several shards joined in order). Out: one JSON object on standard output.
Reads the format for itself, so that an error of our own reader cannot hide one of our writer.
"""

import json
import sys
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 9 + 8 + 1 + 8 + 8
DTYPES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


class Dataset(NamedTuple):
    """Token ids [num_tokens] and tokens of each document [num_documents]."""

    ids: NDArray[np.integer]
    lengths: NDArray[np.int32]


def load(bin_file: str, idx_file: str) -> Dataset:
    """A dataset; of the .idx only the header and the lengths are read, as the rest follows from them."""
    with open(idx_file, "rb") as index:
        header = index.read(HEADER_BYTES)
        count = int(np.frombuffer(header, "<u8", 1, 18)[0])
        lengths = np.frombuffer(index.read(4 * count), "<i4")
    return Dataset(np.memmap(bin_file, DTYPES[header[17]], "r"), lengths)


def same_bytes(one: str, other: str) -> bool:
    """Whether two files hold the same bytes."""
    with open(one, "rb") as left, open(other, "rb") as right:
        while True:
            block = left.read(1 << 20)
            if block != right.read(1 << 20):
                return False
            if not block:
                return True


def differing(ours: Dataset, theirs: Dataset) -> dict[str, object]:
    """The number of documents whose ids differ, and the first of them; None where the number of documents differs."""
    if len(ours.lengths) != len(theirs.lengths):
        return {"documents": f"{len(theirs.lengths)} instead of {len(ours.lengths)}"}
    our_ends, their_ends = (np.cumsum(each.lengths, dtype=np.int64) for each in (ours, theirs))
    wrong = [
        number
        for number, (length, end, other_length, other_end) in enumerate(
            zip(ours.lengths.tolist(), our_ends.tolist(), theirs.lengths.tolist(), their_ends.tolist(), strict=True)
        )
        if length != other_length
        or not np.array_equal(ours.ids[end - length : end], theirs.ids[other_end - length : other_end])
    ]
    return {"documents_differing": len(wrong), "first_differing": wrong[0] if wrong else None}


def main(ours: list[str], theirs: list[list[str]]) -> dict[str, object]:
    """Compare (.bin, .idx) of ours with those of a peer. Several shards: .idx files are compared by what they say."""
    if len(theirs) == 1:
        same_bin, same_idx = (same_bytes(one, other) for one, other in zip(ours, theirs[0], strict=True))
        answer: dict[str, object] = {"bin_identical": same_bin, "idx_identical": same_idx}
        return answer if same_bin else answer | differing(load(*ours), load(*theirs[0]))
    ours_read = load(*ours)
    shards = [load(*files) for files in theirs]
    joined = Dataset(np.concatenate([each.ids for each in shards]), np.concatenate([each.lengths for each in shards]))
    same_ids = np.array_equal(ours_read.ids, joined.ids)
    same_lengths = np.array_equal(ours_read.lengths, joined.lengths)
    answer = {"bin_identical": same_ids, "idx_identical": same_lengths, "joined_shards": len(shards)}
    return answer if same_ids and same_lengths else answer | differing(ours_read, joined)


if __name__ == "__main__":
    print(json.dumps(main(*json.loads(sys.argv[1]))))
