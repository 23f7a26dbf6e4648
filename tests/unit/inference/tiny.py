"""Small checkpoints of random weights, written without training: every parameter is random, biases and norms too."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint.file_record import file_record
from megagpt.checkpoint.index import INDEX_NAME, Index, Place, tensor_key, weights_file
from megagpt.checkpoint.manifest import FORMAT_VERSION, CheckpointLayout, Manifest
from megagpt.checkpoint.pieces import MASTER
from megagpt.model.names import parameter_shapes
from megagpt.model.spec import ModelSpec
from megagpt.tokenizer import Tokenizer, load_tokenizer
from megagpt.tokenizer.train import TokenizerSettings, train_sentencepiece

VOCAB_SIZE = 467
SPEC = ModelSpec(
    name="tiny",
    num_layers=3,
    num_heads=4,
    hidden_size=32,
    ffn_hidden_size=80,  # not 4 times the hidden size
    sequence_length=24,
    vocab_size=VOCAB_SIZE,
    padded_vocab_size=512,
    activation="gelu_tanh",
    layer_norm_epsilon=1e-5,
    hidden_dropout=0.1,
    attention_dropout=0.2,
    init_std=0.02,
)
# written for these tests; CC0
LINES = """\
清晨的薄雾从河面升起，渔夫解开缆绳，把小船推向江心。
山脚下住着一位木匠，他做的桌椅结实又好看，邻村的人都来找他。
孩子们在院子里放风筝，风筝越飞越高，像一只红色的鸟。
昨夜下了一场大雨，今天的空气格外清新，路边的花全开了。
老师说：“读书要慢，想问题要细。”学生们点点头，把这句话记在本子上。
第一条　为了写好测试，我们编了这几行字；第二条　它们不属于任何人。
The small boat is 12 metres long, and   three   people can sail it.
    if x == y:\n        return (x + y) ** 2  # ---- ababab ----
哈哈哈哈，他笑着说：这真是太好了！！！
"""


def train_tiny_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer of VOCAB_SIZE ids, by the settings that real runs use."""
    train_sentencepiece(LINES.splitlines(keepends=True) * 5, path, TokenizerSettings(vocab_size=VOCAB_SIZE))
    return load_tokenizer(path)


def random_parameters(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    """Every parameter N(0, 0.2), norms around 1: logits differ enough for greedy choices to vary."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(info.shape, generator=generator) * 0.2 + name.endswith("norm.weight")
        for name, info in parameter_shapes(spec).items()
    }


def write_checkpoint(folder: Path, spec: ModelSpec, parameters: dict[str, Tensor], tokenizer_path: Path | None) -> Path:
    """A checkpoint folder of one rank, without optimizer state."""
    folder.mkdir(parents=True)
    save_file(
        {tensor_key(name, MASTER): value.reshape(-1) for name, value in parameters.items()}, folder / weights_file(0)
    )
    index = Index(1, {name: [Place(0, 0, 0, value.numel())] for name, value in parameters.items()})
    (folder / INDEX_NAME).write_text(index.to_json(), encoding="utf-8")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        megagpt_version="0.0.0",
        step=7,
        tokens=1234,
        loss=3.25,
        spec=spec,
        layout=CheckpointLayout(1, 1, 1, 1, False, 0),
        precision="fp32",
        seed=1,
        tokenizer_fingerprint=None,
        tokenizer_file=None,
        data_fingerprint=None,
        files={name: file_record(folder / name) for name in (weights_file(0), INDEX_NAME)},
    )
    if tokenizer_path is not None:
        file = "tokenizer" + tokenizer_path.suffix
        (folder / file).write_bytes(tokenizer_path.read_bytes())
        fingerprint = load_tokenizer(tokenizer_path).fingerprint
        manifest = replace(manifest, tokenizer_file=file, tokenizer_fingerprint=fingerprint)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return folder
