"""mull: own your reasoning model."""
