"""Figures and pages about a run."""

from croc_jax.report.build import Scores, build_report, read_metrics

__all__ = ["Scores", "build_report", "read_metrics"]
