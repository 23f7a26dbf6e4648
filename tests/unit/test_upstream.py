"""The installed megatron-core and DeepSpeed have all that we lean on; a name that goes missing is told in a sentence.

The table is complete: what the source takes from both packages is found by reading it. Nothing outside of
parallel/cpu.py patches them.
"""

import inspect
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megagpt.config import ParallelSection, TrainSection
from megagpt.parallel import upstream_check
from megagpt.parallel.cpu import patch_deepspeed_for_cpu
from megagpt.parallel.deepspeed_json import make_deepspeed_config
from megagpt.parallel.upstream import UPSTREAM, Upstream
from megagpt.parallel.upstream_check import missing_upstream
from tests.unit.upstream_scan import ROOT, Call, FileScan, source_files

ROOTS = ("megatron", "deepspeed")
# what a rehearsal replaces inside a `with` and puts back (megagpt/rehearse/world.py, _stand_ins)
PATCHES = {"parallel/cpu.py", "rehearse/world.py"}


@pytest.fixture(scope="module", autouse=True)
def _deepspeed_on_the_cpu() -> None:
    patch_deepspeed_for_cpu()


def test_nothing_is_missing() -> None:
    assert missing_upstream() == []


def rows(file: str | None = None) -> list[Upstream]:
    return [row for row in UPSTREAM if file in (None, row.used_in)]


def known(module: str, name: str) -> bool:
    """Whether the table has a name, or something of it."""
    names = [known for row in rows() if row.module == module for known in row.names.split() or [""]]
    if not name:
        return bool(names)
    return any(known == name or known.startswith(f"{name}.") for known in names)


def last_parts(file: str | None) -> set[str]:
    """Last parts of the names in the rows of a file, or of all: what is taken from instances."""
    return {name.rsplit(".", 1)[-1] for row in rows(file) for name in row.names.split()}


TAKERS = [path for path in source_files() if any(root in path.read_text(encoding="utf-8") for root in ROOTS)]


@pytest.mark.parametrize("path", TAKERS, ids=lambda path: path.name)
def test_the_table_names_all_that_a_file_takes(path: Path) -> None:
    scan = FileScan(path, ROOTS)
    for use in scan.uses():
        if use.module == "deepspeed" and not use.name:
            continue  # the package itself
        where = (
            f"{use.file}:{use.line} takes {use.name or 'the module'} from {use.module}; add it to parallel/upstream.py"
        )
        head, _, tail = use.name.partition("()")
        assert known(use.module, head), where
        # of what a function returned or a class made
        assert not tail or tail.lstrip(".") in last_parts(use.file) or known(use.module, f"{head}{tail}"), where
    for call in scan.calls():
        assert call.keywords <= parameters_of(call), (
            f"{call.file}:{call.line}: add the keywords to parallel/upstream.py"
        )


def parameters_of(call: Call) -> set[str]:
    """What the table says that a function takes; the schedules are returned by a function."""
    chosen, schedule = "get_forward_backward_func()", "forward_backward_no_pipelining"
    if call.name == chosen:
        found = [row for row in rows("parallel/schedule.py") if schedule in row.names.split()]
    else:
        found = [
            row for row in rows() if row.module == call.module and call.name.replace("()", "") in row.names.split()
        ]
    return {word for row in found for word in row.parameters.split()}


def test_the_table_names_attributes_of_the_engine_and_its_optimizer() -> None:
    found = 0
    for path in source_files():
        if path.parent.name not in ("parallel", "rehearse", "training"):
            continue
        scan = FileScan(path, ROOTS)
        for line, name in scan.attributes_of(("deepspeed", "optimizer")):
            if name in ("step", "zero", "initialize", "init_distributed"):
                continue  # of torch's optimizer too; of the package
            found += 1
            assert name in last_parts(None), f"{scan.file}:{line} takes .{name}; add it to parallel/upstream.py"
    assert found > 10


def test_the_table_names_the_attributes_of_parameters() -> None:
    """`ds_…` is what ZeRO 3 sets on a parameter."""
    words = {word for row in rows() for text in (row.mentions, row.value or "") for word in text.split()}
    for path in source_files():
        if path.parent.name in ("parallel", "model", "training", "checkpoint"):
            for name in FileScan(path, ROOTS).tree_attributes():
                if name.startswith("ds_"):
                    assert name in words, f"{path}: .{name}; add it to parallel/upstream.py"


def test_the_table_names_the_fields_of_our_config() -> None:
    from megatron.core.model_parallel_config import ModelParallelConfig

    import megagpt.parallel.mcore_config as ours

    (row,) = [row for row in rows() if row.names == "ModelParallelConfig"]
    assert issubclass(ours.McoreConfig, ModelParallelConfig)
    passed = FileScan(Path(ours.__file__), ("megagpt",)).keywords_of("McoreConfig")
    assert passed - set(ours.McoreConfig.__annotations__) <= set(row.parameters.split())
    assert len(passed) > 15


def keys_of(config: dict[str, Any]) -> set[str]:
    return set(config).union(*(keys_of(value) for value in config.values() if isinstance(value, dict)))


