"""Models as files, ours and other software's: each is opened as one thing, a ModelSource, whatever its layout."""
