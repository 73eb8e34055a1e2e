"""A training planned before any weight is loaded: parameters, memory of every rank, hours, cost, what to change."""
