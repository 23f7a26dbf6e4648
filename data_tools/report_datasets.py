"""Writes one HTML page on indexed datasets.

In: the command line. Out: an exit status. The work is in megagpt/data.
"""

import sys

from megagpt.data.cli_datasets import VERBS
from megagpt.data.tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(VERBS["report"]))
