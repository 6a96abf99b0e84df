"""Speeds, printed with their ratios to the goals. Run `python -m tests.benchmarks`; nothing here is a test."""
