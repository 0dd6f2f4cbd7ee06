"""Figures and pages about runs, evaluations and clusters."""

from croc_jax.report.notebook import plot_clusters, plot_costs, plot_merging
from croc_jax.report.page import build_comparison, build_report, read_metrics

__all__ = ["build_comparison", "build_report", "plot_clusters", "plot_costs", "plot_merging", "read_metrics"]
