"""A language model and its text: presets and loading, sampling, prompts and answers, thinking, adapters, 4-bit weights.

Start with `models.load`; `answers.encode` joins prompt, trajectory and answer at exact token boundaries.
"""
