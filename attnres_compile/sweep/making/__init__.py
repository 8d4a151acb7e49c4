"""From the name of a model type to a small model with random weights that runs, and the inputs it runs on."""
