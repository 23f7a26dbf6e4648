"""What libraries say when a rank is gone, and what is a mistake of our own."""

from pathlib import Path

import pytest
import torch.distributed as dist

from megagpt.training.lost_peer import is_lost_peer, keep_traceback, lost_peer

# the forms that gloo and NCCL have
WORDS = [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:33063",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]:5123: Connection reset by peer",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] writev [10.0.0.2]:5123: Broken pipe",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 2040000ms for recv "
    "operation to complete",
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:275, remote process exited or there was a network "
    "error, NCCL version 2.21.5",
]


@pytest.mark.parametrize("words", WORDS)
def test_a_peer_that_is_gone(words: str) -> None:
    assert is_lost_peer(RuntimeError(words))


def test_the_store_is_gone() -> None:
    assert is_lost_peer(dist.DistNetworkError("failed to recv, got 0 bytes"))
    assert is_lost_peer(dist.DistStoreError("Timed out after 1801 seconds waiting for clients. 1/2 clients joined."))


@pytest.mark.parametrize(
    "words", ["mat1 and mat2 shapes cannot be multiplied", "CUDA out of memory", "Duplicate GPU detected : rank 1"]
)
def test_other_errors_are_none(words: str) -> None:
    assert not is_lost_peer(RuntimeError(words))


def test_where_training_goes_on(tmp_path: Path) -> None:
    begins = lost_peer(3, "step 12 (evaluating)", tmp_path)
    assert str(begins) == (
        "rank 3: lost the connection to another rank in step 12 (evaluating); training begins anew when the run is "
        "started again"
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-00000010\n")
    assert "; training goes on from step 10 when" in str(lost_peer(3, "step 12 (evaluating)", tmp_path))


def test_a_traceback_that_cannot_be_kept_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file")
    keep_traceback(RuntimeError("number 1"), 7, tmp_path)
    assert "RuntimeError: number 1" in capsys.readouterr().err


def test_tracebacks_are_kept(tmp_path: Path) -> None:
    for number in (1, 2):
        keep_traceback(RuntimeError(f"number {number}"), 7, tmp_path)
    text = (tmp_path / "logs" / "errors-rank00007.txt").read_text()
    assert text.index("RuntimeError: number 1") < text.index("RuntimeError: number 2")
