"""One rule a file: what it checks and why (the docstring, which is its page), the check, and two examples.

Each has CODE, check(evidence), sick() and healthy(), which give (model, batches) or (model, batches, options of
diagnose), and WHERE, the layer that sick() has spoiled. `catalogue` finds them by their file names.
"""
