"""Check of all videos of a data set before a run, and its report."""
