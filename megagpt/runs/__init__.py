"""Looking at the folders of runs: which there are, how they do. Reads small files and imports nothing heavy."""
