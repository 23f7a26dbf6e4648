"""Cleans a Chinese corpus and tokenizes it into an indexed dataset.

In: the command line. Out: an exit status. The work is in megagpt/data.
"""

import sys

from megagpt.data.cli_clean import VERBS
from megagpt.data.tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(VERBS["clean-chinese"]))
