"""What our pipeline steps need of datatrove, or an error that says how to install it. Imports nothing of megagpt's."""

from megagpt.errors import DataError

try:
    from datatrove.data import Document, DocumentsPipeline
    from datatrove.pipeline.base import PipelineStep
    from datatrove.utils.logging import logger
except ImportError as error:
    raise DataError(
        f"cleaning a corpus needs datatrove, which cannot be imported here ({error}); install it with: "
        "pip install 'megagpt[clean]' (in this repository: pip install -e '.[clean]')"
    ) from error

__all__ = ["Document", "DocumentsPipeline", "PipelineStep", "logger"]
