"""W&B's own search (PyPI `sweeps`), without its warning about a setting that this pydantic names otherwise."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Valid config keys have changed in V2", UserWarning)
    import sweeps.bayes_search  # noqa: F401 - else `next_run` imports it, which draws random numbers
    from sweeps import RunState, SweepRun, next_run, stop_runs
    from sweeps.config import schema_violations_from_proposed_config as find_violations
    from sweeps.params import HyperParameter, HyperParameterSet

__all__ = ["HyperParameter", "HyperParameterSet", "RunState", "SweepRun", "find_violations", "next_run", "stop_runs"]
