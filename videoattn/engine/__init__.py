"""Training and evaluation of a model with a loader; nothing here knows which."""
