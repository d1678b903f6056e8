"""Training and evaluation of any model with any loader."""
