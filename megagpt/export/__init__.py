"""A trained model in the formats of other software, each compared with our own before it is called done."""
