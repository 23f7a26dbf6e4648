"""The recipe for a Chinese corpus: read, normalise, filter, deduplicate, tokenize, merge, as stages of datatrove.

In: `CleanSettings`. Out: the stages in the order they run, each a datatrove pipeline and its number of tasks. How they
run is in `recipe_run.py`; what they removed, in `recipe_report.py`.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from megagpt.data.chinese_steps import EXACT, MINHASH, ChineseCleaner, ChineseSignature, TaskReader, TaskWriter
from megagpt.data.chinese_text import Form, Rules
from megagpt.data.corpus import OnError
from megagpt.data.datatrove_base import DocumentsPipeline, PipelineStep
from megagpt.data.datatrove_reader import CorpusReader
from megagpt.data.datatrove_writer import IndexedDatasetWriter
from megagpt.data.indexed import dataset_files
from megagpt.data.merge import merge_datasets
from megagpt.data.parts import task_prefix
from megagpt.data.recipe_report import clean_report, report_path
from megagpt.durable import write_whole
from megagpt.errors import DataError

from datatrove.pipeline.dedup import (  # isort: skip (after our modules, which say it where datatrove is missing)
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
)

_BUFFERED_LINES = 1000  # of the files of signatures; datatrove's 5 mean a system call for each 5 documents


@dataclass(frozen=True)
class CleanSettings:
    """What to clean and how. `tasks`: how many parts the corpus is cut into; which duplicate stays depends on it.

    `work` is a folder on a file system that all tasks see: texts between stages, signatures, logs and completion
    markers. `text_output`: a folder for the clean texts as JSONL; `keep_removed`: keep what was removed in `work`.
    """

    inputs: tuple[str, ...]
    output: str
    tokenizer: str
    work: Path
    tasks: int
    text_key: str = "text"
    on_error: OnError = "raise"
    form: Form = "NFC"
    simplified: bool = False
    rules: Rules = field(default_factory=Rules)
    keep_removed: bool = False
    text_output: str | None = None


class Stage(NamedTuple):
    """A datatrove pipeline that runs as `tasks` tasks, when the stage before it is done."""

    name: str
    title: str
    tasks: int
    pipeline: list[PipelineStep]


def chinese_stages(settings: CleanSettings) -> list[Stage]:
    """The recipe. Raises DataError where inputs or tokenizer are missing."""
    tasks = settings.tasks
    text, duplicates = str(settings.work / "text"), str(settings.work / "exact" / "duplicates")
    exact, near = str(settings.work / "exact" / "signatures"), str(settings.work / "near" / "signatures")
    pairs, groups = str(settings.work / "near" / "pairs"), str(settings.work / "near" / "groups")

    def removed(by: str) -> TaskWriter | None:
        return TaskWriter(settings.work / "removed" / by) if settings.keep_removed else None

    clean: list[PipelineStep] = [
        CorpusReader(settings.inputs, settings.text_key, settings.on_error),
        ChineseCleaner(settings.rules, settings.form, settings.simplified, removed("rules")),
        TaskWriter(Path(text)),
        ExactDedupSignature(exact, EXACT, finder_workers=tasks),
    ]
    find_exact = ExactFindDedups(exact, duplicates, EXACT, lines_to_buffer=_BUFFERED_LINES)
    sign: list[PipelineStep] = [TaskReader(text), ExactDedupFilter(duplicates, EXACT), ChineseSignature(near)]
    find_near = MinhashDedupBuckets(near, pairs, config=MINHASH, lines_to_buffer=_BUFFERED_LINES)
    group = MinhashDedupCluster(pairs, groups, config=MINHASH, lines_to_buffer=_BUFFERED_LINES)
    tokenize: list[PipelineStep] = [
        TaskReader(text),
        ExactDedupFilter(duplicates, EXACT, removed("exact")),
        MinhashDedupFilter(groups, removed("near")),
        *([] if settings.text_output is None else [TaskWriter(Path(settings.text_output))]),
        IndexedDatasetWriter(settings.output, settings.tokenizer),
    ]
    return [
        Stage("clean", "read, normalise, filter", tasks, clean),
        Stage("exact", "find exact duplicates", tasks, [find_exact]),
        Stage("signatures", "MinHash signatures", tasks, sign),
        Stage("buckets", "find near-duplicates", MINHASH.num_buckets, [find_near]),
        Stage("cluster", "group near-duplicates", 1, [group]),
        Stage("tokenize", "deduplicate, tokenize", tasks, tokenize),
        Stage("merge", "merge", 1, [MergeParts(settings)]),
        Stage("tidy", "remove what is not needed any more", 1, [Tidy(settings)]),
    ]


class MergeParts(PipelineStep):
    """A datatrove step that joins the parts into the dataset, and writes the report beside it. Takes no documents."""

    type = "🧩 - MERGE"
    name = "📚 Indexed dataset"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Raises DataError where no document is left."""
        settings = self.settings
        report = clean_report(settings.work)
        if report.num_documents == 0:
            raise DataError("\n".join(["no document is left; loosen the rules or look at the input", *report.lines()]))
        merge_datasets(settings.output, _parts(settings.output, settings.tasks), overwrite=True)
        write_whole(report_path(settings.output), report.to_json())


class Tidy(PipelineStep):
    """A datatrove step that removes the parts, the texts between stages and the signatures; logs and reports stay."""

    type = "🧹 - TIDY"
    name = "parts and signatures"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Does nothing where they are gone already."""
        remove_parts(self.settings.output, self.settings.tasks)
        for folder in ("text", "exact", "near"):
            shutil.rmtree(self.settings.work / folder, ignore_errors=True)


def remove_parts(output: str, tasks: int) -> None:
    """Remove the parts that the tokenizing stage wrote, as far as they are there."""
    for part in _parts(output, tasks):
        for path in dataset_files(part):
            path.unlink(missing_ok=True)


def _parts(output: str, tasks: int) -> list[str]:
    return [task_prefix(output, task, tasks) for task in range(tasks)]
