"""What is wrong with a model's normalization, in numbers, and the call that mends it."""
