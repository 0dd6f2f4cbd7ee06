"""The machine under a run: processes, workdir, metrics, progress, profiles; imported by the programs alone."""
