"""How fast the scheduler plans and routes, and how its plans do against others'. See `__main__`."""
