"""How a question is asked: one request, or as many as a dataset takes, each for what is still lacking."""
