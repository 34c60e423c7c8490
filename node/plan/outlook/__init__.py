"""What a plan will be like: predicted times, and the words for it."""
