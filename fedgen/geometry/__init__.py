"""The geometry of embeddings: pooled statistics, shapes of classes, new samples, and heads without training."""
