"""What notebooks use and what makes them: figures, exercises, generated parts, headless execution.

Start with `plots`.
"""
