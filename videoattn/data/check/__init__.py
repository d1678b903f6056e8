"""A check of every video of a data set before a run, and its report."""
