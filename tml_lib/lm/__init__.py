"""A language model and its text: loading, sampling, prompts and answers, thinking, 4-bit weights.

Start with `models.load`; `answers.encode` joins prompt, trajectory and answer at token boundaries.
"""
