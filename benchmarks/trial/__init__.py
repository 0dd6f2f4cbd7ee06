"""The first minutes on a new accelerator: numbers, speed, a trace, and a run that is killed and resumes."""
