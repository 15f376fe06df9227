"""Texts from a causal model: `generate` and what it stands on. e2e.py, the E2E task on top of it, is imported by
name. Left out: scores."""
from generation.decoding import best_text, generate, n_best
from generation.search import GPT2_END_TOKENS, SEARCHES, Hypothesis, Settings

__all__ = ["GPT2_END_TOKENS", "SEARCHES", "Hypothesis", "Settings", "best_text", "generate", "n_best"]
