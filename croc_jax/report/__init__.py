"""Figures and pages about runs and evaluations."""

from croc_jax.report.build import build_comparison, build_report, read_metrics

__all__ = ["build_comparison", "build_report", "read_metrics"]
