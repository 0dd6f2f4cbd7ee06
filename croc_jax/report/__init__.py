"""Figures and pages about runs, evaluations and clusters."""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    remedy = "croc_jax.report draws with matplotlib, which is not installed: pip install 'croc_jax[report]'"
    raise ModuleNotFoundError(remedy, name=error.name) from None

from croc_jax.report.notebook import plot_clusters, plot_costs, plot_merging
from croc_jax.report.page import build_comparison, build_report, read_metrics

__all__ = ["build_comparison", "build_report", "plot_clusters", "plot_costs", "plot_merging", "read_metrics"]
