"""From one plan to the next: who loads and drops what, in which order."""
