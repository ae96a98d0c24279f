"""Batches to trained nets, on Ray Train workers. Nothing in here knows of job files."""
