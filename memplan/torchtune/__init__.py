"""torchtune as a stack: which of its builders makes a config, and how its recipes load what they build."""
