"""The fastest encoder on PyPI (gigatoken) alone: reads the JSONL and encodes it in memory; writes nothing.

In: JSONL, a folder with tokenizer.json. Out: the number of tokens, printed. Threads by RAYON_NUM_THREADS.
"""

import sys

import gigatoken

if __name__ == "__main__":
    tokenizer = gigatoken.Tokenizer(f"{sys.argv[2]}/tokenizer.json")
    rows = tokenizer.encode_files(gigatoken.JsonlFileSource([sys.argv[1]], field="text"), parallel=True)
    print(len(rows))
