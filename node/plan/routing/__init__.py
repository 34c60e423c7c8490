"""Phase 2, request routing: which nodes serve one request."""
