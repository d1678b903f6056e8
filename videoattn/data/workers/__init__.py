"""Worker processes that decode clips, and are replaced where they hang or crash."""
