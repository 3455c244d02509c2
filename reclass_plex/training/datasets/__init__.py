"""Readers of labelled music, one file a collection."""
