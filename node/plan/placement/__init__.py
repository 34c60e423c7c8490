"""Phase 1, model allocation: which node holds which layers."""
