"""A small Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1): an image is a sequence of patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslcourse.models.encoders import Encoder


def sine_cosine_positions(dim: int, height: int, width: int, side: float, device: torch.device | None = None) -> Tensor:
    """Where each patch of a grid is, as sines and cosines of its row and of its column: float32 (height · width, dim), row by row.

    dim: a multiple of 4; its first half tells the row, its second the column, with wavelengths from 2π to 20,000π patches (Vaswani et al.
    2017, section 3.5; MAE, He et al. 2022, appendix A.1). side: rows of the square grid whose patches are 1 apart. Any other grid is
    stretched over it, as learned positions are interpolated, so that a crop's first row and column are the image's.
    """
    frequency = 10_000 ** -(torch.arange(dim // 4, device=device) / (dim // 4))

    def along(patches: int) -> Tensor:
        place = (torch.arange(patches, device=device) + 0.5) * (side / patches) - 0.5
        angle = place.unsqueeze(1) * frequency
        return torch.cat([angle.sin(), angle.cos()], 1)  # (patches, dim / 2)

    rows, columns = along(height).repeat_interleave(width, 0), along(width).repeat(height, 1)
    return torch.cat([rows, columns], 1)


class Attention(nn.Module):
    """Each token asks all tokens: tokens (N, T, width) -> (N, T, width) (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def by_head(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values: (3, N, heads, T, width / heads)."""
        return self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.by_head(tokens)
        answers = F.scaled_dot_product_attention(q, k, v)  # softmax(q kᵀ / √(width / heads)) v, head by head
        return self.out(answers.transpose(1, 2).flatten(2))

    def weights(self, tokens: Tensor) -> Tensor:
        """How much each token (a row) takes from each (a column): (N, heads, T, T), rows sum to 1."""
        q, k, _ = self.by_head(tokens)
        return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)


class TransformerBlock(nn.Module):
    """Attention between the tokens, then an MLP on each, both on normalised tokens and added to them: (N, T, width) -> the same."""

    def __init__(self, width: int, heads: int):
        if width % 4 or width % heads:
            raise ValueError(f"The width of a token must be a multiple of 4, for its position, and of its {heads} heads, not {width}.")
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(Encoder):
    """Patches become tokens, a class token joins them, and blocks of attention and MLP work on all. Made by `vit`.

    The maps of `feature_maps` are the patch tokens after each block, through the last normalisation, as DINO's authors take them. Their
    features are means: a token is no filter whose largest answer counts, and with pool="mean" the last block's are the encoder's output.
    """

    pool_maps = staticmethod(lambda maps: maps.mean((2, 3)))

    def __init__(self, recipe: dict, patch: int, width: int, depth: int, heads: int, image_size: int, pool: str):
        super().__init__(recipe, [TransformerBlock(width, heads) for _ in range(depth)], width, smallest=patch)
        self.patch, self.side, self.pool = patch, image_size / patch, pool
        self.patches_to_tokens = nn.Conv2d(3, width, patch, stride=patch)  # one linear layer for all patches
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"The sides of the images must be multiples of the patch, {self.patch} pixels, not {tuple(x.shape[2:])}.")

    def embed(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> their L patches as tokens, row by row, each with its position: (N, L, width)."""
        self._check(x)
        tokens = self.patches_to_tokens(x)  # (N, width, h, w)
        positions = sine_cosine_positions(self.feature_dim, *tokens.shape[2:], self.side, x.device)
        return tokens.flatten(2).transpose(1, 2) + positions.to(x.dtype)

    def with_class_token(self, tokens: Tensor) -> Tensor:
        """(N, L, width) -> (N, 1 + L, width)."""
        return torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], 1)

    def transform(self, tokens: Tensor) -> Tensor:
        """Any of an image's patches, as tokens of `embed` (N, L, width) -> what the network makes of them, class token first."""
        return self.norm(self.blocks(self.with_class_token(tokens)))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.transform(self.embed(x))
        return tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(1)

    def feature_maps(self, x: Tensor, blocks: int | None = None) -> list[Tensor]:
        tokens, maps = self.with_class_token(self.embed(x)), []
        for block in self.blocks[:blocks]:
            tokens = block(tokens)
            maps.append(self.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (-1, x.shape[3] // self.patch)))
        return maps

    def attention(self, x: Tensor) -> Tensor:
        """How much the class token takes from each patch in the last block: (N, heads, h, w); what is missing to 1 it takes from itself."""
        *before, last = self.blocks
        tokens = nn.Sequential(*before)(self.with_class_token(self.embed(x)))
        weights = last.attention.weights(last.norm1(tokens))
        return weights[:, :, 0, 1:].unflatten(2, (-1, x.shape[3] // self.patch))


def vit(patch: int = 4, width: int = 192, depth: int = 6, heads: int = 3, image_size: int = 32, pool: str = "mean") -> VisionTransformer:
    """A Vision Transformer: images (N, 3, H, W), sides multiples of `patch` pixels -> (N, width). 2.7 million parameters as it stands.

    width: numbers a token, a multiple of 4 and of heads (DeiT, Touvron et al. 2021, has 64 a head). depth: blocks, at most 100.
    image_size: pixels a side of the images it is for; others, such as local crops, work too (`sine_cosine_positions`).
    pool: what comes out, the "mean" of the patch tokens or the "class" token.
    """
    numbers = {"patch": patch, "width": width, "depth": depth, "heads": heads, "image_size": image_size}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1 or (name == "depth" and value > 100):  # a file may ask for any
            raise ValueError(f"{name} must be a positive whole number{', at most 100' * (name == 'depth')}, not {value}.")
    if pool not in ("mean", "class"):
        raise ValueError(f"pool is 'mean' (of the patch tokens) or 'class' (the class token), not {pool!r}.")
    return VisionTransformer({"name": "vit", **numbers, "pool": pool}, **numbers, pool=pool)
