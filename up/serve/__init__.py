"""A package behind HTTP: requests to images, images to common batches, predictions to answers. Nothing here may import torch."""
