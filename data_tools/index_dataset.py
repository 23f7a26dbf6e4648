"""Makes the sample indexes of a run or a dataset ahead of time, on a machine without a GPU.

In: the command line. Out: an exit status. The work is in megagpt/data.
"""

import sys

from megagpt.data.cli_index import VERBS
from megagpt.data.tool import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(VERBS["index"]))
