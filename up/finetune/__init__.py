"""Fine-tuning in one line: choices from the images and the machine, each with its reason, as a YAML file."""
