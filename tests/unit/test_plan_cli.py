"""`megagpt plan`: the report of a plan that works, and every problem of one that does not."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from megagpt.config_file import config_keys, load_config
from megagpt.plan import make_plan
from megagpt.plan_cli import run_plan_command
from megagpt.plan_report import print_plan, show_flops


def report(plan, width=120):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_plan(plan, console)
    return console.export_text()


def words(text):
    return " ".join(text.replace("│", " ").replace("┃", " ").split())


def test_plan_of_gpt3_175b_on_1024_gpus(capsys):
    assert run_plan_command(["gpt3-175b", "--gpus", "1024", "--train.lr", "1e-4", "--gpu-memory", "80"]) == 0
    out = capsys.readouterr().out
    text = words(out)
    assert max(len(line) for line in out.splitlines()) <= 120
    assert "gpt3-175b on 1024 GPUs: tensor 8 × pipeline 16 × data 8, ZeRO 1" in text
    assert "parameters 174,604,836,864" in text
    assert "vocabulary padding 174,604,259,328" in text
    assert "train.lr 0.0001 command line" in text
    assert "model.init_std 0.02 default" in text
    assert "tokens a step (full batch) 6,291,456" in text
    assert "steps 56,962" in text
    assert "15 0 6: 90 to 95 head 1,436,752,896" in text
    assert "11,185 45,777 3,072 6,291,456 384 of 1" in text
    for part in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "0 (fullest)",
        "EFLOP",
        "185 more sizes",
    ):
        assert part in text
    for key in config_keys():
        assert f"{key} " in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_report_keeps_to_its_width(width):
    text = report(make_plan(load_config("gpt3-13b", []), 64, None), width)
    tables = [line for line in text.splitlines() if "│" in line or "┃" in line]
    assert tables
    assert max(len(line) for line in tables) <= width


def test_brackets_of_values_are_printed_as_they_are():
    text = report(make_plan(load_config("gpt3-base", ["--run.name", "[bold]x[/bold]"]), 8, None))
    assert '"[bold]x[/bold]"' in text
    assert "[0.98, 0.01, 0.01]" in text


def test_long_pipelines_show_the_ends_and_the_fullest_in_the_memory_table():
    text = report(make_plan(load_config("gpt3-175b", ["--parallel.pipeline=32"]), 256, None))
    table = text[text.index("Memory of each GPU") :]
    rows = [line.split()[0] for line in table.splitlines()[3:] if "│" in line]
    assert rows == ["0", "31"]


def test_notes_are_printed():
    text = report(make_plan(load_config("gpt3-base", ["--train.steps", "3"]), 8, None))
    assert "note: train.warmup_tokens = 375000000 (" in text


def test_every_problem_is_printed_and_the_status_is_2(capsys):
    assert run_plan_command(["gpt3-base", "--gpus", "1024"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: train.batch_tokens = 524288 (")
    assert lines[1].startswith("error: train.batch_ramp_start_tokens = 32768 (")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gpt3-bse"], "error: no configuration is named 'gpt3-bse'; did you mean gpt3-base"),
        (["gpt3-base", "--gpsu", "3"], "error: unknown argument --gpsu (command line); did you mean --gpus"),
        (["gpt3-base", "extra"], "error: unknown argument extra (command line)"),
        (["gpt3-base", "--gpus", "0"], "argument --gpus: '0' is not a number of GPUs of 1 or more"),
        (["gpt3-base", "--gpus", "x"], "argument --gpus: 'x' is not a number of GPUs of 1 or more"),
        (["gpt3-base", "--gpu-memory", "x"], "argument --gpu-memory: 'x' is not a size in GiB, such as 80"),
        (["gpt3-base", "--gpu-memory", "nan"], "argument --gpu-memory: 'nan' is not a size in GiB, such as 80"),
        (["gpt3-base", "--gpu-memory", "2"], "error: a GPU of pipeline rank 0 needs "),
        (["gpt3-base", "--train.lr", "x"], 'error: train.lr = "x" (command line) must be a number'),
        ([], "error: megagpt plan: the following arguments are required: CONFIG; see megagpt plan --help"),
    ],
)
def test_refused(argv, message, capsys):
    assert run_plan_command(argv) == 2
    assert message in capsys.readouterr().err


def test_without_its_tokenizer_the_quickstart_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_plan_command(["quickstart", "--gpus", "2"]) == 2
    assert "and no tokenizer gives it: tokenizer.path = " in capsys.readouterr().err
    assert run_plan_command(["quickstart", "--gpus", "2", "--model.vocab_size", "8000"]) == 0


def test_help(capsys):
    with pytest.raises(SystemExit) as left:
        run_plan_command(["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--train.lr float peak learning rate" in text
    assert "--gpu-memory" in text


def test_flops_have_units():
    assert show_flops(4.321e18) == "4.32 EFLOP"
    assert show_flops(12) == "12 FLOP"


def test_a_plan_imports_no_torch():
    code = (
        "import sys; from megagpt.plan_cli import run_plan_command as run; status = run(['gpt3-base', '--gpus', '8']);"
        "sys.exit(status or ('torch' in sys.modules))"
    )
    folder = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_vocabulary_is_the_tokenizers(capsys, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = ["滚滚长江东逝水，浪花淘尽英雄。是非成败转头空。", "青山依旧在，几度夕阳红。"] * 20
    prefix = tmp_path / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(prefix),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<|endoftext|>"],
    )
    arguments = ["quickstart", "--gpus", "2", "--tokenizer.path", f"{prefix}.model"]
    assert run_plan_command(arguments) == 0, capsys.readouterr().err
    vocab_size = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model").vocab_size()
    padded = -(-vocab_size // 128) * 128
    text_out = words(capsys.readouterr().out)
    assert f"parameters without {padded - vocab_size} rows of vocabulary padding" in text_out
    assert run_plan_command([*arguments, "--model.vocab_size", "200"]) == 2
    assert f"is less than the {vocab_size} ids of tokenizer.path" in capsys.readouterr().err


def test_the_kind_of_tokenizer_can_stand_before_its_path(capsys, tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "chinese.txt").write_text("[UNK]\n[SEP]\n" + "\n".join(map(chr, range(0x4E00, 0x4E00 + 498))))
    arguments = ["quickstart", "--gpus", "2", f"--tokenizer.path=wordpiece:{tmp_path}/chinese.txt"]
    assert run_plan_command([*arguments, "--model.vocab_size", "200"]) == 2
    assert "is less than the 500 ids of tokenizer.path" in capsys.readouterr().err


def test_a_damaged_tokenizer_is_an_error_without_a_traceback(capsys, tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(b"not a tokenizer")
    assert run_plan_command(["quickstart", "--gpus", "2", "--tokenizer.path", str(tmp_path / "tokenizer.model")]) == 2
    assert "tokenizer.model" in capsys.readouterr().err
