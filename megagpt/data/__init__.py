"""From corpora to batches: readers, the builder, the indexed dataset, the sample order and the batch stream."""
