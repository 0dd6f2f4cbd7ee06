"""One entropic transport problem between tokens and the active clusters, solved by ott."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

# The cost lies in [0, 1], so exp(-lambda * cost) stays normal in float32 up to lambda = 87.
# Scaling the kernel then costs one exponential an entry instead of one an entry and iteration.
LARGEST_KERNEL_LAMBDA = 60.0


@jax.tree_util.register_pytree_node_class
class FixedKernel(geometry.Geometry):
    """A geometry with a fixed epsilon and a precomputed kernel."""

    def apply_kernel(self, vec: Array, eps: float | None = None, axis: int = 0) -> Array:
        """Multiplies by the kernel; ott's own raises it to the power `epsilon / eps`, here 1, in each iteration."""
        del eps
        return super().apply_kernel(vec, axis=axis)


def transport_plan(
    cost: Float[Array, "k n"],
    cluster_marginal: Float[Array, " k"],
    token_marginal: Float[Array, " n"],
    *,
    sinkhorn_lambda: float,
    iterations: int,
) -> Float[Array, "k n"]:
    """Returns the plan after a fixed number of iterations, each tokens first, then clusters.

    The problem is posed with clusters as rows because ott updates columns first: this is the
    order of the official code, whose plan a few iterations have not made independent of it.
    The clusters' marginal holds exactly; a cluster without mass gets a row of zeros.

    Examples:
        >>> half = jnp.full(2, 0.5)
        >>> transport_plan(1 - jnp.eye(2), half, half, sinkhorn_lambda=20.0, iterations=5).round(3).tolist()
        [[0.5, 0.0], [0.0, 0.5]]

    Args:
        cost: in [0, 1] on the clusters with mass; finite elsewhere.
        cluster_marginal: sums to 1; 0 for an inactive cluster.
        token_marginal: sums to 1, all positive.
        sinkhorn_lambda: inverse of the entropic regularization, Eq. 11.
        iterations: number of row-then-column scalings.
    """
    settings = {"cost_matrix": cost, "epsilon": 1.0 / sinkhorn_lambda, "scale_cost": 1.0}
    # Computed here, or compilers for accelerators compute it anew wherever an iteration reads it.
    kernel = geometry.Geometry(**settings).kernel_matrix
    problem = linear_problem.LinearProblem(
        FixedKernel(kernel_matrix=kernel, **settings), a=cluster_marginal, b=token_marginal
    )
    solver = sinkhorn.Sinkhorn(
        lse_mode=sinkhorn_lambda > LARGEST_KERNEL_LAMBDA,
        threshold=-1.0,
        inner_iterations=iterations,
        min_iterations=iterations,
        max_iterations=iterations,
        implicit_diff=None,
    )
    plan = solver(problem).matrix
    return jnp.where(cluster_marginal[:, None] > 0, plan, 0.0)
