"""Times the arithmetic of the ViT-S/16 step in PyTorch on CPU, which `step.py --dtype=float32` or `mixed` is held to.

    pip install 'croc_jax[torch]'; python benchmarks/pytorch_step.py [--batch=4] [--autocast]

The same network, heads, losses, optimizer and moving average, by PyTorch's own layers; give --clusters and --batch of
step.py. Centroids are means of equal shares of the patches. What that step does besides is missing: augmentation,
clustering, clipping, centers, stochastic depth and metrics.
"""

import time
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from absl import flags
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn.functional import (  # pyright: ignore[reportMissingImports]
    cross_entropy,
    normalize,
    pad,
    scaled_dot_product_attention,
)

from croc_jax.runtime.program import run

BATCH = flags.DEFINE_integer("batch", 8, "Images a step.")
AUTOCAST = flags.DEFINE_bool("autocast", False, "Multiply in bfloat16, attention and logits too, as PyTorch chooses.")
CLUSTERS = flags.DEFINE_integer("clusters", 10, "Centroids of an attention head and image.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Steps that are timed.")
WIDTH, DEPTH, HEADS, PATCH, SIZE = 384, 12, 6, 16, 224
HIDDEN, BOTTLENECK, PROTOTYPES, PROTOTYPES_DENSE = 2048, 256, 65536, 8192
STUDENT_TEMP, TEACHER_TEMP, MOMENTUM = 0.1, 0.04, 0.996


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self) -> None:
        """Makes the layers."""
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.projection = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the tokens, and the values of each head."""
        batch, count, _ = x.shape
        qkv = self.qkv(self.norm_1(x)).reshape(batch, count, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, count, WIDTH)
        x = x + self.projection(mixed)
        return x + self.mlp(self.norm_2(x)), qkv[2]


class Network(nn.Module):
    """The backbone and the head."""

    def __init__(self) -> None:
        """Makes the layers."""
        super().__init__()
        count = (SIZE // PATCH) ** 2
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls, self.positions = (nn.Parameter(torch.randn(1, n, WIDTH) / 50) for n in (1, count + 1))
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(DEPTH)), nn.LayerNorm(WIDTH)
        widths = (WIDTH, HIDDEN, HIDDEN, BOTTLENECK)
        layers = [layer for i in range(3) for layer in (nn.Linear(widths[i], widths[i + 1]), nn.GELU())]
        self.head = nn.Sequential(*layers[:-1])
        self.last, self.last_dense = (
            nn.utils.parametrizations.weight_norm(nn.Linear(BOTTLENECK, n, bias=False))
            for n in (PROTOTYPES, PROTOTYPES_DENSE)
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits of [CLS] and those of all centroids."""
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x, values = block(x)
        x, values = self.norm(x), values[:, :, 1:]
        share = values.shape[2] // CLUSTERS.value
        values = values[:, :, : share * CLUSTERS.value].reshape(len(x), HEADS, CLUSTERS.value, share, -1)
        # A head's centroid has zeros where the features of other heads are, as many rows as in the method.
        centroids = pad(values.mean(3), (0, WIDTH - values.shape[-1])).reshape(-1, WIDTH)
        return tuple(
            last(normalize(self.head(rows).float(), dim=-1)).float()
            for last, rows in ((self.last, x[:, 0]), (self.last_dense, centroids))
        )


def main() -> None:
    """Prints the median time of an image."""
    torch.manual_seed(0)
    student, teacher = Network(), Network()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.04, fused=True)
    images = torch.randn(2 * BATCH.value, 3, SIZE, SIZE)
    autocast: Any = torch.autocast("cpu", dtype=torch.bfloat16, enabled=AUTOCAST.value)

    def one_step() -> None:
        with autocast:
            with torch.no_grad():
                targets = [torch.softmax(part / TEACHER_TEMP, -1) for part in teacher(images)]
            logits = student(images)
        # The teacher's view is the other one.
        losses = [cross_entropy(x / STUDENT_TEMP, y.roll(len(y) // 2, 0)) for x, y in zip(logits, targets, strict=True)]
        optimizer.zero_grad()
        torch.add(*losses).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - MOMENTUM)

    one_step()
    seconds = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        one_step()
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds)[len(seconds) // 2]
    types = "autocast to bfloat16" if AUTOCAST.value else "float32"
    print(
        f"PyTorch {torch.__version__}, ViT-S/16 step, batch {BATCH.value}, {types}: "
        f"{1e3 * median / BATCH.value:.1f} ms an image, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    run(main)
