"""Small PyTorch models with published parameter names; imported only where torch is there."""
