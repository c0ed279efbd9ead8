"""Step-1: from an image and a sentence to a response map, learnt without any mask (TRIS, ICCV 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ris_pipeline.errors import RisError
from ris_pipeline.networks.clip import Clip
from ris_pipeline.networks.parts.bilateral_prompt import BilateralPrompt
from ris_pipeline.networks.referring import ImageEncoder, ReferringNetwork


class Step1(ReferringNetwork):
    """The response network: h×w is the stride-32 grid, C = `hidden` (1024 in the paper).

    All names but `clip.*` and `image_encoder.*` are those of the released checkpoints.
    """

    def __init__(self, clip: Clip, image_encoder: ImageEncoder, hidden: int) -> None:
        super().__init__(clip, image_encoder)
        self.vis_project = nn.Conv2d(image_encoder.level_channels[-1], hidden, 1)
        self.lan_project = nn.Linear(clip.embed_dim, hidden)
        self.attn_fusion = BilateralPrompt(hidden)
        # A parameter for the checkpoints' sake: the released optimiser never had it, so it keeps this value.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=False)

    @torch.no_grad()
    def project_from_clip(self) -> None:
        """Start the projections where CLIP compares images and texts: values of its pooling, texts as they are.

        Then V is what MaskCLIP (ECCV 2022) calls dense features, and training starts from its maps. Not in TRIS,
        which starts at random. Raises RisError unless the image encoder is a CLIP-ResNet and C its embedding width.
        """
        if (
            self.image_encoder is not None
            or not self.clip.is_resnet
            or len(self.lan_project.weight) != self.clip.embed_dim
        ):
            raise RisError(f"project_from_clip needs CLIP's own ResNet and hidden = {self.clip.embed_dim}")
        pooling = self.clip.model.visual.attnpool
        weight = pooling.c_proj.weight @ pooling.v_proj.weight
        bias = pooling.c_proj.weight @ pooling.v_proj.bias + pooling.c_proj.bias
        self.vis_project.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})
        nn.init.eye_(self.lan_project.weight)
        nn.init.zeros_(self.lan_project.bias)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Return S float (B, N, h, w) of `pixels` float (B, 3, H, W) and all texts `tokens` int64 (N, T)."""
        return self.respond(self.encode_image(pixels), self.encode_text(tokens))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return V float (B, C, h, w), of length 1 at each position, for `pixels` float (B, 3, H, W)."""
        return F.normalize(self.vis_project(self.levels(pixels)[-1]), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return T float (N, C), of length 1 for each text, for `tokens` int64 (N, T)."""
        return F.normalize(self.lan_project(self.clip.encode_text(tokens)), dim=-1)

    def respond(self, V: Tensor, T: Tensor) -> Tensor:
        """Return the score S = exp(logit_scale)·⟨V, T⟩, float (B, N, h, w), unbounded: logits, not a map.

        `V` float (B, C, h, w), `T` float (N, C). Every image meets all N texts at once, as in training: the
        texts change what the positions are, so S of a pair depends on the other texts.
        """
        return self.compare(*self.attn_fusion(V, T))

    def respond_each(self, V: Tensor, T: Tensor) -> Tensor:
        """Return S float (n, h, w) for n texts, each alone with its image: the official evaluation, batched.

        `T` float (n, C); `V` float (B, C, h, w), B = 1 (one image for all texts) or n (one for each), or any
        divisor of n where the texts of one image stand side by side. The image's part is computed once.
        """
        n_images, n_channels = V.shape[:2]
        V, T = self.attn_fusion.prompt_each(V, T.reshape(n_images, -1, n_channels))
        return self.compare(V, T).flatten(0, 1)

    def compare(self, V: Tensor, T: Tensor) -> Tensor:
        """Return S = exp(logit_scale)·⟨V, T⟩, float (B, K, h, w), of prompted V (B, C, h, w) and T (B, K, C)."""
        S = self.logit_scale.exp() * (T @ V.flatten(2))  # (B, K, hw)
        return S.view(*S.shape[:2], *V.shape[-2:])
