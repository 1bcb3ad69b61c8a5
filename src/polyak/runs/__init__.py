"""Run folders: what is on disk (`folder`, `disk`), checkpoints, metric sinks, the progress display."""
