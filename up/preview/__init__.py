"""Pages of batches as the training loop gets them, before a run and after it."""
