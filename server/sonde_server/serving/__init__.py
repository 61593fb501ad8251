"""The process: it listens, guards, answers, reports, and stops."""
