"""Figures and pages about runs, evaluations and clusters."""

from croc_jax.report.build import build_comparison, build_report, read_metrics
from croc_jax.report.notebook import plot_clusters, plot_costs, plot_merging

__all__ = ["build_comparison", "build_report", "plot_clusters", "plot_costs", "plot_merging", "read_metrics"]
