"""Records of a sweep against labels that were read from the sources of the models, and the page about both."""
