"""One file an operation: plain torch reference, fused form where there is one, and the dispatch between them."""
