"""From a model and example inputs to graphs (``capture``), and from graphs to a plan (``analysis``); in this order."""
