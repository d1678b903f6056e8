"""Files of weights: read, fitted to a model, compared with its settings, and reported."""
