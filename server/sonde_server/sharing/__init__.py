"""One thread owns the model; the questions of many callers share it."""
