"""Videos prepared for training: encoded anew, packed into shards, indexed."""
