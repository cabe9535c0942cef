"""Parts that two models share: attention, blocks, embeddings, pooling."""
