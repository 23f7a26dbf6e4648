"""What can be wrong with the data section without a look at any file. In: a LoadedConfig. Out: problems as text."""

from collections import Counter

from megagpt.config import DataSection
from megagpt.config_file import LoadedConfig
from megagpt.data.blend_order import MAX_CORPORA, whole_weights
from megagpt.data.corpora import corpus_entries
from megagpt.errors import DataError


def check_data(loaded: LoadedConfig) -> list[str]:
    """Splits sum to 1 and leave something to train on; corpora have names and weights that can be told apart."""
    data = loaded.config.data
    problems = _check_split(loaded.describe("data.split"), data.split)
    if data.corpora is None:
        return problems
    where = loaded.describe("data.corpora")
    if data.path is not None:
        problems.append(f"{loaded.describe('data.path')} and {where}: a run has either one dataset or a list of them")
    for corpus in data.corpora:
        if corpus.split is not None:
            problems += _check_split(f"the split {list(corpus.split)} of {corpus.path} in {where}", corpus.split)
    return problems + _check_blend(where, data)


def _check_split(where: str, split: tuple[float, float, float]) -> list[str]:
    if abs(sum(split) - 1) > 1e-6:
        return [f"{where} sums to {sum(split):g}; the three shares must sum to 1, such as [0.98, 0.01, 0.01]"]
    if split[0] == 0:
        return [f"{where} leaves nothing to train on; the first share must be over 0"]
    return []


def _check_blend(where: str, data: DataSection) -> list[str]:
    entries = corpus_entries(data)
    if len(entries) > MAX_CORPORA:
        return [f"data.corpora names {len(entries)} corpora, and a blend has at most {MAX_CORPORA}; join some"]
    problems = [
        f"{where}: {count} corpora are named {name!r}; give each a name of its own"
        for name, count in Counter(entry.name for entry in entries).items()
        if count > 1
    ]
    try:
        whole_weights([entry.weight for entry in entries])
    except DataError as error:
        problems.append(f"{where}: {error}")
    return problems
