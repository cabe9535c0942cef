"""One page on what a run's model looks at: ``python -m insight.interpret.report RUN_FOLDER``."""
