"""The model in one process equals the reference; the cache changes nothing; generation stops and refuses as it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megagpt.checkpoint.read import read_manifest
from megagpt.data.batch import Batch
from megagpt.errors import CheckpointError, GenerationError
from megagpt.formats.source import MemorySource
from megagpt.inference.generate import GenerationStep, generate
from megagpt.inference.model import InferenceModel, load_for_inference
from megagpt.inference.settings import SamplingSettings
from megagpt.inference.text import generate_text
from megagpt.model.reference import reference_logits
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mesh import Mesh
from tests.unit.inference.tiny import SPEC, VOCAB_SIZE, random_parameters, write_checkpoint

GREEDY = SamplingSettings(max_new_tokens=8, greedy=True)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def in_memory(model: InferenceModel, parameters: dict[str, Tensor], spec: ModelSpec = SPEC) -> InferenceModel:
    """A model of these parameters with the tokenizer and the mesh of another."""
    source = MemorySource(spec, parameters, model.tokenizer, model.folder)
    return load_for_inference(source, model.chunk.build.mesh)


def ids_of(steps: list[GenerationStep], row: int = 0) -> list[int]:
    return [step.ids[row] for step in steps]


def reference(tokens: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), positions, None)
    return reference_logits(random_parameters(SPEC), SPEC, batch)


@pytest.mark.parametrize("length", [1, 5, 24])
def test_logits_equal_the_reference(model: InferenceModel, length: int) -> None:
    tokens = torch.tensor([prompt_of(length), prompt_of(length, 1)])
    # measured worst 2.1e-6, of logits up to 4.6
    torch.testing.assert_close(model.logits(tokens), reference(tokens), rtol=0, atol=1e-5)


def test_bf16_is_another_precision_of_the_same_model(checkpoint: Path, mesh: Mesh) -> None:
    tokens = torch.tensor([prompt_of(24)])
    rough = load_for_inference(checkpoint, mesh, "bf16")
    assert {parameter.dtype for parameter in rough.chunk.parameters()} == {torch.bfloat16}
    difference = float((rough.logits(tokens) - reference(tokens)).abs().max())
    assert 1e-3 < difference < 0.2  # measured 0.06, of logits up to 4.6


@pytest.mark.parametrize("length", [1, 2, 7, 23, 24])
def test_greedy_with_the_cache_equals_greedy_without(model: InferenceModel, length: int) -> None:
    prompts = [prompt_of(length), prompt_of(length, 1), prompt_of(length, 2)]
    settings = SamplingSettings(max_new_tokens=50, greedy=True, repetition_penalty=1.1)
    cached = list(generate(model, prompts, settings))
    assert cached == list(generate(model, prompts, settings, use_cache=False))
    assert len(cached) == 24 - length + 1 or all(stop == "eod" for stop in cached[-1].stops)


def test_greedy_equals_the_reference(model: InferenceModel) -> None:
    tokens = prompt_of(5)
    for _ in range(GREEDY.max_new_tokens):
        tokens.append(int(reference(torch.tensor([tokens]))[0, -1].argmax()))
    steps = list(generate(model, [prompt_of(5)], GREEDY))
    assert ids_of(steps) == tokens[5:]
    assert len(set(tokens[5:])) > 2, "the test's model should not repeat one token"


def test_the_prompt_is_read_in_one_pass_and_then_one_token_at_a_time(
    model: InferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = []
    logits = model.chunk.logits

    def spy(tokens: torch.Tensor, positions: torch.Tensor, caches: object) -> torch.Tensor:
        widths.append((tokens.shape[1], int(positions[0, 0])))
        return logits(tokens, positions, caches)

    monkeypatch.setattr(model.chunk, "logits", spy)
    list(generate(model, [prompt_of(6)], replace(GREEDY, max_new_tokens=3)))
    assert widths == [(6, 0), (1, 6), (1, 7)]
    widths.clear()
    list(generate(model, [prompt_of(6)], replace(GREEDY, max_new_tokens=3), use_cache=False))
    assert widths == [(6, 0), (7, 0), (8, 0)]


def test_sampling_repeats_with_its_seed(model: InferenceModel) -> None:
    def sampled(seed: int, use_cache: bool = True) -> list[int]:
        settings = SamplingSettings(max_new_tokens=20, temperature=3.0, top_p=1.0, seed=seed)
        return ids_of(list(generate(model, [prompt_of(4)], settings, use_cache)))

    assert sampled(1) == sampled(1) == sampled(1, use_cache=False) != sampled(2)


def test_ids_that_do_not_exist_are_never_chosen(model: InferenceModel) -> None:
    """A model whose vocabulary is larger than its tokenizer's, with tables that make the extra ids most likely."""
    spec = replace(SPEC, vocab_size=512)
    parameters = random_parameters(SPEC)
    parameters["embedding.tokens.weight"][VOCAB_SIZE:] *= 50
    larger = in_memory(model, parameters, spec)
    assert larger.logits(torch.tensor([prompt_of(5)])).shape == (1, 5, 512)
    assert larger.num_ids == VOCAB_SIZE
    settings = SamplingSettings(max_new_tokens=20, temperature=100, top_p=1.0)
    for step in generate(larger, [prompt_of(4, seed) for seed in range(20)], settings):
        assert max(step.ids) < VOCAB_SIZE


