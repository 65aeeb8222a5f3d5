"""The packed transformer. Reading order: config, rope, embedders, blocks, transformer, checkpoint."""
