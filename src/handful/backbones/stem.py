"""The convolutional patch embedding of `mini`: it stands in for `visual.conv1` of open_clip's ViT."""

from __future__ import annotations

from torch import Tensor, nn


def _conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualBlock(nn.Module):
    """A basic residual block (He et al. 2016) with average pooling in its shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, stride)
        self.conv2 = _conv(outputs, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            self.shortcut = nn.Sequential(pool, _conv(inputs, outputs, kernel=1))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`."""
        return self.act(self.conv2(self.act(self.conv1(x))) + self.shortcut(x))


class Stem(nn.Module):
    """A stride-4 convolution, then stride-2 residual stages: pixels to a grid of tokens.

    Parameters
    ----------
    widths
        Channels after the convolution and after each stage; the last is the transformer's width.
    depths
        Residual blocks of each stage.
    """

    def __init__(self, widths: list[int], depths: list[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, widths[0], stride=4, kernel=7), nn.ReLU(inplace=True)]
        for inputs, outputs, depth in zip(widths[:-1], widths[1:], depths, strict=True):
            layers.append(ResidualBlock(inputs, outputs, stride=2))
            layers += [ResidualBlock(outputs, outputs, stride=1) for _ in range(depth - 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels `[N, 3, H, W]` to tokens on a grid, `[N, D, H / 2**(S + 2), W / 2**(S + 2)]`."""
        return self.layers(pixels)
