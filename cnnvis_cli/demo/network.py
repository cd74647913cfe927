"""The bundled network: a small AlexNet for 112-pixel synthetic images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUT = 112  # pixels


class DemoNet(nn.Module):
    """Five convolutions with overlapping pooling and three fully connected layers.

    The receptive fields are 7, 27, 51, 67 and 83 pixels for conv1 to conv5, so that each centre
    unit's field lies inside the input (Krizhevsky et al. 2012, section 3.5, for the shape).
    """

    def __init__(self, classes: int = 24) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(96, 96, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(96, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(64 * 5 * 5, 128),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(128, 128),
            nn.ReLU(inplace=True),
            nn.Linear(128, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute class scores of normalised images: (B, 3, 112, 112) -> (B, classes)."""
        return self.classifier(torch.flatten(self.features(images), 1))  # type: ignore[no-any-return]
