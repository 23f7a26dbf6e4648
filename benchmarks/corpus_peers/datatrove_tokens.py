"""datatrove's own pipeline: its JSONL reader and its Megatron tokenizer step, by its local executor.

In: a folder with one JSONL file a task (it gives whole files to tasks), a tokenizer.json, the end symbol, an output
folder. Out: one .bin and .idx a task in the output folder.
"""

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

if __name__ == "__main__":
    folder, tokenizer, end_symbol, output, workers = sys.argv[1:]
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, text_key="text"),
            MegatronDocumentTokenizer(output, tokenizer_name_or_path=tokenizer, eos_token=end_symbol),
        ],
        tasks=int(workers),
        workers=int(workers),
        logging_dir=str(Path(output) / "logs"),
    ).run()
