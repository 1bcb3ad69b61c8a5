"""Environments. Importing this package imports neither jax nor gymnasium; `resolve` imports what a name needs."""

from polyak.envs.source import Source, resolve

__all__ = ["Source", "resolve"]