def test_the_table_names_the_keys_of_deepspeeds_json() -> None:
    words = {word for row in rows("parallel/deepspeed_json.py") for word in [*row.parameters.split(), row.value]}
    words |= {"zero_optimization", "bf16", "fp16"}  # sections: the tests of every precision and stage would fail
    found: set[str] = set()
    for precision, stage, offload in itertools.product(("fp32", "bf16", "fp16"), (0, 1, 2, 3), ("none", "cpu", "nvme")):
        parallel = ParallelSection(
            zero_stage=stage,  # type: ignore[arg-type]
            offload_parameters=offload,  # type: ignore[arg-type]
            offload_optimizer="none" if offload == "none" else "cpu",
            nvme_folder="nvme",
        )
        found |= keys_of(make_deepspeed_config(TrainSection(precision=precision), parallel))  # type: ignore[arg-type]
    assert found <= words, f"add {found - words} to parallel/upstream.py"


def test_every_row_is_used() -> None:
    """A row whose file no longer has any of its words is left over."""
    for row in UPSTREAM:
        text = (ROOT / "megagpt" / row.used_in).read_text(encoding="utf-8")
        parts = [name.rsplit(".", 1)[-1] for name in row.names.split()] or [row.module]
        words = [*parts, *row.parameters.split(), *row.mentions.split(), row.value or ""]
        assert any(word and word in text for word in words), row


def test_a_function_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core import parallel_state

    monkeypatch.delattr(parallel_state, "get_embedding_group")
    monkeypatch.setattr("importlib.metadata.version", lambda package: "0.20.0")
    (sentence,) = missing_upstream()
    assert sentence == (
        "megatron-core 0.20.0 has no parallel_state.get_embedding_group, which parallel/mesh.py needs for the two ends "
        "of a pipeline, which share the tied table; use megatron-core 0.16.1 or 0.19.2"
    )


def test_a_parameter_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.tensor_parallel import layers

    class Other:
        """Has what is asked of it but for one parameter."""

        def __init__(self, config, init_method, bias, tp_group, skip_bias_add) -> None: ...

        _forward_impl = layers.RowParallelLinear._forward_impl

    monkeypatch.setattr(layers, "RowParallelLinear", Other)
    (sentence,) = missing_upstream()
    assert "has no input_is_parallel in layers.RowParallelLinear, which model/linear.py needs for" in sentence


@pytest.fixture
def _sources_are_read_anew() -> Iterator[None]:
    forget_sources()
    yield
    forget_sources()


def forget_sources() -> None:
    """What was read of other packages' source files so far."""
    upstream_check._source.cache_clear()


@pytest.mark.usefixtures("_sources_are_read_anew")
def test_an_attribute_that_no_instance_has_any_more_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be set, and nothing would read it: gradients would be reduced before our sums, without a word."""
    from deepspeed.runtime import engine

    getsource = inspect.getsource

    def renamed(found: Any) -> str:
        text = getsource(found)
        is_engine = found is engine.DeepSpeedEngine
        return text.replace("enable_backward_allreduce", "reduce_in_backward") if is_engine else text

    monkeypatch.setattr("inspect.getsource", renamed)
    (sentence,) = missing_upstream()
    assert "deepspeed 0.19" in sentence
    assert (
        "has no engine.DeepSpeedEngine.enable_backward_allreduce, which parallel/engine.py needs for keeping"
        in sentence
    )


def test_a_module_that_is_gone_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "megatron.core.enums", None)
    (sentence,) = missing_upstream()
    assert "cannot import megatron.core.enums (import of megatron.core.enums halted" in sentence
    assert sentence.endswith("use megatron-core 0.16.1 or 0.19.2")


def test_words_and_values_that_changed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("deepspeed.made_up")
    module.KEY = "renamed"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed.made_up", module)
    row = Upstream("deepspeed.made_up", "KEY", "a.py", "a reason", value="key")
    assert "has 'renamed' instead of 'key' as made_up.KEY, which a.py needs for a reason" in missing_upstream((row,))[0]
    row = Upstream(
        "deepspeed.runtime.utils", "is_model_parallel_parameter", "a.py", "a reason", mentions="no_such_word"
    )
    assert "no longer uses no_such_word in utils.is_model_parallel_parameter" in missing_upstream((row,))[0]


def test_a_field_that_our_config_lacks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from megagpt.parallel import upstream_check

    monkeypatch.setattr(upstream_check, "FIELDS_NOT_READ", ("cuda_graph_impl", "cuda_graph_scope", "num_moe_experts"))
    (sentence,) = missing_upstream()
    assert (
        "reads config.mtp_num_layers in schedules, a field that McoreConfig (parallel/mcore_config.py) has" in sentence
    )


def test_only_cpu_py_patches_other_packages() -> None:
    files = set()
    for path in source_files():
        for patch in FileScan(path, ("megatron", "deepspeed", "torch")).patches():
            files.add(patch.file)
            assert patch.file in PATCHES, f"{patch.file}:{patch.line} assigns {patch.name} of {patch.module}"
    assert "parallel/cpu.py" in files
