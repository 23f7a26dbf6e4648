"""The native core, C++ modules that setup.py builds where there is a compiler: `_encoder` and `_samples`.

Nothing here may be needed: whoever imports one of them has another way that gives the same result.
"""
