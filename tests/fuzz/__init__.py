"""Hostile files for every reader: one engine, one module per family of readers."""
