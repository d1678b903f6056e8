"""Fast forms of operations, one file per operation: which form runs, its gradients and its cost."""
