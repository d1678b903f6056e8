"""Parts of a block: attention modules, skipped attention, positions, patch embedding, MLP."""
