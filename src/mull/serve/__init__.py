"""A private endpoint: OpenAI's and Anthropic's protocols over an engine on one's own machine."""
