"""What a rewrite does to a model, for people: facts, folded by repeated layers, and their text, picture and page."""
