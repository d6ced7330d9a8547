"""``up search``: stages of trials, each an ordinary training run, from one YAML file to a chosen model."""
