"""Support of a run beside its mathematics: processes, workdir, metrics, progress, profiles, collapse detection."""
