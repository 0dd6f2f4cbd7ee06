"""Schedules, optimizer, state, the step, and the loop around it."""
