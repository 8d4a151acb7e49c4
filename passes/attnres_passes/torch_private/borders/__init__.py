"""Between parts of a model: operators that hold a region of it, and tensors on their way from one graph to the next."""
