"""Preparation of videos for training: encoding, packing into shards, indexing."""
