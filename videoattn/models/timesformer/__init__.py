"""TimeSformer: the model, and the names of its tensors in published files."""
