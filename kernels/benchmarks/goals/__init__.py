"""The goals of the project on a GPU, and how far each is, from kept records alone."""
