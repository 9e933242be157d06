"""The study's steps and their commands."""

__version__ = "0.1.0"
