"""Masked autoencoding: hide most of an image's patches, and draw them from the few that are left."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslcourse import augment, losses
from sslcourse.models.methods import Method
from sslcourse.models.transformers import TransformerBlock, VisionTransformer, sine_cosine_positions


class MAE(Method):
    """See a quarter of the patches, and say what the others look like (He, Chen, Xie, Li, Dollár, Girshick 2022, arXiv 2111.06377).

    encoder: a `models.vit`; it works on the patches that are seen, and a small decoder, which is thrown away, on all (section 3).
    mask_ratio: part of the patches that is hidden. decoder_width, decoder_depth, decoder_heads: as in `vit`. normalised: the target is each
    patch less its own mean, divided by its own standard deviation, which the paper finds better than pixels (section 4.1).
    metrics: seen_loss, the error of the patches that were seen, which nobody asked for.
    """

    loss_name, default_augmentation = "mae", staticmethod(augment.crop_and_flip)
    shown = ("mask_ratio", "decoder_width", "decoder_depth", "decoder_heads", "normalised")

    def __init__(
        self, encoder: VisionTransformer, augmentation: nn.Module | None = None, *, mask_ratio: float = 0.75, decoder_width: int = 96,
        decoder_depth: int = 2, decoder_heads: int = 3, normalised: bool = True,
    ):  # fmt: skip
        if not isinstance(encoder, VisionTransformer):
            raise ValueError(f"MAE needs an encoder of patches, of which it hides most: models.vit(), not this {type(encoder).__name__}.")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio is the part of the patches that is hidden and must lie between 0 and 1, not {mask_ratio}.")
        super().__init__(encoder, augmentation)
        self.mask_ratio, self.normalised, self.patch = float(mask_ratio), bool(normalised), encoder.patch
        self.decoder_width, self.decoder_depth, self.decoder_heads = decoder_width, decoder_depth, decoder_heads
        self.to_decoder = nn.Linear(self.feature_dim, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder_width))
        blocks = [TransformerBlock(decoder_width, decoder_heads) for _ in range(decoder_depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(decoder_width, eps=1e-6))
        self.to_pixels = nn.Linear(decoder_width, 3 * self.patch**2)

    def chance_loss(self, batch_size: int) -> float:
        """The loss when nothing has been learned; NaN for plain pixels, whose variance is the images' own."""
        return super().chance_loss(batch_size) if self.normalised else math.nan

    def patchify(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> their patches, row by row: (N, L, 3 · patch²)."""
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[2] % self.patch or x.shape[3] % self.patch:
            kind = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__} (of two views?)"
            raise ValueError(f"MAE cuts one tensor of images (N, 3, H, W) into patches of {self.patch} pixels a side, not {kind}.")
        x = x.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))  # (N, 3, h, patch, w, patch)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, height: int) -> Tensor:
        """What `patchify` made of images of so many pixels in height -> the images."""
        x = patches.unflatten(2, (3, self.patch, self.patch)).unflatten(1, (height // self.patch, -1))  # (N, h, w, 3, patch, patch)
        return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def random_mask(self, n: int, patches: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """For each of n images: which patches are seen, indices (n, seen) in random order; mask (n, patches), 1 where one is hidden.

        Every image hides the same number, so that they stay one tensor: noise is sorted, and the first are taken (section 3).
        """
        seen = min(max(1, round((1 - self.mask_ratio) * patches)), patches - 1)
        kept = torch.rand(n, patches, device=device).argsort(1)[:, :seen]
        return kept, torch.ones(n, patches, device=device).scatter_(1, kept, 0.0)

    def predict(self, x: Tensor, kept: Tensor) -> Tensor:
        """All patches, from those that are kept: normalised images (N, 3, H, W), indices (N, seen) -> (N, L, 3 · patch²)."""
        tokens = self.encoder.embed(x)  # (N, L, width)
        seen = tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))  # (N, seen, width)
        return self.decode(self.encoder.transform(seen), kept, x.shape)

    def decode(self, encoded: Tensor, kept: Tensor, shape: Sequence[int]) -> Tensor:
        """What the encoder made of the class token and the kept ones (N, 1 + seen, width) -> all patches of images of this shape."""
        seen = self.to_decoder(encoded)  # (N, 1 + seen, decoder_width)
        rows, columns = (side // self.patch for side in shape[2:])
        hidden = self.mask_token.to(seen.dtype).expand(len(seen), rows * columns, -1)
        every = hidden.scatter(1, kept.unsqueeze(2).expand(-1, -1, self.decoder_width), seen[:, 1:])  # each back in its place
        every = every + sine_cosine_positions(self.decoder_width, rows, columns, self.encoder.side, seen.device).to(seen.dtype)
        return self.to_pixels(self.decoder(torch.cat([seen[:, :1], every], 1))[:, 1:])

    def target(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (N, L, P) -> what is to be predicted, and the mean and standard deviation (N, L, 1) that lead back to pixels."""
        if not self.normalised:
            return patches, patches.new_zeros(()), patches.new_ones(())
        mean, deviation = patches.mean(2, keepdim=True), (patches.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
        return (patches - mean) / deviation, mean, deviation

    def forward(self, images: Tensor) -> Tensor:
        x = self.augment(images)
        target, _, _ = self.target(self.patchify(x))
        kept, mask = self.random_mask(*target.shape[:2], x.device)
        predicted = self.predict(x, kept)
        self.metrics = {"seen_loss": losses.mae_loss(predicted.detach(), target, 1 - mask)}
        return losses.mae_loss(predicted, target, mask)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8 (N, 3, H, W) -> with the hidden patches grey, with these as they are predicted, and as they were; all uint8.

        A prediction of normalised patches is given each one's true mean and deviation, for the eye.
        """
        self.prepare(images.shape[-1])
        mean, std = self.augmentation.mean, self.augmentation.std
        patches = self.patchify((images / 255 - mean) / std)
        kept, mask = self.random_mask(*patches.shape[:2], images.device)
        _, own_mean, own_deviation = self.target(patches)
        drawn = self.predict((images / 255 - mean) / std, kept) * own_deviation + own_mean
        pictures = [torch.where(mask.unsqueeze(2) > 0, filled, patches) for filled in (torch.zeros_like(patches), drawn, patches)]
        return tuple(((self.unpatchify(p, images.shape[2]) * std + mean) * 255).round().clamp(0, 255).byte() for p in pictures)
