"""Published checkpoints: their protocol, their numbers, and where they are found."""
