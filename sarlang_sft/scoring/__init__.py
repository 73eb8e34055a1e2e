"""Metrics and protocols: predictions and a data folder in, scores with their uncertainty out."""
