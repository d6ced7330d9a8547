"""Former module of the base of transforms, which parts of users import."""

from up.data.transforms.image import Image, Transform

__all__ = ["Image", "Transform"]
