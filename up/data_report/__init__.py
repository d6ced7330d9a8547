"""Reports on the images of data sets: faults, duplicates and leaks, splits, and probable label errors."""
