"""Explains a PyTorch out-of-memory error: what was asked for, why it was not there, and what to change.

explain(text)                     what the message itself says
explain(text, recipe)             which tensor it was, and the least painful change that makes the recipe fit
"""

from __future__ import annotations

from memplan.oom.explain import Explanation, explain
from memplan.oom.message import OomMessage, parse

__all__ = ["Explanation", "OomMessage", "explain", "parse"]
