"""The arithmetic that the method asks for."""

from croc_jax.models import VisionTransformer
from croc_jax.training.config import Recipe
from croc_jax.training.forward import init_networks


def transformer(recipe: Recipe) -> VisionTransformer:
    """Returns the backbone, whose work is counted for transformers alone."""
    backbone = init_networks(recipe).backbone
    if not isinstance(backbone, VisionTransformer):
        raise SystemExit(f"error: backbone.variant={recipe.backbone.variant!r}: choose a transformer")
    return backbone


def model_flops(recipe: Recipe, clusters: float) -> float:
    """Returns the multiplications and additions of an image that the method asks for.

    Both views go once through the teacher and, with gradients, three times through the student;
    work that is done twice to save memory does not count.

    Args:
        recipe: settings of the step.
        clusters: clusters of a head that both views show, on average.
    """
    backbone = transformer(recipe)
    tokens, width = backbone.grid_size**2 + 1, backbone.width
    matrices = 3 if backbone.mlp == "swiglu" else 2
    block = 2 * tokens * width**2 * (4 + matrices * backbone.mlp_ratio) + 4 * tokens**2 * width
    patches = 2 * (tokens - 1) * width * 3 * backbone.patch_size**2
    head = recipe.head
    shared = width * head.hidden_dim + head.hidden_dim**2 + head.hidden_dim * head.bottleneck_dim
    rows = 2 * (shared + head.bottleneck_dim * head.num_prototypes)
    if recipe.objective.alpha:
        rows += 2 * backbone.num_heads * clusters * (shared + head.bottleneck_dim * head.num_prototypes_dense)
    return 2 * 4 * (backbone.depth * block + patches + rows)
