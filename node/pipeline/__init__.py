"""One request's way through the hops: the head that opens it, the stages that run it, the timing that comes back."""
