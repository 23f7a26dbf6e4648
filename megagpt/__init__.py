"""megagpt: pretraining of GPT-3-family language models, from one laptop to a GPU cluster."""

import warnings

__version__ = "0.1.0"

# megatron-core warns at import, a dozen lines each time, that optional packages are absent; `megagpt env` reports them
warnings.filterwarnings("ignore", message=".*Apex.*not installed", module=r"megatron\.")
