"""Settings of the cross-view online clustering."""

import dataclasses
import math
import numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """Hyper-parameters of the clustering; hashable, so static under `jax.jit`.

    Attributes:
        k_start: centroids at the first round (K_start; official `n_tokens`).
        k_max: the largest K that may be chosen (official `n_centroids_max`).
        lambda_pos: weight of the positional cost, Eq. 18 (official `pos_alpha`); infinity leaves
            nothing but positions.
        sinkhorn_lambda: inverse of the entropic regularization, Eq. 11.
        sinkhorn_iterations: row-then-column scalings a round.
        temp_r: temperature of the token marginal and of the draw of the first centroids.
        temp_c: temperature of the first centroid marginal.
        uniform_marginals: use 1/2n and 1/K instead of the [CLS] similarities.
        cost_scale: "batch" scales the cost by the extremes of the whole batch (the official
            code), "image" by those of each image and head, so that no result depends on its
            batch-mates.
    """

    k_start: int = 12
    k_max: int = 12
    lambda_pos: float = 4.0
    sinkhorn_lambda: float = 20.0
    sinkhorn_iterations: int = 5
    temp_r: float = 2.0
    temp_c: float = 2.0
    uniform_marginals: bool = False
    cost_scale: str = "batch"

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("k_start", "k_max", "sinkhorn_iterations"):
            self._expect(name, numbers.Integral, "a whole number")
        for name in ("lambda_pos", "sinkhorn_lambda", "temp_r", "temp_c"):
            self._expect(name, numbers.Real, "a number")
        if not isinstance(self.uniform_marginals, bool):
            raise ValueError(f"uniform_marginals={self.uniform_marginals!r}: expected True or False")
        if self.k_start < 2:
            raise ValueError(f"k_start={self.k_start}: the clustering starts from 2 or more centroids")
        if not 2 <= self.k_max <= self.k_start:
            raise ValueError(f"k_max={self.k_max}: must lie between 2 and k_start={self.k_start}")
        if self.cost_scale not in ("batch", "image"):
            raise ValueError(f"cost_scale={self.cost_scale!r}: choose 'batch' or 'image'")
        if self.sinkhorn_iterations < 1:
            raise ValueError(f"sinkhorn_iterations={self.sinkhorn_iterations}: must be 1 or more")
        for name in ("sinkhorn_lambda", "temp_r", "temp_c"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if math.isinf(self.sinkhorn_lambda):
            raise ValueError("sinkhorn_lambda=inf: must be finite")
        if not self.lambda_pos >= 0:
            raise ValueError(f"lambda_pos={self.lambda_pos}: must be 0 or more")

    def _expect(self, name: str, kind: type, words: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: expected {words}")
