"""`millis build` for text-generation: from causal language models, or from text, to versions that generate."""