def test_a_row_that_ended_waits_for_the_others(model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = iter([[5, 6, 1], [1, 7, 9], [8, 1, 9], [9, 9, 9]])  # 1 ends a document
    monkeypatch.setattr("megagpt.inference.generate.choose", lambda *_: torch.tensor(next(chosen)))
    assert list(generate(model, [[4], [4], [4]], GREEDY)) == [
        GenerationStep([5, 6, 1], [None, None, "eod"]),
        GenerationStep([1, 7, 1], ["eod", None, "eod"]),
        GenerationStep([1, 1, 1], ["eod", "eod", "eod"]),
    ]


def test_generation_stops_at_the_length_and_at_the_end_of_the_context(model: InferenceModel) -> None:
    assert model.tokenizer is not None
    settings = SamplingSettings(max_new_tokens=5, temperature=3, top_p=1.0)
    steps = list(generate(model, [prompt_of(10)], settings))
    assert [step.stops for step in steps] == [[None]] * 4 + [["length"]]
    full = list(generate(model, [prompt_of(24)], settings))
    assert [step.stops for step in full] == [["context"]], "a full context still predicts one token"
    exact = list(generate(model, [prompt_of(20)], settings))
    assert [step.stops for step in exact][-1] == ["length"]
    assert len(exact) == 5


def test_an_empty_prompt_begins_a_document(model: InferenceModel) -> None:
    assert model.tokenizer is not None
    empty = list(generate(model, [[]], GREEDY))
    assert empty == list(generate(model, [[model.tokenizer.eod_id]], GREEDY))


def test_a_prompt_longer_than_the_context_is_refused_at_the_call(model: InferenceModel) -> None:
    with pytest.raises(
        GenerationError, match=r"prompt has 27 tokens and the model's context is 24; shorten .* 3 tokens"
    ):
        generate(model, [prompt_of(27)], GREEDY)


@pytest.mark.parametrize("token_id", [-1, VOCAB_SIZE, 10**9])
def test_ids_that_do_not_exist_are_refused(model: InferenceModel, token_id: int) -> None:
    with pytest.raises(GenerationError, match=f"token id {token_id} in the prompt does not exist; .* ids 0 to 466"):
        generate(model, [[5, token_id]], GREEDY)


@pytest.mark.parametrize("prompts", [[[5], [5, 6]], [[], [5, 6]]])
def test_prompts_of_different_lengths_are_refused(model: InferenceModel, prompts: list[list[int]]) -> None:
    with pytest.raises(GenerationError, match=r"prompts have lengths \[1, 2\] in tokens"):
        generate(model, prompts, GREEDY)


def test_no_prompt_at_all_is_refused(model: InferenceModel) -> None:
    with pytest.raises(GenerationError, match="no prompts were given"):
        generate(model, [], GREEDY)


def test_logits_that_are_not_finite_are_refused(model: InferenceModel) -> None:
    parameters = random_parameters(SPEC)
    parameters["final_norm.bias"][0] = float("nan")
    broken = in_memory(model, parameters)
    with pytest.raises(GenerationError, match=r"logits of token 5 are not finite: the training behind .* diverged"):
        list(generate(broken, [prompt_of(5)], GREEDY))


def test_text_comes_in_whole_characters_and_equals_the_ids_decoded(model: InferenceModel) -> None:
    assert model.tokenizer is not None
    settings = SamplingSettings(max_new_tokens=20, temperature=5, top_p=1.0, seed=3)
    prompt = "山脚下"
    steps = list(generate_text(model, prompt, settings))
    ids = ids_of(list(generate(model, [model.tokenizer.encode(prompt)], settings)))
    assert len(steps) == len(ids)
    assert "".join(step.text for step in steps) == model.tokenizer.decode(ids)
    assert [step.stop is None for step in steps] == [True] * (len(steps) - 1) + [False]


def test_a_character_cut_off_by_the_end_is_not_lost(model: InferenceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.tokenizer is not None
    first, second, *_ = model.tokenizer.encode("🎉")  # of four bytes
    steps = [GenerationStep([first], [None]), GenerationStep([second], ["length"])]
    monkeypatch.setattr("megagpt.inference.text.generate", lambda *_: iter(steps))
    texts = [step.text for step in generate_text(model, "山", GREEDY)]
    assert texts == ["", model.tokenizer.decode([first, second])]
    assert texts[1]


class TestLoading:
    """What a checkpoint can have wrong with it."""

    def test_parameters_that_are_not_the_models(self, model: InferenceModel) -> None:
        parameters = random_parameters(SPEC)
        parameters["layers.9.mlp.up.bias"] = parameters.pop("layers.2.mlp.up.bias")
        with pytest.raises(
            CheckpointError, match=r"missing \['layers.2.mlp.up.bias'\], unknown \['layers.9.mlp.up.bias'\]"
        ):
            in_memory(model, parameters)

    def test_a_tokenizer_that_is_missing(self, tmp_path: Path, tokenizer_path: Path, mesh: Mesh) -> None:
        folder = write_checkpoint(tmp_path / "c", SPEC, random_parameters(SPEC), tokenizer_path)
        (folder / "tokenizer.model").unlink()
        with pytest.raises(CheckpointError, match=r"tokenizer\.model is missing; the checkpoint is not whole"):
            load_for_inference(folder, mesh)

    def test_another_tokenizer(self, tmp_path: Path, tokenizer_path: Path, mesh: Mesh) -> None:
        folder = write_checkpoint(tmp_path / "c", SPEC, random_parameters(SPEC), tokenizer_path)
        manifest = replace(read_manifest(folder), tokenizer_fingerprint="0" * 64)
        (folder / "manifest.json").write_text(manifest.to_json())
        with pytest.raises(CheckpointError, match="is not the tokenizer that the model was trained with"):
            load_for_inference(folder, mesh)

    def test_no_tokenizer_still_generates_from_ids(self, tmp_path: Path, mesh: Mesh) -> None:
        folder = write_checkpoint(tmp_path / "c", SPEC, random_parameters(SPEC), None)
        bare = load_for_inference(folder, mesh)
        assert [step.stops for step in generate(bare, [[5]], replace(GREEDY, max_new_tokens=2))] == [[None], ["length"]]
        with pytest.raises(
            GenerationError, match=r"empty prompt starts from the end-of-document token, but .* no tokenizer"
        ):
            generate(bare, [[]], GREEDY)
        with pytest.raises(GenerationError, match="has no tokenizer, so it cannot read a prompt or write text"):
            generate_text(bare, "春", GREEDY)
