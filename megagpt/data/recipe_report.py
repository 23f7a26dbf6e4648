"""What a cleaning removed and why, from the statistics that datatrove keeps of each task. Knows the recipe's stages."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.data.chinese_steps import ChineseCleaner
from megagpt.data.datatrove_base import PipelineStep
from megagpt.data.datatrove_reader import CorpusReader
from megagpt.data.datatrove_writer import IndexedDatasetWriter

from datatrove.pipeline.dedup import ExactDedupFilter, MinhashDedupFilter  # isort: skip (our modules check that it is there)

_DROPPED = "dropped_"


@dataclass(frozen=True)
class CleanReport:
    """Documents by what became of them: unreadable + removed + exact and near duplicates + `num_documents` = all."""

    num_read: int  # that could be read
    unreadable: Mapping[str, int]  # reason -> documents (and rests of damaged files), with --on-error skip
    removed: Mapping[str, int]  # rule -> documents
    exact_duplicates: int
    near_duplicates: int
    num_documents: int  # in the dataset
    num_tokens: int
    num_characters: int
    characters_read: int
    characters_normalized: int  # of those, what the normal form left (removed documents included, but the garbled)

    def to_json(self) -> str:
        """The report file's content."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"

    def lines(self) -> list[str]:
        """The report in words, a line a step and reason."""
        rows = [("read", self.num_read, "")]
        rows += [("unreadable", count, reason) for reason, count in self.unreadable.items()]
        rows += [("rules", -count, reason) for reason, count in self.removed.items()]
        rows += [("exact", -self.exact_duplicates, "duplicates"), ("near", -self.near_duplicates, "duplicates")]
        rows += [("kept", self.num_documents, f"{self.num_tokens} tokens, {self.num_characters} characters")]
        return [f"{step:12}{count:12} {detail}".rstrip() for step, count, detail in rows]


def report_path(output: str) -> Path:
    """Where the report of the dataset `output` is."""
    return Path(f"{output}.cleaning.json")


def clean_report(work: Path) -> CleanReport:
    """The report of a cleaning whose stages `clean` and `tokenize` are done."""
    cleaning, writing = _totals(work, "clean"), _totals(work, "tokenize")
    reader, cleaner = cleaning[_name(CorpusReader)], cleaning[_name(ChineseCleaner)]
    writer = writing[_name(IndexedDatasetWriter)]
    return CleanReport(
        num_read=reader["documents"],
        unreadable=_by_reason(reader),
        removed=_by_reason(cleaner),
        exact_duplicates=writing[_name(ExactDedupFilter)]["dropped"],
        near_duplicates=writing[_name(MinhashDedupFilter)]["dropped"],
        num_documents=writer["documents"],
        num_tokens=writer["tokens"],
        num_characters=writer["characters"],
        characters_read=cleaner["characters_read"],
        characters_normalized=cleaner["characters_normalized"],
    )


def _totals(work: Path, stage: str) -> dict[str, Counter[str]]:
    """Sums over all tasks of a stage: name of the step -> name of the statistic -> total."""
    totals: dict[str, Counter[str]] = {}
    for path in sorted((work / "logs" / stage / "stats").glob("*.json")):
        for step in json.loads(path.read_text(encoding="utf-8")):
            counts = totals.setdefault(step["name"], Counter())
            for name, value in step["stats"].items():
                counts[name] += _total(value)
    return totals


def _name(step: type[PipelineStep]) -> str:
    """What datatrove calls a step in its statistics."""
    return f"{step.type}: {step.name}"


def _total(value: Any) -> int:
    """datatrove writes a number where all that was counted were ones, else an object."""
    return int(value["total"] if isinstance(value, dict) else value)


def _by_reason(counts: Counter[str]) -> dict[str, int]:
    reasons = {name.removeprefix(_DROPPED): count for name, count in counts.items() if name.startswith(_DROPPED)}
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
