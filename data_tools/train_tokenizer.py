"""Trains a SentencePiece tokenizer on a corpus.

In: the command line. Out: an exit status. The work is in megagpt/tokenizer.
"""

import sys

from megagpt.data.tool import run_tool
from megagpt.tokenizer.cli import VERBS

if __name__ == "__main__":
    sys.exit(run_tool(VERBS["train"]))
