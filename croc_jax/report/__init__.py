"""Figures and pages about a run."""

from croc_jax.report.build import Scores, build_report

__all__ = ["Scores", "build_report"]
