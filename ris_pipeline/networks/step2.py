"""Step-2: the segmentation network that is trained on pseudo-labels (TRIS, ICCV 2023)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.levels import Levels
from ris_pipeline.networks.parts.pixel_attention import PixelAttention, of_sentences
from ris_pipeline.networks.referring import ImageEncoder, ReferringNetwork

Widths = tuple[int, int, int, int]


class Step2(ReferringNetwork):
    """Word attention on c2, c3, c4, then a top-down decoder of `widths` channels with a head on each level.

    All names but `clip.*` and `image_encoder.*` are those of the released checkpoints.
    """

    def __init__(self, clip: Clip, image_encoder: ImageEncoder, widths: Widths) -> None:
        super().__init__(clip, image_encoder)
        c1, c2, c3, c4 = image_encoder.level_channels
        self.attention2 = PixelAttention(c2, clip.word_width)
        self.attention3 = PixelAttention(c3, clip.word_width)
        self.attention4 = PixelAttention(c4, clip.word_width)
        w1, w2, w3, w4 = widths
        self.reduced_c1 = ConvBnPRelu(c1, w1)
        self.reduced_c2 = ConvBnPRelu(c2, w2)
        self.reduced_c3 = ConvBnPRelu(c3, w3)
        self.reduced_c4 = ConvBnPRelu(c4, w4)
        self.output4 = ConvBnPRelu(w4, w3)
        self.output3 = ConvBnPRelu(w3, w2)
        self.output2 = ConvBnPRelu(w2, w1)
        self.output1 = ConvBnPRelu(w1, w1 // 2)
        # 32, 32, 64, 64 channels in the paper's network
        self.final_seg1 = _build_head(w1 // 2, w1 // 2)
        self.final_seg2 = _build_head(w1, w1 // 2)
        self.final_seg3 = _build_head(w2, w1)
        self.final_seg4 = _build_head(w3, w1)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Return what `segment` returns for `pixels` float (B, 3, H, W) and `tokens` int64 (B, T)."""
        return self.segment(self.encode_image(pixels), self.encode_text(tokens))

    def encode_image(self, pixels: Tensor) -> Levels:
        """Return c1..c4, float (B, C_i, H/s, W/s) s = 4, 8, 16, 32, of `pixels` float (B, 3, H, W).

        Raises RisError where H or W is no multiple of 32.
        """
        height, width = pixels.shape[-2:]
        if height % 32 or width % 32:
            raise RisError(f"Step-2 reads images of multiples of 32, not {height}×{width}: set input_size to one")
        return self.levels(pixels)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return the words float (N, T, word_width) of `tokens` int64 (N, T), padding included."""
        return self.clip.words(tokens)[0]

    def segment(self, levels: Levels, words: Tensor, image_of: Tensor | None = None) -> Tensor:
        """Return the logits float (N, H, W) at input size, foreground where > 0, of the finest head.

        `words` float (N, T, word_width); `levels` of B images; `image_of` int64 (N,) the image that each sentence
        is about, None where B is N, or 1 image for all.
        """
        return self.decode(self.attend(levels, words, image_of), image_of)

    def segment_heads(self, levels: Levels, words: Tensor, image_of: Tensor | None = None) -> Levels:
        """Return the logits of the four heads, which training compares with the labels, finest first; as `segment`."""
        c1 = levels[0]
        p1, p2, p3, p4 = self._decode(self.attend(levels, words, image_of), image_of)
        return (
            self._upsample(self.final_seg1(p1), c1),
            self._upsample(self.final_seg2(p2), c1),
            self._upsample(self.final_seg3(p3), c1),
            self._upsample(self.final_seg4(p4), c1),
        )

    def attend(self, levels: Levels, words: Tensor, image_of: Tensor | None = None) -> Levels:
        """Return the levels with what the words add to c2, c3, c4: c1 of B images, the others of N sentences."""
        c1, c2, c3, c4 = levels
        return (
            c1,
            self.attention2(c2, words, image_of) + of_sentences(c2, image_of),
            self.attention3(c3, words, image_of) + of_sentences(c3, image_of),
            self.attention4(c4, words, image_of) + of_sentences(c4, image_of),
        )

    def decode(self, levels: Levels, image_of: Tensor | None = None) -> Tensor:
        """Return the logits of the finest head, as `segment`, of what `attend` returns."""
        return self._upsample(self.final_seg1(self._decode(levels, image_of)[0]), levels[0])

    def _decode(self, levels: Levels, image_of: Tensor | None) -> Levels:
        """Return what the heads read, from stride 4 to stride 16 and coarser."""
        c1, c2, c3, c4 = levels
        d1 = of_sentences(self.reduced_c1(c1), image_of)
        d2, d3, d4 = self.reduced_c2(c2), self.reduced_c3(c3), self.reduced_c4(c4)

        p4 = _resize(self.output4(d4), d3.shape[-2:])
        p3 = _resize(self.output3(p4 + d3), d2.shape[-2:])
        p2 = _resize(self.output2(p3 + d2), d1.shape[-2:])
        return self.output1(p2 + d1), p2, p3, p4

    def _upsample(self, logits: Tensor, c1: Tensor) -> Tensor:
        """Return a head's logits (N, 1, h, w) at input size, four times that of c1, as (N, H, W)."""
        return _resize(logits, (4 * c1.shape[-2], 4 * c1.shape[-1])).squeeze(1)


class ConvBnPRelu(nn.Module):
    """3×3 convolution without bias, BatchNorm, PReLU with one slope for all channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return float (B, out_channels, h, w) of `x` float (B, in_channels, h, w)."""
        activated: Tensor = self.relu(self.bn(self.conv(x)))
        return activated


def _build_head(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(ConvBnPRelu(in_channels, channels), nn.Conv2d(channels, 1, 1, bias=False))


def _resize(x: Tensor, hw: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size=hw, mode="bilinear", align_corners=False)
