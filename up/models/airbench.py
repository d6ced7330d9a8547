"""The network of airbench: CIFAR-10 in seconds (Jordan 2024, arXiv 2404.00498, section 3 and appendix A)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from up.models.adapter import Channels, Count
from up.types import Record

_KERNEL = 2  # of the whitening convolution


class Whitening(nn.Module):
    """A fixed 2x2 convolution whose outputs on patches of the training images are uncorrelated, and their negatives.

    The weight (8 C, C, 2, 2) is a buffer: it is computed once from images, saved with the other weights, and never trained; the
    bias trains. In an exported graph it is a convolution like any other.
    """

    weight: Tensor

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        filters = 2 * channels * _KERNEL**2
        self.register_buffer("weight", nn.init.orthogonal_(torch.empty(filters, channels, _KERNEL, _KERNEL)))
        self.bias = nn.Parameter(torch.zeros(filters))

    def forward(self, image: Tensor) -> Tensor:
        """Whiten the patches of images (B, C, H, W)."""
        return F.conv2d(image, self.weight.to(image.dtype), self.bias)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the weight to the eigenvectors of the covariance of patches of ``images`` (N, C, H, W), each over the root of its
        eigenvalue plus ``eps``, the largest first."""
        channels = images.shape[1]
        patches = F.unfold(images.double(), _KERNEL).transpose(1, 2).flatten(0, 1)  # (N * places, C * 4)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        signs = torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)  # an eigenvector has no sign of its own
        scaled = (vectors * signs / (values + self.eps).sqrt()).flip(1).T.reshape(-1, channels, _KERNEL, _KERNEL)
        self.weight.copy_(torch.cat([scaled, -scaled]))


class Airbench(nn.Module):
    """Whitening, then three groups of two convolutions with GELU, and the maximum over the image (B, widths[2]).

    For images of about 32 pixels. ``fit_images`` are the first training images that the whitening layer is computed from, ``eps``
    is added to the eigenvalues. The scales of the BatchNorms are ones: freeze them, as airbench does
    (``freeze_patterns: ['r:norm\\d\\.weight']``).
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self,
        *,
        widths: tuple[Count, Count, Count] = (64, 256, 256),
        input_channel: Channels = 3,
        fit_images: Count = 5000,
        eps: float = 5e-4,
    ) -> None:
        super().__init__()
        self.fit_images = fit_images
        self.whiten = Whitening(input_channel, eps=eps)
        before = [2 * input_channel * _KERNEL**2, *widths[:-1]]
        self.groups = nn.Sequential(*(ConvGroup(inner, outer) for inner, outer in zip(before, widths, strict=True)))
        self.out_planes = [widths[-1]]

    def forward(self, record: Record) -> dict[str, list[Tensor]]:
        """Compute the feature (B, widths[2]) of ``record["image"]`` (B, C, H, W)."""
        maps: Tensor = self.groups(F.gelu(self.whiten(record["image"])))
        return {"features": [maps.amax(dim=(2, 3))]}

    def fit(self, images: Tensor) -> None:
        """Compute the whitening layer from normalised training images (N, C, H, W)."""
        self.whiten.fit(images)


class ConvGroup(nn.Module):
    """Convolution, 2x2 pooling, norm, GELU; convolution, norm, GELU. Convolutions begin as partial identities (dirac)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight[: conv.in_channels].data)

    def forward(self, maps: Tensor) -> Tensor:
        """Halve the maps (B, channels, H, W) and return (B, width, H // 2, W // 2)."""
        maps = F.gelu(self.norm1(F.max_pool2d(self.conv1(maps), 2)))
        return F.gelu(self.norm2(self.conv2(maps)))
