"""The paper's optimiser: AdamW with a decay mask, warm-up and cosine, and the EMA of parameters."""
